use std::net::IpAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_core::TrustDomain;
use tidegate_core::backend::Transport;
use tidegate_core::contract::labels::{INJECTED, MONITORED_BY, SIDECAR_LABEL};
use tidegate_core::contract::names;
use tidegate_core::destination::{Destination, DestinationTarget};
use tidegate_core::policy::{InboundPolicy, MeshRule, RuleState, Sources};
use tidegate_kubernetes::fake_api::FakeApi;
use tidegate_runtime::metrics::Metrics;

use super::*;
use crate::compile;
use crate::compile::destination::Resolver;
use crate::compile::ingress_backend;
use crate::compile::route_features::Features;
use crate::compile::status::{CurrentStatus, ObjectStatus};
use crate::explain::{HttpRequest, Query, Speaks, explain};
use crate::index::{Affected, Index};
use crate::object::node::ZONE_LABEL;

const NAMESPACES: &str = "v1/namespaces";
const NODES: &str = "v1/nodes";
const PODS: &str = "v1/pods";
const SERVICES: &str = "v1/services";
const SLICES: &str = "discovery.k8s.io/v1/endpointslices";
const BACKENDS: &str = "policy.openservicemesh.io/v1alpha1/ingressbackends";
const HTTP_ROUTES: &str = "gateway.networking.k8s.io/v1/httproutes";
const GRPC_ROUTES: &str = "gateway.networking.k8s.io/v1/grpcroutes";
const CONFIGS: &str = "config.openservicemesh.io/v1alpha2/meshconfigs";

const FAST: WatchTiming = WatchTiming {
    server: Duration::from_secs(60),
    idle: Duration::from_secs(70),
    answer: Duration::from_secs(10),
    first_pause: Duration::from_millis(5),
    longest_pause: Duration::from_millis(20),
};

/// A cluster and what the source reports of it.
struct Cluster {
    api: FakeApi,
    batches: mpsc::Receiver<Batch>,
    index: Index,
    affected: Affected,
    is_complete: bool,
    problems: Vec<SourceProblem>,
}

impl Cluster {
    fn watch(api: FakeApi) -> Self {
        Self::watch_with_share(api, holdings::SHARE)
    }

    fn watch_with_share(api: FakeApi, share: usize) -> Self {
        let metrics = WatchMetrics::new(&Metrics::new());
        let source = KubernetesSource::new(api.client(), "tidegate-system", metrics)
            .timing(FAST)
            .with_share(share, Duration::from_millis(20));
        let (sender, batches) = mpsc::channel(16);
        tokio::spawn(Box::new(source).run(sender));
        let (index, affected) = (Index::for_mesh(Some("osm")), Affected::default());
        Self { api, batches, index, affected, is_complete: false, problems: Vec::new() }
    }

    /// Takes batches until this holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            let batch = tokio::time::timeout(Duration::from_secs(30), self.batches.recv()).await;
            let batch = batch.unwrap_or_else(|_| panic!("not in time: {what}")).expect("the source runs");
            for change in batch.changes {
                self.index.apply(change, &mut self.affected);
            }
            self.is_complete |= batch.is_complete;
            self.problems = batch.problems;
        }
    }

    async fn complete(api: FakeApi) -> Self {
        let mut cluster = Self::watch(api);
        cluster.until("complete", |cluster| cluster.is_complete).await;
        cluster
    }

    fn pod(&self, name: &str) -> Option<&Arc<Pod>> {
        self.index.pod(&ObjectName::parse(name).unwrap())
    }

    fn policy(&self, name: &str) -> Option<InboundPolicy> {
        let pod = self.pod(name).filter(|pod| is_injected(pod))?;
        Some(compile::workload(&self.index, pod, &TrustDomain::default()).unwrap())
    }

    fn status(&self) -> ObjectStatus {
        let (name, object) = self.index.ingress_backends().next().expect("an IngressBackend");
        ingress_backend(&self.index, name, object)
    }

    /// Whether the IngressBackend admits this address at the workload.
    fn admits(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().unwrap();
        let policy = self.policy("httpbin/httpbin-1").expect("a workload");
        policy.ports[&14001].ingress.iter().any(|rule| match &rule.state {
            RuleState::Active(active) => match &active.sources {
                Sources::Any => true,
                Sources::Ranges(ranges) => ranges.contains(address),
            },
            RuleState::Invalid(_) => false,
        })
    }
}

fn namespace(api: &FakeApi, name: &str, labels: Value) {
    api.apply(NAMESPACES, json!({"metadata": {"name": name, "labels": labels}}));
}

/// A Pod with a sidecar, and many fields that are not read.
fn injected(namespace: &str, name: &str, account: &str, ip: &str, phase: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "managedFields": [{"manager": "kubelet"}],
            "labels": {"app": account, SIDECAR_LABEL: INJECTED}},
        "spec": {"serviceAccountName": account, "nodeName": "node-1",
            "initContainers": [
                {"name": names::INTERCEPT, "args": ["intercept", "--exclude-inbound-ports=9000"]},
                {"name": names::SIDECAR, "restartPolicy": "Always", "args": ["--transparent"]}],
            "containers": [{"name": "app", "image": "app", "env": [{"name": "A", "value": "b"}],
                "ports": [{"name": "web", "containerPort": 14001}]}]},
        "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "10.9.9.9"},
    })
}

fn plain_pod(namespace: &str, name: &str, ip: &str, phase: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"phase": phase, "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn service(api: &FakeApi, namespace: &str, name: &str, app: &str) {
    let metadata = json!({"namespace": namespace, "name": name});
    let ports = json!([{"name": "http", "port": 80, "targetPort": 14001}]);
    api.apply(SERVICES, json!({"metadata": metadata, "spec": {"selector": {"app": app}, "ports": ports}}));
}

/// One ready endpoint, as the cluster's own controller would write it.
fn slice(api: &FakeApi, namespace: &str, service: &str, ip: &str, pod: &str) {
    let uid = api.get(PODS, namespace, pod).map(|pod| pod["metadata"]["uid"].clone());
    let target = json!({"kind": "Pod", "namespace": namespace, "name": pod, "uid": uid});
    let labels = json!({"kubernetes.io/service-name": service});
    api.apply(
        SLICES,
        json!({
            "metadata": {"namespace": namespace, "name": format!("{service}-abcde"), "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 14001, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}, "targetRef": target, "nodeName": "n"}],
        }),
    );
}

fn backend(api: &FakeApi, protocol: &str) {
    let source = json!({"kind": "Service", "name": "gateway", "namespace": "ingress-nginx"});
    let backend = json!({"name": "httpbin", "port": {"number": 14001, "protocol": protocol}});
    api.apply(
        BACKENDS,
        json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
            "metadata": {"namespace": "httpbin", "name": "httpbin"},
            "spec": {"backends": [backend], "sources": [source]},
        }),
    );
}

/// An ingress controller outside the mesh and a meshed app that it may reach.
async fn walkthrough() -> FakeApi {
    let api = FakeApi::start().await;
    namespace(&api, "httpbin", json!({MONITORED_BY: "osm"}));
    namespace(&api, "ingress-nginx", json!({MONITORED_BY: "osm"}));
    api.apply(PODS, injected("httpbin", "httpbin-1", "httpbin", "10.0.0.11", "Running"));
    api.apply(PODS, plain_pod("ingress-nginx", "nginx-1", "10.0.0.2", "Running"));
    service(&api, "httpbin", "httpbin", "httpbin");
    slice(&api, "httpbin", "httpbin", "10.0.0.11", "httpbin-1");
    service(&api, "ingress-nginx", "gateway", "nginx");
    slice(&api, "ingress-nginx", "gateway", "10.0.0.2", "nginx-1");
    backend(&api, "http");
    api.apply(CONFIGS, mesh_config(json!({"traffic": {"enablePermissiveTrafficPolicyMode": true}})));
    api
}

fn mesh_config(spec: Value) -> Value {
    json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"namespace": "tidegate-system", "name": "osm-mesh-config"}, "spec": spec,
    })
}

#[tokio::test]
async fn the_list_is_complete_once_every_kind_is_there_and_a_missing_crd_is_said_and_waited_for() {
    let api = walkthrough().await;
    api.serve_resource(BACKENDS, false);
    let mut cluster = Cluster::watch(api);
    cluster
        .until("the other kinds", |cluster| {
            cluster.pod("httpbin/httpbin-1").is_some() && !cluster.problems.is_empty()
        })
        .await;
    assert!(!cluster.is_complete);
    assert_eq!(
        cluster.problems[0].to_string(),
        "IngressBackend: error: CustomResourceDefinition ingressbackends.policy.openservicemesh.io is not \
         installed; waiting for it"
    );
    cluster.api.serve_resource(BACKENDS, true);
    cluster.until("complete", |cluster| cluster.is_complete).await;
    assert_eq!(cluster.problems, []);
    assert_eq!(cluster.status().reason, "successfully committed by the system");
    assert!(cluster.admits("10.0.0.2") && !cluster.admits("10.0.0.3"));
}

#[tokio::test]
async fn a_kind_that_a_cluster_may_lack_is_read_once_it_is_defined_and_not_missed_before() {
    let api = walkthrough().await;
    for kind in [HTTP_ROUTES, GRPC_ROUTES] {
        api.serve_resource(kind, false);
    }
    let mut cluster = Cluster::complete(api).await;
    assert_eq!(cluster.problems, []);
    cluster.api.serve_resource(HTTP_ROUTES, true);
    let parents = json!([{"group": "", "kind": "Service", "name": "httpbin"}]);
    let metadata = json!({"namespace": "httpbin", "name": "route"});
    cluster
        .api
        .apply(HTTP_ROUTES, json!({"metadata": metadata, "spec": {"parentRefs": parents, "rules": [{}]}}));
    cluster.until("the route", |cluster| cluster.index.routes().next().is_some()).await;
    assert_eq!(cluster.problems, []);
}

#[tokio::test]
async fn what_was_deleted_while_nothing_could_be_heard_is_gone_after_the_new_list() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    assert!(cluster.admits("10.0.0.2"));
    cluster.api.stop();
    cluster.api.delete(BACKENDS, "httpbin", "httpbin");
    cluster.api.delete(PODS, "ingress-nginx", "nginx-1");
    cluster.api.compact();
    cluster.api.restart().await;
    cluster.until("the deletion", |cluster| cluster.index.ingress_backends().next().is_none()).await;
    assert!(!cluster.admits("10.0.0.2"));
    cluster.until("the Pod's deletion", |cluster| cluster.pod("ingress-nginx/nginx-1").is_none()).await;
}

#[tokio::test]
async fn only_the_control_plane_s_mesh_config_counts() {
    let api = walkthrough().await;
    let config = |namespace: &str, name: &str, permissive: bool| {
        api.apply(
            CONFIGS,
            json!({
                "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"traffic": {"enablePermissiveTrafficPolicyMode": permissive}},
            }),
        );
    };
    config("a-tenant", "osm-mesh-config", true);
    config("tidegate-system", "another", true);
    config("tidegate-system", "osm-mesh-config", false);
    let cluster = Cluster::complete(api).await;
    assert_eq!(cluster.index.mesh_configs().count(), 1);
    assert!(!cluster.index.mesh_config_spec().unwrap().is_permissive());
}

#[tokio::test]
async fn an_address_that_goes_to_another_pod_takes_neither_identity_nor_policy_with_it() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    let first = cluster.policy("httpbin/httpbin-1").unwrap();
    assert_eq!(first.identity.service_account(), "httpbin");
    // The first has ended; its object and an EndpointSlice that lists it still exist.
    cluster.api.apply(PODS, injected("httpbin", "httpbin-1", "httpbin", "10.0.0.11", "Succeeded"));
    cluster.api.apply(PODS, injected("httpbin", "other-1", "other", "10.0.0.11", "Running"));
    cluster
        .until("both", |cluster| {
            cluster.policy("httpbin/httpbin-1").is_none() && cluster.policy("httpbin/other-1").is_some()
        })
        .await;
    let other = cluster.policy("httpbin/other-1").unwrap();
    assert_eq!(other.identity.service_account(), "other");
    let services = other.ports.values().flat_map(|port| &port.services);
    assert_eq!(services.count(), 0, "no Service is in front of it: {other:?}");
    assert!(other.ports.values().all(|port| port.ingress.is_empty()));
}

#[tokio::test]
async fn a_pod_that_comes_again_under_its_name_is_not_the_one_that_an_endpoint_means() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    cluster.api.delete(PODS, "httpbin", "httpbin-1");
    let mut second = injected("httpbin", "httpbin-1", "second", "10.0.0.12", "Running");
    second["metadata"]["uid"] = "another".into();
    cluster.api.apply(PODS, second);
    cluster
        .until("the second", |cluster| {
            cluster
                .policy("httpbin/httpbin-1")
                .is_some_and(|policy| policy.identity.service_account() == "second")
        })
        .await;
    let policy = cluster.policy("httpbin/httpbin-1").unwrap();
    assert!(policy.ports.values().all(|port| port.services.is_empty()), "{policy:?}");
}

#[tokio::test]
async fn an_address_of_a_source_is_good_only_as_long_as_its_pod_has_it() {
    for phase in ["Succeeded", "Failed"] {
        let mut cluster = Cluster::complete(walkthrough().await).await;
        cluster.affected = Affected::default();
        // The EndpointSlice has not been corrected yet.
        cluster.api.apply(PODS, plain_pod("ingress-nginx", "nginx-1", "10.0.0.2", phase));
        cluster.until("the end of the Pod", |cluster| !cluster.admits("10.0.0.2")).await;
        let workload = ObjectName::new("httpbin", "httpbin-1");
        assert!(cluster.affected.pods.contains(&workload), "it is compiled again");
        assert_eq!(cluster.status().reason, "endpoints not found for service ingress-nginx/gateway");
    }
    let mut cluster = Cluster::complete(walkthrough().await).await;
    cluster.api.delete(PODS, "ingress-nginx", "nginx-1");
    cluster.api.apply(PODS, plain_pod("elsewhere", "stranger", "10.0.0.2", "Running"));
    cluster.until("the other Pod", |cluster| cluster.pod("elsewhere/stranger").is_some()).await;
    assert!(!cluster.admits("10.0.0.2"));
}

#[tokio::test]
async fn a_gateway_that_comes_back_with_a_new_address_is_admitted_whatever_the_labels_of_its_namespace() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    namespace(&cluster.api, "ingress-nginx", json!({}));
    cluster.api.delete(PODS, "ingress-nginx", "nginx-1");
    cluster.api.apply(PODS, plain_pod("ingress-nginx", "nginx-2", "10.0.0.3", "Running"));
    slice(&cluster.api, "ingress-nginx", "gateway", "10.0.0.3", "nginx-2");
    cluster.until("the new address", |cluster| cluster.admits("10.0.0.3")).await;
    assert!(!cluster.admits("10.0.0.2"));
    namespace(&cluster.api, "ingress-nginx", json!({MONITORED_BY: "osm"}));
    cluster.api.apply(PODS, plain_pod("ingress-nginx", "nginx-3", "10.0.0.4", "Running"));
    slice(&cluster.api, "ingress-nginx", "gateway", "10.0.0.4", "nginx-3");
    cluster.until("the newest address", |cluster| cluster.admits("10.0.0.4")).await;
    assert_eq!(cluster.status().current, CurrentStatus::Committed);
}

#[tokio::test]
async fn an_ingress_backend_counts_only_while_its_namespace_is_in_the_mesh() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    assert!(cluster.admits("10.0.0.2"));
    cluster.affected = Affected::default();
    namespace(&cluster.api, "httpbin", json!({}));
    cluster.until("out", |cluster| !cluster.admits("10.0.0.2")).await;
    assert!(cluster.affected.namespaces.contains("httpbin"));
    let status = cluster.status();
    assert_eq!(status.current, CurrentStatus::Error);
    let expected = "namespace httpbin is in no mesh: `tidegate namespace add httpbin` puts it in";
    assert_eq!(status.reason, expected);
    // Mesh peers are still admitted: running sidecars keep serving until they are restarted without one.
    let policy = cluster.policy("httpbin/httpbin-1").unwrap();
    assert_eq!(policy.ports[&14001].mesh, MeshRule::AnyPeer);
    namespace(&cluster.api, "httpbin", json!({MONITORED_BY: "osm"}));
    cluster.until("in", |cluster| cluster.admits("10.0.0.2")).await;
    cluster.api.delete(NAMESPACES, "", "httpbin");
    cluster.until("gone", |cluster| !cluster.admits("10.0.0.2")).await;
}

#[tokio::test]
async fn an_ingress_backend_that_cannot_be_read_grants_nothing_and_says_why_wherever_one_looks() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    cluster.affected = Affected::default();
    let mut broken = cluster.api.get(BACKENDS, "httpbin", "httpbin").unwrap();
    broken["spec"]["backends"][0]["port"]["number"] = "web".into();
    cluster.api.apply(BACKENDS, broken);
    cluster.until("the problem", |cluster| !cluster.problems.is_empty()).await;
    assert!(!cluster.admits("10.0.0.2"));
    assert!(cluster.affected.namespaces.contains("httpbin"), "its workloads are compiled again");
    let reason = "spec.backends[0].port.number: must be of type integer, got string: \"web\"";
    assert_eq!(cluster.problems[0].to_string(), format!("IngressBackend httpbin/httpbin: error: {reason}"));
    let statuses = crate::status::all(&cluster.index);
    let [status] = &*statuses.iter().filter(|status| status.kind != "MeshConfig").collect::<Vec<_>>() else {
        panic!("one status of the policy: {statuses:?}")
    };
    assert_eq!((status.kind, status.name.as_str()), ("IngressBackend", "httpbin"));
    assert_eq!((status.current_status, status.reason.as_str()), ("error", reason));
    let query = Query {
        backend: ObjectName::new("httpbin", "httpbin"),
        port: None,
        source: "10.0.0.2".parse().unwrap(),
        server_name: None,
        principals: Vec::new(),
        speaks: Speaks::Plaintext,
        request: HttpRequest::default(),
    };
    let explained = explain(&cluster.index, &TrustDomain::default(), &query).unwrap();
    assert_eq!(explained.decision, "deny");
    assert_eq!(explained.rule.as_deref(), Some("httpbin/httpbin"));
    assert_eq!(
        explained.reason,
        format!("the IngressBackend is not in force: {reason} (IngressBackend httpbin/httpbin)")
    );

    backend(&cluster.api, "http");
    cluster.until("sound again", |cluster| cluster.problems.is_empty()).await;
    assert!(cluster.admits("10.0.0.2"));
    assert!(crate::status::all(&cluster.index).iter().all(|status| status.current_status == "committed"));
}

#[tokio::test]
async fn a_mesh_config_that_cannot_be_read_keeps_mesh_peers_out() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    let mesh = |cluster: &Cluster| cluster.policy("httpbin/httpbin-1").unwrap().ports[&14001].mesh.clone();
    assert_eq!(mesh(&cluster), MeshRule::AnyPeer);
    cluster.api.apply(CONFIGS, mesh_config(json!({"traffic": {"enablePermissiveTrafficPolicyMode": "yes"}})));
    cluster.until("the problem", |cluster| !cluster.problems.is_empty()).await;
    let reason =
        "spec.traffic.enablePermissiveTrafficPolicyMode: must be of type boolean, got string: \"yes\"";
    let denied = MeshRule::Deny(format!("MeshConfig tidegate-system/osm-mesh-config: {reason}").into());
    assert_eq!(mesh(&cluster), denied);
    let statuses = crate::status::all(&cluster.index);
    let status = statuses.iter().find(|status| status.kind == "MeshConfig").unwrap();
    assert_eq!((status.current_status, status.reason.as_str()), ("error", reason));

    cluster.api.apply(CONFIGS, mesh_config(json!({"traffic": {"enablePermissiveTrafficPolicyMode": true}})));
    cluster.until("sound again", |cluster| cluster.problems.is_empty()).await;
    assert_eq!(mesh(&cluster), MeshRule::AnyPeer);
    cluster.api.apply(CONFIGS, mesh_config(json!({"traffic": 1})));
    cluster.until("broken again", |cluster| !cluster.problems.is_empty()).await;
    cluster.api.delete(CONFIGS, "tidegate-system", "osm-mesh-config");
    cluster.until("gone", |cluster| cluster.problems.is_empty()).await;
    let MeshRule::Deny(reason) = mesh(&cluster) else { panic!("deleting the MeshConfig opens nothing") };
    assert!(reason.starts_with("there is no MeshConfig"), "{reason}");
}

#[tokio::test]
async fn unused_fields_are_not_kept_and_their_changes_affect_nothing() {
    let mut cluster = Cluster::complete(walkthrough().await).await;
    let pod = cluster.pod("httpbin/httpbin-1").unwrap();
    let spec = pod.spec.as_ref().unwrap();
    assert!(spec.containers[0].image.is_none() && spec.containers[0].env.is_none());
    assert!(pod.status.as_ref().unwrap().host_ip.is_none());
    let init = spec.init_containers.as_ref().unwrap();
    assert_eq!(init[0].args.as_ref().unwrap()[1], "--exclude-inbound-ports=9000");
    assert!(init[1].args.is_none());
    let plain = cluster.pod("ingress-nginx/nginx-1").unwrap();
    assert!(plain.spec.is_none() && plain.metadata.uid.is_some());

    cluster.affected = Affected::default();
    let mut pod = cluster.api.get(PODS, "httpbin", "httpbin-1").unwrap();
    pod["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    pod["status"]["hostIP"] = "10.8.8.8".into();
    cluster.api.apply(PODS, pod);
    let mut backend = cluster.api.get(BACKENDS, "httpbin", "httpbin").unwrap();
    backend["status"] = json!({"currentStatus": "committed"});
    cluster.api.apply(BACKENDS, backend);
    // Arrives after both on the same watches.
    cluster.api.apply(PODS, plain_pod("x", "last", "10.1.1.1", "Running"));
    let mut last = cluster.api.get(BACKENDS, "httpbin", "httpbin").unwrap();
    last["metadata"]["name"] = "last".into();
    last["metadata"]["namespace"] = "x".into();
    cluster.api.apply(BACKENDS, last);
    cluster
        .until("what comes last", |cluster| {
            cluster.pod("x/last").is_some() && cluster.index.ingress_backends_in("x").next().is_some()
        })
        .await;
    assert!(!cluster.affected.namespaces.contains("httpbin"), "{:?}", cluster.affected);
    assert!(cluster.affected.pods.iter().all(|pod| &*pod.namespace == "x"), "{:?}", cluster.affected);
}

#[tokio::test]
async fn an_object_beyond_its_namespace_s_share_grants_nothing_says_so_and_counts_once_older_ones_are_gone() {
    let api = walkthrough().await;
    // Two objects that each take more than half of the share. The one that the API server lists first is the newer.
    let large = |name: &str, second: u32| {
        let principals: Vec<Value> =
            (0..256).map(|_| json!({"kind": "AuthenticatedPrincipal", "name": "x".repeat(2048)})).collect();
        let source = json!({"kind": "IPRange", "name": format!("10.{second}.0.0/16")});
        let sources: Vec<Value> = principals.into_iter().chain([source]).collect();
        let backend = json!({"name": "httpbin", "port": {"number": 14001, "protocol": "http"}});
        let created = format!("2026-01-01T00:00:{second:02}Z");
        json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
            "metadata": {"namespace": "httpbin", "name": name, "creationTimestamp": created},
            "spec": {"backends": [backend], "sources": sources},
        })
    };
    api.apply(BACKENDS, large("a-newer", 2));
    api.apply(BACKENDS, large("b-older", 1));
    let mut cluster = Cluster::watch_with_share(api, 1 << 20);
    cluster.until("complete", |cluster| cluster.is_complete && !cluster.problems.is_empty()).await;
    assert!(cluster.admits("10.1.0.1") && !cluster.admits("10.2.0.1"));
    assert!(cluster.admits("10.0.0.2"), "what is small has its place");
    let statuses = crate::status::all(&cluster.index);
    let newer = statuses.iter().find(|status| status.name == "a-newer").unwrap();
    assert_eq!(newer.current_status, "error");
    assert!(
        newer.reason.starts_with("metadata.namespace: all objects of one namespace may take 1 MiB"),
        "{}",
        newer.reason
    );
    let policy = cluster.policy("httpbin/httpbin-1").unwrap();
    let denying = policy.ports[&14001].ingress.iter().find(|rule| &*rule.origin.name == "a-newer").unwrap();
    assert_eq!(denying.state, RuleState::Invalid(newer.reason.as_str().into()), "refusals say why");

    cluster.api.delete(BACKENDS, "httpbin", "b-older");
    cluster.until("the newer one", |cluster| cluster.problems.is_empty()).await;
    assert!(cluster.admits("10.2.0.1") && !cluster.admits("10.1.0.1"));
}

#[tokio::test]
async fn a_pod_whose_sidecar_listens_to_another_control_plane_is_an_endpoint_without_one() {
    let api = walkthrough().await;
    let listens_to = |control_plane: &str, name: &str, ip: &str| {
        let mut pod = injected("httpbin", name, "httpbin", ip, "Running");
        let flag = format!("--discovery-server-name=tidegate-controller.{control_plane}.cluster.local");
        pod["spec"]["initContainers"][1]["args"] = json!(["--transparent", flag]);
        pod
    };
    api.apply(PODS, listens_to("tidegate-system", "ours", "10.0.0.12"));
    api.apply(PODS, listens_to("blue-system", "theirs", "10.0.0.13"));
    let mut cluster = Cluster::complete(api).await;
    assert!(cluster.policy("httpbin/httpbin-1").is_some(), "without the flag it is ours");
    assert!(cluster.policy("httpbin/ours").is_some());
    assert_eq!(cluster.policy("httpbin/theirs"), None);
    let trust_domain = TrustDomain::default();
    let resolve = |cluster: &Cluster, address: &str| {
        let resolver = Resolver {
            index: &cluster.index,
            trust_domain: &trust_domain,
            is_workload: is_injected,
            features: Features::EXECUTED,
        };
        let destination = resolver.for_all_clients(address).value;
        let name = match &destination {
            Destination::Routed { target: DestinationTarget::Backend(name), .. } => Some(name),
            _ => None,
        };
        let backend = name.and_then(|name| resolver.backend(name).value);
        (destination, backend.map(|backend| backend.endpoints).unwrap_or_default())
    };
    assert_ne!(resolve(&cluster, "10.0.0.12:14001").0, Destination::Passthrough);
    assert_eq!(resolve(&cluster, "10.0.0.13:14001").0, Destination::InCluster);

    // Behind a Service it is dialled in plaintext, beside one of ours with its identity.
    slice(&cluster.api, "httpbin", "httpbin", "10.0.0.12", "ours");
    let mut slice = cluster.api.get(SLICES, "httpbin", "httpbin-abcde").unwrap();
    let mut other = slice["endpoints"][0].clone();
    other["addresses"] = json!(["10.0.0.13"]);
    other["targetRef"] = json!({"kind": "Pod", "namespace": "httpbin", "name": "theirs"});
    slice["endpoints"].as_array_mut().unwrap().push(other);
    cluster.api.apply(SLICES, slice);
    let mut service = cluster.api.get(SERVICES, "httpbin", "httpbin").unwrap();
    service["spec"]["clusterIP"] = json!("10.96.0.9");
    cluster.api.apply(SERVICES, service);
    let endpoints = |cluster: &Cluster| resolve(cluster, "10.96.0.9:80").1;
    cluster.until("both endpoints", |cluster| endpoints(cluster).len() == 2).await;
    let found: Vec<_> = endpoints(&cluster)
        .into_iter()
        .map(|endpoint| (endpoint.address.ip().to_string(), matches!(endpoint.transport, Transport::Mesh(_))))
        .collect();
    assert_eq!(found, [("10.0.0.12".to_owned(), true), ("10.0.0.13".to_owned(), false)]);
}

#[tokio::test]
async fn what_happens_in_another_mesh_is_not_explained_unless_a_workload_of_ours_is_still_there() {
    let api = walkthrough().await;
    namespace(&api, "theirs", json!({MONITORED_BY: "blue"}));
    service(&api, "theirs", "app", "app");
    namespace(&api, "httpbin", json!({MONITORED_BY: "blue"}));
    let cluster = Cluster::complete(api).await;
    let ask = |backend| {
        let query = Query {
            backend: ObjectName::parse(backend).unwrap(),
            port: Some(14001),
            source: "10.0.0.9".parse().unwrap(),
            server_name: None,
            principals: Vec::new(),
            speaks: Speaks::Plaintext,
            request: HttpRequest::default(),
        };
        explain(&cluster.index, &TrustDomain::default(), &query)
    };
    assert_eq!(
        ask("theirs/app").unwrap_err().to_string(),
        "namespace theirs is in mesh \"blue\", not in \"osm\", by its labels; ask that one's controller (--mesh-name, \
         --tidegate-namespace)"
    );
    assert_eq!(ask("httpbin/httpbin").unwrap().workload, "httpbin/httpbin-1");
}

#[test]
fn a_pod_is_a_workload_with_a_sidecar_an_address_of_its_own_and_while_it_lasts() {
    let parse = |value: Value| serde_json::from_value::<Pod>(value).unwrap();
    let whole = injected("a", "a-1", "a", "10.0.0.1", "Running");
    assert!(is_injected(&parse(whole.clone())));
    assert!(is_injected(&parse(injected("a", "a-1", "a", "fd00::1", "Pending"))));
    assert!(!is_injected(&parse(injected("a", "a-1", "a", "10.0.0.1", "Succeeded"))));
    assert!(!is_injected(&parse(injected("a", "a-1", "a", "10.0.0.1", "Failed"))));
    assert!(!is_injected(&parse(injected("a", "a-1", "a", "", "Pending"))));
    assert!(!is_injected(&parse(plain_pod("a", "a-1", "10.0.0.1", "Running"))));
    let mut unlabelled = whole.clone();
    unlabelled["metadata"]["labels"] = json!({"app": "a"});
    assert!(is_injected(&parse(unlabelled.clone())), "labels change while a Pod runs");
    let kept = crate::object::stored::lean::pod(&unlabelled.to_string(), "tidegate-system").unwrap();
    assert!(is_injected(&kept) && kept.spec.is_some());
    let mut host = whole;
    host["spec"]["hostNetwork"] = true.into();
    assert!(!is_injected(&parse(host)));
}

#[tokio::test]
async fn without_the_right_to_read_nodes_only_their_zones_are_missing_and_a_warning_says_so() {
    let api = FakeApi::start().await;
    api.apply(NODES, json!({"metadata": {"name": "n1", "labels": {ZONE_LABEL: "a", "other": "x"}}}));
    let mut cluster = Cluster::complete(api).await;
    cluster.until("the node", |cluster| cluster.index.zone("n1").is_some()).await;
    assert_eq!(cluster.index.zone("n1").map(|zone| &**zone), Some("a"));
    // Nothing but the zone is read of a Node, whose kubelet writes it again and again.
    cluster.affected = Affected::default();
    cluster.api.apply(NODES, json!({"metadata": {"name": "n1", "labels": {ZONE_LABEL: "a", "other": "y"}}}));
    cluster.api.apply(NODES, json!({"metadata": {"name": "n2", "labels": {ZONE_LABEL: "b"}}}));
    cluster.until("the other node", |cluster| cluster.index.zone("n2").is_some()).await;
    assert_eq!(cluster.affected.nodes, ["n2".into()].into());

    let api = FakeApi::start().await;
    api.forbid("list nodes");
    let cluster = Cluster::complete(api).await;
    let problem = cluster.problems[0].to_string();
    assert!(problem.starts_with("Node: warning: cannot be read, retrying: 403"), "{problem}");
    assert!(
        problem.ends_with(
            "; the zones of workloads are not known, and EndpointSlice hints for zones have no effect"
        ),
        "{problem}"
    );
}
