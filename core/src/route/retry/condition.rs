//! How an attempt can fail, and which failures a policy retries.

use serde::Serialize;

use crate::route::error::{Problem, RouteError};

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No byte of the request was sent: the connection was refused or timed out, the TLS handshake failed, or the
    /// connection ended before the request.
    Connect,
    /// The server declared that it did not process the request: RST_STREAM with REFUSED_STREAM, or GOAWAY with a lower last
    /// stream (RFC 9113 §6.8, §8.7).
    RefusedStream,
    /// A reused connection was closed before a byte of the response (RFC 9112 §9.3.1).
    StaleConnection,
    /// The connection or stream ended before the response's head.
    Reset,
    /// The attempt's timeout expired before the response's head.
    Timeout,
    /// The response has this status.
    Status {
        /// Status of the response.
        code: u16,
        /// Whether a rate limit caused it (`x-envoy-ratelimited`).
        is_rate_limited: bool,
    },
    /// The response has only trailers, with this gRPC status.
    Grpc(u8),
}

/// The failures that a policy retries: Envoy's vocabulary, in which OSM's and Istio's `retryOn` and Gateway API's `codes`
/// can be expressed.
///
/// Every policy retries failed connections and refused streams, because the request was not processed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RetryOn {
    /// Statuses, as inclusive ranges.
    statuses: Vec<(u16, u16)>,
    /// gRPC statuses of responses with only trailers.
    grpc: Vec<u8>,
    /// No response, because the connection ended or the stream was reset.
    reset: bool,
    /// No response, because the attempt's timeout expired.
    timeout: bool,
    /// Whether responses of a rate limit count, if their status is among those above.
    rate_limited: bool,
}

/// The words of `retryOn`. `retriable-headers` and `http3-post-connect-failure` are not supported and refused, so that a
/// policy never loses a condition silently.
const WORDS: &str = "5xx, gateway-error, reset, reset-before-request, connect-failure, refused-stream, retriable-4xx, \
                     retriable-status-codes, envoy-ratelimited, cancelled, deadline-exceeded, internal, \
                     resource-exhausted, unavailable or a status from 400 to 599";

impl RetryOn {
    /// These statuses, 400 to 599 each (Gateway API: `retry.codes`), and timeouts of an attempt. Other requests that might
    /// have been processed "should not" be retried.
    pub fn codes(codes: &[u16]) -> Result<Self, RouteError> {
        let mut on = Self { timeout: true, ..Self::default() };
        for (i, code) in codes.iter().enumerate() {
            if !(400..=599).contains(code) {
                let field = format!("retry.codes[{i}]");
                return Err(RouteError::new(&field, code, Problem::Status("400 to 599")));
            }
            on.statuses.push((*code, *code));
        }
        Ok(on)
    }

    /// Parses Envoy's comma-separated `retry_on`. Numbers are statuses, as in Istio.
    pub fn parse(text: &str) -> Result<Self, RouteError> {
        let mut on = Self::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                // Envoy counts a reset as the 503 and a timeout as the 504 that the client would get.
                "5xx" => on.add_without_response().statuses.push((500, 599)),
                "gateway-error" => on.add_without_response().statuses.push((502, 504)),
                "reset" => {
                    on.add_without_response();
                }
                // Always retried; and statuses are listed as numbers.
                "reset-before-request" | "connect-failure" | "refused-stream" | "retriable-status-codes" => {}
                "retriable-4xx" => on.statuses.push((409, 409)),
                "envoy-ratelimited" => on.rate_limited = true,
                "cancelled" => on.grpc.push(1),
                "deadline-exceeded" => on.grpc.push(4),
                "resource-exhausted" => on.grpc.push(8),
                "internal" => on.grpc.push(13),
                "unavailable" => on.grpc.push(14),
                word => match word.parse::<u16>() {
                    Ok(code @ 400..=599) => on.statuses.push((code, code)),
                    _ => return Err(RouteError::new("retryOn", word, Problem::UnknownWord(WORDS))),
                },
            }
        }
        Ok(on)
    }

    /// Exactly these failures: ranges of statuses within 400 to 599, gRPC statuses (0 to 16) of responses with only
    /// trailers, resets, timeouts, and whether responses of a rate limit count.
    pub fn failures(
        statuses: Vec<(u16, u16)>,
        grpc: Vec<u8>,
        reset: bool,
        timeout: bool,
        rate_limited: bool,
    ) -> Result<Self, RouteError> {
        for (i, (first, last)) in statuses.iter().enumerate() {
            if first > last || *first < 400 || *last > 599 {
                let (field, value) = (format!("retry.statuses[{i}]"), format!("{first}-{last}"));
                return Err(RouteError::new(&field, value, Problem::Status("400 to 599")));
            }
        }
        if let Some((i, code)) = grpc.iter().enumerate().find(|(_, code)| **code > 16) {
            return Err(RouteError::new(&format!("retry.grpc[{i}]"), code, Problem::TooLarge(16)));
        }
        Ok(Self { statuses, grpc, reset, timeout, rate_limited })
    }

    /// The statuses, as inclusive ranges.
    pub fn statuses(&self) -> &[(u16, u16)] {
        &self.statuses
    }

    /// The gRPC statuses of responses with only trailers.
    pub fn grpc(&self) -> &[u8] {
        &self.grpc
    }

    /// Whether ends of the connection or stream without a response are retried.
    pub fn reset(&self) -> bool {
        self.reset
    }

    /// Whether timeouts of an attempt are retried.
    pub fn timeout(&self) -> bool {
        self.timeout
    }

    /// Whether responses of a rate limit count.
    pub fn rate_limited(&self) -> bool {
        self.rate_limited
    }

    /// Adds failures without a response.
    fn add_without_response(&mut self) -> &mut Self {
        self.reset = true;
        self.timeout = true;
        self
    }

    /// Whether the policy retries this failure.
    pub fn covers(&self, failure: Failure) -> bool {
        match failure {
            Failure::Connect | Failure::RefusedStream => true,
            Failure::StaleConnection | Failure::Reset => self.reset,
            Failure::Timeout => self.timeout,
            Failure::Status { code, is_rate_limited } => {
                (!is_rate_limited || self.rate_limited)
                    && self.statuses.iter().any(|(first, last)| (*first..=*last).contains(&code))
            }
            Failure::Grpc(code) => self.grpc.contains(&code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> Failure {
        Failure::Status { code, is_rate_limited: false }
    }

    #[test]
    fn each_word_covers_what_envoy_s_does() {
        for (words, failure, expected) in [
            ("5xx", status(500), true),
            ("5xx", status(599), true),
            ("5xx", status(499), false),
            ("5xx", Failure::Reset, true),
            ("5xx", Failure::Timeout, true),
            ("5xx", Failure::StaleConnection, true),
            ("gateway-error", status(503), true),
            ("gateway-error", status(500), false),
            ("gateway-error", Failure::Reset, true),
            ("gateway-error", Failure::Timeout, true),
            ("retriable-4xx", Failure::Reset, false),
            ("retriable-4xx", Failure::Timeout, false),
            ("reset", Failure::Timeout, true),
            ("retriable-4xx", status(409), true),
            ("retriable-4xx", status(404), false),
            ("retriable-status-codes, 418", status(418), true),
            ("unavailable,cancelled", Failure::Grpc(14), true),
            ("unavailable,cancelled", Failure::Grpc(1), true),
            ("deadline-exceeded", Failure::Grpc(4), true),
            ("internal", Failure::Grpc(13), true),
            ("resource-exhausted", Failure::Grpc(8), true),
            ("unavailable", Failure::Grpc(13), false),
            ("", status(503), false),
            ("", Failure::Connect, true),
            ("", Failure::RefusedStream, true),
        ] {
            assert_eq!(RetryOn::parse(words).unwrap().covers(failure), expected, "{words} {failure:?}");
        }
    }

    #[test]
    fn a_response_of_a_rate_limit_is_retried_only_if_the_policy_says_so() {
        let limited = Failure::Status { code: 503, is_rate_limited: true };
        assert!(!RetryOn::parse("5xx").unwrap().covers(limited));
        assert!(RetryOn::parse("5xx,envoy-ratelimited").unwrap().covers(limited));
    }

    #[test]
    fn an_unknown_word_is_refused() {
        for word in ["retriable-headers", "http3-post-connect-failure", "600", "200", "5XX"] {
            let error = RetryOn::parse(&format!("reset,{word}")).unwrap_err();
            assert_eq!((error.field.as_str(), error.value.as_str()), ("retryOn", word));
        }
        let error = RetryOn::codes(&[503, 399]).unwrap_err();
        assert_eq!(error.to_string(), "retry.codes[1]: \"399\" is not a status of 400 to 599");
        let codes = RetryOn::codes(&[500, 504]).unwrap();
        assert!(codes.covers(status(504)) && codes.covers(Failure::Timeout));
        assert!(!codes.covers(status(503)) && !codes.covers(Failure::Reset));
    }
}
