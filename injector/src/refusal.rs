//! Refusals of Pods that would break or bypass the mesh, each with what to do instead.

use tidegate_core::contract::labels::SIDECAR_LABEL;
use tidegate_core::contract::names::{self, SIDECAR_USER, TOKEN_VOLUME};
use tidegate_core::contract::ports;

use crate::annotations::AnnotationError;
use crate::decision::DecisionError;
use crate::pod::{Container, ContainerFields, ContainerPort, PodSpec, PodView, SecurityContext, shortened};
use crate::probes::ProbeRewriteError;
use crate::settings::MeshConfigError;

/// Advice for refused copies, and for cases that a copy solves.
const COPY: &str = "A copy needs the pod's labels: kubectl debug POD --copy-to=NAME --keep-labels makes one with a sidecar \
                    of its own, which Services select as they do the pod";

/// Capabilities with which a debug container can neither change the Pod's network, inspect its other processes, become
/// the sidecar's user, nor load anything into the kernel. All others are refused, including future ones.
const HARMLESS_CAPABILITIES: [&str; 12] = [
    "AUDIT_WRITE",
    "CHOWN",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SYS_CHROOT",
    "SYS_NICE",
    "SYS_RESOURCE",
];

/// Maximum bytes of the sidecar's flag with probes.
pub(crate) const MAX_PROBES_BYTES: usize = 120 * 1024;

/// Why a Pod is refused.
#[derive(Debug, thiserror::Error)]
pub enum PodRefusal {
    /// It is not a Pod, or exceeds a bound.
    #[error("the pod cannot be read: {0}")]
    Unreadable(serde_json::Error),
    /// The injection decision failed.
    #[error(transparent)]
    InjectionDecision(#[from] DecisionError),
    /// An annotation is invalid.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// A probe or lifecycle hook cannot be pointed at the sidecar.
    #[error(transparent)]
    Probe(#[from] ProbeRewriteError),
    /// The MeshConfig is invalid, so no sidecar can be configured.
    #[error(transparent)]
    MeshConfig(#[from] MeshConfigError),
    /// It would run as the sidecar's user, whose connections are not redirected.
    #[error(
        "{field}: user {SIDECAR_USER} is the sidecar's, whose traffic passes the mesh by; run as another user"
    )]
    User {
        /// The field.
        field: String,
    },
    /// A container has one of our names.
    #[error(
        "{field}: {name} is the name of a container that the injector adds; name yours otherwise, or leave both \
         injected containers and label {SIDECAR_LABEL} as they were. {COPY}"
    )]
    ContainerName {
        /// The field.
        field: String,
        /// The name.
        name: String,
    },
    /// A volume has one of our names.
    #[error("{field}: {name} is the name of a volume that the injector adds; name yours otherwise. {COPY}")]
    VolumeName {
        /// The field.
        field: String,
        /// The name.
        name: String,
    },
    /// A container declares one of our ports.
    #[error("{field}: port {port} is the sidecar's; let the container listen elsewhere")]
    Port {
        /// The field.
        field: String,
        /// The port.
        port: u16,
    },
    /// A debug container could undo interception or impersonate the sidecar.
    #[error(
        "{field}: {what} could take the pod's traffic out of the mesh, or its certificate; debug without it, as with \
         kubectl debug --profile=baseline, or debug a copy of the pod. {COPY}"
    )]
    DebugPrivilege {
        /// The field.
        field: String,
        /// The privilege that it requests.
        what: String,
    },
    /// A container mounts the sidecar's token.
    #[error(
        "{field}: {TOKEN_VOLUME} holds the token by which the sidecar gets the pod's certificate; no other container may \
         mount it"
    )]
    TokenMount {
        /// The field.
        field: String,
    },
    /// The image of one of our containers is changed in a running Pod.
    #[error(
        "{field}: a running pod keeps the {name} that it was made with, for another program would have its traffic and \
         its certificate, got {image:?}; for a new one, restart what made the pod (kubectl rollout restart)"
    )]
    Image {
        /// The field.
        field: String,
        /// The container.
        name: String,
        /// The new image.
        image: String,
    },
    /// The kernel limits a single argument to 128 KiB.
    #[error(
        "spec.containers: their probes and hooks take {bytes} bytes in the sidecar's arguments, more than {MAX_PROBES_BYTES}; \
         shorten their paths and headers"
    )]
    ProbesTooLong {
        /// The total size.
        bytes: usize,
    },
    /// The sidecar's flags cannot be encoded.
    #[error("the sidecar's flags: {0}")]
    Flags(#[from] serde_json::Error),
}

/// Checks the parts that the Pod's author wrote; with `is_injected`, containers and volumes of an earlier injection are
/// ours.
pub(crate) fn check(pod: &PodView<'_>, spec: &PodSpec<'_>, is_injected: bool) -> Result<(), PodRefusal> {
    let user = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    check_user(user, || "spec.securityContext.runAsUser".to_owned())?;
    let init_containers = spec.init_containers.iter().flatten().enumerate();
    for (index, container) in init_containers {
        if !(is_injected && is_reserved_name(&container.fields.name)) {
            check_container(&container.fields, &format!("spec.initContainers[{index}]"))?;
        }
    }
    for (index, container) in spec.containers.iter().enumerate() {
        check_container(&container.fields, &format!("spec.containers[{index}]"))?;
    }
    if !is_injected {
        check_volumes(spec)?;
    }
    check_ephemeral(pod, None)
}

/// Checks debug containers that are added to a Pod with a sidecar. Those in `old` can be neither changed nor removed.
pub(crate) fn check_ephemeral(pod: &PodView<'_>, old: Option<&PodView<'_>>) -> Result<(), PodRefusal> {
    let there = old.map(ephemeral_containers).unwrap_or_default();
    for (index, container) in ephemeral_containers(pod).iter().enumerate() {
        let path = format!("spec.ephemeralContainers[{index}]");
        let container = &container.fields;
        if there.iter().any(|old| old.fields.name == container.name) {
            continue;
        }
        check_name(&container.name, &path)?;
        check_mounts(container, &path)?;
        let Some(context) = &container.security_context else { continue };
        let path = format!("{path}.securityContext");
        check_user(context.run_as_user, || format!("{path}.runAsUser"))?;
        if context.privileged == Some(true) {
            let field = format!("{path}.privileged");
            return Err(PodRefusal::DebugPrivilege { field, what: "a privileged container".to_owned() });
        }
        if let Some(what) = powerful_capability(context) {
            let field = format!("{path}.capabilities.add");
            return Err(PodRefusal::DebugPrivilege { field, what });
        }
    }
    Ok(())
}

/// Checks an update of a Pod with a sidecar. Kubernetes only allows changing the images of our containers; the
/// injector's own image is accepted.
pub(crate) fn check_change(old: &PodView<'_>, new: &PodView<'_>, own_image: &str) -> Result<(), PodRefusal> {
    for (index, container) in init_containers(new).iter().enumerate() {
        let name = &container.fields.name;
        if !is_reserved_name(name) {
            continue;
        }
        let was = init_containers(old).iter().find(|before| before.fields.name == *name);
        let was = was.and_then(Container::image);
        let image = container.image();
        if image.is_none() || (image != was && image.as_deref() != Some(own_image)) {
            let image = shortened(&image.unwrap_or_default()).to_owned();
            let field = format!("spec.initContainers[{index}].image");
            return Err(PodRefusal::Image { field, name: name.clone(), image });
        }
    }
    Ok(())
}

/// The Pod's debug containers.
fn ephemeral_containers<'p, 'a>(pod: &'p PodView<'a>) -> &'p [Container<'a>] {
    pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default()
}

fn init_containers<'p, 'a>(pod: &'p PodView<'a>) -> &'p [Container<'a>] {
    pod.spec.as_ref().and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default()
}

/// Whether a container of this name is ours, or pretends to be.
pub(crate) fn is_reserved_name(name: &str) -> bool {
    [names::SIDECAR, names::INTERCEPT].contains(&name)
}

/// Checks an init container or a container of the app: its name, mounts, user and ports.
fn check_container(container: &ContainerFields, path: &str) -> Result<(), PodRefusal> {
    check_name(&container.name, path)?;
    check_mounts(container, path)?;
    let user = container.security_context.as_ref().and_then(|context| context.run_as_user);
    check_user(user, || format!("{path}.securityContext.runAsUser"))?;
    for (index, port) in container.ports.iter().flatten().enumerate() {
        if let Some(port) = reserved(port) {
            return Err(PodRefusal::Port { field: format!("{path}.ports[{index}].containerPort"), port });
        }
    }
    Ok(())
}

fn check_name(name: &str, path: &str) -> Result<(), PodRefusal> {
    if is_reserved_name(name) {
        return Err(PodRefusal::ContainerName { field: format!("{path}.name"), name: name.to_owned() });
    }
    Ok(())
}

/// Interception leaves the sidecar's user out, so an app that runs as it would bypass the mesh.
fn check_user(user: Option<i64>, field: impl FnOnce() -> String) -> Result<(), PodRefusal> {
    if user == Some(SIDECAR_USER.into()) { Err(PodRefusal::User { field: field() }) } else { Ok(()) }
}

/// The token lets its holder get the Pod's certificate.
fn check_mounts(container: &ContainerFields, path: &str) -> Result<(), PodRefusal> {
    let mut mounts = container.mounts.iter().flat_map(|mounts| &mounts.0);
    match mounts.find(|(_, name)| *name == TOKEN_VOLUME) {
        Some((index, _)) => {
            Err(PodRefusal::TokenMount { field: format!("{path}.volumeMounts[{index}].name") })
        }
        None => Ok(()),
    }
}

/// A volume of the user with one of our names would be what the sidecar mounts.
fn check_volumes(spec: &PodSpec<'_>) -> Result<(), PodRefusal> {
    match spec.volumes.as_ref().and_then(|volumes| volumes.0.first()) {
        Some((index, name, _)) => {
            let field = format!("spec.volumes[{index}].name");
            Err(PodRefusal::VolumeName { field, name: (*name).to_owned() })
        }
        None => Ok(()),
    }
}

/// Only TCP ports can collide with ours.
fn reserved(port: &ContainerPort) -> Option<u16> {
    let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    u16::try_from(port.container_port).ok().filter(|port| is_tcp && ports::RESERVED.contains(port))
}

/// The first added capability that is not harmless. Container runtimes accept its name in any letter case, with or
/// without `CAP_`.
fn powerful_capability(context: &SecurityContext) -> Option<String> {
    let added = context.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
    let mut names = added.map(|name| {
        let name = shortened(name).to_ascii_uppercase();
        name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
    });
    names.find(|name| !HARMLESS_CAPABILITIES.contains(&name.as_str()))
}
