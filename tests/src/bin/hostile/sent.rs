//! Building blocks of attacks: held connections, repeated actions, and a count of what was sent.

use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// What an attack cost the attacker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttackSent {
    /// Bytes that it sent.
    pub(crate) bytes: u64,
    /// Connections that it held open at the same time.
    pub(crate) connections: u64,
    /// Streams that it held open at the same time, on all connections.
    pub(crate) streams: u64,
    /// Requests that it made, at least one on each connection and stream.
    pub(crate) requests: u64,
}

impl AttackSent {
    /// This many bytes, on this many concurrent connections.
    pub(crate) fn new(bytes: u64, connections: usize) -> Self {
        Self { bytes, connections: connections as u64, streams: 0, requests: connections as u64 }
    }

    /// With this many streams on each connection.
    pub(crate) fn with_streams(self, each: usize) -> Self {
        let streams = self.connections * each as u64;
        Self { streams, requests: self.requests.max(streams), ..self }
    }

    /// With this many requests in total.
    pub(crate) fn with_requests(self, requests: u64) -> Self {
        Self { requests, ..self }
    }
}

/// Opens `count` connections and keeps them until the time is over; those that the mesh has ended by then are not
/// counted. `open` also returns how many bytes it sent.
pub(crate) fn hold<T: AsFd>(
    count: usize,
    time: Duration,
    mut open: impl FnMut() -> io::Result<(T, u64)>,
) -> AttackSent {
    let end = Instant::now() + time;
    let (mut held, mut bytes) = (Vec::new(), 0);
    for _ in 0..count {
        if Instant::now() >= end {
            break;
        }
        // Continue after a refusal: the next attempt may succeed.
        if let Ok((one, sent)) = open() {
            held.push(one);
            bytes += sent;
        }
    }
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
    AttackSent::new(bytes, held.iter().filter(is_open).count())
}

/// Whether the peer has not closed a connection, judging by what can be read.
fn is_open(connection: &impl AsFd) -> bool {
    match recv(connection, &mut [0_u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((read, _)) => read > 0,
        Err(error) => error == Errno::AGAIN,
    }
}

/// Repeats something until the time is over; returns the bytes sent. Pauses briefly after a failure.
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
