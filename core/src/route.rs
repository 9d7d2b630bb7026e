//! Routes: which requests a rule applies to, what it changes in them, and where it sends them.
//!
//! One model for every direction and every kind of object. HTTPRoute, GRPCRoute, TrafficSplit and HTTPRouteGroup all
//! compile to [`Route`]s, so that a sidecar does not depend on any of these kinds. A [`RouteTable`] puts the rules of
//! several routes into Gateway API's order of precedence, and [`RouteTable::select`] takes the first that matches.
//! Everything here is data or a pure function of data; the caller carries out the result.
//!
//! SMI's authorization is a union, not a choice: a request is allowed if any granted match applies. It uses
//! [`RouteMatch::matches`] without a table.
//!
//! Start reading at [`Route`]; [`matching`] defines the conditions of a rule, [`select`] which rule wins, [`filter`] what
//! a rule changes.

mod error;
mod field;
pub mod filter;
mod host;
pub mod matching;
#[cfg(test)]
mod naive;
mod name;
pub(crate) mod path_index;
mod pattern;
pub mod retry;
pub mod select;
#[cfg(test)]
pub(crate) mod test_request;
mod timeouts;

use std::sync::Arc;

use serde::Serialize;

pub use self::error::{Problem, RouteError};
pub use self::field::{FieldName, FieldValue, Method};
pub use self::host::{HostMatch, host_of};
pub use self::matching::{RequestView, RouteMatch};
pub use self::name::RoutesName;
pub use self::pattern::Pattern;
pub use self::retry::RetryPolicy;
pub use self::select::{RouteTable, RuleIndex, Selected};
pub use self::timeouts::Timeouts;

use self::filter::{Filter, HeaderEdits, Redirect};
use crate::backend::BackendRef;
use crate::object_ref::ObjectRef;

/// Maximum weight of a backend (Gateway API: `BackendRef.weight`).
pub const MAX_WEIGHT: u32 = 1_000_000;
/// Maximum number of regular expressions in one resource of a sidecar. Each compiles to a program of up to 256 KiB.
pub const MAX_EXPRESSIONS: usize = 1024;

/// The rules of one object, and the hosts that they apply to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// The object. Logs, denials and statuses name it.
    pub origin: ObjectRef,
    /// When the object was created, in seconds since 1970. Of rules that are equally specific the older wins.
    pub created: i64,
    /// The hosts that the rules apply to. If empty, all.
    pub hosts: Vec<HostMatch>,
    /// The rules, in the object's order.
    pub rules: Vec<RouteRule>,
}

/// One rule: which requests it applies to, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRule {
    /// What logs call the rule: its own name, or its place in the object. `None`: the object is one rule.
    pub name: Option<Arc<str>>,
    /// The rule applies to requests that one of these matches. If empty, to every request.
    pub matches: Vec<RouteMatch>,
    /// Changes to the request and its response, in this order.
    pub filters: Vec<Filter>,
    /// Where the request goes, or which response it gets at once.
    pub action: Action,
    /// How long the request may take.
    pub timeouts: Timeouts,
    /// When the request is retried. `None`: only if it provably was not processed ([`RetryPolicy::unprocessed`]).
    pub retry: Option<RetryPolicy>,
}

/// What a rule does with a request after its filters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Action {
    /// Forwards it to one of these backends, chosen by weight. If the sum of weights is 0, the response is 500 (Gateway
    /// API: "zero backendRefs"; Envoy does the same).
    Forward(Vec<WeightedBackend>),
    /// Redirects the client.
    Redirect(Redirect),
    /// Responds without a backend.
    Respond(DirectResponse),
}

/// A backend with its share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightedBackend {
    /// Its share is this weight divided by the sum of all; at most [`MAX_WEIGHT`]. A backend of weight 0 gets nothing.
    pub weight: u32,
    /// Where its share goes.
    pub target: BackendTarget,
    /// Changes to the requests of this share only, after the rule's filters.
    pub filters: Vec<Filter>,
}

/// Where a share of requests goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum BackendTarget {
    /// A backend, which is a separate resource: its endpoints change without the routes.
    Backend(BackendRef),
    /// The app of this workload.
    App,
    /// The reference cannot be resolved. This share gets the response (Gateway API: 500).
    Invalid(DirectResponse),
}

/// A response that the proxy generates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// Status, 200 to 599.
    pub status: u16,
    /// The reason, for logs and statuses. It is not sent to clients.
    pub reason: Arc<str>,
}

impl Route {
    /// Checks that the parts of this route are consistent, so that no request meets an inconsistent rule.
    pub fn check(&self) -> Result<(), RouteError> {
        self.rules
            .iter()
            .enumerate()
            .try_for_each(|(i, rule)| rule.check().map_err(|error| error.within(&format!("rules[{i}]"))))
    }

    /// What logs call one of the rules: `<kind>/<namespace>/<name>/<rule>`.
    pub fn label(&self, rule: &RouteRule) -> String {
        let ObjectRef { kind, namespace, name } = &self.origin;
        let rule = rule.name.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
        format!("{kind}/{namespace}/{name}{rule}")
    }

    /// The backends that the rules refer to, also those that only get copies. A backend may occur several times.
    pub fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        self.rules.iter().flat_map(RouteRule::backends)
    }
}

impl RouteRule {
    /// A rule with only an action, which applies to every request.
    pub fn new(action: Action) -> Self {
        Self {
            name: None,
            matches: vec![],
            filters: vec![],
            action,
            timeouts: Timeouts::default(),
            retry: None,
        }
    }

    /// The header edits of the rule followed by those of one of its backends: one edit for the request and one for the
    /// response. Computed once per table, not per request.
    pub fn header_edits(&self, backend: Option<&WeightedBackend>) -> (HeaderEdits, HeaderEdits) {
        let filters = self.filters.iter().chain(backend.into_iter().flat_map(|backend| &backend.filters));
        let mut edits = (HeaderEdits::default(), HeaderEdits::default());
        for filter in filters {
            match filter {
                Filter::RequestHeaders(next) => edits.0 = edits.0.then(next),
                Filter::ResponseHeaders(next) => edits.1 = edits.1.then(next),
                _ => {}
            }
        }
        edits
    }

    fn backends(&self) -> impl Iterator<Item = &BackendRef> {
        let shares = match &self.action {
            Action::Forward(backends) => backends.as_slice(),
            Action::Redirect(_) | Action::Respond(_) => &[],
        };
        let targets = shares.iter().filter_map(|share| match &share.target {
            BackendTarget::Backend(backend) => Some(backend),
            BackendTarget::App | BackendTarget::Invalid(_) => None,
        });
        let filters = self.filters.iter().chain(shares.iter().flat_map(|share| &share.filters));
        let mirrors = filters.filter_map(|filter| match filter {
            Filter::Mirror(mirror) => Some(&mirror.backend),
            _ => None,
        });
        targets.chain(mirrors)
    }

    fn check(&self) -> Result<(), RouteError> {
        filter::check(&self.filters, self)?;
        match &self.action {
            Action::Forward(backends) => backends.iter().enumerate().try_for_each(|(i, backend)| {
                backend.check(self).map_err(|e| e.within(&format!("backends[{i}]")))
            }),
            Action::Redirect(redirect) => {
                if self.filters.iter().any(|filter| matches!(filter, Filter::Rewrite(_))) {
                    let problem = Problem::Conflict("URLRewrite");
                    return Err(RouteError::new("filters", "RequestRedirect", problem));
                }
                filter::check_path_edit(redirect.path(), self, "action.redirect.path")
            }
            Action::Respond(response) => response.check("action.respond.status"),
        }
    }

    /// Whether the rule has exactly one match, and that match a path prefix: the condition of `replacePrefixMatch`.
    pub(crate) fn has_one_prefix(&self) -> bool {
        match &*self.matches {
            [only] => matches!(only.path(), Some(matching::PathMatch::Prefix(_))),
            _ => false,
        }
    }
}

impl WeightedBackend {
    /// A backend with its share and no filters.
    pub fn new(weight: u32, target: BackendTarget) -> Self {
        Self { weight, target, filters: vec![] }
    }

    fn check(&self, rule: &RouteRule) -> Result<(), RouteError> {
        if self.weight > MAX_WEIGHT {
            return Err(RouteError::new("weight", self.weight, Problem::TooLarge(MAX_WEIGHT.into())));
        }
        if let BackendTarget::Invalid(response) = &self.target {
            response.check("status")?;
        }
        filter::check(&self.filters, rule)
    }
}

impl DirectResponse {
    fn check(&self, field: &str) -> Result<(), RouteError> {
        match self.status {
            200..=599 => Ok(()),
            status => Err(RouteError::new(field, status, Problem::Status("200 to 599"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::matching::PathMatch;
    use super::*;
    use crate::route::filter::{PathEdit, Rewrite};

    fn forward(weight: u32) -> Action {
        Action::Forward(vec![WeightedBackend::new(weight, BackendTarget::App)])
    }

    fn error(rule: RouteRule) -> String {
        let rules = vec![RouteRule::new(forward(1)), rule];
        let origin = ObjectRef::new("HTTPRoute", "a", "b");
        Route { origin, created: 0, hosts: vec![], rules }.check().unwrap_err().to_string()
    }

    fn rewrite(prefix: &str) -> Filter {
        Filter::Rewrite(Rewrite::new(None, Some(PathEdit::prefix(prefix).unwrap())).unwrap())
    }

    #[test]
    fn an_error_names_the_field_and_the_value() {
        assert_eq!(
            error(RouteRule::new(forward(1_000_001))),
            "rules[1].backends[0].weight: \"1000001\" is more than 1000000"
        );
        let response = DirectResponse { status: 999, reason: "x".into() };
        assert_eq!(
            error(RouteRule::new(Action::Respond(response.clone()))),
            "rules[1].action.respond.status: \"999\" is not a status of 200 to 599"
        );
        let invalid = WeightedBackend::new(1, BackendTarget::Invalid(response));
        assert!(
            error(RouteRule::new(Action::Forward(vec![invalid]))).starts_with("rules[1].backends[0].status")
        );
    }

    #[test]
    fn a_prefix_is_replaced_only_beside_one_prefix_match() {
        let with = |paths: &[&str]| {
            let path = |text: &&str| PathMatch::prefix(text).unwrap();
            let matching = |text| RouteMatch::new(Some(path(text)), vec![], vec![], vec![]);
            let matches = paths.iter().map(matching).collect();
            RouteRule { matches, filters: vec![rewrite("/b")], ..RouteRule::new(forward(1)) }
        };
        assert_eq!(with(&["/a"]).check(), Ok(()));
        for paths in [&[][..], &["/a", "/c"]] {
            assert_eq!(
                error(with(paths)),
                "rules[1].filters[0].path.replacePrefixMatch: \"/b\" needs the rule to have exactly one match, and that \
                 one a path prefix"
            );
        }
    }

    #[test]
    fn a_redirect_excludes_a_rewrite() {
        let redirect = Redirect::new(302).unwrap();
        let matches = vec![RouteMatch::new(Some(PathMatch::prefix("/a").unwrap()), vec![], vec![], vec![])];
        let rule =
            RouteRule { matches, filters: vec![rewrite("/b")], ..RouteRule::new(Action::Redirect(redirect)) };
        assert_eq!(error(rule), "rules[1].filters: \"RequestRedirect\" cannot be combined with URLRewrite");
    }

    #[test]
    fn header_edits_of_rule_and_backend_become_one() {
        let edit = |name: &str, value: &str| {
            Filter::RequestHeaders(HeaderEdits::new(&[(name, value)], &[], &[]).unwrap())
        };
        let rule = RouteRule { filters: vec![edit("a", "rule")], ..RouteRule::new(forward(1)) };
        let backend = WeightedBackend {
            filters: vec![edit("a", "backend"), edit("b", "backend")],
            ..WeightedBackend::new(1, BackendTarget::App)
        };
        let (request, response) = rule.header_edits(Some(&backend));
        let added: Vec<_> = request.appended().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(added, [("a", "backend"), ("b", "backend")]);
        assert!(response.is_empty());
    }
}
