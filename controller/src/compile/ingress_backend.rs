//! Whether an IngressBackend is in force. What it grants is in `rules`.
//!
//! The status is computed by the same functions that compile rules, so that it cannot say "committed" of a rule that
//! denies. OSM reported a source without endpoints, and left the status empty when no workload was behind a backend;
//! here a missing Service or a wrong port is an error whose reason names the ports that exist.

pub(super) mod rules;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ServicePort;
use tidegate_core::policy::{IngressRule, RuleState};
use tidegate_crds::ingress_backend::BackendSpec;
use tidegate_crds::{Finding, IngressBackend, validate};

use self::rules::{BackendRule, NamespaceSources};
use super::status::{Compiled, Judged, ObjectStatus, PortRule, StatusScope};
use super::targets::Targets;
use crate::index::Index;
use crate::object::{ObjectName, OfKind};
use crate::service::{numbered_target, tcp_ports};

/// Why a rule grants nothing at a workload that has no room for it.
pub(crate) const TOO_LARGE: &str = "all rules of one workload may take 512 KiB, and this one is beyond that: list fewer \
                                    backends or sources";

/// The most warnings of one object about others that open the same.
const MOST_CONFLICTS: usize = 8;

impl Compiled for IngressBackend {
    /// The rules of the IngressBackends of this namespace.
    fn rules(index: &Index, namespace: &str) -> Vec<PortRule> {
        let sources = NamespaceSources::new(index, namespace);
        let mut all = Vec::new();
        for (name, object) in index.ingress_backends_in(namespace) {
            let origin = name.to_ref(Self::KIND);
            for BackendRule { backend, port, state } in rules::rules(&sources, name, &object.spec) {
                let rule = IngressRule { origin: origin.clone(), backend: backend.to_shared(), state };
                all.push(PortRule { port, rule });
            }
        }
        all
    }

    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let index = scope.index;
        let mut of_namespaces: BTreeMap<&str, NamespaceStatuses<'_>> = BTreeMap::new();
        let wanted = index.ingress_backends().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted
            .map(|(name, object)| {
                let namespace = of_namespaces
                    .entry(&name.namespace)
                    .or_insert_with(|| NamespaceStatuses::new(index, &name.namespace));
                let elsewhere =
                    scope.without_room.contains(&name.to_ref(Self::KIND)).then(|| TOO_LARGE.to_owned());
                Judged {
                    name: name.clone(),
                    status: namespace.of(name, object, elsewhere),
                    uid: object.metadata.uid.clone(),
                    is_incomplete: scope.asks_for_missing && namespace.only_misses_others(name, object),
                }
            })
            .collect()
    }
}

/// The status of an IngressBackend.
#[cfg(test)]
pub(crate) fn ingress_backend(index: &Index, name: &ObjectName, object: &IngressBackend) -> ObjectStatus {
    NamespaceStatuses::new(index, &name.namespace).of(name, object, None)
}

/// What the statuses of a namespace's IngressBackends rest on, made once for all of them.
pub(crate) struct NamespaceStatuses<'i> {
    index: &'i Index,
    /// The IngressBackends that open a port of a Service.
    openers: BTreeMap<(&'i str, u16), Vec<&'i ObjectName>>,
    sources: NamespaceSources<'i>,
    targets: Targets<'i>,
}

/// What keeps an IngressBackend from being in force.
enum StatusError {
    /// It is wrong, or does not fit what is there.
    Own(String),
    /// Something that it names is not there, so that more cannot be said.
    Missing(String),
}

impl<'i> NamespaceStatuses<'i> {
    /// Reads the namespace's IngressBackends once, so that conflicts and sources cost each status a lookup.
    pub(crate) fn new(index: &'i Index, namespace: &str) -> Self {
        let mut openers: BTreeMap<(&str, u16), Vec<&ObjectName>> = BTreeMap::new();
        for (name, object) in index.ingress_backends_in(namespace) {
            for backend in &object.spec.backends {
                let names = openers.entry((backend.name.as_str(), backend.port.number)).or_default();
                if names.last() != Some(&name) {
                    names.push(name);
                }
            }
        }
        let (sources, targets) = (NamespaceSources::new(index, namespace), Targets::new(index, namespace));
        Self { index, openers, sources, targets }
    }

    /// The status of one of them. `elsewhere` is what was found out about it besides: what has no room at a workload.
    pub(crate) fn of(
        &self,
        name: &ObjectName,
        object: &IngressBackend,
        elsewhere: Option<String>,
    ) -> ObjectStatus {
        let findings = validate::ingress_backend(&object.spec);
        let warnings = findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string);
        let warnings = warnings.chain(self.conflicts(name, object)).collect();
        let first = self.faults(name, object).into_iter().next().map(|fault| match fault {
            StatusError::Own(reason) | StatusError::Missing(reason) => reason,
        });
        ObjectStatus::new(first.or(elsewhere), warnings, &object.metadata)
    }

    /// Whether all that keeps it from being in force is that objects which it names are not there.
    pub(crate) fn only_misses_others(&self, name: &ObjectName, object: &IngressBackend) -> bool {
        let faults = self.faults(name, object);
        !faults.is_empty() && faults.iter().all(|fault| matches!(fault, StatusError::Missing(_)))
    }

    /// In the order of the object's fields.
    fn faults(&self, name: &ObjectName, object: &IngressBackend) -> Vec<StatusError> {
        let index = self.index;
        if let Some(error) = index.outside_mesh(&name.namespace).or_else(|| rules::error(&object.spec)) {
            return vec![StatusError::Own(error)];
        }
        let rules = rules::rules(&self.sources, name, &object.spec);
        let missing = self.sources.missing(&object.spec.sources);
        let faults =
            rules.into_iter().zip(&object.spec.backends).filter_map(|(rule, backend)| match rule.state {
                RuleState::Invalid(reason) if missing.as_deref() == Some(&*reason) => {
                    Some(StatusError::Missing(reason.to_string()))
                }
                RuleState::Invalid(reason) => Some(StatusError::Own(reason.to_string())),
                RuleState::Active(_) => self.wrong_port(&rule.backend, backend),
            });
        faults.collect()
    }

    /// Why a backend opens nothing although its rule is sound: OSM left its user alone with that.
    fn wrong_port(&self, service_name: &ObjectName, backend: &BackendSpec) -> Option<StatusError> {
        let number = backend.port.number;
        let error = format!("no port of service {service_name} has targetPort {number}");
        let Some(service) = self.index.service(service_name) else {
            return Some(StatusError::Missing(format!("{error}: there is no such service")));
        };
        let targets = self.targets.of(service_name);
        if targets.contains(&number) {
            return None;
        }
        if targets.is_empty() {
            return Some(StatusError::Missing(format!("{error}: it has no targetPort that is known")));
        }
        let error = format!("{error}: it has {}", validate::listed(targets.iter().map(u16::to_string)));
        let is_own = |port: &ServicePort| port.port == i32::from(number);
        let error = match tcp_ports(service).find(|port| is_own(port)) {
            Some(_) => {
                format!("{error}; {number} is the service's own port, and port.number is the targetPort")
            }
            None => error,
        };
        // A name may stand for the number at Pods that are not there.
        let is_named = tcp_ports(service).any(|port| numbered_target(port).is_none());
        Some(if is_named && !self.targets.has_pods(service_name) {
            StatusError::Missing(error)
        } else {
            StatusError::Own(error)
        })
    }

    /// Other IngressBackends that name the same Service and port. All of them are in force: what one grants is granted.
    fn conflicts(&self, name: &ObjectName, object: &IngressBackend) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut more = 0;
        for backend in &object.spec.backends {
            let openers = self.openers.get(&(backend.name.as_str(), backend.port.number));
            let others: Vec<_> = openers.into_iter().flatten().filter(|other| **other != name).collect();
            if others.is_empty() {
                continue;
            }
            if warnings.len() == MOST_CONFLICTS {
                more += 1;
                continue;
            }
            warnings.push(format!(
                "service {}/{} port {} is also opened by IngressBackend {}; what any of them grants is granted",
                name.namespace,
                backend.name,
                backend.port.number,
                validate::listed(others.into_iter().map(ToString::to_string))
            ));
        }
        if more > 0 {
            warnings.push(format!("{more} more backends are also opened by other IngressBackends"));
        }
        warnings
    }
}
