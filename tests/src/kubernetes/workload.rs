//! Workloads of a namespace: Deployments of the test app with their Service and ServiceAccount.

use serde_json::{Value, json};

use super::namespace::Namespace;
use super::pod::APP;

/// The image with the test app.
pub const IMAGE: &str = "tidegate.test/app:1";

/// A Deployment of the test app, to be created.
#[derive(Clone, Debug)]
pub struct Workload {
    name: String,
    arguments: Vec<String>,
    ports: Vec<(String, u16, u16)>,
    replicas: u32,
    annotations: Value,
    container: Value,
    pod: Value,
}

impl Workload {
    /// Of this name, which is also its ServiceAccount's, its Service's and the value of its label `app`.
    pub fn new(name: &str, arguments: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            ports: Vec::new(),
            replicas: 1,
            annotations: json!({}),
            container: json!({}),
            pod: json!({}),
        }
    }

    /// A server of httpbin's answers at port 8080, Service port 80.
    pub fn http(name: &str) -> Self {
        Self::new(name, &["serve", "--http=8080"]).port("http", 80, 8080).ready_over_http(8080)
    }

    /// A client: it serves nothing, and tests send requests from it.
    pub fn client(name: &str) -> Self {
        Self::new(name, &["serve"])
    }

    /// A port of its Service, and the container's.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16, target: u16) -> Self {
        self.ports.push((name.to_owned(), port, target));
        self
    }

    /// This many pods.
    #[must_use]
    pub fn replicas(mut self, replicas: u32) -> Self {
        self.replicas = replicas;
        self
    }

    /// An annotation of its pods.
    #[must_use]
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations[name] = value.into();
        self
    }

    /// A field of the container, such as a probe.
    #[must_use]
    pub fn container(mut self, field: &str, value: Value) -> Self {
        self.container[field] = value;
        self
    }

    /// A field of the pod's spec.
    #[must_use]
    pub fn pod(mut self, field: &str, value: Value) -> Self {
        self.pod[field] = value;
        self
    }

    /// Ready once `/healthz` answers 200.
    #[must_use]
    pub fn ready_over_http(self, port: u16) -> Self {
        let probe = json!({"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 1});
        self.container("readinessProbe", probe)
    }

    /// Creates it, and waits until it is rolled out.
    #[track_caller]
    pub fn deploy(&self, namespace: &Namespace) {
        self.apply(namespace);
        namespace.wait_rolled_out(&format!("deployment/{}", self.name));
    }

    /// Creates it.
    #[track_caller]
    pub fn apply(&self, namespace: &Namespace) {
        namespace.apply(&self.list().to_string());
    }

    /// Its pods' template.
    pub fn template(&self) -> Value {
        let mut container = json!({
            "name": APP,
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "args": self.arguments,
            "ports": self.ports.iter().map(|(name, _, target)| json!({"name": name, "containerPort": target}))
                .collect::<Vec<_>>(),
        });
        merge(&mut container, &self.container);
        let mut spec = json!({
            "serviceAccountName": self.name,
            "terminationGracePeriodSeconds": 10,
            "containers": [container],
        });
        merge(&mut spec, &self.pod);
        json!({
            "metadata": {"labels": {"app": self.name}, "annotations": self.annotations},
            "spec": spec,
        })
    }

    /// Its ServiceAccount and, if it has ports, its Service.
    pub fn surroundings(&self) -> Vec<Value> {
        let mut items =
            vec![json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": self.name}})];
        if !self.ports.is_empty() {
            let ports: Vec<_> = self
                .ports
                .iter()
                .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}))
                .collect();
            items.push(json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": self.name},
                "spec": {"selector": {"app": self.name}, "ports": ports},
            }));
        }
        items
    }

    fn list(&self) -> Value {
        let mut items = self.surroundings();
        items.push(json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": self.name},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": {"app": self.name}},
                "template": self.template(),
            },
        }));
        json!({"apiVersion": "v1", "kind": "List", "items": items})
    }
}

/// Sets fields of an object; those that it has are replaced as a whole.
fn merge(into: &mut Value, fields: &Value) {
    for (name, value) in fields.as_object().into_iter().flatten() {
        into[name] = value.clone();
    }
}
