//! The request target that kubelet derives from the `path` of an `httpGet`.
//!
//! kubelet parses it as a URL reference, sets the pod's address as the host, and if parsing fails uses the whole text
//! as a path (Kubernetes, `pkg/probe/http/request.go`). Then Go writes the URL (`net/url`: `Parse`, `EscapedPath`,
//! `RequestURI`). So `/a b` becomes `/a%20b`, `/a?x=1` keeps its query, and `%zz` becomes `/%25zz`.

use std::net::Ipv6Addr;

/// Maximum bytes of a target: more than servers accept for a whole head.
const MAX_BYTES: usize = 16 * 1024;

/// The request target: a path with its leading slash, and a query. Idempotent. The error says why there is none.
pub(super) fn request_target(path: &str) -> Result<String, String> {
    let target = match parse(path) {
        Some(UrlReference::Opaque) => {
            return Err(format!("{path:?} is a URL without a path, which cannot be asked for"));
        }
        Some(UrlReference::UserInfo) => {
            return Err(format!("{path:?} has a user in it; say it by httpHeaders, Authorization"));
        }
        Some(UrlReference::Path { path, query }) => {
            let query = query.map(|query| format!("?{}", escape_query(query))).unwrap_or_default();
            format!("{}{query}", with_slash(path))
        }
        None => with_slash(escape(path.as_bytes())),
    };
    if target.len() > MAX_BYTES {
        return Err(format!("is {} bytes long as it is asked for, more than {MAX_BYTES}", target.len()));
    }
    Ok(target)
}

/// Whether a text is valid in a request unchanged.
pub(super) fn is_request_target(text: &str) -> bool {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    path.starts_with('/')
        && path.bytes().all(is_well)
        && !query.bytes().any(must_be_escaped_in_query)
        && text.len() <= MAX_BYTES
}

/// What Go's `url.Parse` makes of a text, as far as a request needs it.
enum UrlReference<'a> {
    /// For example `mailto:a`: a scheme and no slash.
    Opaque,
    /// For example `//user@host/`.
    UserInfo,
    /// A path, escaped.
    Path { path: String, query: Option<&'a str> },
}

/// Parses a URL as Go does; `None` where Go fails.
fn parse(text: &str) -> Option<UrlReference<'_>> {
    if text.bytes().any(|byte| byte.is_ascii_control()) {
        return None;
    }
    let text = text.split_once('#').map_or(text, |(before, _fragment)| before);
    let (scheme, rest) = split_scheme(text)?;
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    if !rest.starts_with('/') {
        if scheme.is_some() {
            return Some(UrlReference::Opaque);
        }
        if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
            return None;
        }
    }
    let is_triple = rest.starts_with("///");
    let path = match rest.strip_prefix("//").filter(|_| scheme.is_some() || !is_triple) {
        None => rest,
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if authority.contains('@') {
                return Some(UrlReference::UserInfo);
            }
            if !is_authority(authority) {
                return None;
            }
            path
        }
    };
    Some(UrlReference::Path { path: escaped(path)?, query })
}

/// The scheme, if any, and the rest; `None` for a leading colon.
fn split_scheme(text: &str) -> Option<(Option<&str>, &str)> {
    let is_part = |(index, byte): (usize, u8)| {
        byte.is_ascii_alphabetic() || (index > 0 && (byte.is_ascii_digit() || b"+-.".contains(&byte)))
    };
    let end = text.bytes().enumerate().find(|part| !is_part(*part));
    match end {
        Some((0, b':')) => None,
        Some((end, b':')) => Some((Some(&text[..end]), &text[end + 1..])),
        _ => Some((None, text)),
    }
}

/// Whether Go accepts it as a host with an optional port. IPv6 addresses are in brackets.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => ("", port),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = port.strip_prefix(':').unwrap_or(port);
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=\"<>".contains(&byte);
    host.bytes().all(is_known) && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// The path as Go writes it: unchanged if it is correctly escaped, otherwise unescaped and escaped again. `None` for a
/// `%` without two digits.
fn escaped(path: &str) -> Option<String> {
    let unescaped = unescape(path)?;
    Some(if path.bytes().all(is_well) { path.to_owned() } else { escape(&unescaped) })
}

/// Undoes percent-encoding; `None` for a `%` without two hexadecimal digits.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match byte {
            b'%' => {
                let digit = |index: usize| after.get(index).and_then(|byte| char::from(*byte).to_digit(16));
                let value = digit(0)? * 16 + digit(1)?;
                (u8::try_from(value).ok()?, &after[2..])
            }
            _ => (byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    Some(bytes)
}

/// Percent-encodes what Go does in a path.
fn escape(bytes: &[u8]) -> String {
    percent_encode(bytes, must_be_escaped)
}

/// kubelet does not change a query. Characters that an HTTP request cannot contain there are escaped, which means the
/// same.
fn escape_query(query: &str) -> String {
    percent_encode(query.as_bytes(), must_be_escaped_in_query)
}

/// Upper-case hexadecimal digits, as RFC 3986 §2.1 recommends and Go writes.
fn percent_encode(bytes: &[u8], must_be: fn(u8) -> bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if must_be(byte) {
            text.push_str(&format!("%{byte:02X}"));
        } else {
            text.push(byte.into());
        }
    }
    text
}

fn must_be_escaped(byte: u8) -> bool {
    !(byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte))
}

fn must_be_escaped_in_query(byte: u8) -> bool {
    !byte.is_ascii_graphic() || b"\"<>#`".contains(&byte)
}

/// Whether Go accepts a byte of an escaped path unchanged.
fn is_well(byte: u8) -> bool {
    !must_be_escaped(byte) || b"!'()*[]%".contains(&byte)
}

fn with_slash(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_asked_for_as_kubelet_does() {
        for (path, target) in [
            ("/healthz", "/healthz"),
            ("healthz?x=1&y", "/healthz?x=1&y"),
            ("/", "/"),
            ("?x", "/?x"),
            ("/a?", "/a?"),
            ("/a b", "/a%20b"),
            ("/<`\"^|{}\\>", "/%3C%60%22%5E%7C%7B%7D%5C%3E"),
            ("/ü", "/%C3%BC"),
            ("/a%20b", "/a%20b"),
            ("/a%2Fb", "/a%2Fb"),
            // A path that is not correctly escaped is escaped again as a whole.
            ("/a%2Fb c", "/a/b%20c"),
            ("/(a)!*'[b]", "/(a)!*'[b]"),
            // Not a URL, so all of it is a path.
            ("/%zz?x", "/%25zz%3Fx"),
            ("/a%2", "/a%252"),
            ("1a:b/c", "/1a:b/c"),
            (":a", "/:a"),
            ("/a\nb", "/a%0Ab"),
            ("//a:b/c", "//a:b/c"),
            ("/a?x y\"<ü", "/a?x%20y%22%3C%C3%BC"),
            ("/a#b?c", "/a"),
            // The pod's address replaces the host.
            ("//host:80/a", "/a"),
            ("http://host/a?b", "/a?b"),
            ("https://host", "/"),
            ("//[::1]:80/a", "/a"),
            ("///a", "///a"),
            ("*", "/*"),
        ] {
            assert_eq!(request_target(path).as_deref(), Ok(target), "{path:?}");
            assert!(is_request_target(target), "{path:?}");
            assert_eq!(request_target(target).as_deref(), Ok(target), "{path:?} twice");
        }
        assert!(request_target("mailto:a").unwrap_err().contains("\"mailto:a\" is a URL without a path"));
        assert!(request_target("http://u:p@h/").unwrap_err().contains("httpHeaders"));
        assert!(request_target(&"/".repeat(MAX_BYTES + 1)).unwrap_err().contains("16385 bytes"));
    }
}
