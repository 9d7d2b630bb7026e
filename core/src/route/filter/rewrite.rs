//! Changes of host and path on the way to a backend (Gateway API: `HTTPURLRewriteFilter`).

use std::borrow::Cow;
use std::sync::Arc;

use serde::Serialize;

use crate::dns_name::DnsName;
use crate::route::error::{Problem, RouteError};
use crate::route::matching::{PathMatch, RouteMatch, RoutePath};

/// A new host, a new path, or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rewrite {
    hostname: Option<Arc<str>>,
    path: Option<PathEdit>,
}

/// How a path is replaced (Gateway API: `HTTPPathModifier`). The query stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathEdit {
    /// All of it.
    Full(Arc<str>),
    /// The prefix that matched; without a slash at its end, and empty for `/`.
    Prefix(Arc<str>),
}

impl Rewrite {
    /// A rewrite to a host without a port, and to a path.
    pub fn new(hostname: Option<&str>, path: Option<PathEdit>) -> Result<Self, RouteError> {
        Ok(Self { hostname: hostname.map(parse_hostname).transpose()?, path })
    }

    /// The host that replaces the request's authority.
    pub fn hostname(&self) -> Option<&str> {
        self.hostname.as_deref()
    }

    /// How the path is replaced.
    pub fn path(&self) -> Option<&PathEdit> {
        self.path.as_ref()
    }
}

impl PathEdit {
    /// Replaces the whole path; empty stands for `/`.
    pub fn full(text: &str) -> Result<Self, RouteError> {
        let path = parse(text, "path.replaceFullPath")?;
        Ok(Self::Full(path.as_ref().map_or("/", RoutePath::as_str).into()))
    }

    /// Replaces the prefix that matched; a slash at its end does not count.
    pub fn prefix(text: &str) -> Result<Self, RouteError> {
        let path = parse(text, "path.replacePrefixMatch")?.map(|path| path.as_prefix());
        Ok(Self::Prefix(path.as_ref().map_or("", RoutePath::as_str).into()))
    }

    /// The edited path, from a path in normal form and the match that applied. `Prefix` has no effect on a match without
    /// a prefix.
    pub fn apply<'p>(&'p self, path: &'p [u8], matching: &RouteMatch) -> Cow<'p, [u8]> {
        let replacement = match self {
            Self::Full(full) => return Cow::Borrowed(full.as_bytes()),
            Self::Prefix(replacement) => replacement.as_bytes(),
        };
        let Some(PathMatch::Prefix(prefix)) = matching.path() else { return Cow::Borrowed(path) };
        let Some(rest) = path.strip_prefix(prefix.as_bytes()) else { return Cow::Borrowed(path) };
        match (replacement, rest) {
            ([], []) => Cow::Borrowed(b"/"),
            ([], rest) => Cow::Borrowed(rest),
            (replacement, []) => Cow::Borrowed(replacement),
            (replacement, rest) => Cow::Owned([replacement, rest].concat()),
        }
    }
}

/// A host name without a port and in lower case.
pub(super) fn parse_hostname(text: &str) -> Result<Arc<str>, RouteError> {
    let name = DnsName::parse(text).map_err(|_| RouteError::new("hostname", text, Problem::Host))?;
    Ok(name.as_str().into())
}

/// A replacement path; `None` if empty.
fn parse(text: &str, field: &str) -> Result<Option<RoutePath>, RouteError> {
    if text.is_empty() { Ok(None) } else { RoutePath::parse(text, field).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(path: &str, matched: &str, edit: &PathEdit) -> String {
        let matching = RouteMatch::new(Some(PathMatch::prefix(matched).unwrap()), vec![], vec![], vec![]);
        assert!(matching.path().unwrap().matches(path.as_bytes()), "{path} {matched}");
        String::from_utf8(edit.apply(path.as_bytes(), &matching).into_owned()).unwrap()
    }

    #[test]
    fn a_prefix_is_replaced_as_gateway_api_s_table_says() {
        for (path, matched, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            // Beyond the table.
            ("/foo", "/foo", "/xyz/", "/xyz"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/a", "/", "/xyz", "/xyz/a"),
            ("/foo/foo", "/foo", "/foo/foo", "/foo/foo/foo"),
        ] {
            let edit = PathEdit::prefix(replacement).unwrap();
            assert_eq!(replaced(path, matched, &edit), expected, "{path} {matched} {replacement}");
        }
    }

    #[test]
    fn a_full_path_replaces_all() {
        assert_eq!(replaced("/foo/bar", "/foo", &PathEdit::full("/one").unwrap()), "/one");
        assert_eq!(replaced("/foo/bar", "/", &PathEdit::full("").unwrap()), "/");
        assert_eq!(replaced("/", "/", &PathEdit::full("/ä/").unwrap()), "/%C3%A4/");
    }

    #[test]
    fn a_replacement_is_a_path() {
        let error = PathEdit::prefix("xyz").unwrap_err();
        assert_eq!(error.to_string(), "path.replacePrefixMatch: \"xyz\" does not start with \"/\"");
        let error = PathEdit::full("/a?b").unwrap_err();
        assert_eq!((error.field.as_str(), error.problem), ("path.replaceFullPath", Problem::NotAPath));
        assert_eq!(Rewrite::new(Some("A.example"), None).unwrap().hostname(), Some("a.example"));
        for host in ["", "a:80", "*.a", "a b"] {
            assert_eq!(Rewrite::new(Some(host), None).unwrap_err().problem, Problem::Host, "{host}");
        }
    }
}
