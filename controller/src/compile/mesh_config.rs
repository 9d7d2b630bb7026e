//! What the MeshConfig in force says, and whether a MeshConfig is in force.
//!
//! A MeshConfig that cannot be read denies mesh peers: it may have turned permissive mode off. One with errors in
//! fields that are read is in force as far as it can be understood, and its status says so.

use std::sync::Arc;

use tidegate_core::EgressMode;
use tidegate_core::contract::names::MESH_CONFIG_NAME;
use tidegate_core::telemetry::TracingSettings;
use tidegate_crds::{Finding, MeshConfig, validate};

use super::audit::{is_audit, misspelled};
use super::status::{Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::Index;
use crate::object::ObjectName;

/// Why mesh peers are kept out where no policy lets them in.
pub(super) const NOT_PERMISSIVE: &str = "permissive mode is off and no TrafficTarget lets mesh peers in";
/// The same, where there is no MeshConfig.
pub(crate) const NO_MESH_CONFIG: &str = "there is no MeshConfig osm-mesh-config, so permissive mode is off, and no TrafficTarget \
                              lets mesh peers in; make it with spec.traffic.enablePermissiveTrafficPolicyMode: true to let \
                              all of them in";
/// What decides about mesh peers.
pub(super) enum PeerMode {
    /// Nothing lets them in, for this reason.
    Closed(Arc<str>),
    /// Permissive mode: every workload of the mesh may reach every port.
    Permissive,
    /// TrafficTargets; where none does, the reason to refuse them.
    Targets(Arc<str>),
}

impl Compiled for MeshConfig {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let index = scope.index;
        let wanted = index.mesh_configs().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted
            .map(|(name, object)| Judged {
                name: name.clone(),
                status: mesh_config(index, name, object),
                uid: object.metadata.uid.clone(),
                is_incomplete: false,
            })
            .collect()
    }

    fn is_affected(scope: &StatusScope<'_>, _: &ObjectName) -> bool {
        scope.all
    }

    fn is_wanted(scope: &StatusScope<'_>, _: &ObjectName) -> bool {
        scope.all
    }
}

/// The status of a MeshConfig; only one of several is in force.
pub(super) fn mesh_config(index: &Index, name: &ObjectName, object: &MeshConfig) -> ObjectStatus {
    let error = match index.mesh_config() {
        Some((in_force, _)) if in_force == name => None,
        Some((in_force, _)) => Some(format!("not in force: {in_force} is")),
        None => Some(format!("not in force: only an object named {MESH_CONFIG_NAME} is read")),
    };
    let findings = validate::mesh_config(&object.spec);
    let error = error.or_else(|| findings.iter().find(|finding| finding.is_error()).map(Finding::to_string));
    let warnings = findings.iter().map(Finding::to_string).filter(|text| error.as_ref() != Some(text));
    let warnings = warnings.chain(audit_effect(object)).collect();
    ObjectStatus::new(error, warnings, &object.metadata)
}

/// What the annotation for audit mode means, if a server authorizes requests.
fn audit_effect(object: &MeshConfig) -> Option<String> {
    object.spec.external_authorization()?;
    let effect =
        || "audit mode: what the external authorization would refuse is counted and logged".to_owned();
    is_audit(&object.metadata).then(effect).or_else(|| misspelled(&object.metadata))
}

/// What the MeshConfig in force says about traces. One with an error in these settings traces nothing.
pub(super) fn tracing(index: &Index) -> Option<TracingSettings> {
    let (name, config) = index.mesh_config()?;
    let tracing = config.spec.observability.as_ref()?.tracing.as_ref()?;
    tracing.settings(&name.namespace).ok().flatten()
}

/// Where connections to addresses that no object has go. A MeshConfig that cannot be read may have turned egress off.
pub(crate) fn egress_mode(index: &Index) -> EgressMode {
    if let Some(config) = index.unreadable_mesh_config() {
        return EgressMode::RegistryOnly(format!("MeshConfig {}: {}", config.name(), config.reason()).into());
    }
    match index.mesh_config() {
        Some((name, config)) if !config.spec.is_egress_enabled() => EgressMode::RegistryOnly(
            format!("spec.traffic.enableEgress of MeshConfig {name} is false, and no object has the address")
                .into(),
        ),
        Some(_) | None => EgressMode::AllowAny,
    }
}

impl PeerMode {
    /// The settings of the MeshConfig, or the defaults without one.
    pub(super) fn of(index: &Index) -> Self {
        if let Some(config) = index.unreadable_mesh_config() {
            return Self::Closed(format!("MeshConfig {}: {}", config.name(), config.reason()).into());
        }
        match index.mesh_config_spec() {
            Some(config) if config.is_permissive() => Self::Permissive,
            Some(_) => Self::Targets(NOT_PERMISSIVE.into()),
            None => Self::Targets(NO_MESH_CONFIG.into()),
        }
    }
}

#[cfg(test)]
mod naive;
