//! Redirects (Gateway API: `HTTPRequestRedirectFilter`).

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use super::rewrite::{PathEdit, parse_hostname};
use crate::route::error::{Problem, RouteError};
use crate::route::host::host_of;
use crate::route::matching::RouteMatch;

/// A redirect. Parts of the URL that are not set are those of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Redirect {
    status: u16,
    scheme: Option<Scheme>,
    hostname: Option<Arc<str>>,
    port: Option<u16>,
    path: Option<PathEdit>,
}

/// Scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// `http`, port 80.
    Http,
    /// `https`, port 443.
    Https,
}

/// The parts of a request that a redirect depends on.
#[derive(Clone, Copy, Debug)]
pub struct RedirectInput<'a> {
    /// Scheme between client and listener.
    pub scheme: Scheme,
    /// The listener's port as clients see it; for a Service, the Service's port.
    pub port: u16,
    /// The request's authority: host and optional port.
    pub authority: &'a [u8],
    /// Path in normal form.
    pub path: &'a [u8],
    /// Query as it was sent.
    pub query: Option<&'a [u8]>,
    /// The match that selected the rule.
    pub matching: &'a RouteMatch,
}

impl Redirect {
    /// A redirect with this status: 301, 302, 303, 307 or 308. Gateway API's default is 302.
    pub fn new(status: u16) -> Result<Self, RouteError> {
        match status {
            301..=303 | 307 | 308 => {
                Ok(Self { status, scheme: None, hostname: None, port: None, path: None })
            }
            _ => Err(RouteError::new("statusCode", status, Problem::Status("301, 302, 303, 307 or 308"))),
        }
    }

    /// To another scheme.
    #[must_use]
    pub fn with_scheme(self, scheme: Scheme) -> Self {
        Self { scheme: Some(scheme), ..self }
    }

    /// To another host, without a port.
    pub fn with_hostname(self, hostname: &str) -> Result<Self, RouteError> {
        Ok(Self { hostname: Some(parse_hostname(hostname)?), ..self })
    }

    /// To another port, which is not 0.
    pub fn with_port(self, port: u16) -> Result<Self, RouteError> {
        if port == 0 {
            return Err(RouteError::new("port", port, Problem::Empty));
        }
        Ok(Self { port: Some(port), ..self })
    }

    /// To another path.
    #[must_use]
    pub fn with_path(self, path: PathEdit) -> Self {
        Self { path: Some(path), ..self }
    }

    /// Status of the response.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The scheme, if it is another one.
    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// The host, if it is another one.
    pub fn hostname(&self) -> Option<&str> {
        self.hostname.as_deref()
    }

    /// The port, if it is another one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// How the path is replaced.
    pub fn path(&self) -> Option<&PathEdit> {
        self.path.as_ref()
    }

    /// The value of `Location`. `None` if neither the request nor the redirect has a host; the response is then 400.
    ///
    /// The port is the one that is set; else, with a scheme that is set, that scheme's own; else the listener's. The
    /// port of the request's `Host` does not count. 80 is left out of `http`, and 443 of `https`. The path
    /// is in normal form ([`RouteTable::needs_normal_path`](crate::route::RouteTable::needs_normal_path)) and the query
    /// has no control characters (the codecs refuse them), so the value needs no escaping.
    pub fn location(&self, request: &RedirectInput<'_>) -> Option<Vec<u8>> {
        let scheme = self.scheme.unwrap_or(request.scheme);
        let host = self.hostname.as_deref().unwrap_or_else(|| host_of(request.authority));
        if host.is_empty() {
            return None;
        }
        let port = self.port.or(self.scheme.map(Scheme::port)).unwrap_or(request.port);
        let path = match &self.path {
            Some(edit) => edit.apply(request.path, request.matching),
            None => Cow::Borrowed(request.path),
        };
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        let mut location = format!("{}://{open}{host}{close}", scheme.as_str()).into_bytes();
        if port != scheme.port() {
            location.extend_from_slice(format!(":{port}").as_bytes());
        }
        // `OPTIONS *` has no path (RFC 9112 §3.2.4).
        if path.starts_with(b"/") {
            location.extend_from_slice(&path);
        }
        if let Some(query) = request.query {
            location.push(b'?');
            location.extend_from_slice(query);
        }
        Some(location)
    }
}

impl Scheme {
    /// The scheme's own port (RFC 9110 §4.2).
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    /// As URLs spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::matching::PathMatch;

    fn redirect() -> Redirect {
        Redirect::new(302).unwrap()
    }

    fn location_at(redirect: &Redirect, scheme: Scheme, port: u16, authority: &str) -> Option<String> {
        let matching = RouteMatch::new(Some(PathMatch::prefix("/foo").unwrap()), vec![], vec![], vec![]);
        let request = RedirectInput {
            scheme,
            port,
            authority: authority.as_bytes(),
            path: b"/foo/bar",
            query: Some(b"a=%20&b"),
            matching: &matching,
        };
        redirect.location(&request).map(|location| String::from_utf8(location).unwrap())
    }

    fn location(redirect: &Redirect, scheme: Scheme, port: u16) -> String {
        location_at(redirect, scheme, port, "Old.example:1234").unwrap()
    }

    #[test]
    fn the_port_is_the_field_s_or_the_scheme_s_or_the_listener_s() {
        let new = |redirect: Redirect| redirect.with_hostname("new.example").unwrap();
        let port = |port| redirect().with_port(port).unwrap();
        let scheme = |scheme| redirect().with_scheme(scheme);
        let query = "/foo/bar?a=%20&b";
        for (redirect, listener, listener_port, expected) in [
            (redirect(), Scheme::Http, 80, "http://Old.example"),
            (redirect(), Scheme::Http, 8080, "http://Old.example:8080"),
            (redirect(), Scheme::Https, 443, "https://Old.example"),
            (redirect(), Scheme::Https, 8443, "https://Old.example:8443"),
            (redirect(), Scheme::Http, 443, "http://Old.example:443"),
            (new(redirect()), Scheme::Http, 8080, "http://new.example:8080"),
            (new(scheme(Scheme::Https)), Scheme::Http, 8080, "https://new.example"),
            (new(scheme(Scheme::Http)), Scheme::Https, 8443, "http://new.example"),
            (scheme(Scheme::Https).with_port(80).unwrap(), Scheme::Http, 80, "https://Old.example:80"),
            (scheme(Scheme::Https).with_port(443).unwrap(), Scheme::Http, 80, "https://Old.example"),
            (port(80), Scheme::Http, 8080, "http://Old.example"),
            (port(8083), Scheme::Https, 443, "https://Old.example:8083"),
        ] {
            let expected = format!("{expected}{query}");
            assert_eq!(location(&redirect, listener, listener_port), expected, "{redirect:?}");
        }
    }

    #[test]
    fn a_path_is_replaced_and_the_query_kept() {
        let prefix = redirect().with_path(PathEdit::prefix("/new").unwrap());
        assert_eq!(location(&prefix, Scheme::Http, 80), "http://Old.example/new/bar?a=%20&b");
        let full = redirect().with_path(PathEdit::full("/new").unwrap());
        assert_eq!(location(&full, Scheme::Http, 80), "http://Old.example/new?a=%20&b");
    }

    #[test]
    fn an_address_keeps_its_brackets_and_a_request_without_a_host_has_no_location() {
        let location = |authority| location_at(&redirect(), Scheme::Http, 81, authority);
        assert_eq!(location("[fd00::1]:80").as_deref(), Some("http://[fd00::1]:81/foo/bar?a=%20&b"));
        assert_eq!(location(""), None);
    }

    #[test]
    fn statuses_are_those_of_redirects() {
        for status in [301, 302, 303, 307, 308] {
            assert_eq!(Redirect::new(status).unwrap().status(), status);
        }
        let error = Redirect::new(304).unwrap_err();
        assert_eq!(error.to_string(), "statusCode: \"304\" is not a status of 301, 302, 303, 307 or 308");
        assert!(redirect().with_port(0).is_err() && redirect().with_hostname("a:1").is_err());
    }
}
