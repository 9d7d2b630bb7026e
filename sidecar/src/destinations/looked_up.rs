//! Backends with endpoints whose addresses come from DNS.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tidegate_core::DnsName;
use tidegate_core::backend::{Backend, BackendRef, DnsAnswers, DnsEndpoint, Endpoint};

use super::backend::BalancedBackend;
use super::caller::ClientWorkload;

/// The most endpoints of a backend that come from DNS. Addresses beyond are left out.
const MOST_ENDPOINTS: usize = 1024;

/// What DNS says about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameAnswer {
    /// In the order of the answer; of the last one that had any, if newer look-ups have failed.
    pub(crate) addresses: Vec<IpAddr>,
    /// Why the newest look-up has failed.
    pub(crate) failure: Option<Arc<str>>,
}

/// A backend as some connections use it: those for this host, if the host is what is looked up.
pub(super) type DnsUse = (BackendRef, Option<DnsName>);

/// Backends with names, and the answers about these.
#[derive(Default)]
pub(super) struct LookedUp {
    backends: BTreeMap<BackendRef, Backend>,
    answers: HashMap<DnsName, NameAnswer>,
    /// With the addresses of the answers in place, where there is an answer about each name.
    resolved: BTreeMap<DnsUse, Arc<BalancedBackend>>,
}

impl LookedUp {
    /// Takes over a backend, or forgets one that has no names.
    pub(super) fn set(&mut self, backend: &Backend, caller: &ClientWorkload) {
        if backend.dns.is_none() {
            return self.remove(&backend.name);
        }
        self.backends.insert(backend.name.clone(), backend.clone());
        self.renew(caller, |(name, _)| *name == backend.name);
    }

    pub(super) fn remove(&mut self, name: &BackendRef) {
        self.backends.remove(name);
        self.resolved.retain(|(backend, _), _| backend != name);
    }

    /// Whether no backend has names.
    pub(super) fn is_empty(&self) -> bool {
        self.backends.is_empty()
    }

    /// How connections for a host use a backend that has names; `None` for one that has none.
    pub(super) fn usage(&self, name: &BackendRef, host: Option<&DnsName>) -> Option<DnsUse> {
        let dns = self.backends.get(name)?.dns.as_ref()?;
        let is_of_host = dns.names.iter().any(|endpoint| endpoint.name.is_none());
        Some((name.clone(), host.filter(|_| is_of_host).cloned()))
    }

    /// The backend for one use; `None` while DNS has not answered.
    pub(super) fn get(&self, usage: &DnsUse) -> Option<&Arc<BalancedBackend>> {
        self.resolved.get(usage)
    }

    /// Keeps what is in use at hand. Returns the names to look up.
    pub(super) fn keep(&mut self, uses: BTreeSet<DnsUse>, caller: &ClientWorkload) -> BTreeSet<DnsName> {
        self.resolved.retain(|usage, _| uses.contains(usage));
        let names: BTreeSet<DnsName> = uses.iter().flat_map(|usage| self.names(usage)).cloned().collect();
        self.answers.retain(|name, _| names.contains(name));
        for usage in uses {
            if !self.resolved.contains_key(&usage)
                && let Some(backend) = self.resolve(&usage, caller)
            {
                self.resolved.insert(usage, Arc::new(backend));
            }
        }
        names
    }

    /// Takes over an answer. Returns the backends that it is about.
    pub(super) fn answer(
        &mut self,
        name: &DnsName,
        answer: NameAnswer,
        caller: &ClientWorkload,
    ) -> Vec<BackendRef> {
        self.answers.insert(name.clone(), answer);
        let concerned = |backend: &&Backend| {
            let names = backend.dns.iter().flat_map(|dns| &dns.names);
            names.map(|endpoint| &endpoint.name).any(|known| known.as_ref().is_none_or(|known| known == name))
        };
        let backends: Vec<_> =
            self.backends.values().filter(concerned).map(|backend| backend.name.clone()).collect();
        self.renew(caller, |(backend, host)| {
            backends.contains(backend) && host.as_ref().is_none_or(|host| host == name)
        });
        backends
    }

    /// Makes resolved backends again. Endpoints that stay keep their state.
    fn renew(&mut self, caller: &ClientWorkload, is_concerned: impl Fn(&DnsUse) -> bool) {
        let concerned: Vec<_> = self.resolved.keys().filter(|usage| is_concerned(usage)).cloned().collect();
        for usage in concerned {
            match self.resolve(&usage, caller) {
                Some(backend) => drop(self.resolved.insert(usage, Arc::new(backend))),
                None => drop(self.resolved.remove(&usage)),
            }
        }
    }

    fn names<'n>(&'n self, (name, host): &'n DnsUse) -> impl Iterator<Item = &'n DnsName> {
        let dns = self.backends.get(name).and_then(|backend| backend.dns.as_ref());
        let endpoints = dns.into_iter().flat_map(|dns| &dns.names);
        endpoints.filter_map(move |endpoint| endpoint.name.as_ref().or(host.as_ref()))
    }

    fn resolve(&self, usage: &DnsUse, caller: &ClientWorkload) -> Option<BalancedBackend> {
        let backend = self.backends.get(&usage.0)?;
        let dns = backend.dns.as_ref()?;
        let mut endpoints = backend.endpoints.clone();
        let mut known: BTreeSet<SocketAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        let mut failure = None;
        let mut weights = backend.weights.clone();
        for DnsEndpoint { name, port, transport, weight } in &dns.names {
            let answer = self.answers.get(name.as_ref().or(usage.1.as_ref())?)?;
            failure = failure.or_else(|| answer.failure.clone());
            let count = if dns.answers == DnsAnswers::First { 1 } else { MOST_ENDPOINTS };
            // Each family has a first one.
            let (v4, v6): (Vec<&IpAddr>, Vec<_>) = answer.addresses.iter().partition(|ip| ip.is_ipv4());
            for ip in v4.into_iter().take(count).chain(v6.into_iter().take(count)) {
                let address = SocketAddr::new(*ip, *port);
                if endpoints.len() < MOST_ENDPOINTS && known.insert(address) {
                    endpoints.push(Endpoint::new(address, transport.clone()));
                    if *weight != 1 {
                        weights.insert(address, *weight);
                    }
                }
            }
        }
        let backend = Backend { endpoints, weights, dns: None, ..backend.clone() };
        let before = self.resolved.get(usage).map(|before| &**before);
        Some(BalancedBackend::new(&backend, caller, before).with_lookup_failure(failure))
    }
}
