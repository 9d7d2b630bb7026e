//! The mutating webhook that adds the sidecar to the Pods of the mesh.
//!
//! `inject.rs` is the heart: from a Pod, its namespace and the settings to a JSON patch, as a pure function.
//! [`PodReviewer`] answers the API server with it, [`ClusterState`] follows the namespaces and the MeshConfig that it needs, and
//! [`inject_manifests`] does the same for files. Start reading at `inject.rs`.
//!
//! # What the webhook needs of its configuration
//!
//! - `CREATE` and `UPDATE` of `pods` and `UPDATE` of `pods/ephemeralcontainers`, `v1`, scope `Namespaced`, path `/mutate`;
//!   of the updates of `pods`, by a match condition, those that change an image of our containers, so that nothing else
//!   that is done to a Pod waits for the injector.
//! - Two webhooks, for labels are joined by "and" in a selector: one for namespaces with
//!   `openservicemesh.io/monitored-by: <mesh>`, one for those with `tidegate.io/injection: enabled`. Both leave out
//!   namespaces with the label `openservicemesh.io/ignore` or `control-plane`, and by `kubernetes.io/metadata.name`
//!   `kube-system`, `kube-public`, `kube-node-lease` and the control plane's own. No objectSelector: a Pod's labels are
//!   its author's.
//! - `failurePolicy: Fail`, so that a Pod of the mesh never starts without its sidecar; `sideEffects: None`, so that dry
//!   runs are asked about, too; `reinvocationPolicy: IfNeeded`, for containers that other webhooks add;
//!   `timeoutSeconds: 10`, of which an answer takes milliseconds, and at most two seconds for a namespace that is new.
//! - No `caBundle`: `tidegate_kubernetes::webhook::CaBundleKeeper` writes it.
//!
//! # What it may do
//!
//! `get`, `list` and `watch` of Namespaces; the same of the MeshConfig in the control plane's namespace; the same and
//! `patch` of its own MutatingWebhookConfiguration. Nothing else: it makes no Secret and reads none.

mod annotations;
mod containers;
mod decision;
mod hook_key;
mod hooks;
mod inject;
mod limits;
mod manifests;
pub mod options;
mod patch;
mod pod;
mod probes;
mod refusal;
mod review;
pub mod settings;
pub mod sidecar_proxies;
mod state;

pub use annotations::AnnotationError;
pub use decision::{DecisionError, NamespaceView};
pub use manifests::{InjectedManifests, ManifestError, ManifestNamespaces, inject_manifests};
pub use probes::ProbeRewriteError;
pub use refusal::PodRefusal;
pub use review::PodReviewer;
pub use state::{ClusterState, ClusterStateWriter};
