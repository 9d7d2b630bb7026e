//! Validates hosts, paths and queries of requests, the same for both codecs.
//!
//! Peers forward more than RFC 3986 allows, and so do clients that build URLs by hand. Unambiguous text is forwarded
//! unchanged; everything else is refused.

/// Whether this is `uri-host [ ":" port ]` (RFC 9110 §7.2): a name, an IPv4 address, or a bracketed IPv6 address
/// without a zone; the port may be empty (RFC 3986 §3.2.3).
pub(crate) fn is_host(text: &[u8]) -> bool {
    let (host, port) = match text.first() {
        Some(b'[') => {
            let Some(end) = text.iter().position(|byte| *byte == b']') else { return false };
            let address = text.get(1..end).and_then(|address| std::str::from_utf8(address).ok());
            if address.is_none_or(|address| address.parse::<std::net::Ipv6Addr>().is_err()) {
                return false;
            }
            (text.get(..=end).unwrap_or_default(), text.get(end + 1..).unwrap_or_default())
        }
        _ => text.split_at(text.iter().position(|byte| *byte == b':').unwrap_or(text.len())),
    };
    // RFC 3986 §3.2.2 allows percent-encoded octets, but no host name contains one, and a lone `%` is invalid.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte);
    let is_host = host.first() == Some(&b'[') || (!host.is_empty() && host.iter().all(|byte| is_name(*byte)));
    let is_port = match port {
        [] => true,
        [b':', digits @ ..] => {
            digits.len() <= 5
                && digits.iter().all(u8::is_ascii_digit)
                && digits.iter().fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')) <= 65535
        }
        _ => false,
    };
    is_host && is_port
}

/// Whether this is a path with an optional query: begins with `/`, and contains only UTF-8 and visible ASCII characters
/// other than `#`, which begins a fragment. RFC 3986 requires ``"<>\^`{|}`` to be percent-encoded; Envoy and nginx
/// forward them unchanged.
pub(crate) fn is_path(text: &[u8]) -> bool {
    let is_allowed = |byte: &u8| matches!(byte, b'!'..=b'"' | b'$'..=b'~' | 0x80..);
    text.first() == Some(&b'/')
        && text.iter().all(is_allowed)
        && (text.is_ascii() || std::str::from_utf8(text).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_name_or_an_address_and_a_port_that_may_be_empty() {
        for host in [
            "a",
            "a.test",
            "A_b.test",
            "a.test:80",
            "a.test:",
            "127.0.0.1:65535",
            "[::1]",
            "[::1]:",
            "[::1]:8080",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":",
            ":80",
            "a:x",
            "a:65536",
            "a:99999",
            "a:000080",
            "a:-1",
            "a:80:80",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "u@a",
            "a%20b",
            "[::1",
            "[::1]80",
            "[fe80::1%25eth0]",
            "[a]",
            "::1",
            "a\u{e4}",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_path_is_every_visible_character_but_a_fragment_s_and_utf_8() {
        let visible: Vec<u8> = (b'!'..=b'~').filter(|byte| *byte != b'#').collect();
        assert!(is_path(&[b"/", &visible[..], b"?", &visible[..]].concat()));
        assert!(is_path("/\u{e4}?\u{1f980}".as_bytes()));
        let refused: [&[u8]; 9] = [b"", b"a", b"?a", b"/#a", b"/?#a", b"/a b", b"/a\x7f", b"/\x01", b"/\xff"];
        for path in refused {
            assert!(!is_path(path), "{}", path.escape_ascii());
        }
    }
}
