//! Time limits and retries of rules.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{Request, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tidegate_core::route::retry::{Backoff, RetryMethods, RetryOn};
use tidegate_core::route::{Action, RetryPolicy, RouteRule, Timeouts};

use super::app::{ask, playing, read_head, serve};
use super::http::http2;
use super::routes::{backend, below, client, share};
use super::*;

const VERSIONS: [BackendProtocol; 2] = [BackendProtocol::Http1, BackendProtocol::Http2];

/// What an app does with a request.
#[derive(Clone, Copy)]
enum Fate {
    /// Returns its body.
    Echo,
    /// Responds with this status and `failed`.
    Status(u16),
    /// Never responds.
    Stall,
}

/// An app of both versions that does this with each request, by its number, and the number of requests so far.
async fn app(fate: impl Fn(usize) -> Fate + Clone + Send + Sync + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let (fate, count) = (fate.clone(), counted.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let fate = fate(count.fetch_add(1, Ordering::SeqCst));
                    respond(request, fate)
                });
                serve(io, service).await;
            });
        }
    });
    (address, count)
}

async fn respond(request: Request<Incoming>, fate: Fate) -> Result<Response<Full<Bytes>>, Infallible> {
    let Ok(body) = request.into_body().collect().await else { return Ok(Response::default()) };
    Ok(match fate {
        Fate::Echo => Response::new(Full::new(body.to_bytes())),
        Fate::Status(status) => {
            let mut response = Response::new(Full::new(Bytes::from("failed")));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        }
        Fate::Stall => std::future::pending().await,
    })
}

fn rule() -> RouteRule {
    below("/", vec![], Action::Forward(vec![share(1)]))
}

fn limited(request: u64, attempt: u64) -> RouteRule {
    let [request, attempt] = [request, attempt].map(|time| Some(Duration::from_millis(time)));
    RouteRule { timeouts: Timeouts::new(request, attempt).unwrap(), ..rule() }
}

/// Retries `503`, and attempts that take too long.
fn retried(attempts: u32) -> RouteRule {
    let on = RetryOn::codes(&[503]).unwrap();
    let retry = RetryPolicy::new(on, RetryMethods::All, attempts, Backoff::NONE, None).unwrap();
    RouteRule { retry: Some(retry), ..rule() }
}

/// The response to a POST with this body, over both versions of HTTP.
async fn post(client: &Client, body: &str) -> [(u16, String); 2] {
    let request = format!("POST / HTTP/1.1\r\nhost: cart\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let of_http1 = ask(&mut client.dial().await, &request).await;
    let request = Request::post("http://cart/").body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = http2(client).await.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    [of_http1, (status, String::from_utf8(body.to_vec()).unwrap())]
}

fn both(status: u16, body: &str) -> [(u16, String); 2] {
    [(status, body.to_owned()), (status, body.to_owned())]
}

#[tokio::test]
async fn a_request_whose_time_is_up_is_504_and_its_connection_stays_open() {
    for protocol in VERSIONS {
        for rule in [limited(50, 0), limited(0, 50)] {
            let (app, _) = app(|number| if number == 1 { Fate::Echo } else { Fate::Stall }).await;
            let client = client(vec![rule], backend(protocol, 80, app));
            let mut io = client.dial().await;
            let get = "GET / HTTP/1.1\r\nhost: cart\r\n\r\n";
            assert_eq!(ask(&mut io, get).await, (504, "upstream request timeout".to_owned()));
            assert_eq!(ask(&mut io, get).await, (200, String::new()));
            assert_eq!(post(&client, "late").await, both(504, "upstream request timeout"));
        }
    }
}

#[tokio::test]
async fn a_response_whose_time_is_up_is_cut_off() {
    let app = playing(async |mut io: TcpStream| {
        while read_head(&mut io).await.is_some() {
            io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
        }
    })
    .await;
    let client = client(vec![limited(100, 0)], backend(BackendProtocol::Http1, 80, app));
    let mut io = client.dial().await;
    io.write_all(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await.unwrap();
    let mut received = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, io.read_to_end(&mut received)).await.expect("no end");
    assert!(received.ends_with(b"half"));
    let request = Request::get("http://cart/").body(Full::<Bytes>::default()).unwrap();
    let response = http2(&client).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    tokio::time::timeout(PATIENCE, response.into_body().collect()).await.expect("no end").unwrap_err();
}

#[tokio::test]
async fn a_failed_attempt_is_repeated_with_its_body() {
    for protocol in VERSIONS {
        // Of three attempts the last one succeeds.
        let (app, count) = app(|number| if number % 3 == 2 { Fate::Echo } else { Fate::Status(503) }).await;
        for body in ["", "hello", &"x".repeat(20_000)] {
            let client = client(vec![retried(2)], backend(protocol, 80, app));
            assert_eq!(post(&client, body).await, both(200, body));
        }
        assert_eq!(count.load(Ordering::SeqCst), 18);
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_repeated_within_the_time_of_the_request() {
    for protocol in VERSIONS {
        let (app, count) = app(|number| if number % 2 == 1 { Fate::Echo } else { Fate::Stall }).await;
        let rule = RouteRule { retry: retried(1).retry, ..limited(0, 50) };
        let client = client(vec![rule], backend(protocol, 80, app));
        assert_eq!(post(&client, "hello").await, both(200, "hello"));
        assert_eq!(count.load(Ordering::SeqCst), 4);
    }
    let (app, _) = app(|_| Fate::Stall).await;
    let rule = RouteRule { retry: retried(9).retry, ..limited(120, 50) };
    let client = client(vec![rule], backend(BackendProtocol::Http1, 80, app));
    let since = Instant::now();
    assert_eq!(post(&client, "hello").await, both(504, "upstream request timeout"));
    assert!(since.elapsed() >= Duration::from_millis(240));
}

#[tokio::test]
async fn what_is_not_repeated_gets_the_apps_answer_once() {
    for protocol in VERSIONS {
        let (app, count) = app(|_| Fate::Status(503)).await;
        let requests = || count.swap(0, Ordering::SeqCst);
        let client = client(vec![retried(1)], backend(protocol, 80, app));
        assert_eq!(post(&client, "hello").await, both(503, "failed"));
        assert_eq!(requests(), 4, "each of two attempts");
        let longer = "x".repeat(crate::upstream::MOST_REPLAYED + 1000);
        assert_eq!(post(&client, &longer).await, both(503, "failed"));
        assert_eq!(requests(), 2, "more than is kept");
    }
    let (app, count) = app(|_| Fate::Status(500)).await;
    let client = client(vec![retried(1)], backend(BackendProtocol::Http1, 80, app));
    assert_eq!(post(&client, "hello").await, both(500, "failed"));
    assert_eq!(count.load(Ordering::SeqCst), 2, "another status");
}

#[tokio::test]
async fn a_response_that_has_begun_is_never_followed_by_another_attempt() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let app = playing(move |mut io: TcpStream| {
        let count = counted.clone();
        async move {
            if read_head(&mut io).await.is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
            }
        }
    })
    .await;
    let on = RetryOn::parse("5xx,reset").unwrap();
    let retry = RetryPolicy::new(on, RetryMethods::All, 5, Backoff::NONE, None).unwrap();
    let rule = RouteRule { retry: Some(retry), ..rule() };
    let client = client(vec![rule], backend(BackendProtocol::Http1, 80, app));
    let mut io = client.dial().await;
    io.write_all(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await.unwrap();
    let mut received = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, io.read_to_end(&mut received)).await.expect("no end");
    assert!(received.ends_with(b"half"));
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_backend_of_which_half_of_the_requests_fail_gets_a_fifth_more_of_them() {
    const REQUESTS: usize = 500;
    let (app, count) = app(|number| if number % 2 == 0 { Fate::Echo } else { Fate::Status(503) }).await;
    let client = client(vec![retried(3)], backend(BackendProtocol::Http1, 80, app));
    let mut io = client.dial().await;
    let since = Instant::now();
    for _ in 0..REQUESTS {
        ask(&mut io, "GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await;
    }
    // Ten a second are allowed whatever the share.
    let most = REQUESTS / 5 + 10 * (since.elapsed().as_secs() as usize + 2);
    let retries = count.load(Ordering::SeqCst) - REQUESTS;
    assert!((1..=most).contains(&retries), "{retries} of at most {most}");
}
