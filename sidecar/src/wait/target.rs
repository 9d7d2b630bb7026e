//! Servers to wait for.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::{Authority, PathAndQuery};

/// A server, and the answer that is expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitTarget {
    /// Host and port. The port is optional only for HTTP.
    pub(super) authority: Authority,
    /// Path of an HTTP request; `None` if nothing is sent.
    pub(super) path: Option<PathAndQuery>,
}

/// Text that is not the URL of a server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form tcp://HOST:PORT or http://HOST[:PORT][/PATH]")]
pub struct WaitTargetError(String);

impl WaitTarget {
    /// Host name or address, without the brackets of IPv6.
    pub(super) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    /// Port of the URL, or 80.
    pub(super) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(80)
    }

    fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?.clone();
        let has_user = authority.as_str().contains('@');
        let port = authority.port().map(|port| port.as_u16());
        if authority.host().is_empty() || has_user || port == Some(0) {
            return None;
        }
        // A colon without a port is invalid, too.
        if port.is_none() && authority.as_str() != authority.host() {
            return None;
        }
        match uri.scheme_str()? {
            "tcp" if port.is_some() && matches!(uri.path(), "" | "/") && uri.query().is_none() => {
                Some(Self { authority, path: None })
            }
            "http" => {
                let path = uri.path_and_query().cloned();
                Some(Self { authority, path: Some(path.unwrap_or(PathAndQuery::from_static("/"))) })
            }
            _ => None,
        }
    }
}

impl FromStr for WaitTarget {
    type Err = WaitTargetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text.trim()).ok_or_else(|| WaitTargetError(text.to_owned()))
    }
}

impl fmt::Display for WaitTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            None => write!(f, "tcp://{}", self.authority),
            Some(path) => write!(f, "http://{}{path}", self.authority),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_named_by_url() {
        for (text, host, port, written) in [
            ("tcp://db:5432", "db", 5432, "tcp://db:5432"),
            ("tcp://db.shop.svc:5432/", "db.shop.svc", 5432, "tcp://db.shop.svc:5432"),
            (" tcp://[::1]:6379", "::1", 6379, "tcp://[::1]:6379"),
            ("http://web", "web", 80, "http://web/"),
            ("http://10.1.2.3:8080/health?full", "10.1.2.3", 8080, "http://10.1.2.3:8080/health?full"),
        ] {
            let target: WaitTarget = text.parse().unwrap();
            assert_eq!((target.host(), target.port(), &*target.to_string()), (host, port, written));
        }
    }

    #[test]
    fn what_names_no_server_is_repeated_in_the_error() {
        for text in [
            "",
            "db:5432",
            "db",
            "tcp://db",
            "tcp://db:0",
            "tcp://:5432",
            "tcp://db:5432/path",
            "tcp://db:70000",
            "http://web:",
            "http://user@web",
            "https://web",
            "http:///path",
            "udp://dns:53",
        ] {
            let error = text.parse::<WaitTarget>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not")), "{error}");
        }
    }
}
