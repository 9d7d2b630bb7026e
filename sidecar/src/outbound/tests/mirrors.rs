//! Copies of requests, which a rule has sent to other backends.

use std::convert::Infallible;

use ::http::{Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tidegate_core::backend::BackendLimits;
use tidegate_core::route::filter::{Filter, Fraction, HeaderEdits, Mirror};
use tidegate_core::route::{Action, WeightedBackend};
use tidegate_runtime::metrics::Metrics;

use super::app::{ask, echo, playing, read_head, received, serve};
use super::http::http2;
use super::routes::{backend, below, client, share};
use super::*;

const VERSIONS: [BackendProtocol; 2] = [BackendProtocol::Http1, BackendProtocol::Http2];

/// A mirror of a share of the requests to the backend at this port.
fn mirror(port: u16, share: Fraction) -> Filter {
    let name = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port };
    Filter::Mirror(Mirror { backend: name, fraction: share })
}

/// A client whose requests go to one backend, and by these filters of its rule to others, by port.
fn mirrored(filters: Vec<Filter>, first: Backend, others: Vec<Backend>) -> Client {
    let client = client(vec![below("/", filters, Action::Forward(vec![share(1)]))], first);
    for other in others {
        let name = ResourceName::Backend(other.name.clone());
        client.destinations.set(&name, "1".into(), Resource::Backend(other), 100).unwrap();
    }
    client.destinations.settle(true);
    client
}

#[tokio::test]
async fn the_copy_is_what_the_backend_gets_in_the_version_of_its_own() {
    for (of_first, of_other) in VERSIONS.into_iter().flat_map(|one| VERSIONS.map(|other| (one, other))) {
        let ((first, first_log), (other, other_log)) = (echo().await, echo().await);
        let edits = HeaderEdits::new(&[("x-set", "new")], &[], &[]).unwrap();
        let filters = vec![Filter::RequestHeaders(edits), mirror(81, Fraction::ALL)];
        let client = mirrored(filters, backend(of_first, 80, first), vec![backend(of_other, 81, other)]);
        let chunked = "POST /a?b HTTP/1.1\r\nhost: cart\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n";
        assert_eq!(ask(&mut client.dial().await, chunked).await, (200, "hello".to_owned()));
        let request = Request::post("http://cart/a?b").body(Full::new(Bytes::from("hello"))).unwrap();
        let response = http2(&client).await.send_request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
        until(|| received(&other_log).len() >= 2).await;
        for (sent, copied) in received(&first_log).iter().zip(received(&other_log)) {
            assert!(copied.line.starts_with("POST ") && copied.line.contains("/a?b "), "{}", copied.line);
            assert_eq!((copied.body.as_ref(), copied.header("x-set")), (&b"hello"[..], "new"));
            assert_eq!(copied.header("x-request-id"), sent.header("x-request-id"));
            let host = copied.headers.get("host").is_some_and(|host| host == "cart");
            assert!(host || copied.line.contains("http://cart/"), "{copied:?}");
        }
    }
}

#[tokio::test]
async fn a_fraction_is_exact_several_mirrors_get_copies_each_and_a_redirect_has_none() {
    let ((first, _), (one, one_log), (two, two_log)) = (echo().await, echo().await, echo().await);
    let filters = vec![mirror(81, Fraction::new(1, 4).unwrap()), mirror(82, Fraction::ALL)];
    let others = vec![backend(BackendProtocol::Http1, 81, one), backend(BackendProtocol::Http1, 82, two)];
    let client = mirrored(filters, backend(BackendProtocol::Http1, 80, first), others);
    let mut io = client.dial().await;
    for _ in 0..40 {
        assert_eq!(ask(&mut io, "GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await.0, 200);
    }
    until(|| received(&two_log).len() >= 40).await;
    until(|| received(&one_log).len() >= 10).await;
    assert_eq!((received(&one_log).len(), received(&two_log).len()), (10, 40));
}

#[tokio::test]
async fn a_mirror_of_a_share_copies_that_share_only() {
    let ((first, _), (other, log)) = (echo().await, echo().await);
    let with = WeightedBackend { filters: vec![mirror(81, Fraction::ALL)], ..share(1) };
    let client = client(
        vec![below("/", vec![], Action::Forward(vec![with, share(3)]))],
        backend(BackendProtocol::Http1, 80, first),
    );
    let other = backend(BackendProtocol::Http1, 81, other);
    let name = ResourceName::Backend(other.name.clone());
    client.destinations.set(&name, "1".into(), Resource::Backend(other), 100).unwrap();
    client.destinations.settle(true);
    let mut io = client.dial().await;
    for _ in 0..20 {
        assert_eq!(ask(&mut io, "GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await.0, 200);
    }
    until(|| received(&log).len() >= 5).await;
    assert_eq!(received(&log).len(), 5);
}

#[tokio::test]
async fn a_mirror_that_is_slow_or_down_or_fails_changes_nothing_for_the_client() {
    let stalling = playing(async |mut io: TcpStream| {
        let _ = read_head(&mut io).await;
        std::future::pending::<()>().await;
    })
    .await;
    let failing = playing(async |mut io: TcpStream| {
        if read_head(&mut io).await.is_some() {
            io.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
        }
    })
    .await;
    for other in [stalling, closed_address().await, failing] {
        let (first, log) = echo().await;
        let other = backend(BackendProtocol::Http1, 81, other);
        let client = mirrored(
            vec![mirror(81, Fraction::ALL)],
            backend(BackendProtocol::Http1, 80, first),
            vec![other],
        );
        let mut io = client.dial().await;
        for _ in 0..200 {
            let request = "POST / HTTP/1.1\r\nhost: cart\r\ncontent-length: 5\r\n\r\nhello";
            assert_eq!(ask(&mut io, request).await, (200, "hello".to_owned()));
        }
        assert_eq!(received(&log).len(), 200);
    }
}

#[tokio::test]
async fn a_request_with_a_body_longer_than_is_kept_is_not_copied() {
    let ((first, first_log), (other, log)) = (echo().await, echo().await);
    let other = backend(BackendProtocol::Http1, 81, other);
    let client =
        mirrored(vec![mirror(81, Fraction::ALL)], backend(BackendProtocol::Http1, 80, first), vec![other]);
    let long = "x".repeat(crate::upstream::MOST_REPLAYED + 1);
    for body in [&*long, "short"] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: cart\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        assert_eq!(ask(&mut client.dial().await, &request).await, (200, body.to_owned()));
        let request = Request::post("http://cart/").body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = http2(&client).await.send_request(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
    until(|| received(&log).len() >= 2).await;
    assert!(received(&log).iter().all(|copy| copy.body == "short"));
    assert_eq!(received(&first_log).len(), 4);
}

/// Responds never.
async fn stall(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    std::future::pending().await
}

#[tokio::test]
async fn a_copy_that_a_limit_of_its_backend_refuses_is_counted_by_that_limit_and_not_as_sent() {
    let requests = BackendLimits { max_requests: Some(1), ..BackendLimits::default() };
    let pending = BackendLimits { max_pending_requests: Some(0), ..BackendLimits::default() };
    for (limits, limit, refused) in [(requests, "max_requests", 1), (pending, "max_pending_requests", 2)] {
        for version in VERSIONS {
            let (first, _) = echo().await;
            let stalling = playing(|io| serve(io, service_fn(stall))).await;
            let other = Backend { limits, ..backend(version, 81, stalling) };
            let first = backend(BackendProtocol::Http1, 80, first);
            let client = mirrored(vec![mirror(81, Fraction::ALL)], first, vec![other]);
            for _ in 0..2 {
                assert_eq!(
                    ask(&mut client.dial().await, "GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await.0,
                    200
                );
            }
            let page = Metrics::new();
            page.add_collector(Box::new(client.metrics.clone()));
            let line = format!("tidegate_requests_limited_total{{limit=\"{limit}\"}} {refused}\n");
            until(|| page.encode().contains(&line)).await;
            assert_eq!(client.metrics.total(|totals| &totals.mirrored), 0, "{version:?}: none is over");
        }
    }
}
