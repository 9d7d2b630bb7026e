//! On a Kubernetes of this machine: two apps of two Pods each, with clients outside the mesh and in one of its Pods.
//!
//! Clients outside run on the node and dial the cluster IPs of the apps' Services, as an ingress controller may; over
//! TLS they use the ingress gateway's certificate and reload it when it changes. Clients inside run in the network
//! namespace of a meshed Pod, so that its sidecar intercepts what they dial. App `steady` keeps running; app `rolled`
//! is restarted, as are the control plane's Deployments, so its clients make a connection for each request or leave one
//! when asked to.

mod background;
mod secret;

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate_tests::client::Client;
use tidegate_tests::daemon;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, DAEMONS, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::workload::Workload;
use tidegate_tests::objects::{backend, https, policy, principal, range};
use tidegate_tests::pki::INGRESS_CLIENT;

use self::background::BackgroundLoad;
use self::secret::SecretCopy;
use crate::client_factory::ClientFactory;
use crate::loads::{self, Loads};
use crate::site::{ChangesMade, SoakSite};

/// Ports of the apps and of their Services: plaintext, with a client certificate, gRPC with a client certificate.
const PLAIN_PORT: u16 = 14001;
const MUTUAL_PORT: u16 = 14002;
const GRPC_PORT: u16 = 14003;
/// The app that keeps running, the app that is restarted, and the Pod of the clients inside.
const STEADY: &str = "steady";
const ROLLED: &str = "rolled";
const CLIENT: &str = "client";
/// The ingress gateway's Secret.
const SECRET: &str = "soak-gateway";
/// Certificates are renewed several times per hour. A new root has time to reach clients that check every five seconds.
const VALUES: &str =
    "certManager: {extraArgs: [--default-lifetime=10m, --max-lifetime=10m, --bundle-propagation=30s]}\n";
/// How soon the controller must write a changed policy's status.
const EDIT: Duration = Duration::from_secs(60);
/// How often a change is tried: while a controller shuts down, its webhook may be unreachable.
const TRIES: usize = 10;

/// The mesh with its apps.
pub(crate) struct OnCluster {
    cluster: &'static Cluster,
    apps: Namespace,
    node: Arc<File>,
    inside: Arc<File>,
    secret: SecretCopy,
    rotation: BackgroundLoad,
    restarts: BackgroundLoad,
    next_restart: usize,
    edits: u32,
    problems: Vec<String>,
}

impl OnCluster {
    /// Starts it all on the project's own cluster of this name.
    pub(crate) fn start(name: &str) -> Self {
        let cluster = Cluster::start_shared(name, &daemon::programs());
        let mesh = Mesh::get_with(VALUES);
        mesh.patch_config(&json!({"certificate": {"ingressGateway": {
            "secret": {"name": SECRET, "namespace": CONTROL_PLANE},
            "subjectAltNames": [INGRESS_CLIENT],
            "validityDuration": "20m",
        }}}));
        let apps = Namespace::meshed("soak");
        app(STEADY).deploy(&apps);
        app(ROLLED)
            // As everywhere in Kubernetes: a Pod gets its termination signal before all others know of it.
            .container("lifecycle", json!({"preStop": {"sleep": {"seconds": 5}}}))
            .deploy(&apps);
        Workload::client(CLIENT).deploy(&apps);
        let inside = Arc::new(apps.pod(CLIENT).network());
        let everywhere = range("0.0.0.0/0");
        let policies = [
            policy(
                "plain",
                &[backend(STEADY, PLAIN_PORT, "http"), backend(ROLLED, PLAIN_PORT, "http")],
                std::slice::from_ref(&everywhere),
            ),
            policy(
                "mutual",
                &[https(STEADY, MUTUAL_PORT, false, &[]), https(STEADY, GRPC_PORT, false, &[])],
                &[everywhere, principal(INGRESS_CLIENT)],
            ),
        ];
        for policy in policies {
            let name = policy["metadata"]["name"].as_str().unwrap().to_owned();
            apply(&apps, policy).unwrap();
            let (state, why) = apps.policy_status(&name);
            assert_eq!(state, "committed", "{why}");
        }
        let site = Self {
            cluster,
            node: Arc::new(cluster.node_network()),
            inside,
            secret: SecretCopy::start(cluster, CONTROL_PLANE, SECRET),
            rotation: BackgroundLoad::default(),
            restarts: BackgroundLoad::default(),
            next_restart: 0,
            edits: 0,
            problems: Vec::new(),
            apps,
        };
        site.wait_open();
        site
    }

    /// Waits until every path works: sidecars get a policy soon after its status is written.
    fn wait_open(&self) {
        let client = self.apps.pod(CLIENT);
        for name in [STEADY, ROLLED] {
            client.get_until(&format!("http://{name}:{PLAIN_PORT}/get"), 200);
        }
        let all = [
            self.outside(STEADY, PLAIN_PORT),
            self.outside(ROLLED, PLAIN_PORT),
            self.mutual(MUTUAL_PORT, &[]),
        ];
        for clients in all {
            loads::wait_open(clients);
        }
    }

    /// From the node, in plaintext.
    fn outside(&self, app: &str, port: u16) -> ClientFactory {
        ClientFactory::plain(self.client(app, port)).inside(&self.node)
    }

    /// From the node, with the ingress gateway's certificate.
    fn mutual(&self, port: u16, protocols: &'static [&'static str]) -> ClientFactory {
        let server = format!("{STEADY}.{}.cluster.local", self.apps.name());
        ClientFactory::over_tls(self.client(STEADY, port), self.secret.files(), &server, protocols)
            .inside(&self.node)
    }

    /// From the meshed Pod.
    fn meshed(&self, app: &str, port: u16) -> ClientFactory {
        ClientFactory::plain(self.client(app, port)).inside(&self.inside)
    }

    fn client(&self, app: &str, port: u16) -> Client {
        let service = self.apps.get_json(&["service", app]);
        let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        Client::to(SocketAddr::new(address, port))
    }

    /// Whether the controller has processed the policy's current generation.
    fn is_seen(&self, name: &str) -> bool {
        let policy = self.cluster.try_get_json(&["ingressbackend", "-n", self.apps.name(), name]);
        policy.is_ok_and(|policy| policy["status"]["observedGeneration"] == policy["metadata"]["generation"])
    }

    fn try_edit(&self) -> Result<(), String> {
        let source = range(&format!("10.{}.{}.0/24", self.edits / 256 % 256, self.edits % 256));
        let edited = policy("edited", &[backend(STEADY, PLAIN_PORT, "http")], &[source]);
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            outcome = apply(&self.apps, edited.clone());
            if outcome.is_ok() {
                break;
            }
        }
        outcome?;
        let begun = Instant::now();
        while !self.is_seen("edited") {
            if begun.elapsed() > EDIT {
                return Err(format!("no status within {EDIT:?}"));
            }
        }
        Ok(())
    }
}

impl SoakSite for OnCluster {
    fn start_loads(&self) -> Loads {
        let mut loads = Loads::default();
        let plain = || self.outside(STEADY, PLAIN_PORT);
        loads.add("outside: HTTP/1.1 in plaintext", 2, plain(), loads::keep_alive);
        loads.add("outside: HTTP/1.1 over mutual TLS", 2, self.mutual(MUTUAL_PORT, &[]), loads::keep_alive);
        loads.add("outside: HTTP/2 over mutual TLS", 2, self.mutual(MUTUAL_PORT, &["h2"]), loads::http2);
        loads.add("outside: gRPC with trailers", 2, self.mutual(GRPC_PORT, &["h2"]), loads::grpc);
        loads.add("outside: websockets", 2, self.mutual(MUTUAL_PORT, &[]), loads::websocket);
        loads.add("outside: event streams", 2, plain(), loads::event_stream);
        loads.add("outside: clients that leave", 1, plain(), loads::leave);
        loads.add("outside: slow readers", 2, self.mutual(MUTUAL_PORT, &[]), loads::slow_reader);
        let rolled = self.outside(ROLLED, PLAIN_PORT);
        loads.add("outside: to the app that is restarted", 1, rolled, loads::fresh);
        let plain = || self.meshed(STEADY, PLAIN_PORT);
        loads.add("between Pods: HTTP/1.1", 2, plain(), loads::keep_alive);
        loads.add("between Pods: gRPC with trailers", 2, self.meshed(STEADY, GRPC_PORT), loads::grpc);
        loads.add("between Pods: websockets", 2, plain(), loads::websocket);
        loads.add("between Pods: event streams", 2, plain(), loads::event_stream);
        loads.add("between Pods: clients that leave", 1, plain(), loads::leave);
        loads.add("between Pods: slow readers", 2, plain(), loads::slow_reader);
        let rolled = || self.meshed(ROLLED, PLAIN_PORT);
        loads.add("between Pods: to the app that is restarted", 1, rolled(), loads::fresh);
        loads.add("between Pods: to it, connections kept", 2, rolled(), loads::keep_alive);
        loads
    }

    fn edit(&mut self) {
        self.edits += 1;
        if let Err(problem) = self.try_edit() {
            self.problems.push(format!("change {} of a policy: {problem}", self.edits));
        }
        self.secret.follow(self.cluster);
    }

    fn rotate(&mut self) {
        let cluster = self.cluster;
        self.rotation.begin(move || {
            let words = [
                "certificate",
                "rotate",
                "--yes",
                "--step",
                "--timeout=3m",
                "--osm-namespace",
                CONTROL_PLANE,
            ];
            match cluster.try_tidegate(words) {
                Ok(_) => Ok(true),
                // Its output names the Pods that it waits for; the next call continues.
                Err(failure) if failure.code == Some(1) && failure.stderr.contains("the rotation stays") => {
                    eprintln!("{failure}");
                    Ok(false)
                }
                Err(failure) => Err(failure.to_string()),
            }
        });
    }

    fn restart(&mut self) {
        let cluster = self.cluster;
        let all = DAEMONS.map(|daemon| (CONTROL_PLANE, daemon)).into_iter();
        let (namespace, name) = all.chain([(self.apps.name(), ROLLED)]).nth(self.next_restart).unwrap();
        let (namespace, target) = (namespace.to_owned(), format!("deployment/{name}"));
        let has_begun = self.restarts.begin(move || {
            let rollout = |words: &[&str]| {
                let all = [&["-n", namespace.as_str(), "rollout"][..], words, &[target.as_str()]].concat();
                cluster.try_kubectl(all, "").map_err(|failure| failure.to_string())
            };
            rollout(&["restart"])?;
            rollout(&["status", "--timeout=3m"]).map(|_| true)
        });
        if has_begun {
            self.next_restart = (self.next_restart + 1) % (DAEMONS.len() + 1);
        }
    }

    fn finish(&mut self) -> ChangesMade {
        let problems = [&mut self.rotation, &mut self.restarts].into_iter().flat_map(BackgroundLoad::finish);
        self.problems.extend(problems);
        ChangesMade {
            rotation_steps: self.rotation.done(),
            restarts: self.restarts.done(),
            problems: std::mem::take(&mut self.problems),
        }
    }

    fn restarted(&self) -> &'static str {
        "a Deployment of the control plane or of an app"
    }

    fn processes(&self) -> Vec<(String, u32)> {
        let of_soak = format!("--workload={}/", self.apps.name());
        let name = |program: &str, arguments: &[String]| match program {
            "tidegate-controller" | "tidegate-cert-manager" | "tidegate-injector" => {
                Some(program.trim_start_matches("tidegate-").to_owned())
            }
            "tidegate-sidecar" => {
                let pod = arguments.iter().find_map(|argument| argument.strip_prefix(&of_soak))?;
                // steady-6c4f9b7d8-abcde
                let app = pod.rsplitn(3, '-').last()?;
                Some(format!("sidecars of {app}"))
            }
            _ => None,
        };
        let all = self.cluster.pod_processes().into_iter();
        all.filter_map(|process| Some((name(&process.program, &process.arguments)?, process.pid))).collect()
    }
}

/// An app of two Pods with all ports.
fn app(name: &str) -> Workload {
    let http = format!("--http={PLAIN_PORT},{MUTUAL_PORT}");
    Workload::new(name, &["serve", &http, &format!("--h2c={GRPC_PORT}"), "--drain=3"])
        .port("http", PLAIN_PORT, PLAIN_PORT)
        .port("http-mutual", MUTUAL_PORT, MUTUAL_PORT)
        .port("grpc", GRPC_PORT, GRPC_PORT)
        .ready_over_http(PLAIN_PORT)
        .replicas(2)
        .pod("terminationGracePeriodSeconds", json!(30))
}

/// Applies a policy in the apps' namespace.
fn apply(apps: &Namespace, mut policy: Value) -> Result<(), String> {
    policy["metadata"]["namespace"] = apps.name().into();
    apps.try_apply(&policy.to_string()).map(drop).map_err(|failure| failure.to_string())
}
