//! A pod whose app knows of no proxy, with the kernel's rules, a server outside the mesh, and proxies between them. Requires
//! root, nginx and curl.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rcgen::SanType;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::mesh::{Mesh, Options};
use crate::netns::SIDECAR_USER;
use crate::netns::node::{Node, NodePod, bring};
use crate::nginx::NginxProcess;
use crate::objects;
use crate::pki::{Authority, Leaf};
use crate::squid::Squid;
use crate::wait::{self, SOON};

/// A pod, `httpbin/caller`, and a server outside the mesh with the names `api.test`, `other.test`, `denied.test` and `refused.test`.
pub struct ProxiedPod {
    /// The machine, where proxies run.
    pub node: Node,
    /// The app's.
    pub caller: NodePod,
    /// The server's.
    pub origin: NodePod,
    /// The pod's.
    pub sidecar: Daemon,
    /// Its control plane.
    pub mesh: Mesh,
    /// Of the server.
    pub folder: TempDir,
    _nginx: NginxProcess,
}

/// Rules of a Squid: Debian's for `CONNECT`, and one of a company.
pub const RULES: &str = "acl tunnel_ports port 443\nhttp_access deny CONNECT !tunnel_ports\nacl denied dstdomain denied.test\n\
                     http_access deny denied\nhttp_access allow all";

impl ProxiedPod {
    /// Starts all of it, without an EgressProxy and without a proxy.
    #[track_caller]
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::new();
        let (caller, origin) = (node.pod(), node.pod());
        let nginx = serve(&origin, folder.path());
        let mut mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
        let ips = caller.ips().join(",");
        caller.namespace().intercepted(&["--check", "--pod-ips", &ips]);
        bring(mesh.ca_address(), caller.namespace());
        bring(mesh.discovery_address(), caller.namespace());
        let mut pod = objects::pod("caller", "caller", &mesh.target().ip().to_string(), &[]);
        pod["status"]["podIPs"] = caller.ips().iter().map(|ip| json!({"ip": ip})).collect();
        mesh.apply("pod", &[pod]);
        let further = ["--pod-ips", &ips, "--health-address", "[::]:15010"];
        let mut sidecar = mesh.another_transparent_sidecar("caller", SIDECAR_USER, &further);
        caller.namespace().run(|| sidecar.start_ready());
        let pod = Self { node, caller, origin, sidecar, mesh, folder, _nginx: nginx };
        pod.count_direct_packets();
        pod
    }

    /// The address of a proxy outside the pod.
    pub fn proxy(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.caller.gateways()[0].parse().unwrap(), port)
    }

    /// A Squid at a port of the machine, with these rules.
    #[track_caller]
    pub fn squid(&self, port: u16, rules: &str) -> Squid {
        let origin = &self.origin.ips()[0];
        let outside = ["api.test", "other.test", "denied.test"].map(|name| (name, origin.as_str()));
        let hosts: Vec<_> = outside.into_iter().chain([("refused.test", "192.0.2.7")]).collect();
        self.node.namespace().run(|| Squid::start(self.proxy(port), rules, &hosts))
    }

    /// Applies an EgressProxy to proxies at these ports, and waits until the sidecar has it.
    pub fn apply(&mut self, ports: &[u16], more: &Value) {
        let address = self.proxy(1).ip();
        let proxies: Vec<_> = ports.iter().map(|port| json!({"address": address, "port": port})).collect();
        let mut object = json!({
            "apiVersion": "tidegate.io/v1alpha1",
            "kind": "EgressProxy",
            "metadata": {"name": "corporate", "namespace": "httpbin"},
            "spec": {"proxies": proxies, "timeouts": {"connect": "1s", "response": "1s"}},
        });
        object["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.mesh.apply("proxy", &[object.clone()]);
        let expected: Vec<_> = ports.iter().map(|port| self.proxy(*port).to_string()).collect();
        wait::until_true("the sidecar has the EgressProxy", SOON, || {
            let rules = &self.config()["policy"]["egressProxies"];
            rules[0]["proxies"] == json!(expected)
        });
    }

    /// Applies the documentation's example, with the addresses of this pod.
    pub fn apply_example(&mut self) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/egress/corporate-proxy.yaml");
        let text = fs::read_to_string(path).unwrap();
        let proxy = self.proxy(1).ip().to_string();
        let text = text.replace("192.0.2.10", &proxy).replace("10.0.0.0/8", "10.96.0.0/12");
        self.mesh.apply_text("proxy", &text);
        wait::until_true("the sidecar has the EgressProxy", SOON, || {
            self.config()["policy"]["egressProxies"][0]["proxies"][0] == self.proxy(3128).to_string()
        });
    }

    /// Applies the credentials of the EgressProxy.
    pub fn apply_secret(&mut self, user: &str, password: &str) {
        self.mesh.apply(
            "secret",
            &[json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "corporate-proxy", "namespace": "httpbin"},
                "stringData": {"username": user, "password": password},
            })],
        );
    }

    /// The sidecar's state.
    pub fn config(&self) -> Value {
        self.caller.namespace().run(|| self.sidecar.admin_json("/config"))
    }

    /// curl as the pod's app, which knows of no proxy and trusts the server's root: each answer's status.
    pub fn curl(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.curl_trusting(&self.root(), arguments);
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// The same with another root; errors are on standard error.
    pub fn curl_trusting(&self, root: &Path, arguments: &[&str]) -> Output {
        let ip = &self.origin.ips()[0];
        self.caller.namespace().run(|| {
            let mut command = Command::new("curl");
            command.args(["-sS", "-w", "%{http_code}\\n", "--max-time", "120"]);
            command.arg("--cacert").arg(root);
            for host in ["api.test", "other.test", "denied.test", "refused.test"] {
                for port in [80, 443] {
                    command.args(["--resolve", &format!("{host}:{port}:{ip}")]);
                }
            }
            for argument in arguments {
                // Of each URL by itself.
                let discards = argument.starts_with("http");
                command.args(discards.then_some(["-o", "/dev/null"]).into_iter().flatten()).arg(argument);
            }
            command.output().unwrap()
        })
    }

    /// The status of the answer to a request for a URL; `000` without one.
    pub fn get(&self, url: &str) -> String {
        self.curl(&[url]).pop().unwrap_or_default()
    }

    /// The root of the server's certificate.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// Counts packets from the pod to the server that do not come from the proxy.
    fn count_direct_packets(&self) {
        let (from, to) = (&self.caller.ips()[0], &self.origin.ips()[0]);
        let rule = format!("-I FORWARD -s {from} -d {to} -j ACCEPT");
        self.node.namespace().command("iptables", &rule.split(' ').collect::<Vec<_>>());
    }

    /// Packets that have passed the proxy.
    pub fn direct_packets(&self) -> u64 {
        let listed = self.node.namespace().command("iptables", &["-nvxL", "FORWARD"]);
        let rule =
            listed.lines().find(|line| line.contains("ACCEPT") && line.contains(&self.origin.ips()[0]));
        rule.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The access log's record with this text.
    #[track_caller]
    pub fn record(&self, text: &str) -> Value {
        wait::until(&format!("a record with {text}"), SOON, || {
            let log = self.sidecar.log();
            let line = log.lines().find(|line| line.contains("\"start_time\"") && line.contains(text))?;
            Some(serde_json::from_str(line).unwrap())
        })
    }
}

/// nginx with a page over HTTP and HTTPS, whose root is in `root.pem` of the folder.
fn serve(pod: &NodePod, folder: &Path) -> NginxProcess {
    let root = Authority::root("outside");
    let address = SanType::IpAddress(pod.ips()[0].parse().unwrap());
    let leaf =
        root.issue(&Leaf::dns("api.test").with_dns("other.test").with_dns("refused.test").with(address));
    fs::write(folder.join("root.pem"), root.pem()).unwrap();
    fs::write(folder.join("tls.pem"), leaf.chain_pem()).unwrap();
    fs::write(folder.join("tls.key"), leaf.key_pem()).unwrap();
    let configuration = "worker_processes 1;\npid nginx.pid;\nerror_log logs/error.log notice;\ndaemon off;\nuser root;\n\
        events { worker_connections 4096; }\nhttp {\n  access_log off;\n  keepalive_requests 100000;\n\
        server {\n    listen 80;\n    listen 443 ssl;\n    ssl_certificate tls.pem;\n    ssl_certificate_key tls.key;\n\
        location / { return 200 ok; }\n  }\n}\n";
    let front = SocketAddr::from(([127, 0, 0, 1], 443));
    pod.namespace().run(|| NginxProcess::start(folder, front, configuration))
}
