use std::net::TcpListener;
use std::time;

use tidegate_core::ObjectRef;
use tidegate_core::policy::{
    DescribedField, DescriptorEntry, DescriptorPair, GlobalConnectionLimit, GlobalRateLimits,
    GlobalRequestLimit, MOST_CHECK_TIMEOUT, MeshProtocol, RequestDescriptor, ServerAddress, Terms,
};
use tidegate_proto::rate_limit::rate_limit_response::rate_limit::Unit;
use tidegate_proto::rate_limit::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use tidegate_proto::rate_limit::{Duration, HeaderValue};
use tokio::task::LocalSet;

use super::*;
use crate::connection_info::ConnectionInfo;
use crate::http::checks::RequestChecks;
use crate::http::request::{NormalRequest, Request, Version};
use crate::http::verdict::Edits;
use crate::snapshot;

fn header(key: &str, value: &str) -> HeaderValue {
    HeaderValue { key: key.into(), value: value.into(), raw_value: Vec::new() }
}

fn status(requests_per_unit: u32, unit: Unit, name: &str, limit_remaining: u32) -> DescriptorStatus {
    DescriptorStatus {
        code: Code::Ok.into(),
        current_limit: Some(RateLimit { requests_per_unit, unit: unit.into(), name: name.into() }),
        limit_remaining,
        duration_until_reset: Some(Duration { seconds: 7, nanos: 9 }),
    }
}

fn answer(code: Code) -> RateLimitResponse {
    RateLimitResponse {
        overall_code: code.into(),
        statuses: vec![status(10, Unit::Second, "per-ip", 3), status(1000, Unit::Hour, "", 900)],
        response_headers_to_add: vec![header("x-limit", "a"), header("x-limit", "b"), header("host", "evil")],
        request_headers_to_add: vec![header("X-User", "alice"), header("x-user", "bob")],
        raw_body: b"slow down".to_vec(),
    }
}

fn lines(edits: &tidegate_core::route::filter::HeaderEdits) -> Vec<String> {
    edits.appended().map(|(name, value)| format!("{name}: {}", value.as_str())).collect()
}

fn within(response: RateLimitResponse, has_headers: bool) -> Option<Box<Edits>> {
    match LimitAnswer::of_request(response, 429, has_headers) {
        Ok(LimitAnswer::Within(edits)) => edits,
        _ => panic!("a limit is exceeded"),
    }
}

fn exceeded(response: RateLimitResponse, status: u16, has_headers: bool) -> RefusalResponse {
    match LimitAnswer::of_request(response, status, has_headers) {
        Ok(LimitAnswer::Exceeded(response)) => response,
        _ => panic!("no limit is exceeded"),
    }
}

#[test]
fn fields_for_the_request_replace_the_client_s_and_those_for_the_response_are_added() {
    let edits = within(answer(Code::Ok), false).unwrap();
    assert_eq!(lines(&edits.request), ["x-user: alice", "x-user: bob"]);
    assert!(edits.request.drops(b"X-USER"));
    assert_eq!(lines(&edits.response), ["x-limit: a", "x-limit: b"]);
    assert!(!edits.response.drops(b"x-limit"));
    assert!(
        within(RateLimitResponse { overall_code: Code::Ok.into(), ..Default::default() }, true).is_none()
    );
    let invalid =
        RateLimitResponse { response_headers_to_add: vec![header("a", "b\r\nc: d")], ..answer(Code::Ok) };
    assert!(matches!(LimitAnswer::of_request(invalid, 429, false), Err(LimitCallError::InvalidField(_))));
}

#[test]
fn fields_describe_the_limit_that_has_the_least_left_and_list_all_others() {
    let quota = [
        "x-ratelimit-limit: 10, 10;w=1;name=\"per-ip\", 1000;w=3600",
        "x-ratelimit-remaining: 3",
        "x-ratelimit-reset: 7",
    ];
    let edits = within(answer(Code::Ok), true).unwrap();
    assert_eq!(lines(&edits.response)[..3], quota);
    assert!(edits.response.drops(b"x-ratelimit-limit"), "one of the app is replaced");
    let response = exceeded(answer(Code::OverLimit), 429, true);
    assert_eq!(response.fields["x-ratelimit-limit"], quota[0].split_once(": ").unwrap().1);
    assert_eq!(quota::fields(&[DescriptorStatus::default()]), None);
    for (unit, seconds) in [
        (Unit::Minute, 60),
        (Unit::Day, 86_400),
        (Unit::Week, 604_800),
        (Unit::Month, 2_592_000),
        (Unit::Year, 31_536_000),
    ] {
        let fields = quota::fields(&[status(5, unit, "a\"b", 1)]).unwrap();
        assert_eq!(fields[0].1, format!("5, 5;w={seconds}"));
    }
    assert_eq!(quota::fields(&[status(5, Unit::Unknown, "a", 1)]).unwrap()[0].1, "5");
}

#[test]
fn above_the_limit_the_client_gets_status_fields_and_body() {
    let response = exceeded(answer(Code::OverLimit), 503, false);
    assert_eq!((response.status.as_u16(), &response.body[..]), (503, &b"slow down"[..]));
    assert_eq!(response.fields["x-envoy-ratelimited"], "true");
    assert_eq!(response.fields.get_all("x-limit").iter().collect::<Vec<_>>(), ["a", "b"]);
    assert!(!response.fields.contains_key("host") && !response.fields.contains_key("x-ratelimit-limit"));
    let call = response.for_grpc();
    assert_eq!(
        (&call.fields["grpc-status"], &call.fields["grpc-message"]),
        (&"14".parse().unwrap(), &"slow down".parse().unwrap())
    );
    assert_eq!((call.status.as_u16(), call.body.len()), (200, 0));
    let none = LimitAnswer::of_request(RateLimitResponse::default(), 429, false);
    assert!(matches!(none, Err(LimitCallError::NoCode)));
    assert!(matches!(LimitAnswer::of_connection(answer(Code::Unknown)), Err(LimitCallError::NoCode)));
    assert!(matches!(LimitAnswer::of_connection(answer(Code::OverLimit)), Ok(LimitAnswer::Exceeded(_))));
}

fn service(address: Option<ServerAddress>, timeout: time::Duration, fail_open: bool) -> RateLimitService {
    RateLimitService { address, domain: "shop".into(), timeout, fail_open }
}

fn limits(service: RateLimitService, entries: Vec<DescriptorEntry>) -> Arc<RateLimits> {
    let requests = GlobalRequestLimit {
        service,
        descriptors: vec![RequestDescriptor { entries }],
        routes: vec![],
        status: 429,
        has_rate_limit_headers: false,
    };
    Arc::new(RateLimits {
        origin: ObjectRef::new("UpstreamTrafficSetting", "shop", "cart"),
        is_audit: false,
        connections: None,
        requests: None,
        routes: vec![],
        global: GlobalRateLimits { connections: None, requests: Some(requests) },
    })
}

#[test]
fn the_service_gets_what_describes_the_request_and_is_not_called_without_a_descriptor() {
    let fields = [httparse::Header { name: "X-User", value: b"al\xffice" }];
    let request = Request::from_lines(b"GET", b"a", b"/x", Version::Http11, &fields);
    let normal = NormalRequest::new(&request, true).unwrap();
    let user =
        |name| DescriptorEntry::Header { field: DescribedField::parse(name).unwrap(), key: "user".into() };
    let generic = DescriptorEntry::Generic(DescriptorPair { key: "k".into(), value: "v".into() });
    let check = |name| {
        let service = service(ServerAddress::parse("ratelimit", 8081).ok(), MOST_CHECK_TIMEOUT, true);
        let limits = limits(service, vec![generic.clone(), user(name), DescriptorEntry::RemoteAddress]);
        RateLimitCheck::new(&limits, &normal, "10.0.0.9".parse().unwrap(), false)
    };
    let message = check("x-user").unwrap().message;
    assert_eq!((message.domain.as_str(), message.hits_addend), ("shop", 0));
    let [descriptor] = &message.descriptors[..] else { panic!("{message:?}") };
    let entries: Vec<_> =
        descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect();
    assert_eq!(entries, ["k=v", "user=al!ice", "remote_address=10.0.0.9"]);
    assert!(check("x-other").is_none());
}

/// A service that takes connections and never answers.
fn silent(fail_open: bool) -> (TcpListener, RateLimitService) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = ServerAddress::Address(listener.local_addr().unwrap());
    (listener, service(Some(address), time::Duration::from_millis(50), fail_open))
}

fn peer() -> ServedConnection {
    ServedConnection::Inbound(Rc::new(ConnectionInfo {
        peer: "10.0.0.7:4321".parse().unwrap(),
        local: "10.0.0.1:14001".parse().unwrap(),
        port: 14001,
        app: "127.0.0.1:8080".parse().unwrap(),
        terms: Terms::MeshTls(MeshProtocol::Http1),
        tls: true,
        server_name: None,
        client: None,
        identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
        accepted: time::SystemTime::UNIX_EPOCH,
        remote: Default::default(),
    }))
}

fn context() -> HttpContext {
    HttpContext::new(Rc::default(), Rc::new(Telemetry::default()), snapshot::channel().1)
}

#[test]
fn services_have_the_longest_of_their_timeouts_together_and_each_at_most_its_own() {
    let mut time = ServicesTime { longest: time::Duration::from_secs(9), end: None };
    let begin = Instant::now();
    let after = |seconds| begin + time::Duration::from_secs(seconds);
    let left: Vec<_> = [(9, 0), (3, 0), (3, 5), (9, 5), (1, 9), (9, 12)]
        .map(|(timeout, seconds)| time.next(time::Duration::from_secs(timeout), after(seconds)).as_secs())
        .into();
    assert_eq!(left, [9, 3, 3, 4, 0, 0]);
}

#[tokio::test]
async fn a_service_of_a_request_for_which_no_time_is_left_is_not_called_and_has_failed() {
    let request = Request::from_lines(b"GET", b"a", b"/x", Version::Http11, &[]);
    let normal = NormalRequest::new(&request, true).unwrap();
    let check = |service| {
        let limits = limits(service, vec![DescriptorEntry::RemoteAddress]);
        RateLimitCheck::new(&limits, &normal, "10.0.0.9".parse().unwrap(), false).unwrap()
    };
    let asking = async {
        for fails_open in [true, false] {
            let ((called, first), (other, last)) = (silent(true), silent(fails_open));
            let checks = RequestChecks::new(vec![check(first), check(last)], None);
            assert_eq!(checks.within_limits(&context(), &peer()).await.is_ok(), fails_open);
            assert!(called.accept().is_ok() && other.accept().is_err());
        }
    };
    LocalSet::new().run_until(asking).await;
}

#[tokio::test]
async fn a_service_of_a_connection_for_which_no_time_is_left_is_not_called_and_has_failed() {
    let ((called, first), (other, last)) = (silent(true), silent(false));
    let limited = |service| {
        let connections = Some(GlobalConnectionLimit { service, descriptors: vec![] });
        let limits = limits(silent(true).1, vec![]);
        Arc::new(RateLimits { global: GlobalRateLimits { connections, requests: None }, ..(*limits).clone() })
    };
    let all = [first, last].map(limited);
    let asking = async {
        let (context, peer, mut time) = (context(), peer(), ServicesTime::of_connection(all.iter()));
        let [first, last] = &all;
        assert_eq!(exceeds(first, &context, &peer, &mut time).await, None);
        let refused = exceeds(last, &context, &peer, &mut time).await;
        assert!(matches!(refused, Some(Decision::Deny(_))), "{refused:?}");
        assert!(called.accept().is_ok() && other.accept().is_err());
    };
    LocalSet::new().run_until(asking).await;
}
