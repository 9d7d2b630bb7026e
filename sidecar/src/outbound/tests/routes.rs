//! Requests at a destination with routes.

use ::http::{HeaderValue, Request};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use tidegate_core::destination::DestinationTarget;
use tidegate_core::route::filter::{Fault, Filter, Fraction, HeaderEdits, PathEdit, Redirect, Rewrite};
use tidegate_core::route::matching::PathMatch;
use tidegate_core::route::{
    Action, BackendTarget, DirectResponse, Route, RouteMatch, RouteRule, RouteTable, RoutesName,
    WeightedBackend,
};

use super::app::{Log, ask, echo, playing, read_head, received};
use super::http::http2;
use super::*;

fn routes_name() -> RoutesName {
    RoutesName::parse("Service/shop/cart:80").unwrap()
}

pub(super) fn backend(protocol: BackendProtocol, port: u16, endpoint: SocketAddr) -> Backend {
    let name = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port };
    Backend::new(name, protocol, vec![Endpoint::new(endpoint, Transport::Plain)])
}

/// A client whose destination has these rules, and this backend.
pub(super) fn client(rules: Vec<RouteRule>, backend: Backend) -> Client {
    let client = Client::of(&Authority::root("root"));
    let target = DestinationTarget::Routes(routes_name());
    let destination = Destination::Routed { protocol: AppProtocol::Http, target };
    client.learn(Answer::Destination(destination));
    let name = ResourceName::Backend(backend.name.clone());
    client.destinations.set(&name, "1".into(), Resource::Backend(backend), 100).unwrap();
    set(&client, rules);
    client
}

/// Replaces the rules.
fn set(client: &Client, rules: Vec<RouteRule>) {
    let origin = ObjectRef::new("HTTPRoute", "shop", "cart");
    let table = RouteTable::new(vec![Route { origin, created: 0, hosts: vec![], rules }]).unwrap();
    let routes = ResourceName::Routes(routes_name());
    client.destinations.set(&routes, "1".into(), Resource::Routes(table), 100).unwrap();
    client.destinations.settle(true);
}

pub(super) fn share(weight: u32) -> WeightedBackend {
    let name = BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 };
    WeightedBackend::new(weight, BackendTarget::Backend(name))
}

pub(super) fn below(prefix: &str, filters: Vec<Filter>, action: Action) -> RouteRule {
    let path = Some(PathMatch::prefix(prefix).unwrap());
    let matches = vec![RouteMatch::new(path, vec![], vec![], vec![])];
    RouteRule { matches, filters, ..RouteRule::new(action) }
}

/// Every kind of edit of a request and its response.
fn edited() -> RouteRule {
    let request =
        HeaderEdits::new(&[("x-set", "new"), ("user-agent", "mesh")], &[("x-add", "b")], &["x-gone"]);
    let response = HeaderEdits::new(&[("x-version", "2")], &[("x-more", "c")], &["x-secret"]);
    let rewrite = Rewrite::new(Some("other.example"), Some(PathEdit::prefix("/new").unwrap()));
    let filters = vec![
        Filter::RequestHeaders(request.unwrap()),
        Filter::ResponseHeaders(response.unwrap()),
        Filter::Rewrite(rewrite.unwrap()),
    ];
    let of_backend = HeaderEdits::new(&[("x-backend", "1")], &[("x-add", "c")], &[]).unwrap();
    let share = WeightedBackend { filters: vec![Filter::RequestHeaders(of_backend)], ..share(1) };
    below("/old", filters, Action::Forward(vec![share]))
}

/// What an app got of [`edited`]'s requests.
fn assert_edited(log: &Log) {
    let requests = received(log);
    let request = requests.last().unwrap();
    let (_, target) = request.line.split_once("/new/a?b").expect(&request.line);
    assert!(target.starts_with(" HTTP/"), "{}", request.line);
    let values = |name: &str| {
        request.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((values("x-set"), values("x-gone")), (vec!["new"], vec![]));
    assert_eq!((values("x-add"), values("x-backend")), (vec!["a", "b", "c"], vec!["1"]));
    assert_eq!((values("user-agent"), values("x-kept")), (vec!["mesh"], vec!["k"]));
    assert_eq!(values("x-request-id").len(), 1);
    let host = values("host");
    assert!(host == ["other.example"] || request.line.contains("http://other.example/"), "{request:?}");
}

const FIELDS: [(&str, &str); 4] = [("x-set", "old"), ("x-gone", "g"), ("x-add", "a"), ("x-kept", "k")];

#[tokio::test]
async fn requests_of_http1_are_edited_for_backends_of_either_version() {
    let (app, log) = echo().await;
    for protocol in [BackendProtocol::Http1, BackendProtocol::Http2] {
        let client = client(vec![edited()], backend(protocol, 80, app));
        let fields: String = FIELDS.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let body = "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
        let request = format!("POST /old/a?b HTTP/1.1\r\nhost: cart\r\nuser-agent: app\r\n{fields}{body}");
        let mut io = client.dial().await;
        io.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut io).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("\r\nx-version: 2\r\n") && head.contains("\r\nx-more: c\r\n"), "{head}");
        assert_edited(&log);
        assert_eq!(received(&log).last().unwrap().body, "hello");
    }
}

#[tokio::test]
async fn requests_of_http2_are_edited_for_backends_of_either_version() {
    let (app, log) = echo().await;
    for protocol in [BackendProtocol::Http1, BackendProtocol::Http2] {
        let client = client(vec![edited()], backend(protocol, 80, app));
        let mut request = Request::post("http://cart/old/a?b").header("user-agent", "app");
        for (name, value) in FIELDS {
            request = request.header(name, value);
        }
        let mut sender = http2(&client).await;
        let response =
            sender.send_request(request.body(Full::new(Bytes::from("hello"))).unwrap()).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-version"]),
            (200, &"2".parse().unwrap())
        );
        assert_eq!(response.headers()["x-more"], "c");
        assert_edited(&log);
    }
}

#[tokio::test]
async fn a_response_loses_what_a_rule_removes_also_one_of_the_sidecar() {
    let app = playing(async |mut io: TcpStream| {
        while read_head(&mut io).await.is_some() {
            let head =
                "HTTP/1.1 200 OK\r\nX-Secret: s\r\nX-Version: 1\r\nX-Kept: k\r\ncontent-length: 0\r\n\r\n";
            io.write_all(head.as_bytes()).await.unwrap();
        }
    })
    .await;
    let client = client(vec![edited()], backend(BackendProtocol::Http1, 80, app));
    let mut io = client.dial().await;
    io.write_all(b"GET /old/a?b HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let head = read_head(&mut io).await.unwrap();
    let expected = "HTTP/1.1 200 OK\r\nX-Kept: k\r\ncontent-length: 0\r\nx-version: 2\r\nx-more: c\r\n\r\n";
    assert_eq!(head, expected);

    let edits = HeaderEdits::new(&[("x-version", "2"), ("content-type", "text/html")], &[], &[]).unwrap();
    let respond = Action::Respond(DirectResponse { status: 500, reason: "because".into() });
    set(&client, vec![below("/", vec![Filter::ResponseHeaders(edits)], respond)]);
    let mut io = client.dial().await;
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let head = read_head(&mut io).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 21\r\ndate: "), "{head}");
    assert!(head.ends_with("x-version: 2\r\ncontent-type: text/html\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn redirects_of_every_status_name_the_service_s_port_and_keep_the_query() {
    let client = client(vec![], backend(BackendProtocol::Http1, 80, closed_address().await));
    for status in [301, 302, 303, 307, 308] {
        let path = PathEdit::prefix("/new").unwrap();
        let redirect = Redirect::new(status).unwrap().with_path(path).with_hostname("b.example").unwrap();
        set(&client, vec![below("/old", vec![], Action::Redirect(redirect))]);
        let mut io = client.dial().await;
        io.write_all(b"GET /old/./a?b HTTP/1.1\r\nhost: cart:1234\r\n\r\n").await.unwrap();
        let head = read_head(&mut io).await.unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert!(head.contains("\r\nlocation: http://b.example/new/a?b\r\n"), "{head}");
        let mut sender = http2(&client).await;
        let request = Request::get("http://cart/old/a?b").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()["location"], "http://b.example/new/a?b");
    }
    set(&client, vec![below("/", vec![], Action::Redirect(Redirect::new(302).unwrap()))]);
    assert_eq!(ask(&mut client.dial().await, "GET / HTTP/1.0\r\n\r\n").await.0, 400, "it names no host");
}

#[tokio::test]
async fn a_filter_that_this_version_does_not_carry_out_is_an_error_and_never_skipped() {
    let (app, log) = echo().await;
    let client = client(vec![], backend(BackendProtocol::Http1, 80, app));
    let fault = || vec![Filter::Fault(Fault { delay: None, abort: Some((418, Fraction::ALL)) })];
    let of_backend = WeightedBackend { filters: fault(), ..share(1) };
    for rule in [
        below("/", fault(), Action::Forward(vec![share(1)])),
        below("/", fault(), Action::Redirect(Redirect::new(302).unwrap())),
        below("/", vec![], Action::Forward(vec![of_backend])),
    ] {
        set(&client, vec![rule]);
        assert_eq!(ask(&mut client.dial().await, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.0, 500);
    }
    assert!(received(&log).is_empty());
}

#[tokio::test]
async fn clients_of_grpc_get_a_status_of_grpc_without_a_body() {
    let client = client(vec![below("/a", vec![], Action::Forward(vec![share(1)]))], {
        backend(BackendProtocol::Http2, 80, closed_address().await)
    });
    let mut sender = http2(&client).await;
    for (path, status, message) in [
        ("/b", "12", "no route matches"),
        (
            "/a",
            "14",
            "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
        ),
    ] {
        let request =
            Request::post(format!("http://cart{path}")).header("content-type", "application/grpc+proto");
        let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        let headers = response.headers();
        assert_eq!(
            (&headers["grpc-status"], &headers["grpc-message"]),
            (&HeaderValue::from_static(status), &HeaderValue::from_static(message))
        );
        assert!(!headers.contains_key("content-length"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "");
    }
}

#[tokio::test]
async fn a_split_goes_on_where_it_is_when_equal_routes_come() {
    let (first, first_log) = echo().await;
    let (second, second_log) = echo().await;
    let other = backend(BackendProtocol::Http1, 81, second);
    let split = || {
        let second = WeightedBackend::new(1, BackendTarget::Backend(other.name.clone()));
        vec![below("/", vec![], Action::Forward(vec![share(3), second]))]
    };
    let client = client(vec![], backend(BackendProtocol::Http1, 80, first));
    let name = ResourceName::Backend(other.name.clone());
    client.destinations.set(&name, "1".into(), Resource::Backend(other.clone()), 100).unwrap();
    for _ in 0..8 {
        set(&client, split());
        assert_eq!(ask(&mut client.dial().await, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.0, 200);
    }
    assert_eq!((received(&first_log).len(), received(&second_log).len()), (6, 2));
}
