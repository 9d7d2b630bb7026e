//! Which requests may speak to the admin server at all.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tidegate_core::dns_name::DnsName;

/// How long a request may take, the arrival of its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What a request may name as the host that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hosts {
    /// An address or `localhost`: a web page whose name was made to point here cannot speak to us (DNS rebinding).
    Addresses,
    /// DNS names as well, by which Prometheus comes to a Service. Only for what shows nothing that others may not see
    /// and changes nothing.
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

/// The one Host header, if there is exactly one and it can be read.
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
