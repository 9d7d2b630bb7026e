//! The limits that keep a request from its upstream.

/// What there was no room in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestLimit {
    /// The worker's places for requests, or the app's share of them.
    App,
    /// The client's share of them.
    Client,
    /// No connection takes the request; the time for waiting has passed.
    Queue,
    /// What the sidecar may have open to the backend: connections of opaque bytes. A request waits for one.
    Connections,
    /// The same, requests that wait for a connection.
    PendingRequests,
    /// The same, requests in flight.
    Requests,
}

impl RequestLimit {
    /// As in the metric.
    pub(crate) fn limit(self) -> &'static str {
        match self {
            Self::App => "upstream_requests",
            Self::Client => "upstream_requests_of_client",
            Self::Queue => "upstream_queue_timeout",
            Self::Connections => "max_connections",
            Self::PendingRequests => "max_pending_requests",
            Self::Requests => "max_requests",
        }
    }

    /// A stable word for logs.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::App => "upstream_reset_before_response_started{overflow}",
            Self::Client => "upstream_reset_before_response_started{client_overflow}",
            Self::Queue => "upstream_reset_before_response_started{queue_timeout}",
            Self::Connections => "upstream_max_connections",
            Self::PendingRequests => "upstream_reset_before_response_started{max_pending_requests_overflow}",
            Self::Requests => "upstream_reset_before_response_started{max_requests_overflow}",
        }
    }
}
