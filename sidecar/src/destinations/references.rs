//! The backends and routes that destinations refer to, each held once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use tidegate_core::backend::{Backend, BackendRef, LimitedUsage, Locality};
use tidegate_core::destination::{DestinationKey, DestinationTarget};
use tidegate_core::forward_proxy::EgressProxyRule;
use tidegate_core::route::{RouteTable, RoutesName};
use tidegate_core::{Destination, DnsName, EgressMode, ServiceRetry};
use tidegate_proto::ResourceName;

use super::attempt_limits::AttemptLimits;
use super::backend::BalancedBackend;
use super::caller::{CallerRetries, ClientWorkload};
use super::egress_proxies::{ProxiedDestination, ProxyRules, TargetNames};
use super::egress_usages::EgressUsages;
use super::looked_up::{DnsUse, LookedUp, NameAnswer};
use super::resolved::ResolvedDestination;
use super::routes::{ActiveRoutes, ResolvedRoutes};
use crate::remotes::Remotes;

/// The most backends, and the most resources with routes.
const MOST_BACKENDS: usize = 8192;
const MOST_ROUTES: usize = 4096;

/// The most that backends and routes may take together, in bytes on the wire.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// What is held.
#[derive(Default)]
pub(super) struct References {
    backends: BTreeMap<BackendRef, Referenced<BalancedBackend>>,
    routes: BTreeMap<RoutesName, Referenced<ActiveRoutes>>,
    /// Of the backends, those with endpoints that come from DNS.
    looked_up: LookedUp,
    /// Of all values, on the wire.
    bytes: usize,
    caller: ClientWorkload,
}

/// A value that something refers to.
struct Referenced<T> {
    /// Empty unless the value is the controller's.
    version: String,
    bytes: usize,
    /// `None` until the controller has answered.
    value: Option<Arc<T>>,
    /// Whether anything refers to it. Not known of a value before what refers to it is.
    is_needed: bool,
}

/// The limit is reached: another value does not fit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReferencesFull {
    /// Too many of a kind.
    #[error("this sidecar holds {0} {1}, and may hold no more")]
    Count(usize, &'static str),
    /// Too many bytes.
    #[error("the backends and routes of this sidecar would take more than {} MiB", MOST_BYTES >> 20)]
    Bytes,
}

/// A backend or routes, for operators.
#[derive(Debug)]
pub(crate) struct ReferencedView {
    pub(crate) name: ResourceName,
    pub(crate) version: String,
    /// What is open to a backend, if that is limited.
    pub(crate) usage: Option<Arc<LimitedUsage>>,
    /// The rules, of routes.
    pub(crate) routes: Option<Arc<ActiveRoutes>>,
}

impl References {
    /// Nothing is held yet for this workload.
    pub(super) fn of_caller(caller: ClientWorkload) -> Self {
        Self { caller, ..Self::default() }
    }

    /// Names the workloads that are reached.
    pub(super) fn remotes(&self) -> &Remotes {
        &self.caller.remotes
    }

    /// Where the workload runs. Returns the backends whose endpoints depend on it, if that is news.
    pub(super) fn locate(&mut self, locality: Option<Locality>) -> Vec<BackendRef> {
        if self.caller.locality == locality {
            return Vec::new();
        }
        self.caller.locality = locality;
        let mut moved = Vec::new();
        for (name, held) in &mut self.backends {
            if let Some(value) = held.value.as_ref().and_then(|value| value.moved(&self.caller)) {
                held.value = Some(Arc::new(value));
                moved.push(name.clone());
            }
        }
        moved
    }

    /// Where connections to addresses that no object has go. Returns whether that is news.
    pub(super) fn set_egress(&mut self, mode: EgressMode) -> bool {
        let is_news = self.caller.egress != mode;
        if is_news {
            self.caller.egress_usages = EgressUsages::new(&mode, &self.caller.egress_usages);
            self.caller.egress = mode;
        }
        is_news
    }

    /// How requests to Services are retried. Returns whether that is news.
    pub(super) fn set_retries(&mut self, retries: &[Arc<ServiceRetry>]) -> bool {
        let is_news = !self.caller.retries.are(retries);
        if is_news {
            self.caller.retries = CallerRetries::new(retries);
        }
        is_news
    }

    /// Through which forward proxies they go. Returns whether that is news.
    pub(super) fn set_egress_proxies(&mut self, rules: &[Arc<EgressProxyRule>]) -> bool {
        if self.caller.proxies.are(rules) {
            return false;
        }
        self.caller.proxies = Arc::new(ProxyRules::new(rules, &self.caller, &self.caller.proxies));
        true
    }

    /// An address that no object has, or none that is known yet.
    pub(super) fn unknown(&self, dialled: SocketAddr) -> ResolvedDestination {
        match self.caller.proxies.at(dialled, TargetNames::Any, None) {
            Some(proxied) if self.caller.egress == EgressMode::AllowAny => {
                ResolvedDestination::proxied(dialled, proxied)
            }
            _ => self.directly(dialled),
        }
    }

    /// The same without a forward proxy.
    fn directly(&self, dialled: SocketAddr) -> ResolvedDestination {
        match &self.caller.egress {
            EgressMode::AllowAny => ResolvedDestination::unknown(dialled, None),
            EgressMode::RegistryOnly(reason) => ResolvedDestination::unregistered(dialled, reason.clone()),
            EgressMode::Policies(policies) => ResolvedDestination::by_policies(dialled, policies, |rule| {
                let usage = rule.and_then(|rule| self.caller.egress_usages.of(rule, dialled.port()));
                let names = match rule {
                    Some(rule) if rule.decides_by_address() => TargetNames::Address,
                    _ => TargetNames::Any,
                };
                let proxied = self.caller.proxies.at(dialled, names, usage);
                proxied.map_or_else(
                    || ResolvedDestination::unknown(dialled, usage),
                    |proxied| ResolvedDestination::proxied(dialled, proxied),
                )
            }),
        }
    }

    /// The names that a destination leads to: its backend, or its routes and their backends.
    pub(super) fn of<'r>(
        &'r self,
        destination: &'r Destination,
    ) -> impl Iterator<Item = ResourceName> + use<'r> {
        let leaf = match destination {
            Destination::ByHost(otherwise) => otherwise,
            other => other,
        };
        let (backend, routes) = match leaf {
            Destination::Passthrough
            | Destination::Unknown
            | Destination::InCluster
            | Destination::Blocked(_)
            | Destination::ByHost(_) => (None, None),
            Destination::Routed { target: DestinationTarget::Backend(backend), .. } => (Some(backend), None),
            Destination::Routed { target: DestinationTarget::Routes(routes), .. } => (None, Some(routes)),
        };
        let active = routes.and_then(|name| self.routes.get(name)?.value.as_deref());
        let of_rules = active.into_iter().flat_map(ActiveRoutes::backends);
        let backends = backend.into_iter().chain(of_rules).cloned().map(ResourceName::Backend);
        routes.cloned().map(ResourceName::Routes).into_iter().chain(backends)
    }

    /// What a destination means to connections; `None` while something that it leads to is not there yet.
    pub(super) fn resolve(
        &self,
        key: &DestinationKey,
        destination: &Destination,
    ) -> Option<ResolvedDestination> {
        let dialled = key.address;
        let (target, protocol) = match destination {
            Destination::Passthrough => return Some(ResolvedDestination::outside(dialled)),
            Destination::Unknown => return Some(self.unknown(dialled)),
            Destination::InCluster => return Some(self.directly(dialled)),
            Destination::Blocked(reason) => {
                return Some(ResolvedDestination::blocked(dialled, reason.clone()));
            }
            Destination::ByHost(otherwise) => {
                return Some(ResolvedDestination::by_host(dialled, self.resolve(key, otherwise)?));
            }
            Destination::Routed { target, protocol } => (target, *protocol),
        };
        let host = key.host.as_ref().map(|host| &host.name);
        let backend = |name: &BackendRef| match self.looked_up.usage(name, host) {
            Some(usage) => self.looked_up.get(&usage).cloned(),
            None => Some(self.backends.get(name)?.value.as_ref()?.at(dialled)),
        };
        let resolved = match target {
            DestinationTarget::Backend(name) => {
                let held = self.backends.get(name)?.value.as_ref()?;
                let resolved = match self.proxied(key, name) {
                    None => ResolvedDestination::to(dialled, backend(name)?),
                    // Its own endpoints are not used, nor looked up.
                    Some(proxied) if proxied.is_certain() => {
                        ResolvedDestination::to(dialled, held.clone()).through(proxied)
                    }
                    Some(proxied) => {
                        let direct = backend(name)?;
                        ResolvedDestination::to(dialled, direct.clone()).through(proxied.otherwise(direct))
                    }
                };
                let resolved = resolved.called(held.called(host));
                if &*name.object.kind == "ServiceEntry" { resolved.of_entry() } else { resolved }
            }
            DestinationTarget::Routes(name) => {
                let active = self.routes.get(name)?.value.as_ref()?;
                let backends = active.backends().iter().map(backend).collect::<Option<_>>()?;
                let routes = ResolvedRoutes::new(name.clone(), active.clone(), backends);
                ResolvedDestination::routed(dialled, routes)
            }
        };
        Some(resolved.carrying(protocol).limiting(self.attempts(target)))
    }

    /// Through what connections to a backend may leave the mesh.
    fn proxied(&self, key: &DestinationKey, backend: &BackendRef) -> Option<ProxiedDestination> {
        let host = key.host.as_ref().map(|host| &host.name);
        let backend = self.backends.get(backend)?.value.as_ref()?;
        self.caller.proxies.at(key.address, backend.target_names(host)?, None)
    }

    /// What the workload's requests to a Service are allowed beyond one attempt of any length.
    fn attempts(&self, target: &DestinationTarget) -> Option<Arc<AttemptLimits>> {
        let retries = &self.caller.retries;
        match target {
            DestinationTarget::Backend(BackendRef { object, .. }) if *object.kind == *"Service" => {
                retries.of(&format!("{}/{}", object.namespace, object.name)).cloned()
            }
            DestinationTarget::Backend(_) => None,
            DestinationTarget::Routes(name) => retries.of(name.owner()).cloned(),
        }
    }

    /// Takes over a backend of `bytes` on the wire. Endpoints that stay keep their load and their ejection.
    pub(super) fn set_backend(
        &mut self,
        name: &BackendRef,
        version: String,
        backend: &Backend,
        bytes: usize,
    ) -> Result<(), ReferencesFull> {
        let before = self.backends.get(name);
        if before.is_none() && self.backends.len() >= MOST_BACKENDS {
            return Err(ReferencesFull::Count(MOST_BACKENDS, "backends"));
        }
        self.bytes = room(self.bytes, before.map_or(0, |before| before.bytes), bytes)?;
        let value =
            BalancedBackend::new(backend, &self.caller, before.and_then(|before| before.value.as_deref()));
        let is_needed = before.is_some_and(|before| before.is_needed);
        let value = Some(Arc::new(value));
        self.looked_up.set(backend, &self.caller);
        self.backends.insert(name.clone(), Referenced { version, bytes, value, is_needed });
        Ok(())
    }

    /// Takes over routes of `bytes` on the wire. [`References::keep`] finds which backends they need. The splits of equal routes
    /// go on where they are.
    pub(super) fn set_routes(
        &mut self,
        name: &RoutesName,
        version: String,
        table: RouteTable,
        bytes: usize,
    ) -> Result<(), ReferencesFull> {
        let before = self.routes.get(name);
        if before.is_none() && self.routes.len() >= MOST_ROUTES {
            return Err(ReferencesFull::Count(MOST_ROUTES, "sets of routes"));
        }
        self.bytes = room(self.bytes, before.map_or(0, |before| before.bytes), bytes)?;
        let is_needed = before.is_some_and(|before| before.is_needed);
        let same = before.and_then(|before| before.value.clone()).filter(|active| *active.table() == table);
        let value = Some(same.unwrap_or_else(|| Arc::new(ActiveRoutes::new(table))));
        self.routes.insert(name.clone(), Referenced { version, bytes, value, is_needed });
        Ok(())
    }

    /// A backend that is not taken over: without endpoints, unless an earlier one stays.
    pub(super) fn refuse_backend(&mut self, name: &BackendRef) {
        if self.backends.get(name).is_none_or(|held| held.value.is_none()) {
            self.remove_backend(name);
        }
    }

    /// A backend that does not exist has no endpoints.
    pub(super) fn remove_backend(&mut self, name: &BackendRef) {
        self.looked_up.remove(name);
        let held = self.backends.entry(name.clone()).or_default();
        self.bytes -= held.clear(BalancedBackend::empty(name));
    }

    /// Routes that do not exist, or are not taken over: none, unless earlier ones stay. These also outlive their end at the
    /// controller until their destinations change, which may arrive later: requests in between would get 404.
    pub(super) fn end_routes(&mut self, name: &RoutesName) {
        let held = self.routes.entry(name.clone()).or_default();
        if held.value.is_none() {
            held.clear(ActiveRoutes::new(RouteTable::default()));
        }
    }

    /// How the backends that a destination leads to are used, of those with endpoints that come from DNS.
    pub(super) fn dns_uses(&self, key: &DestinationKey, destination: &Destination) -> BTreeSet<DnsUse> {
        let host = key.host.as_ref().map(|host| &host.name);
        let is_proxied =
            |name: &BackendRef| self.proxied(key, name).is_some_and(|proxied| proxied.is_certain());
        let names = self.of(destination).filter_map(|name| match name {
            ResourceName::Backend(name) if !is_proxied(&name) => self.looked_up.usage(&name, host),
            _ => None,
        });
        names.collect()
    }

    /// Whether a backend has endpoints that come from DNS.
    pub(super) fn has_names(&self) -> bool {
        !self.looked_up.is_empty()
    }

    /// Has these uses at hand, and no others. Returns the names to look up for them.
    pub(super) fn keep_names(&mut self, uses: BTreeSet<DnsUse>) -> BTreeSet<DnsName> {
        self.looked_up.keep(uses, &self.caller)
    }

    /// Takes over what DNS says about a name. Returns the backends that it is about.
    pub(super) fn answer(&mut self, name: &DnsName, answer: NameAnswer) -> Vec<BackendRef> {
        self.looked_up.answer(name, answer, &self.caller)
    }

    /// Whether a backend is held and something refers to it.
    pub(super) fn is_needed(&self, name: &BackendRef) -> bool {
        self.backends.get(name).is_some_and(|held| held.is_needed)
    }

    pub(super) fn holds(&self, name: &ResourceName) -> bool {
        match name {
            ResourceName::Backend(name) => self.backends.contains_key(name),
            ResourceName::Routes(name) => self.routes.contains_key(name),
            ResourceName::Destination(_) | ResourceName::Listener { .. } => false,
        }
    }

    /// Holds exactly what is needed. Returns the names that come, without a value yet, and those that go.
    pub(super) fn keep(&mut self, needed: BTreeSet<ResourceName>) -> Vec<ResourceName> {
        self.backends.values_mut().for_each(|held| held.is_needed = false);
        self.routes.values_mut().for_each(|held| held.is_needed = false);
        let mut changed = Vec::new();
        for name in needed {
            let is_known = self.holds(&name);
            match &name {
                ResourceName::Backend(name) => {
                    self.backends.entry(name.clone()).or_default().is_needed = true;
                }
                ResourceName::Routes(name) => self.routes.entry(name.clone()).or_default().is_needed = true,
                ResourceName::Destination(_) | ResourceName::Listener { .. } => {}
            }
            if !is_known {
                changed.push(name);
            }
        }
        let (bytes, looked_up) = (&mut self.bytes, &mut self.looked_up);
        self.backends.retain(|name, held| {
            if !held.is_needed {
                looked_up.remove(name);
            }
            held.is_needed || held.leave(bytes, &mut changed, ResourceName::Backend(name.clone()))
        });
        self.routes.retain(|name, held| {
            held.is_needed || held.leave(bytes, &mut changed, ResourceName::Routes(name.clone()))
        });
        changed
    }

    pub(super) fn names(&self) -> impl Iterator<Item = ResourceName> {
        let backends = self.backends.keys().cloned().map(ResourceName::Backend);
        backends.chain(self.routes.keys().cloned().map(ResourceName::Routes))
    }

    pub(super) fn versions(&self) -> impl Iterator<Item = (ResourceName, String)> {
        self.view()
            .into_iter()
            .map(|view| (view.name, view.version))
            .filter(|(_, version)| !version.is_empty())
    }

    pub(super) fn view(&self) -> Vec<ReferencedView> {
        let backends = self.backends.iter().map(|(name, held)| ReferencedView {
            name: ResourceName::Backend(name.clone()),
            version: held.version.clone(),
            usage: held.value.as_ref().and_then(|backend| backend.usage().cloned()),
            routes: None,
        });
        let routes = self.routes.iter().map(|(name, held)| ReferencedView {
            name: ResourceName::Routes(name.clone()),
            version: held.version.clone(),
            usage: None,
            routes: held.value.clone(),
        });
        backends.chain(routes).collect()
    }
}

impl<T> Referenced<T> {
    /// Puts a value of ours in the place of the controller's. Returns the bytes that are free.
    fn clear(&mut self, value: T) -> usize {
        self.version.clear();
        self.value = Some(Arc::new(value));
        std::mem::take(&mut self.bytes)
    }

    /// Notes that it goes, which is `false`.
    fn leave(&self, bytes: &mut usize, changed: &mut Vec<ResourceName>, name: ResourceName) -> bool {
        *bytes -= self.bytes;
        changed.push(name);
        false
    }
}

impl<T> Default for Referenced<T> {
    fn default() -> Self {
        Self { version: String::new(), bytes: 0, value: None, is_needed: false }
    }
}

/// The bytes that are taken once a value has taken the place of another.
fn room(taken: usize, before: usize, bytes: usize) -> Result<usize, ReferencesFull> {
    let taken = taken - before + bytes;
    if taken > MOST_BYTES { Err(ReferencesFull::Bytes) } else { Ok(taken) }
}
