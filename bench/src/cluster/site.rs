//! The cluster, Tidegate on it, and the measured workloads.
//!
//! One Deployment, `target`, is behind the changing policies; the other meshed pods only need to exist, behind up to
//! ten Services.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_crds::IngressBackend;
use tidegate_kubernetes::client::ClientOptions;
use tidegate_tests::golden::repository;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::run;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::workload::Workload;
use tokio::runtime::Runtime;

use super::changes::PolicyChange;
use super::node;
use crate::load::LoadEndpoint;
use crate::tls::ClientIdentity;

/// The target and one other pod.
pub(super) const SMALLEST: usize = 2;

/// Name of the target's Deployment and Service.
const TARGET: &str = "target";
/// The target's port for each policy.
const HTTP_PORT: u16 = 8080;
const HTTPS_PORT: u16 = 8081;
/// Maximum Services besides the target's.
const OTHERS: usize = 10;
/// Minimum pods of each of these before another Service is added.
const PODS_OF_ANOTHER: usize = 4;
/// The client that the https policy admits.
const PRINCIPAL: &str = "ingress-nginx.ingress-nginx.cluster.local";
/// Name of the ingress gateway's Secret.
const SECRET: &str = "bench-gateway";
/// Pods that are started at a time, so that a small machine stays responsive.
const BATCH: usize = 40;
/// Timeout for a batch.
const BATCH_LIMIT: Duration = Duration::from_secs(300);
/// Pause between two looks at the API server.
const POLL: Duration = Duration::from_millis(200);

/// The cluster under measurement.
pub(super) struct ClusterSite {
    /// The cluster.
    cluster: &'static Cluster,
    /// Runtime of everything asynchronous.
    runtime: Runtime,
    /// Client of the API server.
    client: Client,
    /// Namespace of all meshed workloads.
    workloads: Namespace,
    /// Pods of each Deployment besides the target's.
    others: BTreeMap<String, usize>,
    /// Address of the target's pod.
    target: IpAddr,
    /// The node's address as the target sees it.
    node: IpAddr,
    /// Files of the gateway's certificate.
    gateway: TempDir,
    /// Namespaces that live as long as the site.
    kept: Vec<Namespace>,
}

impl ClusterSite {
    /// Starts the cluster, installs Tidegate and deploys the target.
    pub(super) fn start(name: &str, programs: &Path) -> Result<Self> {
        // `tidegate install` runs Helm.
        run(&mut Command::new(repository().join("tests/helm")), "")
            .map_err(|failure| anyhow!("{failure}"))?;
        let cluster = Cluster::start_shared(name, programs);
        let mesh = Mesh::get();
        mesh.patch_config(&json!({"certificate": {"ingressGateway": {
            "secret": {"name": SECRET, "namespace": CONTROL_PLANE},
            "subjectAltNames": [PRINCIPAL],
            "validityDuration": "24h",
        }}}));
        let workloads = Namespace::meshed("bench");
        Workload::new(TARGET, &["serve", &format!("--http={HTTP_PORT},{HTTPS_PORT}")])
            .port("http", 80, HTTP_PORT)
            .port("https", 443, HTTPS_PORT)
            .ready_over_http(HTTP_PORT)
            .deploy(&workloads);
        let target: IpAddr = workloads.pod(TARGET).ip().parse().context("the target's address")?;

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = ClientOptions { kubeconfig: Some(cluster.kubeconfig().to_owned()), context: None };
        let (client, node, gateway) = runtime.block_on(async {
            let client = tidegate_kubernetes::client::connect(&options).await?;
            let node = node::address_towards(cluster, SocketAddr::new(target, HTTP_PORT)).await?;
            let gateway = gateway(&client).await?;
            anyhow::Ok((client, node, gateway))
        })?;
        let others = BTreeMap::new();
        let kept = Vec::new();
        let site = Self { cluster, runtime, client, workloads, others, target, node, gateway, kept };
        for change in PolicyChange::ALL {
            let policy = site.policy(change)?;
            site.block_on(site.policies().create(&PostParams::default(), &policy))?;
        }
        Ok(site)
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    /// A client that keeps its connection to the API server.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Runs a future on the site's runtime.
    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Creates a namespace in which Pods can be created.
    pub(super) fn namespace(&self, prefix: &str, is_meshed: bool) -> Namespace {
        let namespace = if is_meshed { Namespace::meshed(prefix) } else { Namespace::new(prefix) };
        // The API server refuses Pods until their service account exists.
        namespace.wait_for("its account", &["serviceaccount", "default"], |_| Some(()));
        namespace
    }

    /// Keeps a namespace until the end.
    pub(super) fn keep(&mut self, namespace: Namespace) {
        self.kept.push(namespace);
    }

    /// Spawns a task on the site's runtime, which makes progress whenever the site waits for something.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// Pods with a sidecar.
    pub(super) fn pods(&self) -> usize {
        1 + self.others.values().sum::<usize>()
    }

    /// Policies in the target's namespace.
    pub(super) fn policies(&self) -> Api<IngressBackend> {
        Api::namespaced(self.client.clone(), self.workloads.name())
    }

    /// The policy that `change` modifies, in the state that admits the client.
    pub(super) fn policy(&self, change: PolicyChange) -> Result<IngressBackend> {
        let (port, protocol) = match change {
            PolicyChange::Address => (HTTP_PORT, "http"),
            PolicyChange::Principal => (HTTPS_PORT, "https"),
        };
        Ok(serde_json::from_value(json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1",
            "kind": "IngressBackend",
            "metadata": {"name": change.policy()},
            "spec": {
                "backends": [{"name": TARGET, "port": {"number": port, "protocol": protocol}}],
                "sources": [self.source(change, true)],
            },
        }))?)
    }

    /// The source that admits the client, or another one.
    pub(super) fn source(&self, change: PolicyChange, is_allowed: bool) -> Value {
        let node = format!("{}/32", self.node);
        let (kind, name) = match (change, is_allowed) {
            (PolicyChange::Address, true) => ("IPRange", node.as_str()),
            (PolicyChange::Address, false) => ("IPRange", "192.0.2.1/32"),
            (PolicyChange::Principal, true) => ("AuthenticatedPrincipal", PRINCIPAL),
            (PolicyChange::Principal, false) => ("AuthenticatedPrincipal", "other.nowhere.cluster.local"),
        };
        json!({"kind": kind, "name": name})
    }

    /// The target, as the client of `change` connects to it.
    pub(super) fn endpoint(&self, change: PolicyChange) -> Result<LoadEndpoint> {
        match change {
            PolicyChange::Address => Ok(LoadEndpoint::plain(SocketAddr::new(self.target, HTTP_PORT))),
            PolicyChange::Principal => {
                let file = |name: &str| self.gateway.path().join(name);
                let identity = ClientIdentity { certificate: file("tls.crt"), key: file("tls.key") };
                let name = format!("{TARGET}.{}.cluster.local", self.workloads.name());
                let address = SocketAddr::new(self.target, HTTPS_PORT);
                LoadEndpoint::tls(address, &file("ca.crt"), &name, Some(&identity), &[])
            }
        }
    }

    /// Scales to this number of meshed pods in all, and waits until all are ready.
    pub(super) fn scale_to(&mut self, pods: usize) -> Result<()> {
        let others = pods - 1;
        let deployments = (others / PODS_OF_ANOTHER).clamp(1, OTHERS);
        for index in 0..deployments {
            let name = format!("other-{index}");
            if !self.others.contains_key(&name) {
                Workload::new(&name, &["serve", "--http=8080"])
                    .port("http", 80, HTTP_PORT)
                    .ready_over_http(HTTP_PORT)
                    .replicas(0)
                    .apply(&self.workloads);
                self.others.insert(name, 0);
            }
        }
        while self.pods() < pods {
            let batch = BATCH.min(pods - self.pods());
            for _ in 0..batch {
                // Grow the smallest, so that Services stay of equal size.
                let smallest = self.others.values_mut().min().context("no Deployment")?;
                *smallest += 1;
            }
            self.block_on(self.scale())?;
        }
        Ok(())
    }

    /// Sets the replicas of each Deployment and waits until all pods are ready.
    async fn scale(&self) -> Result<()> {
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), self.workloads.name());
        for (name, replicas) in &self.others {
            let patch = json!({"spec": {"replicas": replicas}});
            api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        let wanted = self.pods();
        let started = Instant::now();
        loop {
            let deployments = api.list(&ListParams::default()).await?;
            let ready = deployments
                .items
                .iter()
                .filter_map(|deployment| usize::try_from(deployment.status.as_ref()?.ready_replicas?).ok());
            let ready: usize = ready.sum();
            if ready == wanted {
                eprintln!("         {ready} pods are ready after {:.0} s", started.elapsed().as_secs_f64());
                return Ok(());
            }
            ensure!(
                started.elapsed() < BATCH_LIMIT,
                "{ready} of {wanted} pods are ready after {BATCH_LIMIT:?}"
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

/// The certificate that the CA issues for the ingress gateway, as files.
async fn gateway(client: &Client) -> Result<TempDir> {
    const PATIENCE: Duration = Duration::from_secs(30);
    let api: Api<Secret> = Api::namespaced(client.clone(), CONTROL_PLANE);
    let started = Instant::now();
    let secret = loop {
        if let Some(secret) = api.get_opt(SECRET).await? {
            break secret;
        }
        ensure!(started.elapsed() < PATIENCE, "no Secret {CONTROL_PLANE}/{SECRET} after {PATIENCE:?}");
        tokio::time::sleep(POLL).await;
    };
    let folder = tempfile::Builder::new().prefix("tidegate-bench-").tempdir()?;
    let data = secret.data.unwrap_or_default();
    for name in ["ca.crt", "tls.crt", "tls.key"] {
        let content = data.get(name).with_context(|| format!("the gateway's Secret has no {name}"))?;
        fs::write(folder.path().join(name), &content.0)?;
    }
    Ok(folder)
}
