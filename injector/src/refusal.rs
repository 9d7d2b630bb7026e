//! Pods that would break the mesh or go around it, each with what to do instead.

use k8s_openapi::api::core::v1::{Capabilities, Container, ContainerPort, Pod, PodSpec, SecurityContext};
use tidegate_crds::injection::{INTERCEPT_CONTAINER, SIDECAR_CONTAINER, SIDECAR_LABEL};

use crate::annotations::AnnotationError;
use crate::containers::{TOKEN_VOLUME, TRUST_VOLUME, USER};
use crate::decision::DecisionError;
use crate::ports;
use crate::probes::ProbeError;
use crate::settings::MeshConfigError;

/// The most bytes of the sidecar's flag about probes.
pub(crate) const MAX_PROBES_BYTES: usize = 120 * 1024;

/// Why a Pod is not let in.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be told whether it gets a sidecar.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// An annotation cannot be read.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// A probe or lifecycle hook cannot be pointed at the sidecar.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The MeshConfig cannot be read, so no sidecar can be made.
    #[error(transparent)]
    MeshConfig(#[from] MeshConfigError),
    /// It would run as the sidecar, whose connections are not redirected.
    #[error("{field}: user {USER} is the sidecar's, whose traffic passes the mesh by; run as another user")]
    User {
        /// Which field says so.
        field: String,
    },
    /// A container has one of our names.
    #[error(
        "{field}: {name} is the name of a container that the injector adds; name yours otherwise, or leave both \
         injected containers and label {SIDECAR_LABEL} as they were"
    )]
    ContainerName {
        /// Which field says so.
        field: String,
        /// The name.
        name: String,
    },
    /// A volume has one of our names.
    #[error("{field}: {name} is the name of a volume that the injector adds; name yours otherwise")]
    VolumeName {
        /// Which field says so.
        field: String,
        /// The name.
        name: String,
    },
    /// A container declares one of our ports.
    #[error("{field}: port {port} is the sidecar's; let the container listen elsewhere")]
    Port {
        /// Which field says so.
        field: String,
        /// The port.
        port: u16,
    },
    /// A debug container could undo interception.
    #[error(
        "{field}: {what} could take the pod's traffic out of the mesh; debug without it, or a copy of the pod outside \
         the mesh"
    )]
    DebugPrivilege {
        /// Which field says so.
        field: String,
        /// What it asks for.
        what: &'static str,
    },
    /// The kernel starts no program with an argument of 128 KiB.
    #[error(
        "spec.containers: their probes and hooks take {bytes} bytes in the sidecar's arguments, more than {MAX_PROBES_BYTES}; \
         shorten their paths and headers"
    )]
    ProbesTooLong {
        /// How many.
        bytes: usize,
    },
    /// What the sidecar is to be told cannot be written.
    #[error("the sidecar's flags: {0}")]
    Flags(#[from] serde_json::Error),
}

/// Looks at what the Pod's author wrote; containers and volumes of an earlier injection, `is_injected`, are ours.
pub(crate) fn check(pod: &Pod, spec: &PodSpec, is_injected: bool) -> Result<(), Refusal> {
    let user = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    check_user(user, || "spec.securityContext.runAsUser".to_owned())?;
    let init_containers = spec.init_containers.iter().flatten().enumerate();
    for (index, container) in init_containers {
        if !(is_injected && is_reserved_name(&container.name)) {
            check_container(container, &format!("spec.initContainers[{index}]"))?;
        }
    }
    for (index, container) in spec.containers.iter().enumerate() {
        check_container(container, &format!("spec.containers[{index}]"))?;
    }
    if !is_injected {
        check_volumes(spec)?;
    }
    check_ephemeral(pod)
}

/// Looks at the debug containers of a Pod that has a sidecar.
pub(crate) fn check_ephemeral(pod: &Pod) -> Result<(), Refusal> {
    let containers = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_ref());
    for (index, container) in containers.into_iter().flatten().enumerate() {
        let path = format!("spec.ephemeralContainers[{index}]");
        check_name(&container.name, &path)?;
        let Some(context) = &container.security_context else { continue };
        let path = format!("{path}.securityContext");
        check_user(context.run_as_user, || format!("{path}.runAsUser"))?;
        if context.privileged == Some(true) {
            let field = format!("{path}.privileged");
            return Err(Refusal::DebugPrivilege { field, what: "a privileged container" });
        }
        if has_net_admin(context) {
            let field = format!("{path}.capabilities.add");
            return Err(Refusal::DebugPrivilege { field, what: "NET_ADMIN" });
        }
    }
    Ok(())
}

pub(crate) fn is_reserved_name(name: &str) -> bool {
    [SIDECAR_CONTAINER, INTERCEPT_CONTAINER].contains(&name)
}

fn check_container(container: &Container, path: &str) -> Result<(), Refusal> {
    check_name(&container.name, path)?;
    let user = container.security_context.as_ref().and_then(|context| context.run_as_user);
    check_user(user, || format!("{path}.securityContext.runAsUser"))?;
    for (index, port) in container.ports.iter().flatten().enumerate() {
        if let Some(port) = reserved(port) {
            return Err(Refusal::Port { field: format!("{path}.ports[{index}].containerPort"), port });
        }
    }
    Ok(())
}

fn check_name(name: &str, path: &str) -> Result<(), Refusal> {
    if is_reserved_name(name) {
        return Err(Refusal::ContainerName { field: format!("{path}.name"), name: name.to_owned() });
    }
    Ok(())
}

fn check_user(user: Option<i64>, field: impl FnOnce() -> String) -> Result<(), Refusal> {
    if user == Some(USER) { Err(Refusal::User { field: field() }) } else { Ok(()) }
}

fn check_volumes(spec: &PodSpec) -> Result<(), Refusal> {
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        if [TRUST_VOLUME, TOKEN_VOLUME].contains(&volume.name.as_str()) {
            let field = format!("spec.volumes[{index}].name");
            return Err(Refusal::VolumeName { field, name: volume.name.clone() });
        }
    }
    Ok(())
}

/// Only TCP ports can collide with ours.
fn reserved(port: &ContainerPort) -> Option<u16> {
    let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    u16::try_from(port.container_port).ok().filter(|port| is_tcp && ports::is_reserved(*port))
}

fn has_net_admin(context: &SecurityContext) -> bool {
    let added = |capabilities: &Capabilities| capabilities.add.iter().flatten().any(|name| is_powerful(name));
    context.capabilities.as_ref().is_some_and(added)
}

/// Container runtimes take a capability's name in any letter case, with `CAP_` or without.
fn is_powerful(capability: &str) -> bool {
    let name = capability.to_ascii_uppercase();
    matches!(name.strip_prefix("CAP_").unwrap_or(&name), "NET_ADMIN" | "ALL" | "SYS_ADMIN")
}
