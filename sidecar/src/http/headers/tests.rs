use std::net::SocketAddr;
use std::rc::Rc;
use std::time::SystemTime;

use ::http::HeaderMap;
use tidegate_core::PeerCertificate;
use tidegate_core::policy::Terms;

use super::*;
use crate::connection_info::VerifiedCertificate;

fn info(client: Option<VerifiedCertificate>) -> ConnectionInfo {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    ConnectionInfo {
        peer: address("[::ffff:10.0.0.7]:4321"),
        local: address("10.0.0.1:80"),
        port: 80,
        app: address("127.0.0.1:80"),
        terms: Terms::IngressMutualTls,
        tls: true,
        server_name: None,
        client: client.map(Rc::new),
        identity: "spiffe://cluster.local/ns/a/sa/b".into(),
        remote: Default::default(),
        accepted: SystemTime::UNIX_EPOCH,
    }
}

fn certificate() -> VerifiedCertificate {
    let now = SystemTime::UNIX_EPOCH;
    VerifiedCertificate {
        leaf: PeerCertificate { sans: vec![], not_before: now, not_after: now, serial: "1".into() },
        chain: vec![],
        forwarded: "Hash=00;DNS=c.d".into(),
        names: "DNS:c.d".into(),
    }
}

#[test]
fn headers_that_only_the_mesh_may_set_are_forbidden_in_every_spelling() {
    for name in [
        "x-forwarded-client-cert",
        "X-FORWARDED-client-cert",
        "X_Forwarded_Client_Cert",
        "x.forwarded.client.cert",
        "x-forwarded_client-cert",
        "x_forwarded_for",
        "x.forwarded.for",
        "X_Forwarded-Proto",
        "x.forwarded",
        "x_forwarded",
        "x-tidegate-principal",
        "X_Tidegate_Anything",
        "X!Forwarded!Client!Cert",
        "x~forwarded~client~cert",
        "x-forwarded-client|cert",
        "x-forwarded'for",
        "x^tidegate`principal",
    ] {
        assert_eq!(classify(name.as_bytes()), Field::Forbidden, "{name}");
    }
    for name in
        ["x-forwarded-host", "x-forwarded-port", "x_request_id", "x-forward", "x", "accept", "x-tidegat", ""]
    {
        assert_eq!(classify(name.as_bytes()), Field::Other, "{name}");
    }
}

#[test]
fn a_connection_option_never_removes_fields_that_message_or_mesh_depend_on() {
    for name in [
        "X-Forwarded-Client-Cert",
        "x-forwarded-for",
        "x-request-id",
        "HOST",
        "content-length",
        "content-type",
    ] {
        assert!(is_protected(name.as_bytes()), "{name}");
    }
    assert!(!is_protected(b"x-hop"));
}

#[test]
fn the_first_scheme_is_kept_if_it_is_valid() {
    let proto = |values: &[&'static [u8]], tls| forwarded_proto(values.iter().copied(), tls);
    let kept: [(&[&'static [u8]], &str); 9] = [
        (&[b"https"], "https"),
        (&[b"http"], "http"),
        (&[b"HTTPS"], "https"),
        (&[b"wss"], "wss"),
        (&[b"Ws"], "ws"),
        (&[b"https, http"], "https"),
        (&[b"http,https"], "http"),
        (&[b"https", b"http"], "https"),
        (&[b"", b" , wss "], "wss"),
    ];
    for (values, expected) in kept {
        assert_eq!((proto(values, false), proto(values, true)), (expected, expected), "{values:?}");
    }
    let others: [&[&'static [u8]]; 5] = [&[], &[b""], &[b"gopher"], &[b"gopher, https"], &[b"https http"]];
    for values in others {
        assert_eq!(proto(values, false), "http");
        assert_eq!(proto(values, true), "https");
    }
}

#[test]
fn a_request_id_is_kept_only_if_it_is_single_short_and_visible() {
    let long = [b'a'; 129];
    assert_eq!(request_id([&b"abc-1"[..]].into_iter()), RequestId::Kept(b"abc-1"));
    assert_eq!(request_id([&long[..128]].into_iter()), RequestId::Kept(&long[..128]));
    let others: [&[&[u8]]; 6] = [&[], &[b""], &[&long], &[b"a b"], &[b"\xff"], &[b"a", b"a"]];
    for values in others {
        let RequestId::New(id) = request_id(values.iter().copied()) else { panic!("{values:?}") };
        let text = std::str::from_utf8(&id).unwrap();
        let parts: Vec<_> = text.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&text[14..15], "4");
        assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
    }
    assert_ne!(uuid(), uuid());
}

#[test]
fn the_rules_hold_for_http_2_requests() {
    let mut fields = HeaderMap::new();
    for (name, value) in [
        ("x-forwarded-client-cert", "By=evil"),
        ("x_forwarded_client_cert", "By=evil"),
        ("x-tidegate-principal", "evil"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-for", "5.6.7.8"),
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-host", "a.example"),
        ("te", "gzip, trailers"),
        ("connection", "close"),
        ("accept", "*/*"),
    ] {
        fields.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    apply(&mut fields, &ServedConnection::Inbound(Rc::new(info(Some(certificate())))), None);
    let value = |name: &str| fields.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(value("x-forwarded-client-cert"), ["By=spiffe://cluster.local/ns/a/sa/b;Hash=00;DNS=c.d"]);
    assert_eq!(value("x-forwarded-for"), ["1.2.3.4, 5.6.7.8, 10.0.0.7"]);
    assert_eq!(value("x-forwarded-proto"), ["https"]);
    assert_eq!(value("x-forwarded-host"), ["a.example"]);
    assert_eq!(value("te"), ["trailers"]);
    assert_eq!(value("accept"), ["*/*"]);
    assert_eq!(value("x-request-id")[0].len(), 36);
    assert_eq!(fields.len(), 7);

    let mut fields = HeaderMap::new();
    fields.insert("x-forwarded-client-cert", HeaderValue::from_static("By=evil"));
    apply(&mut fields, &ServedConnection::Inbound(Rc::new(info(None))), None);
    assert!(!fields.contains_key("x-forwarded-client-cert"));
}

#[test]
fn grpc_is_detected_by_its_content_type() {
    for value in ["application/grpc", "application/grpc+proto", "application/grpc; charset=x"] {
        assert!(is_grpc(value.as_bytes()), "{value}");
    }
    for value in ["application/json", "application/grpcx", "application/grpc-web+proto", "text/plain", ""] {
        assert!(!is_grpc(value.as_bytes()), "{value}");
    }
}

#[test]
fn an_empty_list_of_addresses_adds_nothing() {
    let mut fields = HeaderMap::new();
    for value in ["", "1.2.3.4", ""] {
        fields.append(FORWARDED_FOR, HeaderValue::from_static(value));
    }
    apply(&mut fields, &ServedConnection::Inbound(Rc::new(info(None))), None);
    let values: Vec<_> = fields.get_all(FORWARDED_FOR).iter().collect();
    assert_eq!(values, ["1.2.3.4, 10.0.0.7"]);
}
