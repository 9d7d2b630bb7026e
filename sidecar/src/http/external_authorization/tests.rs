use std::borrow::Cow;
use std::time::SystemTime;

use ::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use tidegate_core::policy::Terms;
use tidegate_proto::external_authorization::check_response::HttpResponse;
use tidegate_proto::external_authorization::{
    BoolValue, CheckResponse, DeniedHttpResponse, HeaderValue as WireValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, QueryParameter, Status,
};

use super::answer::answer;
use super::*;
use crate::http::headers;
use crate::http::request::Version;

fn connection() -> Rc<ConnectionInfo> {
    Rc::new(ConnectionInfo {
        peer: "[::ffff:10.0.0.7]:4321".parse().unwrap(),
        local: "10.0.0.1:14001".parse().unwrap(),
        port: 14001,
        app: "127.0.0.1:8080".parse().unwrap(),
        terms: Terms::IngressTls,
        tls: true,
        server_name: Some("a.example".into()),
        client: None,
        identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
        accepted: SystemTime::UNIX_EPOCH,
        remote: Default::default(),
    })
}

fn lines<'h>(fields: &[(&'h str, &'h str)]) -> Vec<httparse::Header<'h>> {
    let line = |&(name, value): &(&'h str, &'h str)| httparse::Header { name, value: value.as_bytes() };
    fields.iter().map(line).collect()
}

fn sent(fields: &[(&str, &str)]) -> CheckRequest {
    let lines = lines(fields);
    let request = Request::from_lines(b"GET", b"a.example", b"/x", Version::Http11, &lines);
    attributes::of(&request, b"/x", &connection()).message
}

fn option(key: &str, value: &str, append: Option<bool>, append_action: i32) -> HeaderValueOption {
    let header = WireValue { key: key.into(), value: value.into(), raw_value: Vec::new() };
    let append = append.map(|value| BoolValue { value });
    HeaderValueOption { header: Some(header), append, append_action }
}

fn ok(ok: OkHttpResponse) -> CheckResponse {
    let status = Some(Status { code: 0, message: String::new() });
    CheckResponse { status, http_response: Some(HttpResponse::OkResponse(ok)) }
}

fn edits(response: CheckResponse, request: &CheckRequest) -> Box<Edits> {
    match answer(response, request) {
        Ok(Answer::Allow(Some(edits))) => edits,
        _ => panic!("it is not allowed with edits"),
    }
}

#[test]
fn the_attributes_are_those_of_the_request_as_the_app_gets_it() {
    let fields = [
        ("Host", "a.example"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("x-forwarded-client-cert", "forged"),
        ("cookie", "a=1"),
        ("Cookie", "b=2"),
        ("connection", "close, X-Hop"),
        ("x-hop", "1"),
        ("x-request-id", "one"),
    ];
    let attributes = sent(&fields).attributes.unwrap();
    assert_eq!(attributes.tls_session.unwrap().sni, "a.example");
    let source = attributes.source.unwrap().address.unwrap().socket_address.unwrap();
    assert_eq!((source.address.as_str(), source.port_value), ("10.0.0.7", 4321));
    let http = attributes.request.unwrap().http.unwrap();
    assert_eq!((http.id.as_str(), http.size, http.scheme.as_str()), ("one", 0, "https"));
    let mut headers: Vec<_> = http.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    headers.sort();
    assert_eq!(
        headers,
        [
            ":authority: a.example",
            ":method: GET",
            ":path: /x",
            ":scheme: https",
            "cookie: a=1; b=2",
            "x-forwarded-for: 192.0.2.1, 10.0.0.7",
            "x-forwarded-proto: https",
            "x-request-id: one",
        ]
    );
}

#[test]
fn an_id_that_the_client_did_not_send_is_made_once_for_server_and_app() {
    let request = Request::from_lines(b"GET", b"a", b"/", Version::Http11, &[]);
    let attributes = attributes::of(&request, b"/", &connection());
    let id = attributes.new_id.unwrap();
    let mut edits = Edits::default();
    edits.set_id(&id);
    let head = String::from_utf8(edits.head(&request, b"/")).unwrap();
    assert_eq!(head, format!("GET / HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\n\r\n"));
    assert_eq!(attributes.message.attributes.unwrap().request.unwrap().http.unwrap().id, *id);
}

#[test]
fn only_a_status_of_zero_or_an_ok_response_without_a_status_allows() {
    let request = sent(&[]);
    let status = |code| Some(Status { code, message: String::new() });
    let is_allowed = |status, http_response| {
        matches!(answer(CheckResponse { status, http_response }, &request), Ok(Answer::Allow(_)))
    };
    let ok = || Some(HttpResponse::OkResponse(OkHttpResponse::default()));
    let denied = || Some(HttpResponse::DeniedResponse(DeniedHttpResponse::default()));
    assert!(is_allowed(status(0), None) && is_allowed(status(0), ok()) && is_allowed(None, ok()));
    assert!(!is_allowed(None, None) && !is_allowed(None, denied()));
    assert!(!is_allowed(status(7), None) && !is_allowed(status(7), ok()) && !is_allowed(status(7), denied()));
}

#[test]
fn fields_of_the_request_are_replaced_unless_the_server_says_otherwise() {
    let fields = [("host", "a"), ("X-A", "1"), ("x-b", "1"), ("x-c", "1"), ("x-d", "1"), ("x-e", "1")];
    let request = sent(&fields);
    let edits = edits(
        ok(OkHttpResponse {
            headers: vec![
                option("x-a", "2", None, 0),
                option("x-b", "2", Some(true), 0),
                option("x-c", "2", None, 1),
                option("x-new", "2", None, 1),
                option("x-d", "2", None, 3),
                option("x-other", "2", None, 3),
                option(":path", "/", None, 0),
                option("Host", "b", None, 0),
            ],
            headers_to_remove: vec!["x-e".into(), "host".into(), ":method".into()],
            ..OkHttpResponse::default()
        }),
        &request,
    );
    let lines = lines(&fields);
    let request = Request::from_lines(b"GET", b"a", b"/", Version::Http11, &lines);
    assert_eq!(
        String::from_utf8(edits.head(&request, b"/")).unwrap(),
        "GET / HTTP/1.1\r\nhost: a\r\nx-b: 1\r\nx-c: 1\r\nx-a: 2\r\nx-new: 2\r\nx-d: 2\r\nx-b: 2\r\n\r\n"
    );
    let mut map = HeaderMap::new();
    for (name, value) in &fields[1..] {
        map.append(::http::HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value));
    }
    headers::edit(&mut map, &edits.request);
    let values = |name| map.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((values("x-a"), values("x-b"), values("x-c")), (vec!["2"], vec!["1", "2"], vec!["1"]));
    assert_eq!((values("x-d"), values("x-e"), values("x-other")), (vec!["2"], vec![], vec![]));
}

#[test]
fn parameters_are_replaced_at_the_end_of_the_query() {
    let parameter = |key: &str, value: &str| QueryParameter { key: key.into(), value: value.into() };
    let edits = edits(
        ok(OkHttpResponse {
            query_parameters_to_set: vec![parameter("a", "x&y=z"), parameter("new", "1")],
            query_parameters_to_remove: vec!["b".into()],
            ..OkHttpResponse::default()
        }),
        &sent(&[]),
    );
    for (path, expected) in
        [(&b"/p?b=1&c&a=1&a=2"[..], &b"/p?c&a=x%26y%3Dz&new=1"[..]), (b"/p", b"/p?a=x%26y%3Dz&new=1")]
    {
        assert_eq!(edits.path(path), Cow::Borrowed(expected));
    }
    assert_eq!(Edits::default().path(b"/p?b"), Cow::Borrowed(b"/p?b"));
}

#[test]
fn a_refusal_has_the_server_s_fields_and_a_status_that_is_one() {
    let denied = |code, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(name, value)| option(name, value, None, 0)).collect();
        let denied =
            DeniedHttpResponse { status: Some(HttpStatus { code }), headers, body: "why: 1%\n".into() };
        let status = Some(Status { code: 7, message: String::new() });
        CheckResponse { status, http_response: Some(HttpResponse::DeniedResponse(denied)) }
    };
    let response = |code, headers: &[(&str, &str)]| match answer(denied(code, headers), &sent(&[])) {
        Ok(Answer::Deny(response)) => response,
        _ => panic!("it is not denied"),
    };
    let fields = [("set-cookie", "a"), ("set-cookie", "b"), ("content-length", "9"), ("date", "x")];
    let refusal = response(302, &fields);
    assert_eq!((refusal.status.as_u16(), refusal.fields.len()), (302, 2));
    assert!([0, 99, 100, 101, 600].into_iter().all(|code| response(code, &[]).status == 403));
    assert_eq!(response(204, &[]).body, "");

    let call = response(401, &[("x-why", "a")]).for_grpc();
    let field = |name| call.fields.get(name).unwrap().to_str().unwrap();
    assert_eq!((call.status.as_u16(), call.body.len(), field("grpc-status")), (200, 0, "16"));
    assert_eq!((field("grpc-message"), field("x-why")), ("why: 1%25%0A", "a"));
    assert_eq!(call.fields[CONTENT_TYPE], "application/grpc");
}

#[test]
fn an_answer_with_an_invalid_field_is_not_carried_out() {
    let request = sent(&[]);
    let too_long = "x".repeat(4097);
    for (name, value) in [("a b", "1"), ("", "1"), ("a", "1\r\nb: 2"), ("a", too_long.as_str())] {
        let headers = vec![option(name, value, None, 0)];
        for ok_response in [
            OkHttpResponse { headers: headers.clone(), ..OkHttpResponse::default() },
            OkHttpResponse { response_headers_to_add: headers.clone(), ..OkHttpResponse::default() },
        ] {
            assert!(answer(ok(ok_response), &request).is_err(), "{name:?}");
        }
    }
}
