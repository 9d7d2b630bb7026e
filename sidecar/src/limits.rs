//! How much and how long: the bounds that keep one client from taking what belongs to all.

use std::time::Duration;

/// Bounds of a sidecar's data plane. Every one has a flag of its own; the defaults are these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For the first bytes of a connection. Envoy's value, which OSM's users see.
    pub detect: Duration,
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For the head of a request, from its first byte to its last.
    pub headers: Duration,
    /// Between two requests. Longer than any ingress controller keeps a connection, so that the client ends it.
    pub idle: Duration,
    /// Without progress in a body or an opaque stream's half that is due.
    pub body: Duration,
    /// Without a byte of a gRPC call or of an event stream (`text/event-stream`), for which silence is nothing unusual.
    pub stream_idle: Duration,
    /// Without a byte of an answer whose client has ended its side: it waits for the answer, or has left.
    pub half_close: Duration,
    /// For the TCP handshake with the app.
    pub connect: Duration,
    /// For a connection to the app that waits for its next request; shorter than the apps' own limits.
    pub upstream_idle: Duration,
    /// How long what is in flight may still take once the policy no longer allows it.
    pub revocation: Duration,
    /// How long what is in flight may still take once the sidecar shuts down.
    pub drain: Duration,
    /// How long an idle HTTP/1 connection may still bring a request once the sidecar shuts down; the answer is its last.
    pub drain_idle: Duration,
    /// Bytes of a request's or response's head, its first line included.
    pub head_bytes: usize,
    /// Header fields in a head, and in a trailer section.
    pub header_count: usize,
    /// Connections of clients at the same time, and as many of the app's own (`places`).
    pub connections: usize,
    /// Connections to the app that wait for a request, for each worker.
    pub upstream_idle_connections: usize,
    /// Requests at the same time on one HTTP/2 connection.
    pub streams: u32,
    /// Requests at apps, or on their way there, of clients that speak HTTP/2 or to apps that do, for each worker. Each
    /// client and each app has its share of it.
    pub upstream_requests: usize,
    /// HTTP/2 connections to one app, for each worker.
    pub upstream_connections: usize,
    /// For a request that waits for room on one of them.
    pub upstream_queue: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            detect: Duration::from_secs(15),
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(30),
            idle: Duration::from_secs(3600),
            body: Duration::from_secs(300),
            stream_idle: Duration::from_secs(3600),
            half_close: Duration::from_secs(10),
            connect: Duration::from_secs(5),
            upstream_idle: Duration::from_millis(750),
            revocation: Duration::from_millis(500),
            drain: Duration::from_secs(30),
            drain_idle: Duration::from_secs(2),
            head_bytes: 64 * 1024,
            header_count: 128,
            connections: 16 * 1024,
            upstream_idle_connections: 256,
            streams: 128,
            upstream_requests: 4096,
            upstream_connections: 128,
            upstream_queue: Duration::from_secs(5),
        }
    }
}
