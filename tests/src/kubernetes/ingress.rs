//! nginx as the ingress controller, in a pod outside the mesh.
//!
//! The test plays the controller: [`IngressNginx::sync`] reads the Ingress, the Secret that its annotations name and
//! the Service's EndpointSlices from the API server, renders what ingress-nginx renders and reloads nginx.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::Cluster;
use super::cluster::run;
use super::namespace::Namespace;
use super::pod::{APP, Pod};
use super::workload::IMAGE;
use crate::nginx::{Backend, ProxySsl, http_block};
use crate::wait;

/// The Service, the Deployment and the ServiceAccount are named as in ingress-nginx's chart.
pub const SERVICE: &str = "ingress-nginx-controller";
/// The ServiceAccount.
pub const ACCOUNT: &str = "ingress-nginx";

const NGINX: &str = "nginx";
const SHARED: &str = "/shared";
const ANNOTATIONS: &str = "nginx.ingress.kubernetes.io";

/// A Deployment of nginx behind a Service of type LoadBalancer.
#[derive(Debug)]
pub struct IngressNginx {
    namespace: Namespace,
}

impl IngressNginx {
    /// Starts it in a namespace of this name.
    #[track_caller]
    pub fn start(namespace: &str) -> Self {
        let ingress = Self { namespace: Namespace::named(namespace) };
        ingress.namespace.apply(&objects().to_string());
        ingress.namespace.wait_rolled_out(&format!("deployment/{SERVICE}"));
        ingress.give_address();
        ingress
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Applies an Ingress and the objects that it refers to; returns when nginx uses them.
    #[track_caller]
    pub fn sync(&self, namespace: &str, name: &str) {
        let cluster = self.namespace.cluster();
        let ingress = cluster.get_json(&["ingress", "-n", namespace, name]);
        let annotation =
            |name: &str| ingress["metadata"]["annotations"][format!("{ANNOTATIONS}/{name}")].as_str();
        let target = endpoint(cluster, namespace, &ingress);
        let pod = self.pod();
        let tls = (annotation("backend-protocol") == Some("HTTPS")).then(|| {
            let secret = annotation("proxy-ssl-secret").expect("the Ingress names a Secret");
            copy_secret(cluster, &pod, secret);
            assert_eq!(annotation("proxy-ssl-verify"), Some("on"));
            let snippet = annotation("configuration-snippet").unwrap_or_default();
            let name = annotation("proxy-ssl-name").or_else(|| {
                snippet.trim().strip_prefix("proxy_ssl_name \"").and_then(|rest| rest.strip_suffix("\";"))
            });
            ProxySsl::new(SHARED, name.unwrap_or_else(|| panic!("no proxy_ssl_name in {snippet:?}")))
        });
        write(&pod, "server.conf", &http_block("80", "", &Backend { target, tls }));
        // Old workers accept until they receive the signal; the reload is over when they have ended.
        let ended = |log: &str| log.matches("gracefully shutting down").count();
        let before = ended(&pod.logs(NGINX));
        let reload = ["/usr/sbin/nginx", "-e", "stderr", "-c", "/boot/nginx.conf", "-s", "reload"];
        pod.exec(NGINX, &reload, "").unwrap_or_else(|failure| panic!("{failure}"));
        wait::until_true("nginx has reloaded", Duration::from_secs(60), || ended(&pod.logs(NGINX)) > before);
    }

    /// `curl -sI` of a path at the address in the Service's status, as in the guide; returns the answer's lines.
    #[track_caller]
    pub fn curl_head(&self, path: &str) -> Vec<String> {
        self.curl(&["-I"], path)
    }

    /// `curl -s` with further arguments; the lines of the answer.
    #[track_caller]
    pub fn curl(&self, arguments: &[&str], path: &str) -> Vec<String> {
        let service = |path: &str| {
            let output = format!("jsonpath={path}");
            self.namespace.kubectl(&["get", "service", SERVICE, "-o", &output])
        };
        let host = service("{.status.loadBalancer.ingress[0].ip}");
        let port = service("{.spec.ports[?(@.name==\"http\")].port}");
        let mut curl = Command::new("curl");
        curl.args(["-s", "--max-time", "20"]).args(arguments).arg(format!("http://{host}:{port}{path}"));
        let answer = run(&mut curl, "").unwrap_or_else(|failure| panic!("{failure}"));
        answer.lines().map(str::to_owned).collect()
    }

    /// nginx's pod.
    #[track_caller]
    pub fn pod(&self) -> Pod {
        self.namespace.pod(SERVICE)
    }

    /// Its error log.
    pub fn log(&self) -> String {
        self.pod().logs(NGINX)
    }

    /// Replaces the pod, and so its address.
    #[track_caller]
    pub fn restart(&self) {
        let old = self.pod();
        old.delete();
        self.namespace.wait_rolled_out(&format!("deployment/{SERVICE}"));
        assert_ne!(self.pod().ip(), old.ip());
    }

    /// A cluster without a load balancer still works: the node's address serves as one.
    fn give_address(&self) {
        let service = self.namespace.get_json(&["service", SERVICE]);
        if service["status"]["loadBalancer"]["ingress"].is_array() {
            return;
        }
        let nodes = self.namespace.cluster().get_json(&["nodes"]);
        let addresses = nodes["items"][0]["status"]["addresses"].as_array().unwrap();
        let address = addresses.iter().find(|address| address["type"] == "InternalIP").unwrap();
        let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": address["address"]}]}}});
        self.namespace.kubectl(&[
            "patch",
            "service",
            SERVICE,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status.to_string(),
        ]);
        wait::until_true("nginx is reached at the Service's address", Duration::from_secs(60), || {
            self.try_curl().contains("404")
        });
    }

    /// The head of a response at the Service's address, or an empty text.
    fn try_curl(&self) -> String {
        let host = self.namespace.kubectl(&[
            "get",
            "service",
            SERVICE,
            "-o",
            "jsonpath={.status.loadBalancer.ingress[0].ip}",
        ]);
        let mut curl = Command::new("curl");
        curl.args(["-sI", "--max-time", "5", &format!("http://{host}/")]);
        run(&mut curl, "").unwrap_or_default()
    }
}

/// Writes a file into the volume that nginx includes configuration and certificates from.
fn write(pod: &Pod, file: &str, content: &str) {
    let path = format!("{SHARED}/{file}");
    pod.exec(APP, &["/usr/local/bin/tidegate-test-app", "write", &path], content)
        .unwrap_or_else(|failure| panic!("{failure}"));
}

/// The address of the pod behind the Ingress's one Service.
fn endpoint(cluster: &Cluster, namespace: &str, ingress: &Value) -> SocketAddr {
    let backend = &ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"];
    let service = backend["name"].as_str().unwrap();
    let number = &backend["port"]["number"];
    let object = cluster.get_json(&["service", "-n", namespace, service]);
    let ports = object["spec"]["ports"].as_array().unwrap();
    let name = &ports.iter().find(|port| port["port"] == *number).expect("the Service has the port")["name"];
    let label = format!("kubernetes.io/service-name={service}");
    cluster.wait_for("an endpoint", &["endpointslices", "-n", namespace, "-l", &label], |slices| {
        let slice = &slices["items"][0];
        let endpoints = slice["endpoints"].as_array()?;
        let ready = endpoints.iter().find(|endpoint| endpoint["conditions"]["ready"] == true)?;
        let address: IpAddr = ready["addresses"][0].as_str()?.parse().ok()?;
        let ports = slice["ports"].as_array()?;
        let port = ports.iter().find(|port| port["name"] == *name || name.is_null())?["port"].as_u64()?;
        Some(SocketAddr::new(address, u16::try_from(port).ok()?))
    })
}

/// Writes the files of a `kubernetes.io/tls` Secret, without a restart of the pod.
fn copy_secret(cluster: &Cluster, pod: &Pod, secret: &str) {
    let (namespace, name) = secret.split_once('/').expect("namespace/name");
    let object = cluster.get_json(&["secret", "-n", namespace, name]);
    for key in ["ca.crt", "tls.crt", "tls.key"] {
        let data = object["data"][key].as_str().unwrap_or_else(|| panic!("{secret} has no {key}"));
        write(pod, key, &String::from_utf8(BASE64_STANDARD.decode(data).unwrap()).unwrap());
    }
}

/// The ServiceAccount, the boot configuration, the Service and the Deployment.
fn objects() -> Value {
    let labels = json!({"app": SERVICE});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "boot"},
            "data": {"nginx.conf": BOOT},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": SERVICE},
            "spec": {
                "type": "LoadBalancer",
                "selector": labels,
                "ports": [{"name": "http", "port": 80, "targetPort": 80}],
            },
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": SERVICE},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": pod_spec(),
                },
            },
        },
    ]})
}

/// nginx, and beside it the test app, through which files are written into the shared volume.
fn pod_spec() -> Value {
    json!({
        "serviceAccountName": ACCOUNT,
        "terminationGracePeriodSeconds": 3,
        "containers": [
            {
                "name": NGINX,
                "image": "tidegate.test/nginx:1",
                "imagePullPolicy": "IfNotPresent",
                "args": ["-e", "stderr", "-c", "/boot/nginx.conf"],
                "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1},
                "volumeMounts": [
                    {"name": "boot", "mountPath": "/boot"},
                    {"name": "shared", "mountPath": SHARED},
                ],
            },
            {
                "name": APP,
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "args": ["serve"],
                "volumeMounts": [{"name": "shared", "mountPath": SHARED}],
            },
        ],
        "volumes": [
            {"name": "boot", "configMap": {"name": "boot"}},
            {"name": "shared", "emptyDir": {}},
        ],
    })
}

/// Answers 404 for paths without an Ingress, as ingress-nginx does.
const BOOT: &str = "\
user root;
daemon off;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr notice;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path /tmp/client_body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    include /shared/*.conf;
    server { listen 80; return 404; }
}
";
