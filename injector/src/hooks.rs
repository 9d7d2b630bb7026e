//! Lifecycle hooks by `httpGet`, pointed at the sidecar for the same reason as probes: kubelet calls them, and has no
//! certificate of the mesh.
//!
//! Unlike a probe, a hook changes the app's state, and the sidecar's port is open to all. So its path ends in a secret
//! that only those who may read the Pod know.

use std::fmt;
use std::sync::LazyLock;

use aws_lc_rs::hmac;
use serde_json::json;
use tidegate_core::contract::ports;
use tidegate_core::hex;

use crate::patch::PatchBuilder;
use crate::pod::{ContainerFields, Handler, Port};
use crate::probes::{self, AppProbe, ProbeError};

/// Prefix of the paths of hooks.
const PATH: &str = "/osm-lifecycle/";

/// Hexadecimal digits of the secret at the end of a path; 128 bits.
const SECRET_DIGITS: usize = 32;

/// The key from which the secrets of paths are derived.
#[derive(Clone, PartialEq, Eq)]
pub struct HookKey([u8; 32]);

/// The Pod of the hooks, as used in their paths: its namespace, and its own or its owner's name.
pub(crate) struct Owner<'p> {
    pub(crate) key: &'p HookKey,
    pub(crate) namespace: &'p str,
    pub(crate) name: &'p str,
}

/// One of the two hooks that a container may have.
struct Kind {
    field: &'static str,
    path: &'static str,
    of: fn(&ContainerFields) -> Option<&Handler>,
}

const KINDS: [Kind; 2] = [
    Kind {
        field: "postStart",
        path: "post-start",
        of: |container| container.lifecycle.as_ref()?.post_start.as_ref(),
    },
    Kind {
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
    owner: &Owner<'_>,
    before: &[AppProbe],
    patch: &mut PatchBuilder,
    all: &mut Vec<AppProbe>,
) -> Result<(), ProbeError> {
    for kind in &KINDS {
        let Some(action) = (kind.of)(container).and_then(|handler| handler.http_get.as_ref()) else {
            continue;
        };
        if probes::is_elsewhere(action.host.as_deref()) {
            continue;
        }
        let error = |(field, problem): (&str, String)| {
            ProbeError::new(container, format!("lifecycle.{}.{field}", kind.field), problem)
        };
        let beginning = format!("{PATH}{}/{}/", container.name, kind.path);
        let asked = action.path.as_deref().unwrap_or_default();
        if action.port == Port::Number(ports::HOOKS.into()) && asked.starts_with(&beginning) {
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

impl HookKey {
    /// A random key for this process.
    pub fn of_process() -> Self {
        static KEY: LazyLock<HookKey> = LazyLock::new(|| HookKey(rand::random()));
        KEY.clone()
    }

    /// A fixed key.
    #[cfg(test)]
    pub(crate) fn known() -> Self {
        Self([7; 32])
    }
}

impl fmt::Debug for HookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookKey")
    }
}

impl Owner<'_> {
    /// The same for the same key, so that repeated reviews of a Pod give the same patch.
    fn secret(&self, container: &ContainerFields, kind: &Kind) -> String {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.key.0));
        for part in [self.namespace, self.name, &container.name, kind.path] {
            // None of these can contain a slash.
            context.update(part.as_bytes());
            context.update(b"/");
        }
        let mut secret = hex(context.sign().as_ref());
        secret.truncate(SECRET_DIGITS);
        secret
    }
}
