//! The server that an app's first bytes name: SNI, `Host`, or the target of a request to a forward proxy.

use serde::{Deserialize, Serialize};
use tidegate_core::DnsName;

use super::{FirstBytes, HttpStart, first_bytes, http_start};

/// Maximum bytes of a host that a request names; longer ones are passed over.
const MOST_HOST: usize = 256;
/// How many bytes are looked at for a host in plaintext.
const MOST_PLAINTEXT: usize = 8 * 1024;

/// What an app speaks on a connection, as far as its first bytes show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SpokenProtocol {
    /// TLS of the app's own.
    Tls,
    /// HTTP in plaintext.
    Http,
    /// HTTP to a forward proxy, such as `CONNECT`.
    HttpProxy,
    /// Anything else, or the app has sent nothing.
    #[default]
    Tcp,
}

/// The server that an app wants to reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedServer {
    /// What the app speaks.
    pub protocol: SpokenProtocol,
    /// The server name of a ClientHello; `Host` with its port, if it has one; or the authority that a proxy is to reach.
    pub name: Option<Box<str>>,
}

/// The server that these first bytes of an app name; `None` if more bytes are needed.
pub fn observed_server(bytes: &[u8]) -> Option<ObservedServer> {
    let of = |protocol, name: Option<&str>| Some(ObservedServer { protocol, name: name.map(Into::into) });
    match first_bytes(bytes) {
        FirstBytes::Incomplete => None,
        FirstBytes::Malformed(_) => of(SpokenProtocol::Tcp, None),
        FirstBytes::Tls(hello) => of(SpokenProtocol::Tls, hello.server_name.as_ref().map(DnsName::as_str)),
        FirstBytes::Plaintext => match http_start(bytes) {
            HttpStart::Incomplete => None,
            HttpStart::Http2 => of(SpokenProtocol::Http, None),
            HttpStart::Http1 => match host_field(bytes) {
                None if bytes.len() < MOST_PLAINTEXT => None,
                host => of(SpokenProtocol::Http, host.flatten()),
            },
            HttpStart::Other if is_unfinished_request(bytes) => None,
            HttpStart::Other => match host_for_proxy(bytes) {
                None => of(SpokenProtocol::Tcp, None),
                host => of(SpokenProtocol::HttpProxy, host),
            },
        },
    }
}

/// Whether bytes may be the beginning of a request line.
fn is_unfinished_request(bytes: &[u8]) -> bool {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    method > 0
        && bytes.len() < MOST_HOST + 64
        && bytes.get(method) == Some(&b' ')
        && !bytes.contains(&b'\n')
        && bytes.iter().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\r'))
}

/// `Host` of a request of HTTP/1; `Some(None)` if its head has none, `None` if the head is unfinished.
fn host_field(head: &[u8]) -> Option<Option<&str>> {
    for line in head.split_inclusive(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\n")?.trim_ascii();
        if line.is_empty() {
            return Some(None);
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let Some((name, value)) = colon.and_then(|colon| line.split_at_checked(colon)) else { continue };
        if name.eq_ignore_ascii_case(b"host") {
            return Some(host(value.get(1..).unwrap_or_default().trim_ascii()));
        }
    }
    None
}

/// The authority in the request line of a request for a forward proxy: `CONNECT a:443` or `GET http://a/`.
fn host_for_proxy(bytes: &[u8]) -> Option<&str> {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    words.next().filter(|version| version.starts_with(b"HTTP/"))?;
    let target = std::str::from_utf8(target).ok()?;
    let authority = match target.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?']).next()?,
        None if method == b"CONNECT" => target,
        None => return None,
    };
    host(authority.as_bytes())
}

/// A host with or without a port, and without anything else.
fn host(bytes: &[u8]) -> Option<&str> {
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte);
    let text = std::str::from_utf8(bytes).ok()?;
    (!bytes.is_empty() && bytes.len() <= MOST_HOST && bytes.iter().all(is_host)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(bytes: &str) -> Option<(SpokenProtocol, Option<String>)> {
        observed_server(bytes.as_bytes()).map(|host| (host.protocol, host.name.map(Into::into)))
    }

    #[test]
    fn a_request_for_a_forward_proxy_names_its_host() {
        for (line, host) in [
            ("CONNECT a.example:443 HTTP/1.1\r\nHost: b\r\n\r\n", Some("a.example:443")),
            ("GET http://a.example:8080/x HTTP/1.1\r\n", Some("a.example:8080")),
            ("CONNECT [fd00::1]:443 HTTP/1.1\r\n", Some("[fd00::1]:443")),
            ("GET http://user:secret@a.example/ HTTP/1.1\r\n", None),
            ("EHLO a.example\r\n", None),
            ("\0\0\0", None),
        ] {
            let found = requested(line).unwrap();
            assert_eq!(found.1.as_deref(), host, "{line}");
            let protocol = if host.is_some() { SpokenProtocol::HttpProxy } else { SpokenProtocol::Tcp };
            assert_eq!(found.0, protocol, "{line}");
        }
    }

    #[test]
    fn a_request_of_http_names_its_host_once_the_field_is_there() {
        let head = "GET /x HTTP/1.1\r\nuser-agent: a\r\nHost: api.example.com:8080\r\n\r\n";
        let end = head.find("\r\n\r\n").unwrap();
        for cut in 0..=end + 1 {
            assert_eq!(requested(&head[..cut]), None, "{cut}");
        }
        let host = Some("api.example.com:8080".to_owned());
        assert_eq!(requested(&head[..end + 2]), Some((SpokenProtocol::Http, host.clone())));
        assert_eq!(requested(head), Some((SpokenProtocol::Http, host)));
        assert_eq!(requested("GET / HTTP/1.1\r\n\r\n"), Some((SpokenProtocol::Http, None)));
        assert_eq!(requested("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), Some((SpokenProtocol::Http, None)));
        let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(MOST_PLAINTEXT));
        assert_eq!(requested(&endless), Some((SpokenProtocol::Http, None)));
        assert_eq!(requested("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Some((SpokenProtocol::Http, None)));
    }

    #[test]
    fn bytes_of_other_protocols_are_never_waited_for_long() {
        assert_eq!(requested("CONNECT a.exam"), None);
        assert_eq!(requested(&format!("CONNECT {}", "a".repeat(400))), Some((SpokenProtocol::Tcp, None)));
        assert_eq!(requested("\x16\x03\x01"), None);
        assert_eq!(requested("SSH-2.0-OpenSSH\r\n"), Some((SpokenProtocol::Tcp, None)));
    }
}
