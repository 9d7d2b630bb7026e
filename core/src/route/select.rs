//! Selects the rule for a request.
//!
//! Of all matches that apply to a request, the winner is determined by Gateway API's order (`HTTPRouteSpec.hostnames`,
//! `HTTPRouteRule.matches`):
//! 1. an exact host, then the longest `*.` suffix, then any host;
//! 2. an exact path, then a gRPC call by its service, by its method, then a regular expression (the longest pattern
//!    first), then the longest prefix, then any path;
//! 3. a match of the method;
//! 4. the most headers, 5. the most query parameters;
//! 6. the oldest object, 7. the first `<namespace>/<name>`;
//! 8. the first rule of the object, and in it the first match.
//!
//! Where the specification leaves a choice:
//! - Regular expressions stand between exact paths and prefixes, as in Envoy Gateway (`internal/gatewayapi/sort.go`) and
//!   Cilium: after prefixes, the usual catch-all `/` would shadow all of them.
//! - If no rule of the most specific host matches, less specific hosts are tried, because the specification only orders
//!   rules. Linkerd does the same (`linkerd/http/route`); proxies with virtual hosts (Envoy, nginx) respond with 404. A
//!   host without fallback ends with a rule whose action is [`Action::Respond`].
//! - Hosts are those that the route's author wrote, not their intersection with a listener's hostname (feature
//!   `GatewayRouteHostnameIntersectionPrecedence` of v1.7): a table belongs to a listener that is chosen before.
//!
//! The table is sorted once; a lookup takes the first match. It costs a binary search for the host, one for an exact
//! path, a match of each regular expression of the host whose literal beginning the path has, and a binary search for
//! each element of the path up to the length of the longest prefix.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::error::RouteError;
use super::host::{HostMatch, host_of};
use super::matching::{PathMatch, RequestView, RouteMatch, split_call};
use super::path_index::{PathIndex, equal_range};
use super::{Action, Route, RouteRule};
use crate::dns_name::{DnsName, DnsPattern};

/// Maximum length of a DNS name without its trailing dot (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;

/// Routes in the order of their precedence.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    routes: Vec<Route>,
    names: Vec<(DnsName, HostRules)>,
    suffixes: Vec<(DnsName, HostRules)>,
    addresses: Vec<(IpAddr, HostRules)>,
    any: HostRules,
    needs_normal_path: bool,
}

/// The rule that applies to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selected<'t> {
    /// The route of the rule, which names the object it was compiled from.
    pub route: &'t Route,
    /// The rule.
    pub rule: &'t RouteRule,
    /// The match that applied. `replacePrefixMatch` replaces its prefix.
    pub matching: &'t RouteMatch,
    /// Where the rule is in the table.
    pub index: RuleIndex,
}

/// The place of a rule in [`RouteTable::routes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleIndex {
    /// Index of the route.
    pub route: usize,
    /// Index of the rule in the route.
    pub rule: usize,
}

/// The matches for one host, by kind of path. Within one list those for the same path stand in order of precedence.
#[derive(Clone, Debug, Default)]
struct HostRules {
    /// Sorted by path.
    exact: Vec<TableEntry>,
    /// Sorted by `/<service>`, which is empty where the service is not matched by name.
    rpc: Vec<TableEntry>,
    /// In order of precedence.
    regex: Vec<TableEntry>,
    /// Finds the entries of `regex` that a path may match.
    regex_index: PathIndex,
    /// Sorted by path, without a slash at its end.
    prefix: Vec<TableEntry>,
    /// In order of precedence.
    any: Vec<TableEntry>,
    /// Length of the longest prefix in bytes, which bounds the search in long request paths.
    longest_prefix: usize,
}

/// One match of one rule, by its indices in the table.
#[derive(Clone, Debug)]
struct TableEntry {
    /// The path to search by; empty if there is none.
    path: Arc<str>,
    index: RuleIndex,
    matching: usize,
}

impl RouteTable {
    /// Sorts routes. Fails if one of them is inconsistent ([`Route::check`]). A compiler replaces such a rule by one that
    /// responds with 500, so that the rest of the table stays in force.
    pub fn new(mut routes: Vec<Route>) -> Result<Self, RouteError> {
        for (i, route) in routes.iter_mut().enumerate() {
            route.check().map_err(|error| error.within(&format!("routes[{i}]")))?;
            for rule in route.rules.iter_mut().filter(|rule| rule.matches.is_empty()) {
                rule.matches.push(RouteMatch::any());
            }
            if route.hosts.is_empty() {
                route.hosts.push(HostMatch::Any);
            }
        }
        let mut names: BTreeMap<DnsName, HostRules> = BTreeMap::new();
        let mut suffixes: BTreeMap<DnsName, HostRules> = BTreeMap::new();
        let mut addresses: BTreeMap<IpAddr, HostRules> = BTreeMap::new();
        let mut any = HostRules::default();
        for (at, route) in routes.iter().enumerate() {
            for host in &route.hosts {
                let rules = match host {
                    HostMatch::Any => &mut any,
                    HostMatch::Name(DnsPattern::Exact(name)) => names.entry(name.clone()).or_default(),
                    HostMatch::Name(DnsPattern::Suffix(name)) => suffixes.entry(name.clone()).or_default(),
                    HostMatch::Address(address) => addresses.entry(*address).or_default(),
                };
                rules.add(at, route);
            }
        }
        let all = names.values_mut().chain(suffixes.values_mut()).chain(addresses.values_mut());
        all.chain([&mut any]).for_each(|rules| rules.sort(&routes));
        let needs_normal_path = routes.iter().flat_map(|route| &route.rules).any(needs_normal_path);
        Ok(Self {
            needs_normal_path,
            names: names.into_iter().collect(),
            suffixes: suffixes.into_iter().collect(),
            addresses: addresses.into_iter().collect(),
            any,
            routes,
        })
    }

    /// The routes as given, except that a rule without matches has one for every request, and a route without hosts `*`.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Whether a request's path must be brought into normal form before it is matched, and then be forwarded in it. A
    /// request for a table without path rules and without redirects is forwarded byte for byte.
    pub fn needs_normal_path(&self) -> bool {
        self.needs_normal_path
    }

    /// The rule for a request; `None`: 404, or UNIMPLEMENTED for gRPC. Borrows from the table, and allocates nothing
    /// (but see [`RouteMatch::matches`]).
    pub fn select(&self, request: &impl RequestView) -> Option<Selected<'_>> {
        self.by_host(host_of(request.authority())).find_map(|rules| rules.select(&self.routes, request))
    }

    /// The rule for connections that carry no requests: the one that applies to every request. Of those for certain hosts, only
    /// rules for the server that the client asks for apply, the most specific first.
    pub fn catch_all(&self, server: Option<&str>) -> Option<Selected<'_>> {
        self.by_host(server.unwrap_or_default()).find_map(|rules| {
            let HostRules { regex, prefix, any, .. } = rules;
            let lists = regex.iter().chain(with_path(prefix, b"")).chain(any);
            lists.filter_map(|entry| entry.resolve(&self.routes)).find(|selected| selected.matching.is_any())
        })
    }

    /// Whether rules are for certain hosts.
    pub fn has_hosts(&self) -> bool {
        !self.names.is_empty() || !self.suffixes.is_empty() || !self.addresses.is_empty()
    }

    /// A rule, and the route that it belongs to.
    pub fn rule(&self, index: RuleIndex) -> Option<(&Route, &RouteRule)> {
        let route = self.routes.get(index.route)?;
        Some((route, route.rules.get(index.rule)?))
    }

    /// The rules whose host matches, the most specific first.
    fn by_host<'t>(&'t self, host: &'t str) -> impl Iterator<Item = &'t HostRules> {
        // Longer text cannot be a name, however many dots it has.
        let host = if host.len() <= MAX_NAME { host } else { "" };
        let name = find_name(&self.names, host);
        let address = || {
            let address = host.parse::<IpAddr>().ok()?.to_canonical();
            let at = self.addresses.binary_search_by_key(&address, |(known, _)| *known).ok()?;
            self.addresses.get(at).map(|(_, rules)| rules)
        };
        let address = if self.addresses.is_empty() { None } else { address() };
        // A leading dot does not follow a label.
        let dots = host.match_indices('.').map(|(at, _)| at).filter(|at| *at > 0);
        let suffixes = dots.filter_map(|at| find_name(&self.suffixes, host.get(at + 1..)?));
        name.into_iter().chain(address).chain(suffixes).chain([&self.any])
    }
}

/// Tables of the same routes are the same.
impl PartialEq for RouteTable {
    fn eq(&self, other: &Self) -> bool {
        self.routes == other.routes
    }
}

impl Eq for RouteTable {}

impl serde::Serialize for RouteTable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.routes.serialize(serializer)
    }
}

impl HostRules {
    fn add(&mut self, route: usize, object: &Route) {
        for (rule, value) in object.rules.iter().enumerate() {
            for (matching, value) in value.matches.iter().enumerate() {
                let (list, path) = match value.path() {
                    Some(PathMatch::Exact(path)) => (&mut self.exact, path.shared()),
                    Some(PathMatch::Rpc(rpc)) => {
                        let service = rpc.service_name().map(|service| format!("/{service}").into());
                        (&mut self.rpc, service.unwrap_or_default())
                    }
                    Some(PathMatch::Regex(_)) => (&mut self.regex, Arc::default()),
                    Some(PathMatch::Prefix(path)) => {
                        self.longest_prefix = self.longest_prefix.max(path.as_str().len());
                        (&mut self.prefix, path.shared())
                    }
                    None => (&mut self.any, Arc::default()),
                };
                list.push(TableEntry { path, index: RuleIndex { route, rule }, matching });
            }
        }
    }

    fn sort(&mut self, routes: &[Route]) {
        for list in [&mut self.exact, &mut self.rpc, &mut self.regex, &mut self.prefix, &mut self.any] {
            list.sort_by(|a, b| a.path.cmp(&b.path).then_with(|| precedence(routes, a, b)));
        }
        let patterns = self.regex.iter().map(|entry| entry.resolve(routes)?.matching.path());
        self.regex_index = PathIndex::new(patterns);
    }

    fn select<'t>(&self, routes: &'t [Route], request: &impl RequestView) -> Option<Selected<'t>> {
        let path = request.path();
        let first = |entries: &[TableEntry]| {
            let mut selected = entries.iter().filter_map(|entry| entry.resolve(routes));
            selected.find(|selected| selected.matching.matches(request))
        };
        first(with_path(&self.exact, path))
            .or_else(|| self.calls_of(path).find_map(first))
            .or_else(|| {
                let resolve = |at: usize| self.regex.get(at)?.resolve(routes);
                let is_met = |at| resolve(at).is_some_and(|selected| selected.matching.matches(request));
                self.regex_index.first(path, is_met).and_then(resolve)
            })
            .or_else(|| self.prefixes_of(path).find_map(first))
            .or_else(|| first(&self.any))
    }

    /// The candidates for a gRPC call: matches with its exact service, then the others.
    fn calls_of<'t>(&'t self, path: &[u8]) -> impl Iterator<Item = &'t [TableEntry]> + use<'t> {
        let service = split_call(path).and_then(|(service, _)| path.get(..=service.len()));
        let lists = service.map(|service| [with_path(&self.rpc, service), with_path(&self.rpc, b"")]);
        lists.into_iter().flatten()
    }

    /// The matches whose prefix is a prefix of this path, the longest first.
    fn prefixes_of<'t>(&'t self, path: &'t [u8]) -> impl Iterator<Item = &'t [TableEntry]> {
        let longest = if self.prefix.is_empty() { None } else { Some(path.len().min(self.longest_prefix)) };
        let lengths = longest.into_iter().flat_map(|longest| (0..=longest).rev());
        // An element ends at a slash or at the path's end. An empty path, and `*`, have no element.
        let ends = lengths.filter(|end| match path.get(*end) {
            Some(byte) => *byte == b'/',
            None => *end > 0,
        });
        ends.map(|end| with_path(&self.prefix, path.get(..end).unwrap_or_default()))
    }
}

impl TableEntry {
    fn resolve<'t>(&self, routes: &'t [Route]) -> Option<Selected<'t>> {
        let route = routes.get(self.index.route)?;
        let rule = route.rules.get(self.index.rule)?;
        Some(Selected { route, rule, matching: rule.matches.get(self.matching)?, index: self.index })
    }
}

fn needs_normal_path(rule: &RouteRule) -> bool {
    let mut paths = rule.matches.iter().filter_map(RouteMatch::path);
    paths.any(PathMatch::needs_normal_path) || matches!(rule.action, Action::Redirect(_))
}

/// The precedence of two matches of one host and one kind of path, with equal paths or with patterns.
fn precedence(routes: &[Route], a: &TableEntry, b: &TableEntry) -> Ordering {
    let (Some(left), Some(right)) = (a.resolve(routes), b.resolve(routes)) else { return Ordering::Equal };
    let specificity = |selected: &Selected<'_>| {
        let matching = selected.matching;
        let (rpc, pattern_len) = match matching.path() {
            Some(PathMatch::Rpc(rpc)) => (Some(rpc.specificity()), 0),
            Some(PathMatch::Regex(pattern)) => (None, pattern.as_str().len()),
            _ => (None, 0),
        };
        let has_method = !matching.methods().is_empty();
        Reverse((rpc, pattern_len, has_method, matching.headers().len(), matching.query().len()))
    };
    specificity(&left)
        .cmp(&specificity(&right))
        .then_with(|| left.route.created.cmp(&right.route.created))
        .then_with(|| left.route.origin.cmp_by_name(&right.route.origin))
        .then_with(|| {
            let place = |entry: &TableEntry| (entry.index.route, entry.index.rule, entry.matching);
            place(a).cmp(&place(b))
        })
}

/// The rules of a host name from the wire, in any case.
fn find_name<'t>(names: &'t [(DnsName, HostRules)], host: &str) -> Option<&'t HostRules> {
    let wanted = || host.bytes().map(|byte| byte.to_ascii_lowercase());
    let at = names.binary_search_by(|(name, _)| name.as_str().bytes().cmp(wanted())).ok()?;
    names.get(at).map(|(_, rules)| rules)
}

/// The entries with this path, of a list sorted by path.
fn with_path<'t>(entries: &'t [TableEntry], path: &[u8]) -> &'t [TableEntry] {
    equal_range(entries, |entry| entry.path.as_bytes(), path)
}

#[cfg(test)]
mod tests;
