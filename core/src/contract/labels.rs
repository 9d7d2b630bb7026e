//! Labels of namespaces, Pods and installed objects.

/// Namespace: the mesh that it belongs to.
pub const MONITORED_BY: &str = "openservicemesh.io/monitored-by";
/// Namespace: `enabled` both puts it into the mesh and adds sidecars. The mesh is that of [`MONITORED_BY`], or else
/// [`DEFAULT_MESH_NAME`](super::names::DEFAULT_MESH_NAME).
pub const INJECTION: &str = "tidegate.io/injection";
/// Namespace: the mesh ignores it, whatever else is set.
pub const IGNORE: &str = "openservicemesh.io/ignore";
/// Namespace: it has a control plane, so admission webhooks ignore it, as Open Service Mesh's did.
pub const CONTROL_PLANE: &str = "control-plane";

/// Pod: the injector added a sidecar.
pub const SIDECAR_LABEL: &str = "tidegate.io/sidecar";
/// The value of [`SIDECAR_LABEL`].
pub const INJECTED: &str = "injected";

/// Object of an installation: its program.
pub const NAME: &str = "app.kubernetes.io/name";
/// Object of an installation: the name of its mesh.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Object of an installation: the chart's version.
pub const VERSION: &str = "app.kubernetes.io/version";
/// Object of an installation; its value is [`TIDEGATE`].
pub const PART_OF: &str = "app.kubernetes.io/part-of";
/// Object of an installation: what wrote it, Helm or a daemon by its name.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`PART_OF`].
pub const TIDEGATE: &str = "tidegate";
