//! Routes as requests use them: what is computed once for each table, and the backends of the moment.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidegate_core::WeightedSequence;
use tidegate_core::backend::BackendRef;
use tidegate_core::route::filter::{Filter, HeaderEdits, Mirror, Rewrite};
use tidegate_core::route::{
    Action, BackendTarget, Route, RouteRule, RouteTable, RoutesName, RuleIndex, WeightedBackend,
};

use super::attempt_limits::AttemptLimits;
use super::backend::BalancedBackend;

/// A table of routes in force, without the endpoints behind it.
#[derive(Debug)]
pub(crate) struct ActiveRoutes {
    table: RouteTable,
    /// What rules refer to, each backend once.
    backends: Box<[BackendRef]>,
    /// Of each rule of each route.
    rules: Box<[Box<[Arc<ActiveRule>]>]>,
}

/// What a rule needs at hand for each request. Requests that it applies to hold it, so that changes of routes do not affect
/// them.
#[derive(Debug)]
pub(crate) struct ActiveRule {
    /// `<kind>/<namespace>/<name>/<rule>`, for the access log.
    label: Box<str>,
    sequence: WeightedSequence,
    /// The next position in the sequence. All workers count here, so that a split is exact whichever of them serves a
    /// request. A rule with one share leaves it alone.
    position: AtomicU64,
    shares: Box<[ActiveShare]>,
    /// Edits of the responses to requests that have not drawn a share.
    response: HeaderEdits,
    /// Whether this version does what all of its filters say.
    is_carried_out: bool,
    limits: Option<Arc<AttemptLimits>>,
}

/// A share of a rule's requests: where it goes, and what the filters of the rule and of the backend change in it together.
#[derive(Debug)]
struct ActiveShare {
    target: ShareTarget,
    request: HeaderEdits,
    response: HeaderEdits,
    rewrites: Box<[Rewrite]>,
    mirrors: Box<[ActiveMirror]>,
}

/// A backend that gets copies of a share's requests.
#[derive(Debug)]
struct ActiveMirror {
    /// Index of one of the table's backends.
    backend: usize,
    sampler: WeightedSequence,
    /// The next position in the sequence, of all workers.
    position: AtomicU64,
}

/// Where a share of a rule's requests goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShareTarget {
    /// Index of one of the table's backends.
    Backend(usize),
    /// The reference cannot be resolved: the response has this status.
    Invalid(u16),
}

/// Routes with their backends in place.
#[derive(Debug)]
pub(crate) struct ResolvedRoutes {
    name: RoutesName,
    routes: Arc<ActiveRoutes>,
    /// In the order of [`ActiveRoutes::backends`].
    backends: Box<[Arc<BalancedBackend>]>,
}

/// A rule as it applies to one request.
#[derive(Debug)]
pub(crate) struct AppliedRule {
    rule: Arc<ActiveRule>,
    /// The share that the request has drawn.
    share: Option<u32>,
    /// `Location` of a redirect.
    location: Option<Box<[u8]>>,
}

/// Where the share goes that a request, or a connection, has drawn.
#[derive(Debug)]
pub(crate) enum DrawnShare<'r> {
    /// The sum of weights is 0.
    Nothing,
    /// The response has this status.
    Invalid(u16),
    /// A backend.
    Backend(&'r Arc<BalancedBackend>),
}

impl ActiveRoutes {
    /// Prepares a table.
    pub(super) fn new(table: RouteTable) -> Self {
        let names = table.routes().iter().flat_map(Route::backends);
        let mut places: BTreeMap<&BackendRef, usize> = names.map(|name| (name, 0)).collect();
        places.values_mut().enumerate().for_each(|(at, place)| *place = at);
        let rules = |route: &Route| {
            let rule = |rule| Arc::new(ActiveRule::new(route, rule, &places));
            route.rules.iter().map(rule).collect()
        };
        let rules = table.routes().iter().map(rules).collect();
        let backends = places.into_keys().cloned().collect();
        Self { table, backends, rules }
    }

    pub(crate) fn table(&self) -> &RouteTable {
        &self.table
    }

    /// What rules refer to, each backend once.
    pub(super) fn backends(&self) -> &[BackendRef] {
        &self.backends
    }
}

impl ActiveRule {
    /// Its split begins at a random position, so that a thousand sidecars that send one request each do not all choose the
    /// heaviest backend.
    fn new(route: &Route, rule: &RouteRule, places: &BTreeMap<&BackendRef, usize>) -> Self {
        let shares = match &rule.action {
            Action::Forward(shares) => shares.as_slice(),
            Action::Redirect(_) | Action::Respond(_) => &[],
        };
        let weights: Vec<_> = shares.iter().map(|share| share.weight).collect();
        Self {
            label: route.label(rule).into(),
            sequence: WeightedSequence::new(&weights),
            position: AtomicU64::new(rand::random()),
            shares: shares.iter().map(|share| ActiveShare::new(rule, share, places)).collect(),
            response: rule.header_edits(None).1,
            is_carried_out: rule.filters.iter().all(is_carried_out),
            limits: AttemptLimits::of(rule),
        }
    }

    /// Whether this version does what all of its filters say. If not, requests are answered with an error: none is skipped.
    pub(crate) fn is_carried_out(&self) -> bool {
        self.is_carried_out
    }

    /// What it allows a request beyond one attempt of any length, if it limits that.
    pub(crate) fn limits(&self) -> Option<&Arc<AttemptLimits>> {
        self.limits.as_ref()
    }

    /// Index of the share of the next request.
    fn draw(&self) -> Option<usize> {
        let position = match &*self.shares {
            [_] => 0,
            _ => self.position.fetch_add(1, Ordering::Relaxed),
        };
        self.sequence.at(position)
    }
}

impl ActiveShare {
    fn new(rule: &RouteRule, share: &WeightedBackend, places: &BTreeMap<&BackendRef, usize>) -> Self {
        let filters = || rule.filters.iter().chain(&share.filters);
        let target = match &share.target {
            _ if !share.filters.iter().all(is_carried_out) => ShareTarget::Invalid(500),
            BackendTarget::Backend(name) => {
                places.get(name).copied().map_or(ShareTarget::Invalid(500), ShareTarget::Backend)
            }
            BackendTarget::Invalid(response) => ShareTarget::Invalid(response.status),
            // Only inbound.
            BackendTarget::App => ShareTarget::Invalid(500),
        };
        let rewrite = |filter: &Filter| match filter {
            Filter::Rewrite(rewrite) => Some(rewrite.clone()),
            _ => None,
        };
        let (request, response) = rule.header_edits(Some(share));
        let mirror = |filter: &Filter| match filter {
            Filter::Mirror(mirror) => ActiveMirror::new(mirror, places),
            _ => None,
        };
        let mirrors = filters().filter_map(mirror).collect();
        Self { target, request, response, rewrites: filters().filter_map(rewrite).collect(), mirrors }
    }
}

impl ActiveMirror {
    fn new(mirror: &Mirror, places: &BTreeMap<&BackendRef, usize>) -> Option<Self> {
        let backend = *places.get(&mirror.backend)?;
        let position = AtomicU64::new(rand::random());
        Some(Self { backend, sampler: mirror.fraction.sampler(), position })
    }

    /// Whether the next request is copied.
    fn draw(&self) -> bool {
        self.sampler.at(self.position.fetch_add(1, Ordering::Relaxed)) == Some(0)
    }
}

/// Whether this version does what a filter says.
fn is_carried_out(filter: &Filter) -> bool {
    matches!(
        filter,
        Filter::RequestHeaders(_) | Filter::ResponseHeaders(_) | Filter::Rewrite(_) | Filter::Mirror(_)
    )
}

impl AppliedRule {
    /// A rule that forwards no request.
    pub(crate) fn of(rule: &Arc<ActiveRule>) -> Self {
        Self { rule: rule.clone(), share: None, location: None }
    }

    /// The client is redirected to this place.
    pub(crate) fn redirecting(self, location: Vec<u8>) -> Self {
        Self { location: Some(location.into()), ..self }
    }

    /// `<kind>/<namespace>/<name>/<rule>`, for the access log.
    pub(crate) fn label(&self) -> &str {
        &self.rule.label
    }

    /// Edits of the request's headers.
    pub(crate) fn request_edits(&self) -> Option<&HeaderEdits> {
        self.share().map(|share| &share.request)
    }

    /// Edits of the headers of the response, also of one that the sidecar generates.
    pub(crate) fn response_edits(&self) -> &HeaderEdits {
        self.share().map_or(&self.rule.response, |share| &share.response)
    }

    /// The changes of host and path, one after the other.
    pub(crate) fn rewrites(&self) -> &[Rewrite] {
        self.share().map_or(&[], |share| &share.rewrites)
    }

    /// The host that the request is for, in place of the client's.
    pub(crate) fn hostname(&self) -> Option<&str> {
        self.rewrites().iter().rev().find_map(Rewrite::hostname)
    }

    /// `Location` of a redirect.
    pub(crate) fn location(&self) -> Option<&[u8]> {
        self.location.as_deref()
    }

    fn share(&self) -> Option<&ActiveShare> {
        self.rule.shares.get(usize::try_from(self.share?).ok()?)
    }
}

impl ResolvedRoutes {
    /// Routes with their backends, in the order of [`ActiveRoutes::backends`].
    pub(super) fn new(
        name: RoutesName,
        routes: Arc<ActiveRoutes>,
        backends: Box<[Arc<BalancedBackend>]>,
    ) -> Self {
        Self { name, routes, backends }
    }

    pub(crate) fn name(&self) -> &RoutesName {
        &self.name
    }

    pub(crate) fn table(&self) -> &RouteTable {
        &self.routes.table
    }

    pub(super) fn backends(&self) -> &[Arc<BalancedBackend>] {
        &self.backends
    }

    pub(crate) fn rule(&self, index: RuleIndex) -> Option<&Arc<ActiveRule>> {
        self.routes.rules.get(index.route)?.get(index.rule)
    }

    /// The backends that get a copy of this request.
    pub(crate) fn mirrors<'r>(
        &'r self,
        applied: &'r AppliedRule,
    ) -> impl Iterator<Item = &'r Arc<BalancedBackend>> + use<'r> {
        let mirrors = applied.share().map_or(&[][..], |share| &share.mirrors);
        mirrors.iter().filter(|mirror| mirror.draw()).filter_map(|mirror| self.backends.get(mirror.backend))
    }

    /// Draws a share of a rule for the next request or connection.
    pub(crate) fn draw(&self, rule: &Arc<ActiveRule>) -> (AppliedRule, DrawnShare<'_>) {
        let index = rule.draw();
        let share = index.and_then(|index| u32::try_from(index).ok());
        let applied = AppliedRule { share, ..AppliedRule::of(rule) };
        let drawn = match index.and_then(|index| rule.shares.get(index)).map(|share| share.target) {
            Some(ShareTarget::Backend(at)) => {
                self.backends.get(at).map_or(DrawnShare::Nothing, DrawnShare::Backend)
            }
            Some(ShareTarget::Invalid(status)) => DrawnShare::Invalid(status),
            None => DrawnShare::Nothing,
        };
        (applied, drawn)
    }
}
