//! The attacks, in the order in which they are run.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::site::{Site, Target};
use crate::{control_plane, http1, http2};

/// One way to attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) target: Target,
    /// Goes on for so long; how many bytes it has sent.
    pub(crate) run: fn(&Site, Duration) -> u64,
}

/// All of them.
pub(crate) fn all() -> Vec<Attack> {
    let of = |target, name, run| Attack { name, target, run };
    let (sidecar, ca, controller) = (Target::Sidecar, Target::Ca, Target::Controller);
    vec![
        of(sidecar, "HTTP/1: 600 clients ask and leave", http1::leave),
        of(sidecar, "HTTP/1: slow readers of 1 MB", http1::slow_readers),
        of(sidecar, "HTTP/1: half heads of 60 KB", http1::half_heads),
        of(sidecar, "HTTP/1: bodies that do not come", http1::bodies_that_do_not_come),
        of(sidecar, "connections that say nothing", http1::silent),
        of(sidecar, "connections by the thousand a second", http1::churn),
        of(sidecar, "HTTP/2: malformed requests", http2::malformed),
        of(sidecar, "HTTP/2: answers that are not taken", http2::answers_not_taken),
        of(sidecar, "HTTP/2: bodies that do not come, app of HTTP/1", http2::bodies_to_http1),
        of(sidecar, "HTTP/2: bodies that do not come, app of HTTP/2", http2::bodies_to_http2),
        of(sidecar, "HTTP/2: fields by index", http2::fields_by_index),
        of(sidecar, "HTTP/2: rapid reset", http2::rapid_reset),
        of(sidecar, "HTTP/2: WINDOW_UPDATE of the connection", http2::window_updates),
        of(sidecar, "HTTP/2: PING", http2::pings),
        of(sidecar, "HTTP/2: SETTINGS", http2::settings),
        of(sidecar, "HTTP/2: empty DATA", http2::empty_data),
        of(ca, "CA: handshakes of 64 KB that do not end", control_plane::endless_hello_to_ca),
        of(ca, "CA: large calls without a token", control_plane::calls_without_token),
        of(
            controller,
            "controller: handshakes of 64 KB that do not end",
            control_plane::endless_hello_to_controller,
        ),
    ]
}

/// Opens `count` of something and keeps them until the time is over; what they have sent.
pub(crate) fn hold<T>(count: usize, time: Duration, mut open: impl FnMut() -> io::Result<(T, u64)>) -> u64 {
    let end = Instant::now() + time;
    let (mut held, mut sent) = (Vec::new(), 0);
    for _ in 0..count {
        if Instant::now() >= end {
            break;
        }
        // Go on after a refusal: the next one may find room.
        if let Ok((one, bytes)) = open() {
            held.push(one);
            sent += bytes;
        }
    }
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
    sent
}

/// Does something over and over until the time is over; what it has sent. After a failure it rests for a moment.
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
