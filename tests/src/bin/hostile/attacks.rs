//! The attacks, in the order in which they are run.

use std::time::Duration;

use crate::healthy::{self, Healthy};
use crate::sent::AttackSent;
use crate::site::{AttackTarget, HostileSite};
use crate::{control_plane, discovery, http1, http2, webhooks};

/// A kind of attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) target: AttackTarget,
    /// Creates a healthy client of the target; its number distinguishes it from others.
    pub(crate) healthy: fn(&HostileSite, usize) -> Box<dyn Healthy>,
    /// Attacks for this long; returns what was sent.
    pub(crate) run: fn(&HostileSite, Duration) -> AttackSent,
}

/// All attacks.
pub(crate) fn all() -> Vec<Attack> {
    let sidecar = |name, run| Attack { name, target: AttackTarget::Sidecar, healthy: healthy::ingress, run };
    let probes = |name, run| Attack { name, target: AttackTarget::Sidecar, healthy: healthy::prober, run };
    let ca = |name, run| Attack { name, target: AttackTarget::Ca, healthy: healthy::certified, run };
    let controller =
        |name, run| Attack { name, target: AttackTarget::Controller, healthy: healthy::resolver, run };
    let injector =
        |name, run| Attack { name, target: AttackTarget::Injector, healthy: healthy::reviewed, run };
    vec![
        sidecar("HTTP/1: 600 clients ask and leave", http1::leave),
        sidecar("HTTP/1: slow readers of 1 MB", http1::slow_readers),
        sidecar("HTTP/1: half heads of 60 KB", http1::half_heads),
        sidecar("HTTP/1: bodies that do not come", http1::bodies_that_do_not_come),
        sidecar("connections that say nothing", http1::silent),
        sidecar("connections by the thousand a second", http1::churn),
        sidecar("HTTP/2: malformed requests", http2::malformed),
        sidecar("HTTP/2: answers that are not taken", http2::answers_not_taken),
        sidecar("HTTP/2: answers of HTTP/1 of which the beginning is taken", http2::answers_begun_by_http1),
        sidecar("HTTP/2: answers of HTTP/2 of which the beginning is taken", http2::answers_begun_by_http2),
        sidecar("HTTP/2: bodies that do not come, app of HTTP/1", http2::bodies_to_http1),
        sidecar("HTTP/2: bodies that do not come, app of HTTP/2", http2::bodies_to_http2),
        sidecar("HTTP/2: fields by index", http2::fields_by_index),
        sidecar("HTTP/2: rapid reset", http2::rapid_reset),
        sidecar("HTTP/2: WINDOW_UPDATE of the connection", http2::window_updates),
        sidecar("HTTP/2: PING", http2::pings),
        sidecar("HTTP/2: SETTINGS", http2::settings),
        sidecar("HTTP/2: empty DATA", http2::empty_data),
        probes("probes: 200 a second of an app that takes 0.5 s", http1::probes),
        ca("CA: handshakes of 64 KB that do not end", control_plane::endless_hello_to_ca),
        ca("CA: large calls without a token", control_plane::large_calls_without_token),
        ca("CA: small calls without a token", control_plane::small_calls_without_token),
        ca("CA: requests for other names, with a token", control_plane::other_names),
        controller(
            "controller: handshakes of 64 KB that do not end",
            control_plane::endless_hello_to_controller,
        ),
        controller("controller: 96 streams of a Pod with 8,192 addresses each", discovery::many_destinations),
        injector("webhook: 40 bodies that do not end", webhooks::unfinished_bodies),
        injector("webhook: Pods of 260 KB and 4 MB of empty volumes", webhooks::empty_volumes),
        injector("webhook: names of 3.9 MB", webhooks::long_names),
    ]
}
