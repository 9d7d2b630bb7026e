//! Whether an IngressBackend or MeshConfig is in force, as its status says it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_core::policy::RuleState;
use tidegate_crds::ingress_backend::Backend;
use tidegate_crds::mesh_config::MESH_CONFIG_NAME;
use tidegate_crds::{Finding, IngressBackend, MeshConfig, validate};

use super::{ingress, target_ports};
use crate::index::Index;
use crate::object::ObjectName;
use crate::service::tcp_ports;
use crate::unreadable::Unreadable;

/// What OSM's users see of an object that is in force.
const COMMITTED: &str = "successfully committed by the system";

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
    let findings = validate::ingress_backend(&object.spec);
    let mut warnings: Vec<_> =
        findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string).collect();
    for backend in &object.spec.backends {
        warnings.extend(conflict(index, name, backend));
    }
    ObjectStatus::new(first_error(index, name, object), warnings, &object.metadata)
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

fn first_error(index: &Index, name: &ObjectName, object: &IngressBackend) -> Option<String> {
    if let Some(error) = index.outside_mesh(&name.namespace).or_else(|| ingress::error(&object.spec)) {
        return Some(error);
    }
    let rules = ingress::rules(index, name, &object.spec);
    rules.into_iter().zip(&object.spec.backends).find_map(|(rule, backend)| {
        if let RuleState::Invalid(reason) = rule.state {
            return Some(reason.to_string());
        }
        wrong_port(index, &rule.backend, backend)
    })
}

/// Why a backend opens nothing although its rule is sound: OSM left its user alone with that.
fn wrong_port(index: &Index, service_name: &ObjectName, backend: &Backend) -> Option<String> {
    let number = backend.port.number;
    let error = format!("no port of service {service_name} has targetPort {number}");
    let Some(service) = index.service(service_name) else {
        return Some(format!("{error}: there is no such service"));
    };
    let targets = target_ports(index, service_name, service);
    if targets.contains(&number) {
        return None;
    }
    if targets.is_empty() {
        return Some(format!("{error}: it has no targetPort that is known"));
    }
    let list: Vec<_> = targets.iter().map(u16::to_string).collect();
    let error = format!("{error}: it has {}", list.join(", "));
    let is_own = |port: &k8s_openapi::api::core::v1::ServicePort| port.port == i32::from(number);
    Some(match tcp_ports(service).find(|port| is_own(port)) {
        Some(_) => format!("{error}; {number} is the service's own port, and port.number is the targetPort"),
        None => error,
    })
}

/// Other IngressBackends that name the same Service and port. All of them are in force: what one grants is granted.
fn conflict(index: &Index, name: &ObjectName, backend: &Backend) -> Option<String> {
    let names_it = |other: &IngressBackend| {
        let is_same = |b: &Backend| b.name == backend.name && b.port.number == backend.port.number;
        other.spec.backends.iter().any(is_same)
    };
    let others = index
        .ingress_backends_in(&name.namespace)
        .filter(|(other, object)| *other != name && names_it(object));
    let others: Vec<_> = others.map(|(other, _)| other.to_string()).collect();
    (!others.is_empty()).then(|| {
        format!(
            "service {}/{} port {} is also opened by IngressBackend {}; what any of them grants is granted",
            name.namespace,
            backend.name,
            backend.port.number,
            others.join(", ")
        )
    })
}
