//! Resolves redirects of the app. kubelet follows them only to the same host, by the name that it dialled; a redirect
//! to another host is a success (Kubernetes, `RedirectChecker` in `pkg/probe/http/http.go`).

use http::{StatusCode, Uri};

/// The next request of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) tls: bool,
    pub(super) port: u16,
    /// Path and query.
    pub(super) path: Uri,
    /// `host` of the request, in place of the probe's own; only after a redirect to an absolute URL.
    pub(super) authority: Option<Box<str>>,
}

/// The target of a redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProbeRedirect {
    /// The same host.
    Here(Hop),
    /// Another host.
    Elsewhere,
}

/// A location on the same host that cannot be requested.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the app redirects to {0:?}, which cannot be requested")]
pub(super) struct LocationError(String);

/// Whether Go's HTTP client follows a `location` with this status.
pub(super) fn is_followed(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301..=303 | 307 | 308)
}

/// Resolves `location` in a response from `host` to the request `from`. RFC 3986 §5.2.
pub(super) fn resolve(from: &Hop, host: &str, location: &str) -> Result<ProbeRedirect, LocationError> {
    let error = || LocationError(location.chars().take(200).collect());
    let text = location.split_once('#').map_or(location, |(before, _)| before);
    let (scheme, rest) = split_scheme(text);
    let (tls, authority, rest) = match (scheme, rest.strip_prefix("//")) {
        // A URL without a host never means the same host.
        (Some(_), None) => return Ok(ProbeRedirect::Elsewhere),
        (None, None) => (from.tls, None, rest),
        (scheme, Some(rest)) => {
            let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            let authority = authority.rsplit_once('@').map_or(authority, |(_, authority)| authority);
            let (name, port) = split_authority(authority).ok_or_else(error)?;
            if name != host {
                return Ok(ProbeRedirect::Elsewhere);
            }
            let tls = match scheme.map(str::to_ascii_lowercase).as_deref() {
                None => from.tls,
                Some("http") => false,
                Some("https") => true,
                Some(_) => return Err(error()),
            };
            let port = match port {
                "" => Some(if tls { 443 } else { 80 }),
                port => port.parse().ok().filter(|port| *port != 0),
            };
            (tls, Some((authority, port.ok_or_else(error)?)), rest)
        }
    };
    let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
    let (path, query) = match (path, authority) {
        ("", None) => (from.path.path().to_owned(), query.or(from.path.query())),
        (path, None) if !path.starts_with('/') => {
            let folder = from.path.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            (without_dots(&format!("{folder}/{path}")), query)
        }
        (path, _) => (without_dots(path), query),
    };
    let target = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    Ok(ProbeRedirect::Here(Hop {
        tls,
        port: authority.map_or(from.port, |(_, port)| port),
        path: escape(&target).parse().map_err(|_| error())?,
        authority: authority.filter(|_| scheme.is_some()).map(|(authority, _)| authority.into()),
    }))
}

/// The scheme of an absolute URL, and the rest (RFC 3986 §3.1).
fn split_scheme(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) =>
        {
            (Some(scheme), rest)
        }
        _ => (None, text),
    }
}

/// Host without brackets, and the digits of the port.
fn split_authority(text: &str) -> Option<(&str, &str)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    match port {
        "" => Some((host, "")),
        port => Some((host, port.strip_prefix(':')?)),
    }
}

/// A path without `.` and `..` segments, with a leading slash. RFC 3986 §5.2.4.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        match *segment {
            "." | ".." => {
                if *segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Percent-encodes characters that are invalid in a request target.
fn escape(target: &str) -> String {
    let mut text = String::with_capacity(target.len());
    for byte in target.bytes() {
        if byte.is_ascii_graphic() && !b"\"<>`#".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_of_the_same_host_is_followed_and_any_other_is_not() {
        let from = Hop { tls: false, port: 8080, path: "/a/b?x=1".parse().unwrap(), authority: None };
        let here = |tls: bool, port: u16, path: &str, authority: Option<&str>| {
            let (path, authority) = (path.parse().unwrap(), authority.map(Into::into));
            Ok(ProbeRedirect::Here(Hop { tls, port, path, authority }))
        };
        for (location, expected) in [
            ("/c?y#z", here(false, 8080, "/c?y", None)),
            ("c", here(false, 8080, "/a/c", None)),
            ("../c/./d/..", here(false, 8080, "/c/", None)),
            ("../../..", here(false, 8080, "/", None)),
            ("?y", here(false, 8080, "/a/b?y", None)),
            ("#z", here(false, 8080, "/a/b?x=1", None)),
            ("/c d<\u{fc}", here(false, 8080, "/c%20d%3C%C3%BC", None)),
            ("//10.0.0.1:81/c", here(false, 81, "/c", None)),
            ("http://10.0.0.1/c", here(false, 80, "/c", Some("10.0.0.1"))),
            ("HTTPS://u:p@10.0.0.1?q", here(true, 443, "/?q", Some("10.0.0.1"))),
            ("https://10.0.0.1:8443", here(true, 8443, "/", Some("10.0.0.1:8443"))),
            ("http://10.0.0.10/c", Ok(ProbeRedirect::Elsewhere)),
            ("http://localhost:8080/c", Ok(ProbeRedirect::Elsewhere)),
            ("//shop.example/", Ok(ProbeRedirect::Elsewhere)),
            ("mailto:a", Ok(ProbeRedirect::Elsewhere)),
            ("ftp://10.0.0.1/", Err(LocationError("ftp://10.0.0.1/".to_owned()))),
            ("http://10.0.0.1:0/", Err(LocationError("http://10.0.0.1:0/".to_owned()))),
            ("http://10.0.0.1:a/", Err(LocationError("http://10.0.0.1:a/".to_owned()))),
        ] {
            assert_eq!(resolve(&from, "10.0.0.1", location), expected, "{location}");
        }
        let to = resolve(&from, "fd00::1", "http://[fd00::1]:9/");
        assert_eq!(to, here(false, 9, "/", Some("[fd00::1]:9")));
    }
}
