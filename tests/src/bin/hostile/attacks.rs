//! The attacks, in the order in which they are run.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::healthy::{self, Healthy};
use crate::site::{Site, Target};
use crate::{control_plane, discovery, http1, http2, webhooks};

/// One way to attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    /// A healthy client of the target; each of several has a number of its own.
    pub(crate) healthy: fn(&Site, usize) -> Box<dyn Healthy>,
    /// Goes on for so long; what it took.
    pub(crate) run: fn(&Site, Duration) -> Sent,
}

/// What an attack took of the attacker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    /// Bytes that it sent.
    pub(crate) bytes: u64,
    /// Connections that it held open at a time.
    pub(crate) connections: u64,
    /// Streams that it held open at a time, on all of them.
    pub(crate) streams: u64,
    /// Requests that it made, at least one on each connection and stream.
    pub(crate) requests: u64,
}

/// All of them.
pub(crate) fn all() -> Vec<Attack> {
    let sidecar = |name, run| Attack { name, target: Target::Sidecar, healthy: healthy::ingress, run };
    let probes = |name, run| Attack { name, target: Target::Sidecar, healthy: healthy::prober, run };
    let ca = |name, run| Attack { name, target: Target::Ca, healthy: healthy::certified, run };
    let controller = |name, run| Attack { name, target: Target::Controller, healthy: healthy::resolver, run };
    let injector = |name, run| Attack { name, target: Target::Injector, healthy: healthy::reviewed, run };
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

/// Opens `count` connections and keeps them until the time is over; those that the mesh has ended by then are not held.
/// Opening says what was sent.
pub(crate) fn hold<T: AsFd>(
    count: usize,
    time: Duration,
    mut open: impl FnMut() -> io::Result<(T, u64)>,
) -> Sent {
    let end = Instant::now() + time;
    let (mut held, mut bytes) = (Vec::new(), 0);
    for _ in 0..count {
        if Instant::now() >= end {
            break;
        }
        // Go on after a refusal: the next one may find room.
        if let Ok((one, sent)) = open() {
            held.push(one);
            bytes += sent;
        }
    }
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
    Sent::new(bytes, held.iter().filter(is_open).count())
}

/// Whether the peer has not ended a connection, as far as what it has sent and was not read lets see.
fn is_open(connection: &impl AsFd) -> bool {
    match recv(connection, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((read, _)) => read > 0,
        Err(error) => error == Errno::AGAIN,
    }
}

/// Does something over and over until the time is over; what was sent. After a failure it rests for a moment.
pub(crate) fn repeat(time: Duration, mut once: impl FnMut() -> io::Result<u64>) -> u64 {
    let end = Instant::now() + time;
    let mut sent = 0;
    while Instant::now() < end {
        match once() {
            Ok(bytes) => sent += bytes,
            Err(_) => thread::park_timeout(Duration::from_millis(5)),
        }
    }
    sent
}

impl Sent {
    /// So many bytes, on so many connections at a time.
    pub(crate) fn new(bytes: u64, connections: usize) -> Self {
        Self { bytes, connections: connections as u64, streams: 0, requests: connections as u64 }
    }

    /// With so many streams on each connection.
    pub(crate) fn with_streams(self, each: usize) -> Self {
        let streams = self.connections * each as u64;
        Self { streams, requests: self.requests.max(streams), ..self }
    }

    /// With so many requests in all.
    pub(crate) fn with_requests(self, requests: u64) -> Self {
        Self { requests, ..self }
    }
}
