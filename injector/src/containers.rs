//! The two containers and two volumes that are added to a Pod of the mesh.

use std::collections::BTreeMap;
use std::fmt::Display;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tidegate_core::contract::environment::POD_IPS;
use tidegate_core::contract::flags::{self, argument, switch};
use tidegate_core::contract::names::{
    self, READY_PATH, SIDECAR_USER, TOKEN_FOLDER, TOKEN_KEY, TOKEN_VOLUME, TRUST_BUNDLE_KEY, TRUST_FOLDER,
    TRUST_VOLUME, token_audience, trust_bundle_config_map,
};
use tidegate_core::contract::ports;

use crate::pod::{Container, read_own};
use crate::settings::{Interception, MeshSettings, Resources, Settings};

/// The sidecar's default requests: autoscalers and quotas need a number for each container. An idle sidecar uses about
/// 10 MiB and a thousandth of a CPU.
const SIDECAR_REQUESTS: [(&str, &str); 2] = [("cpu", "5m"), ("memory", "16Mi")];
/// The same for the interception step, which runs only briefly; the scheduler adds it to the sidecar's.
const INTERCEPT_REQUESTS: [(&str, &str); 2] = [("cpu", "1m"), ("memory", "8Mi")];
/// Where Kubernetes mounts a Pod's own token into every container, also into ours when the Pod is admitted again.
const SERVICE_ACCOUNT_FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Generates the containers of one Pod.
#[derive(Clone, Debug)]
pub(crate) struct ContainerBuilder<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) mesh: &'a MeshSettings,
    pub(crate) interception: Interception,
    pub(crate) resources: Resources,
    /// Whether the Pod may send UDP only to DNS servers.
    pub(crate) refuses_udp: bool,
    /// The sidecar limits that users set, by flag.
    pub(crate) limits: BTreeMap<&'static str, String>,
    /// The value of [`flags::PROBES`].
    pub(crate) probes: String,
}

impl ContainerBuilder<'_> {
    /// Waits until the sidecar is ready, redirects the Pod's connections, verifies the redirection, and exits.
    ///
    /// Every later container starts with a sidecar that has a certificate and a policy. A startup probe of the sidecar
    /// would have the same effect, but the kubelet takes one or two seconds longer to act on it than on the exit of a
    /// container.
    pub(crate) fn intercept(&self) -> Value {
        let mut args = vec![flags::INTERCEPT.to_owned(), argument(flags::UID, SIDECAR_USER)];
        let interception = &self.interception;
        push_list(&mut args, flags::EXCLUDE_INBOUND_PORTS, &interception.excluded_inbound_ports);
        push_list(&mut args, flags::EXCLUDE_OUTBOUND_PORTS, &interception.excluded_outbound_ports);
        push_list(&mut args, flags::EXCLUDE_OUTBOUND_RANGES, &interception.excluded_outbound_ranges);
        push_list(&mut args, flags::INCLUDE_OUTBOUND_RANGES, &interception.included_outbound_ranges);
        push_list(&mut args, flags::EXCLUDE_INTERFACES, &interception.excluded_interfaces);
        if self.refuses_udp {
            args.push(argument(flags::UDP, "refuse"));
        }
        if self.mesh.reaches_app_at_pod_ip {
            args.push(argument(flags::LOCAL_PROXY_MODE, "pod-ip"));
        }
        args.push(argument(flags::POD_IPS, format_args!("$({POD_IPS})")));
        args.extend([flags::AFTER_SIDECAR, flags::CHECK].map(switch));
        let mut security = json!({
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        if self.mesh.privileged_interception {
            security["privileged"] = json!(true);
            // Kubernetes refuses a privileged container without privilege escalation.
            security["allowPrivilegeEscalation"] = json!(true);
        }
        let mut container = json!({
            "name": names::INTERCEPT,
            "image": self.settings.image,
            "imagePullPolicy": self.settings.image_pull_policy,
            "args": args,
            "env": [env(POD_IPS, "status.podIPs")],
            "securityContext": security,
            "terminationMessagePolicy": "FallbackToLogsOnError",
        });
        self.resources.write(&mut container, INTERCEPT_REQUESTS);
        container
    }

    /// The proxy, which starts before the app's containers and stops after them.
    pub(crate) fn sidecar(&self) -> Value {
        let Settings { discovery_address, discovery_server_name, ca_address, ca_server_name, .. } =
            self.settings;
        let mut args = vec![
            argument(flags::WORKLOAD, "$(POD_NAMESPACE)/$(POD_NAME)"),
            switch(flags::TRANSPARENT),
            argument(flags::DISCOVERY_ADDRESS, discovery_address),
            argument(flags::DISCOVERY_SERVER_NAME, discovery_server_name),
            argument(flags::CA_ADDRESS, ca_address),
            argument(flags::CA_SERVER_NAME, ca_server_name),
            argument(flags::CA_TRUST_BUNDLE, format_args!("{TRUST_FOLDER}/{TRUST_BUNDLE_KEY}")),
            argument(flags::TOKEN_FILE, format_args!("{TOKEN_FOLDER}/{TOKEN_KEY}")),
            argument(flags::HEALTH_ADDRESS, format_args!("[::]:{}", ports::HEALTH)),
            argument(flags::LOG_LEVEL, self.mesh.log_level.unwrap_or("error")),
        ];
        args.extend(self.limits.iter().map(|(flag, value)| argument(flag, value)));
        args.push(argument(flags::PROBES, &self.probes));
        let mut container = json!({
            "name": names::SIDECAR,
            "image": self.settings.image,
            "imagePullPolicy": self.settings.image_pull_policy,
            "restartPolicy": "Always",
            "args": args,
            "env": self.variables(),
            // A Pod stays in its Services while its sidecar is ready. It is removed after three failed probes, each
            // with a timeout of three seconds, because one failure may only mean that the node is busy for a moment. A
            // sidecar that is not ready yet delays its response until it is, so that startup produces no event about a
            // failed probe and does not wait for the next period; in its first second it may not listen yet. A probe
            // costs the kubelet half a millisecond.
            "readinessProbe": {
                "httpGet": {"path": format!("{READY_PATH}?wait=2500ms"), "port": ports::HEALTH, "scheme": "HTTP"},
                "initialDelaySeconds": 1,
                "periodSeconds": 5,
                "timeoutSeconds": 3,
                "failureThreshold": 3,
            },
            "ports": [{"name": "tidegate-stats", "containerPort": ports::HEALTH, "protocol": "TCP"}],
            "securityContext": {
                "runAsUser": SIDECAR_USER,
                "runAsGroup": SIDECAR_USER,
                "runAsNonRoot": true,
                "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": [
                {"name": TRUST_VOLUME, "mountPath": TRUST_FOLDER, "readOnly": true},
                {"name": TOKEN_VOLUME, "mountPath": TOKEN_FOLDER, "readOnly": true},
            ],
            "terminationMessagePolicy": "FallbackToLogsOnError",
        });
        self.resources.write(&mut container, SIDECAR_REQUESTS);
        container
    }

    /// The sidecar's environment.
    fn variables(&self) -> Vec<Value> {
        let mut variables = vec![
            env("POD_NAME", "metadata.name"),
            env("POD_NAMESPACE", "metadata.namespace"),
            env(POD_IPS, "status.podIPs"),
        ];
        // Kubernetes replaces `$(NAME)`, and reads `$$(` as `$(`.
        let literal =
            |(name, value): (&str, &str)| json!({"name": name, "value": value.replace("$(", "$$(")});
        variables.extend(self.settings.proxies.variables().map(literal));
        variables
    }
}

impl Resources {
    /// Sets `resources` of a container, with a default request where users set neither a request nor a limit.
    fn write(&self, container: &mut Value, defaults: [(&str, &str); 2]) {
        let mut requests = self.requests.clone();
        for (resource, quantity) in defaults {
            // Kubernetes uses a limit as the request if there is none, and refuses a request above the limit.
            if !self.limits.contains_key(resource) {
                requests.entry(resource.to_owned()).or_insert_with(|| quantity.to_owned());
            }
        }
        let mut resources = Map::new();
        for (field, bounds) in [("limits", &self.limits), ("requests", &requests)] {
            if !bounds.is_empty() {
                resources.insert(field.to_owned(), json!(bounds));
            }
        }
        container["resources"] = Value::Object(resources);
    }

    /// Whether a container has the resources that users set; others may have added or raised some since.
    fn are_in(&self, resources: &Value) -> bool {
        let have = |field: &str, bounds: &BTreeMap<String, String>| {
            bounds.iter().all(|(resource, quantity)| resources[field][resource] == *quantity)
        };
        have("limits", &self.limits) && have("requests", &self.requests)
    }
}

/// The volumes that the sidecar mounts in this mesh.
pub(crate) fn volumes(mesh_name: &str) -> [Value; 2] {
    [
        json!({
            "name": TRUST_VOLUME,
            "configMap": {
                "name": trust_bundle_config_map(mesh_name),
                "items": [{"key": TRUST_BUNDLE_KEY, "path": TRUST_BUNDLE_KEY}],
            },
        }),
        json!({
            "name": TOKEN_VOLUME,
            "projected": {"sources": [
                {"serviceAccountToken": {"audience": token_audience(mesh_name), "expirationSeconds": 3600, "path": TOKEN_KEY}},
            ]},
        }),
    ]
}

/// The value of the container's flag `--probes`, if it has one.
pub(crate) fn probes_flag(container: &Container<'_>) -> Option<String> {
    container.arguments()?.iter().find_map(|text| flags::value(text, flags::PROBES)).map(str::to_owned)
}

/// Whether an existing container is the one that we would generate. Kubernetes and other webhooks add to it; defaults,
/// resources, environment and the mount of the Pod's own token are allowed, because they do not change what runs.
pub(crate) fn is_made(there: &Container<'_>, made: &Value, resources: &Resources) -> bool {
    let Some(there) = there.own.and_then(read_own::<Value>) else { return false };
    let (Some(there), Some(made)) = (there.as_object(), made.as_object()) else { return false };
    let set = there.iter().filter(|(_, value)| !value.is_null());
    set.clone().all(|(field, value)| match (field.as_str(), made.get(field)) {
        ("env", made) => {
            let is_harmless = |item: &Value| {
                let name = item["name"].as_str().unwrap_or_default();
                !["TIDEGATE_", "POD_", "LD_"].iter().any(|prefix| name.starts_with(prefix))
            };
            are_among(items(made), items(Some(value)), is_harmless)
        }
        ("volumeMounts", made) => {
            are_among(items(made), items(Some(value)), |item| item["mountPath"] == SERVICE_ACCOUNT_FOLDER)
        }
        ("resources", _) => resources.are_in(value),
        (_, Some(made)) => covers(value, made),
        (field, None) => field == "terminationMessagePath",
    }) && made.iter().all(|(field, _)| there.get(field).is_some_and(|value| !value.is_null()))
}

/// Whether an existing volume is the one that we would generate.
pub(crate) fn is_volume_made(there: &RawValue, made: &Value) -> bool {
    read_own::<Value>(there).is_some_and(|there| covers(&there, made))
}

/// Whether each of `made` is in `there`, and `may_be` allows each other element.
fn are_among(made: &[Value], there: &[Value], may_be: impl Fn(&Value) -> bool) -> bool {
    let is_made = |item: &Value| made.iter().any(|made| covers(item, made));
    made.iter().all(|made| there.iter().any(|item| covers(item, made)))
        && there.iter().all(|item| is_made(item) || may_be(item))
}

/// Whether two values are equal, except for members that Kubernetes adds as defaults.
fn covers(there: &Value, made: &Value) -> bool {
    match (there, made) {
        (Value::Object(there), Value::Object(made)) => {
            let is_default = |field: &str| {
                matches!(
                    field,
                    "successThreshold"
                        | "failureThreshold"
                        | "apiVersion"
                        | "procMount"
                        | "initialDelaySeconds"
                        | "defaultMode"
                )
            };
            made.iter().all(|(field, made)| there.get(field).is_some_and(|there| covers(there, made)))
                && there
                    .iter()
                    .all(|(field, value)| value.is_null() || made.contains_key(field) || is_default(field))
        }
        (Value::Array(there), Value::Array(made)) => {
            there.len() == made.len() && there.iter().zip(made).all(|(there, made)| covers(there, made))
        }
        _ => there == made,
    }
}

/// The items of a list; none if it is missing or not a list.
fn items(list: Option<&Value>) -> &[Value] {
    list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// An environment variable with a field of the Pod, which kubelet fills in (downward API).
fn env(name: &str, field: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}})
}

/// A flag with a comma-separated list; left out if the list is empty.
fn push_list<T: Display>(args: &mut Vec<String>, flag: &str, items: impl IntoIterator<Item = T>) {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if !items.is_empty() {
        args.push(argument(flag, items.join(",")));
    }
}
