use super::*;

#[test]
fn the_app_protocol_decides_then_the_name_s_prefix_then_the_number() {
    for (app_protocol, name, number, expected) in [
        (None, None, 8080, PortProtocol::Undeclared),
        (None, Some("web"), 8080, PortProtocol::Undeclared),
        (None, Some("httpd"), 8080, PortProtocol::Undeclared),
        (None, Some("http"), 8080, PortProtocol::Http),
        (None, Some("http-admin"), 8080, PortProtocol::Http),
        (None, Some("http"), 6379, PortProtocol::Http),
        (None, Some("http2-api"), 8080, PortProtocol::Http2),
        (None, Some("https"), 8443, PortProtocol::Tcp),
        (None, Some("grpc"), 8080, PortProtocol::Http2),
        (None, Some("grpc-api"), 8080, PortProtocol::Http2),
        (None, Some("grpc-web"), 8080, PortProtocol::Http),
        (None, Some("tcp"), 8080, PortProtocol::Tcp),
        (None, Some("tcp-db"), 8080, PortProtocol::Tcp),
        (None, Some("tcp-server-first-smtp"), 8080, PortProtocol::TcpServerFirst),
        (None, Some("tls-api"), 8080, PortProtocol::Tcp),
        (None, Some("mysql"), 8080, PortProtocol::TcpServerFirst),
        (None, Some("redis-main"), 8080, PortProtocol::Tcp),
        (None, None, 5432, PortProtocol::Tcp),
        (None, Some("main"), 25, PortProtocol::Tcp),
        (Some("http"), Some("grpc-api"), 8080, PortProtocol::Http),
        (Some("HTTP"), None, 8080, PortProtocol::Http),
        (Some("https"), Some("http"), 8080, PortProtocol::Tcp),
        (Some("tls"), None, 8080, PortProtocol::Tcp),
        (Some("gRPC"), None, 8080, PortProtocol::Http2),
        (Some("http2"), None, 8080, PortProtocol::Http2),
        (Some("kubernetes.io/h2c"), None, 8080, PortProtocol::Http2),
        (Some("kubernetes.io/ws"), Some("tcp-x"), 8080, PortProtocol::Http1),
        (Some("kubernetes.io/wss"), None, 8080, PortProtocol::Tcp),
        (Some("tcp"), Some("http"), 8080, PortProtocol::Tcp),
        (Some("tcp-server-first"), None, 8080, PortProtocol::TcpServerFirst),
        (Some("example.com/mine"), Some("http"), 8080, PortProtocol::Unknown),
        (Some("http-x"), Some("http"), 8080, PortProtocol::Unknown),
        (Some(""), Some("http"), 8080, PortProtocol::Unknown),
    ] {
        let protocol = PortProtocol::of(app_protocol, name, [80, number]);
        assert_eq!(protocol, expected, "{app_protocol:?} {name:?} {number}");
    }
    assert_eq!(PortProtocol::of(None, None, [3306, 8080]), PortProtocol::Tcp);
}

#[test]
fn only_http_is_parsed() {
    for (_, protocol) in NAMES {
        assert_eq!(protocol.carried().is_opaque(), protocol.spoken() == BackendProtocol::Tcp);
    }
    assert!(PortProtocol::Unknown.carried().is_opaque());
    assert!(!PortProtocol::Undeclared.carried().is_opaque());
}

#[test]
fn a_longer_name_comes_before_its_own_beginning() {
    for (at, (name, _)) in NAMES.iter().enumerate() {
        assert!(NAMES[..at].iter().all(|(earlier, _)| !name.starts_with(&format!("{earlier}-"))), "{name}");
    }
}
