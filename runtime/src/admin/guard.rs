//! Decides which requests the admin server accepts.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tidegate_core::dns_name::DnsName;

/// Timeout of a request, including the arrival of its body.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The hosts that a request may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hosts {
    /// An address or `localhost`, so that a web page whose name resolves to this address is refused (DNS rebinding).
    Addresses,
    /// DNS names as well, which Prometheus uses for a Service. Only for routes that reveal nothing confidential and
    /// change nothing.
    Names,
}

pub(super) async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let is_meant = match request.uri().authority() {
        Some(authority) => hosts.permit(authority),
        None => host(request.headers()).is_some_and(|authority| hosts.permit(&authority)),
    };
    if !is_meant {
        return refusal(match hosts {
            Hosts::Addresses => "the Host header must be an IP address or localhost\n",
            Hosts::Names => "the Host header must be an IP address or a DNS name\n",
        });
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if !reads && request.headers().contains_key(header::ORIGIN) {
        return refusal("web pages may not change anything here\n");
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request took too long\n").into_response(),
    }
}

/// The Host header, if there is exactly one and it can be parsed.
fn host(headers: &HeaderMap) -> Option<Authority> {
    let mut values = headers.get_all(header::HOST).iter();
    let (value, None) = (values.next()?, values.next()) else { return None };
    Authority::try_from(value.as_bytes()).ok()
}

impl Hosts {
    fn permit(self, authority: &Authority) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        host.eq_ignore_ascii_case("localhost")
            || address.parse::<IpAddr>().is_ok()
            || (self == Self::Names && DnsName::parse(host).is_ok())
    }
}

fn refusal(reason: &'static str) -> Response {
    (StatusCode::FORBIDDEN, reason).into_response()
}
