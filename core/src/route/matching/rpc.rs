//! Methods of gRPC services.

use serde::Serialize;

use super::{MAX_PATH, PathMatch, RoutePath, ValueMatch};
use crate::route::error::{Problem, RouteError};
use crate::route::pattern::Pattern;

/// A gRPC method by its service, its name or both (Gateway API: `GRPCMethodMatch`, GEP-1016). The path of a call is
/// `/<service>/<method>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RpcMatch {
    service: Option<ValueMatch>,
    method: Option<ValueMatch>,
}

impl RpcMatch {
    /// A service or a method with exactly this name.
    pub fn exact(name: &str) -> Result<ValueMatch, RouteError> {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let problem = match name.len() {
            0 => Problem::Empty,
            1..=MAX_PATH if name.bytes().all(is_name) && !matches!(name, "." | "..") => {
                return Ok(ValueMatch::Exact(name.into()));
            }
            1..=MAX_PATH => Problem::RpcName,
            _ => Problem::TooLong(MAX_PATH),
        };
        Err(RouteError::new("method", name, problem))
    }

    /// A service or a method whose whole name matches.
    pub fn regex(pattern: &str) -> Result<ValueMatch, RouteError> {
        Pattern::parse(pattern, MAX_PATH)
            .map(ValueMatch::Regex)
            .map_err(|problem| RouteError::new("method", pattern, problem))
    }

    /// The condition on a service, on a method or on both; `None` without either, which matches every request. If both
    /// are exact, the result is an exact path, unless that would be too long for one.
    pub fn path(service: Option<ValueMatch>, method: Option<ValueMatch>) -> Option<PathMatch> {
        match (service, method) {
            (None, None) => None,
            (Some(ValueMatch::Exact(service)), Some(ValueMatch::Exact(method)))
                if service.len() + method.len() + 2 <= MAX_PATH =>
            {
                Some(PathMatch::Exact(RoutePath(format!("/{service}/{method}").into())))
            }
            (service, method) => Some(PathMatch::Rpc(Self { service, method })),
        }
    }

    /// The condition on the service, if any.
    pub fn service(&self) -> Option<&ValueMatch> {
        self.service.as_ref()
    }

    /// The condition on the method, if any.
    pub fn method(&self) -> Option<&ValueMatch> {
        self.method.as_ref()
    }

    /// Whether a path is that of a matching call.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let Some((service, method)) = split_call(path) else { return false };
        self.service.as_ref().is_none_or(|wanted| wanted.matches(service))
            && self.method.as_ref().is_none_or(|wanted| wanted.matches(method))
    }

    /// Number of its regular expressions.
    pub(super) fn expressions(&self) -> usize {
        [&self.service, &self.method].into_iter().flatten().filter(|value| value.is_regex()).count()
    }

    /// The same without compiled programs.
    pub(super) fn without_programs(self) -> Self {
        let bare = |value: Option<ValueMatch>| value.map(ValueMatch::without_program);
        Self { service: bare(self.service), method: bare(self.method) }
    }

    /// The service, if it is matched by name.
    pub(in crate::route) fn service_name(&self) -> Option<&str> {
        match &self.service {
            Some(ValueMatch::Exact(name)) => Some(name),
            Some(ValueMatch::Regex(_)) | None => None,
        }
    }

    /// How specific it is; the larger value has precedence.
    pub(in crate::route) fn specificity(&self) -> impl Ord + use<> {
        (specificity(self.service.as_ref()), specificity(self.method.as_ref()))
    }
}

/// An exact name, then the longest regular expression, then none.
fn specificity(value: Option<&ValueMatch>) -> (u8, usize) {
    match value {
        Some(ValueMatch::Exact(_)) => (2, 0),
        Some(ValueMatch::Regex(pattern)) => (1, pattern.as_str().len()),
        None => (0, 0),
    }
}

/// Service and method of a call's path.
pub(in crate::route) fn split_call(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut elements = path.strip_prefix(b"/")?.split(|byte| *byte == b'/');
    match (elements.next(), elements.next(), elements.next()) {
        (Some(service), Some(method), None) => Some((service, method)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(service: Option<ValueMatch>, method: Option<ValueMatch>, path: &str) -> bool {
        RpcMatch::path(service, method).is_none_or(|matching| matching.matches(path.as_bytes()))
    }

    #[test]
    fn a_call_has_a_service_and_a_method() {
        let exact = |name: &str| Some(RpcMatch::exact(name).unwrap());
        let regex = |pattern: &str| Some(RpcMatch::regex(pattern).unwrap());
        assert!(fits(exact("shop.Cart"), exact("Add"), "/shop.Cart/Add"));
        assert!(fits(exact("shop.Cart"), None, "/shop.Cart/Add"));
        assert!(fits(None, regex("A.*"), "/shop.Cart/Add"));
        assert!(fits(None, None, "/"));
        for path in ["/shop.Cart", "/shop.Cart/Add/more", "/shop.Carts/Add", "shop.Cart/Add", "/"] {
            assert!(!fits(exact("shop.Cart"), None, path), "{path}");
            assert!(!fits(None, regex("A"), path), "{path}");
        }
    }

    #[test]
    fn a_name_has_no_slash() {
        for (name, problem) in [
            ("", Problem::Empty),
            ("a/b", Problem::RpcName),
            ("ä", Problem::RpcName),
            // A dot segment, which no path in normal form has.
            ("..", Problem::RpcName),
        ] {
            assert_eq!(RpcMatch::exact(name).unwrap_err().problem, problem, "{name}");
        }
        assert!(RpcMatch::regex("(").is_err());
    }
}
