//! Formats a client certificate for `x-forwarded-client-cert`, in Envoy's format.

use std::fmt::Write;

use tidegate_core::{PeerCertificate, San, hex};

/// `Hash=<SHA-256 of the DER, hex>;URI=…;DNS=…`, with all names of these types in the certificate's order.
///
/// Values with anything but letters, digits and `-._~:/@%+` are put in double quotes, with `"` and `\` escaped by a
/// backslash and everything except printable ASCII as `%XX`: a name cannot break out of its element, the header or the
/// request.
pub(super) fn value(leaf: &PeerCertificate, der: &[u8]) -> Box<str> {
    let mut text = String::with_capacity(128);
    text.push_str("Hash=");
    text.push_str(&hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref()));
    for san in &leaf.sans {
        match san {
            San::Uri(uri) => element(&mut text, "URI", uri),
            San::Dns(name) => element(&mut text, "DNS", name.as_str()),
            San::DnsWildcard(name) => element(&mut text, "DNS", name),
            San::Email(_) | San::Ip(_) | San::Other => {}
        }
    }
    text.into()
}

fn element(text: &mut String, key: &str, value: &str) {
    text.push(';');
    text.push_str(key);
    text.push('=');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/@%+".contains(&byte);
    if !value.is_empty() && value.bytes().all(is_plain) {
        text.push_str(value);
        return;
    }
    text.push('"');
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn leaf(sans: Vec<San>) -> PeerCertificate {
        let now = SystemTime::UNIX_EPOCH;
        PeerCertificate { sans, not_before: now, not_after: now, serial: "1".into() }
    }

    #[test]
    fn a_certificate_is_written_as_hash_uri_and_dns_names() {
        let dns = tidegate_core::DnsName::parse("b.a.cluster.local").unwrap();
        let leaf = leaf(vec![San::Uri("spiffe://cluster.local/ns/a/sa/b".into()), San::Dns(dns)]);
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let expected = format!("Hash={hash};URI=spiffe://cluster.local/ns/a/sa/b;DNS=b.a.cluster.local");
        assert_eq!(&*value(&leaf, b"abc"), expected);
    }

    #[test]
    fn no_name_breaks_out_of_its_element() {
        for evil in ["a;By=b", "a,By=b", "a\"b", "a\r\nHost: x", "a\\", "ü", "a b", "=", ""] {
            let text = value(&leaf(vec![San::Uri(evil.into())]), b"");
            let (_, value) = text.split_once(";URI=").unwrap();
            let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap();
            let bytes = inner.as_bytes();
            let quotes = (0..bytes.len()).filter(|at| bytes[*at] == b'"');
            for at in quotes {
                let escapes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
                assert_eq!(escapes % 2, 1, "{text}");
            }
            let trailing = bytes.iter().rev().take_while(|byte| **byte == b'\\').count();
            assert_eq!(trailing % 2, 0, "{text}");
            assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{text}");
        }
    }
}
