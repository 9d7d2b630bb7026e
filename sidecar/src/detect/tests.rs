use super::*;

#[test]
fn what_does_not_begin_as_tls_is_plaintext_from_its_first_byte() {
    for bytes in [&b"G"[..], b"\x16G", b"\x15\x03", b"\x80\x2e\x01", b"\0", b"SSH-2.0"] {
        assert_eq!(first_bytes(bytes), FirstBytes::Plaintext, "{bytes:?}");
    }
    for bytes in [&b""[..], b"\x16", b"\x16\x03", b"\x16\x03\x01\x00"] {
        assert_eq!(first_bytes(bytes), FirstBytes::Incomplete, "{bytes:?}");
    }
}

#[test]
fn http_is_detected_by_a_method_and_a_path_or_the_preface() {
    for (bytes, start) in [
        (&b""[..], HttpStart::Incomplete),
        (b"G", HttpStart::Incomplete),
        (b"GET ", HttpStart::Incomplete),
        (b"GET /", HttpStart::Http1),
        (b"OPTIONS * HTTP/1.1", HttpStart::Http1),
        (b"M-SEARCH /", HttpStart::Http1),
        (b"P", HttpStart::Incomplete),
        (b"PRI", HttpStart::Incomplete),
        (b"PRI * HTTP/1.1", HttpStart::Http1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", HttpStart::Http2),
        (b"GET key", HttpStart::Other),
        (b"GET http://a/", HttpStart::Other),
        (b"CONNECT a:443 HTTP/1.1", HttpStart::Other),
        (b"get /", HttpStart::Other),
        (b" /", HttpStart::Other),
        (b"*1\r\n$4\r\nPING\r\n", HttpStart::Other),
        (b"\x16\x03\x01", HttpStart::Other),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", HttpStart::Other),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAA /", HttpStart::Other),
    ] {
        assert_eq!(http_start(bytes), start, "{}", bytes.escape_ascii());
    }
}

#[test]
fn the_http2_preface_is_seen_whole_or_not_at_all() {
    for cut in 0..HTTP2_PREFACE.len() {
        assert_eq!(http2_preface(&HTTP2_PREFACE[..cut]), Preface::Incomplete);
    }
    assert_eq!(http2_preface(HTTP2_PREFACE), Preface::Http2);
    assert_eq!(http2_preface(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"), Preface::Http2);
    for bytes in [&b"POST / HTTP/1.1"[..], b"PRI * HTTP/1.1", b"pri"] {
        assert_eq!(http2_preface(bytes), Preface::Other, "{bytes:?}");
    }
}
