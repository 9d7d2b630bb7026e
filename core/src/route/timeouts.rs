//! How long a request may take.

use std::time::Duration;

use serde::Serialize;

use super::error::{Problem, RouteError};

/// Timeouts of a rule (Gateway API: `HTTPRouteTimeouts`, GEP-1742). As in OSM, Istio and Linkerd, there is no
/// timeout by default, because it would break streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    request: Option<Duration>,
    backend_request: Option<Duration>,
}

impl Timeouts {
    /// Timeouts of a request and of one attempt. Zero means no limit, like `None` (GEP-1742).
    pub fn new(request: Option<Duration>, backend_request: Option<Duration>) -> Result<Self, RouteError> {
        let limit = |duration: Option<Duration>| duration.filter(|duration| !duration.is_zero());
        let timeouts = Self { request: limit(request), backend_request: limit(backend_request) };
        match (timeouts.request, timeouts.backend_request) {
            (Some(request), Some(attempt)) if attempt > request => {
                let value = format!("{attempt:?}");
                Err(RouteError::new("timeouts.backendRequest", value, Problem::LongerThanRequest))
            }
            _ => Ok(timeouts),
        }
    }

    /// From the end of the client's request head to the end of the response, including all attempts and the waits between
    /// them. When it expires, the response is 504.
    pub fn request(&self) -> Option<Duration> {
        self.request
    }

    /// One attempt, from its first byte to the end of its response. When it expires, the attempt has failed.
    pub fn backend_request(&self) -> Option<Duration> {
        self.backend_request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_attempt_is_not_longer_than_the_request_and_zero_means_unlimited() {
        let seconds = |n| Some(Duration::from_secs(n));
        let error = Timeouts::new(seconds(1), seconds(2)).unwrap_err();
        assert_eq!(error.to_string(), "timeouts.backendRequest: \"2s\" is longer than timeouts.request");
        assert_eq!(Timeouts::new(seconds(0), seconds(2)).unwrap().request(), None);
        assert_eq!(Timeouts::new(seconds(2), seconds(2)).unwrap().backend_request(), seconds(2));
        assert_eq!(Timeouts::new(seconds(1), seconds(0)), Timeouts::new(seconds(1), None));
    }
}
