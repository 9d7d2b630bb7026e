//! Whether an IngressBackend or MeshConfig is in force, as its status says it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_core::policy::RuleState;
use tidegate_crds::ingress_backend::Backend;
use tidegate_crds::mesh_config::MESH_CONFIG_NAME;
use tidegate_crds::{Finding, IngressBackend, MeshConfig, validate};

use super::ingress::{self, NamespaceSources};
use super::targets::Targets;
use crate::index::Index;
use crate::object::ObjectName;
use crate::service::{numbered_target, tcp_ports};
use crate::unreadable::Unreadable;

/// What OSM's users see of an object that is in force.
const COMMITTED: &str = "successfully committed by the system";

/// The most warnings of one object about others that open the same.
const MOST_CONFLICTS: usize = 8;

/// Whether an object is in force, and what its author should know besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectStatus {
    /// Whether it is.
    pub current: CurrentStatus,
    /// Why. Of several errors the first one, in the order of the object's fields.
    pub reason: String,
    /// What is likely not meant.
    pub warnings: Vec<String>,
    /// `metadata.generation` of the object that this is said of. Files have none.
    pub observed_generation: Option<i64>,
}

/// `status.currentStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentStatus {
    /// In force.
    Committed,
    /// Not, or not all of it.
    Error,
}

/// The status of an IngressBackend.
pub fn ingress_backend(index: &Index, name: &ObjectName, object: &IngressBackend) -> ObjectStatus {
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
enum Fault {
    /// It is wrong, or does not fit what is there.
    Own(String),
    /// Something that it names is not there, so that more cannot be said.
    Missing(String),
}

impl<'i> NamespaceStatuses<'i> {
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
            Fault::Own(reason) | Fault::Missing(reason) => reason,
        });
        ObjectStatus::new(first.or(elsewhere), warnings, &object.metadata)
    }

    /// Whether all that keeps it from being in force is that objects which it names are not there.
    pub(crate) fn only_misses_others(&self, name: &ObjectName, object: &IngressBackend) -> bool {
        let faults = self.faults(name, object);
        !faults.is_empty() && faults.iter().all(|fault| matches!(fault, Fault::Missing(_)))
    }

    /// In the order of the object's fields.
    fn faults(&self, name: &ObjectName, object: &IngressBackend) -> Vec<Fault> {
        let index = self.index;
        if let Some(error) = index.outside_mesh(&name.namespace).or_else(|| ingress::error(&object.spec)) {
            return vec![Fault::Own(error)];
        }
        let rules = ingress::rules(&self.sources, name, &object.spec);
        let missing = self.sources.missing(&object.spec.sources);
        let faults =
            rules.into_iter().zip(&object.spec.backends).filter_map(|(rule, backend)| match rule.state {
                RuleState::Invalid(reason) if missing.as_deref() == Some(&*reason) => {
                    Some(Fault::Missing(reason.to_string()))
                }
                RuleState::Invalid(reason) => Some(Fault::Own(reason.to_string())),
                RuleState::Active(_) => self.wrong_port(&rule.backend, backend),
            });
        faults.collect()
    }

    /// Why a backend opens nothing although its rule is sound: OSM left its user alone with that.
    fn wrong_port(&self, service_name: &ObjectName, backend: &Backend) -> Option<Fault> {
        let number = backend.port.number;
        let error = format!("no port of service {service_name} has targetPort {number}");
        let Some(service) = self.index.service(service_name) else {
            return Some(Fault::Missing(format!("{error}: there is no such service")));
        };
        let targets = self.targets.of(service_name);
        if targets.contains(&number) {
            return None;
        }
        if targets.is_empty() {
            return Some(Fault::Missing(format!("{error}: it has no targetPort that is known")));
        }
        let error = format!("{error}: it has {}", validate::listed(targets.iter().map(u16::to_string)));
        let is_own = |port: &k8s_openapi::api::core::v1::ServicePort| port.port == i32::from(number);
        let error = match tcp_ports(service).find(|port| is_own(port)) {
            Some(_) => {
                format!("{error}; {number} is the service's own port, and port.number is the targetPort")
            }
            None => error,
        };
        // A name may stand for the number at Pods that are not there.
        let is_named = tcp_ports(service).any(|port| numbered_target(port).is_none());
        Some(if is_named && !self.targets.has_pods(service_name) {
            Fault::Missing(error)
        } else {
            Fault::Own(error)
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

/// The status of a MeshConfig; only one of several is in force.
pub fn mesh_config(index: &Index, name: &ObjectName, object: &MeshConfig) -> ObjectStatus {
    let error = match index.mesh_config() {
        Some((in_force, _)) if in_force == name => None,
        Some((in_force, _)) => Some(format!("not in force: {in_force} is")),
        None => Some(format!("not in force: only an object named {MESH_CONFIG_NAME} is read")),
    };
    let findings = validate::mesh_config(&object.spec);
    let error = error.or_else(|| findings.iter().find(|finding| finding.is_error()).map(Finding::to_string));
    let warnings =
        findings.iter().map(Finding::to_string).filter(|text| error.as_ref() != Some(text)).collect();
    ObjectStatus::new(error, warnings, &object.metadata)
}

/// The status of an object that cannot be read.
pub fn unreadable(object: &Unreadable) -> ObjectStatus {
    ObjectStatus::new(Some(object.reason()), Vec::new(), &object.metadata)
}

impl ObjectStatus {
    fn new(error: Option<String>, warnings: Vec<String>, of: &ObjectMeta) -> Self {
        let (current, reason) = match error {
            Some(reason) => (CurrentStatus::Error, reason),
            None => (CurrentStatus::Committed, COMMITTED.to_owned()),
        };
        Self { current, reason, warnings, observed_generation: of.generation }
    }
}

impl CurrentStatus {
    /// The text in `status.currentStatus`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Error => "error",
        }
    }
}
