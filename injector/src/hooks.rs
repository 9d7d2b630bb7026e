//! Lifecycle hooks by `httpGet`, pointed at the sidecar for the same reason as probes: kubelet calls them, and has no
//! certificate of the mesh.
//!
//! Unlike a probe, a hook changes the app's state, and the sidecar's port is open to all. So its path ends in a secret
//! that only those who may read the Pod know.

use serde_json::json;
use tidegate_core::contract::ports;

use crate::hook_key::HookKey;
use crate::patch::PatchBuilder;
use crate::pod::{ContainerFields, LifecycleHandler, PortReference};
use crate::probes::{self, AppProbe, ProbeRewriteError};

/// Prefix of the paths of hooks.
const PATH: &str = "/osm-lifecycle/";

/// The Pod of the hooks, as used in their paths: its namespace, and its own or its owner's name.
pub(crate) struct HookOwner<'p> {
    pub(crate) key: &'p HookKey,
    pub(crate) namespace: &'p str,
    pub(crate) name: &'p str,
}

/// One of the two hooks that a container may have.
struct HookKind {
    field: &'static str,
    path: &'static str,
    of: fn(&ContainerFields) -> Option<&LifecycleHandler>,
}

const KINDS: [HookKind; 2] = [
    HookKind {
        field: "postStart",
        path: "post-start",
        of: |container| container.lifecycle.as_ref()?.post_start.as_ref(),
    },
    HookKind {
        field: "preStop",
        path: "pre-stop",
        of: |container| container.lifecycle.as_ref()?.pre_stop.as_ref(),
    },
];

/// Points the hooks of one container, found at `path` in the Pod, at the sidecar, as [`probes::rewrite`] does with
/// probes. `exec` and `sleep` are not changed, nor are requests to another host.
pub(crate) fn rewrite(
    container: &ContainerFields,
    path: &[&str],
    owner: &HookOwner<'_>,
    before: &[AppProbe],
    patch: &mut PatchBuilder,
    all: &mut Vec<AppProbe>,
) -> Result<(), ProbeRewriteError> {
    for kind in &KINDS {
        let Some(action) = (kind.of)(container).and_then(|handler| handler.http_get.as_ref()) else {
            continue;
        };
        if probes::is_elsewhere(action.host.as_deref()) {
            continue;
        }
        let error = |(field, problem): (&str, String)| {
            ProbeRewriteError::new(container, format!("lifecycle.{}.{field}", kind.field), problem)
        };
        let beginning = format!("{PATH}{}/{}/", container.name, kind.path);
        let asked = action.path.as_deref().unwrap_or_default();
        if action.port == PortReference::Number(ports::HOOKS.into()) && asked.starts_with(&beginning) {
            let known = before.iter().find(|known| known.is_at(ports::HOOKS, asked)).ok_or_else(|| {
                let problem = format!(
                    "port {} and path {beginning} are the sidecar's; name the app's own port and path",
                    ports::HOOKS
                );
                error(("httpGet", problem))
            })?;
            all.push(known.clone().checked().map_err(|problem| error(("httpGet", problem)))?);
            continue;
        }
        let target = probes::http(container, action).map_err(error)?;
        let own_path = format!("{beginning}{}", owner.secret(container, kind));
        let action = json!({"path": own_path, "port": ports::HOOKS, "scheme": "HTTP"});
        patch.replace(&[path, &["lifecycle", kind.field, "httpGet"]].concat(), action);
        all.push(AppProbe::hook(ports::HOOKS, own_path, target));
    }
    Ok(())
}

impl HookOwner<'_> {
    /// The same for the same key, so that repeated reviews of a Pod give the same patch.
    fn secret(&self, container: &ContainerFields, kind: &HookKind) -> String {
        // None of these can contain a slash.
        self.key.secret([self.namespace, self.name, &container.name, kind.path])
    }
}
