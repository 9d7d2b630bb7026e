//! Which requests may speak to the admin server at all.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::Request;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// How long a request may take, the arrival of its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) async fn check(request: Request, next: Next) -> Response {
    let host = match request.uri().authority() {
        Some(authority) => names_this_host(authority),
        None => host(request.headers()).as_ref().is_some_and(names_this_host),
    };
    if !host {
        return refusal("the Host header must be an IP address or localhost\n");
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

fn names_this_host(authority: &Authority) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let host = authority.host();
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

fn refusal(reason: &'static str) -> Response {
    (StatusCode::FORBIDDEN, reason).into_response()
}
