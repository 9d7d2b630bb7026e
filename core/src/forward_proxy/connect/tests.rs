use proptest::prelude::*;

use super::*;

/// The answer in these bytes, and what follows it.
fn decoded(bytes: &[u8]) -> Result<(Option<ConnectAnswer>, &[u8]), MalformedAnswer> {
    let Fed { consumed, answer } = ConnectDecoder::default().feed(bytes)?;
    Ok((answer, &bytes[consumed..]))
}

fn refused(bytes: &[u8]) -> String {
    match decoded(bytes) {
        Ok((Some(ConnectAnswer::Refused(refusal)), _)) => refusal.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_request_names_the_target_and_has_the_credentials() {
    let credentials = ProxyCredentials::basic("mesh", "s3cret").unwrap();
    let request = connect_request("api.example:443", Some(&credentials)).unwrap();
    let expected = "CONNECT api.example:443 HTTP/1.1\r\nHost: api.example:443\r\n\
                    Proxy-Authorization: Basic bWVzaDpzM2NyZXQ=\r\n\r\n";
    assert_eq!(String::from_utf8(request).unwrap(), expected);
    let request = connect_request("[fd00::1]:443", None).unwrap();
    assert_eq!(request, b"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\n\r\n");
    for target in ["", "api.example", "api.example:", ":443", "api.example:443\r\nx: y", "a b:443"] {
        assert_eq!(connect_request(target, None), Err(InvalidConnectTarget(target.into())));
    }
}

#[test]
fn every_2xx_is_a_tunnel_and_what_follows_its_head_is_not_consumed() {
    for head in [
        "HTTP/1.1 200 Connection established\r\n\r\n",
        "HTTP/1.0 200 OK\r\nVia: squid\r\n\r\n",
        "HTTP/1.1 200\r\ncontent-length: 5\r\n\r\n",
        "HTTP/1.1 204 \n\n",
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        let bytes = [head.as_bytes(), b"220 hello\r\n\r\n"].concat();
        assert_eq!(decoded(&bytes), Ok((Some(ConnectAnswer::Tunnel), &b"220 hello\r\n\r\n"[..])), "{head:?}");
    }
}

#[test]
fn a_refusal_has_the_proxys_own_words() {
    let squid =
        "HTTP/1.1 403 Forbidden\r\nServer: squid/5.7\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n<html>";
    assert_eq!(refused(squid.as_bytes()), "403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0");
    let unknown =
        "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate:Basic realm=\"Corp\"\r\n\r\n";
    let words = "407 Proxy Authentication Required, Proxy-Authenticate: Basic realm=\"Corp\"";
    assert_eq!(refused(unknown.as_bytes()), words);
    assert_eq!(refused(b"HTTP/1.0 503\r\n\r\n"), "503");
    assert_eq!(refused(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "101 Switching Protocols");
    let hostile = format!("HTTP/1.1 503 \x1b[2J\r\nX-Squid-Error: {}\r\n\r\n", "é".repeat(1000));
    let words = refused(hostile.as_bytes());
    assert!(words.starts_with("503 ?[2J, X-Squid-Error: ????") && words.len() == 260, "{words}");
}

#[test]
fn the_words_of_a_response_are_those_of_its_telling_fields() {
    let fields: [(&[u8], &[u8]); 2] = [(b"via", b"squid"), (b"x-squid-error", b"ERR_DNS_FAIL 0")];
    assert_eq!(ProxyRefusal::of_response(503, fields).to_string(), "503 x-squid-error: ERR_DNS_FAIL 0");
}

#[test]
fn what_is_not_http_is_refused_at_its_first_wrong_byte() {
    for bytes in ["SSH-2.0-OpenSSH_9.6\r\n", "H2", "HTTP/2 200\r\n", "\r\n"] {
        assert_eq!(decoded(bytes.as_bytes()), Err(MalformedAnswer::NotHttp), "{bytes:?}");
    }
    for line in ["HTTP/1.1 2000 OK", "HTTP/1.1 20", "HTTP/1.1 600 x", "HTTP/1.x 200 OK", "HTTP/1.1200 OK"] {
        assert_eq!(decoded(format!("{line}\r\n\r\n").as_bytes()), Err(MalformedAnswer::NotHttp), "{line:?}");
    }
    assert_eq!(decoded(b"HTTP/1."), Ok((None, &b""[..])));
}

#[test]
fn the_heads_of_an_answer_are_bounded_together() {
    let fill = |count: usize| format!("HTTP/1.1 403 x\r\na: {}\r\n\r\n", "x".repeat(count - 23));
    assert_eq!(fill(MAX_HEAD).len(), MAX_HEAD);
    assert_eq!(refused(fill(MAX_HEAD).as_bytes()), "403 x");
    assert_eq!(decoded(fill(MAX_HEAD + 1).as_bytes()), Err(MalformedAnswer::TooLarge));
    let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_HEAD / 25 + 1);
    assert_eq!(decoded(interim.as_bytes()), Err(MalformedAnswer::TooLarge));
}

proptest! {
    #[test]
    fn pieces_make_no_difference(bytes: Vec<u8>, cuts in prop::collection::vec(0usize..80, 0..6), is_http: bool) {
        let prefix: &[u8] = if is_http { b"HTTP/1.1 100 c\r\n\r\nHTTP/1.1 403 F\r\nX-Squid-Error: e\r\n\r\n" } else { b"" };
        let all = [prefix, &bytes].concat();
        let whole = ConnectDecoder::default().feed(&all);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(all.len())).chain([0, all.len()]).collect();
        cuts.sort_unstable();
        let mut decoder = ConnectDecoder::default();
        let mut consumed = 0;
        let mut answer = None;
        let mut error = None;
        for pair in cuts.windows(2) {
            match decoder.feed(&all[pair[0]..pair[1]]) {
                Ok(fed) => {
                    consumed += fed.consumed;
                    answer = fed.answer;
                }
                Err(failed) => error = Some(failed),
            }
            if answer.is_some() || error.is_some() {
                break;
            }
        }
        let pieces = error.map_or(Ok(Fed { consumed, answer }), Err);
        prop_assert_eq!(pieces, whole);
    }
}
