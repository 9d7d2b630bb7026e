//! Limits on sizes, counts and times, so that one client cannot take resources from all others.

use std::time::Duration;

/// Limits of a sidecar's data plane. Each has a command-line flag; the defaults are in [`Limits::default`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for the first bytes of a connection. Envoy's value, which OSM's users see.
    pub detect: Duration,
    /// Time for the first bytes of a connection that the app opens to a port without a declared protocol; after that
    /// they are not looked at. Servers that speak first are reached so much later.
    pub outbound_detect: Duration,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for the head of a request, from its first byte to its last.
    pub headers: Duration,
    /// Time between two requests. Longer than ingress controllers keep a connection, so that the client closes it.
    pub idle: Duration,
    /// Time without progress in a body, or in either direction of an opaque stream.
    pub body: Duration,
    /// Time without a byte of a gRPC call or an event stream (`text/event-stream`), which are often silent.
    pub stream_idle: Duration,
    /// Time without a byte of a response whose client has half-closed: it waits for the response, or has left.
    pub half_close: Duration,
    /// Time for the TCP handshake with the app.
    pub connect: Duration,
    /// Time that an idle connection to the app is kept; shorter than the apps' own limits.
    pub upstream_idle: Duration,
    /// How long requests in flight may take once the policy no longer allows them.
    pub revocation: Duration,
    /// How long requests in flight may take once the sidecar shuts down.
    pub drain: Duration,
    /// How long an idle HTTP/1 connection accepts another request once the sidecar shuts down; its response is the
    /// last.
    pub drain_idle: Duration,
    /// Bytes of a request's or response's head, including its first line.
    pub head_bytes: usize,
    /// Header fields in a head or trailer section.
    pub header_count: usize,
    /// Concurrent connections of clients, and as many of the app's own (`places`).
    pub connections: usize,
    /// Idle connections to upstreams, per worker and codec: one upstream has at most half of them.
    pub upstream_idle_connections: usize,
    /// Concurrent requests on one HTTP/2 connection.
    pub streams: u32,
    /// Requests in flight to apps, per worker, of clients that speak HTTP/2 or to apps that do. Each client and each
    /// app has a share of it.
    pub upstream_requests: usize,
    /// HTTP/2 connections to one app, per worker.
    pub upstream_connections: usize,
    /// Time after which an HTTP/2 connection to an app gets no new requests, give or take a tenth: requests move to
    /// endpoints that came later, and a balancer on the way chooses again. Coarse: up to a tick of the worker late.
    pub upstream_max_age: Duration,
    /// Time that a request waits for room on one of them.
    pub upstream_queue: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            detect: Duration::from_secs(15),
            outbound_detect: Duration::from_millis(200),
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
            upstream_idle_connections: 512,
            streams: 128,
            upstream_requests: 4096,
            upstream_connections: 128,
            upstream_max_age: Duration::from_secs(3600),
            upstream_queue: Duration::from_secs(5),
        }
    }
}
