use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use tidegate_kubernetes::fake_api::FakeApi;
use tidegate_kubernetes::watch::WatchMetrics;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;

use super::*;
use crate::compile::status::CurrentStatus;
use crate::metrics::NamespaceGauge;
use crate::object::{Change, Kind, Object};
use crate::proxy_health::{ProbedProxies, ProxyDefect};
use crate::publish::policies::listener;
use crate::publish::store::Store;
use crate::source::ObjectSource;
use crate::source::folder::{FolderSource, is_workload};
use crate::source::kubernetes::{KubernetesSource, is_injected};
use crate::testing::{FROM_GATEWAY, GATEWAY, HTTPBIN, backend, ingress_backend};

#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<String>>>);

impl StatusWriter for Recorder {
    fn write(&self, key: &ObjectKey, status: &ObjectStatus, _: Option<&Arc<str>>) {
        self.0.lock().unwrap().push(format!("{key}: {}", status.reason));
    }

    fn remove(&self, key: &ObjectKey) {
        self.0.lock().unwrap().push(format!("{key}: removed"));
    }
}

impl Recorder {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

struct Bench {
    engine: Engine,
    statuses: Recorder,
    readiness: Readiness,
}

impl Bench {
    fn new() -> Self {
        let (index, store) = (Arc::default(), Arc::<Store>::default());
        let shared = ControllerState {
            trust_domain: TrustDomain::default(),
            is_workload,
            index: Arc::clone(&index),
            workloads: Arc::new(PolicyStore::new(Arc::clone(&store))),
            resources: Arc::new(OnDemand::new(
                store,
                index,
                TrustDomain::default(),
                is_workload,
                NamespaceGauge::default(),
            )),
            statuses: StatusBoard::default(),
            problems: Arc::default(),
        };
        let (statuses, readiness) = (Recorder::default(), Readiness::new());
        let engine = Engine::new(
            shared,
            vec![Box::new(statuses.clone())],
            ControllerMetrics::default(),
            readiness.block("objects"),
        );
        Self { engine, statuses, readiness }
    }

    fn started(documents: &[&str]) -> Self {
        let mut bench = Self::new();
        bench.engine.take(Batch { changes: changes(documents), is_complete: true, problems: Vec::new() });
        bench
    }

    /// How many workloads these changes had compiled.
    fn apply(&mut self, changes: Vec<Change>) -> u64 {
        let before = self.engine.metrics.compiled.get();
        self.engine.take(Batch { changes, is_complete: true, problems: Vec::new() });
        self.engine.metrics.compiled.get() - before
    }

    fn version(&self, pod: &str) -> Option<Arc<str>> {
        let policy = self.engine.shared.workloads.policy(&ObjectName::parse(pod).unwrap());
        policy.map(|published| published.version.clone())
    }
}

fn changes(documents: &[&str]) -> Vec<Change> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), documents.join("\n---\n")).unwrap();
    FolderSource::new(folder.path()).load().changes
}

fn other_namespace() -> String {
    HTTPBIN.replace("namespace: httpbin", "namespace: other")
}

#[test]
fn nothing_is_published_before_the_first_list_is_complete() {
    let mut bench = Bench::new();
    let synced = bench.engine.shared.workloads.synced();
    bench.engine.take(Batch { changes: changes(&[HTTPBIN]), ..Batch::default() });
    assert!(bench.version("httpbin/httpbin-1").is_none());
    assert!(!*synced.borrow() && !bench.readiness.is_ready());
    bench.engine.take(Batch { is_complete: true, ..Batch::default() });
    assert!(bench.version("httpbin/httpbin-1").is_some());
    assert!(*synced.borrow() && bench.readiness.is_ready());
}

#[test]
fn only_workloads_that_a_change_touches_are_compiled() {
    let ib = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    let mut bench = Bench::started(&[HTTPBIN, &other_namespace(), GATEWAY, &ib]);
    let in_httpbin = changes(&[&ingress_backend("ib2", &backend("http", ""), "")]);
    assert_eq!(bench.apply(in_httpbin), 1);
    let unrelated = changes(&["apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: elsewhere}\n"]);
    assert_eq!(bench.apply(unrelated), 0);
    let account =
        changes(&["apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: x, namespace: httpbin}\n"]);
    assert_eq!(bench.apply(account), 0);
}

#[test]
fn a_workload_learns_its_node_s_zone_and_other_workloads_are_left_alone() {
    let on_node = HTTPBIN.replace("serviceAccountName", "nodeName: n1, serviceAccountName");
    let on_node =
        on_node.replace("  nodeName: n1, serviceAccountName", "  nodeName: n1\n  serviceAccountName");
    let mut bench = Bench::started(&[&on_node, &other_namespace()]);
    let locality = |bench: &Bench, pod: &str| {
        let policy = bench.engine.shared.workloads.policy(&ObjectName::parse(pod).unwrap()).unwrap();
        let locality = policy.policy().unwrap().locality.clone().unwrap();
        (locality.node.map(|node| node.to_string()), locality.zone.map(|zone| zone.to_string()))
    };
    let n1 = Some("n1".to_owned());
    assert_eq!(locality(&bench, "httpbin/httpbin-1"), (n1.clone(), None));
    assert_eq!(locality(&bench, "other/httpbin-1"), (None, None));
    let node = |labels: &str| {
        changes(&[&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{{labels}}}}}\n")])
    };
    assert_eq!(bench.apply(node("topology.kubernetes.io/zone: a")), 1);
    assert_eq!(locality(&bench, "httpbin/httpbin-1"), (n1.clone(), Some("a".to_owned())));
    let key = ObjectKey { kind: Kind::Node, name: ObjectName::new("", "n1") };
    assert_eq!(bench.apply(vec![Change::Delete(key)]), 1);
    assert_eq!(locality(&bench, "httpbin/httpbin-1"), (n1, None));
}

#[test]
fn endpoints_of_a_source_are_followed_whatever_their_namespace() {
    let ib = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    let mut bench = Bench::started(&[HTTPBIN, &other_namespace(), GATEWAY, &ib]);
    let before = bench.version("httpbin/httpbin-1");
    let other = bench.version("other/httpbin-1");
    // The gateway's namespace is not part of the mesh, and no status says that it is.
    let moved = changes(&[&GATEWAY.replace("127.0.0.2", "127.0.0.99")]);
    assert_eq!(bench.apply(moved), 1);
    assert_ne!(bench.version("httpbin/httpbin-1"), before);
    assert_eq!(bench.version("other/httpbin-1"), other);

    bench.statuses.take();
    let (_, slice) = GATEWAY.split_once("---").unwrap();
    let gone = changes(&[slice]).into_iter().map(|change| match change {
        Change::Apply { object, .. } => Change::Delete(object.key()),
        delete @ Change::Delete(_) => delete,
    });
    bench.apply(gone.collect());
    assert_eq!(
        bench.statuses.take(),
        ["IngressBackend httpbin/ib: endpoints not found for service ingress-nginx/ingress-nginx-controller"]
    );
    bench.apply(changes(&[slice]));
    assert_eq!(bench.statuses.take(), ["IngressBackend httpbin/ib: successfully committed by the system"]);
}

#[test]
fn workloads_beyond_the_share_of_their_namespace_have_no_policy_and_say_why_until_there_is_room() {
    let pod = |name: &str, created: u32| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: httpbin, labels: {{app: httpbin}}, \
             creationTimestamp: \"2026-01-01T00:00:0{created}Z\"}}\nspec: {{containers: [{{name: app}}]}}\n\
             status: {{podIP: 127.0.0.1{created}}}\n"
        )
    };
    let mut bench = Bench::new();
    let gauge = bench.engine.metrics.workloads_left_out.clone();
    let size = {
        let index = crate::testing::index(&[HTTPBIN]);
        let pod = index.pods().next().unwrap().1;
        let rules = NamespaceRules::new(&index, "httpbin", &TrustDomain::default());
        compile::workload_by(&rules, pod).unwrap().size()
    };
    // Room for two and a half.
    bench.engine.shares = NamespaceShares::new(size * 5 / 2, gauge.clone());
    let [service, newest, old, oldest] = [
        HTTPBIN.split("---").nth(1).unwrap().to_owned(),
        pod("a-newest", 3),
        pod("b-old", 2),
        pod("c-oldest", 1),
    ];
    let all = [service.as_str(), &newest, &old, &oldest];
    bench.engine.take(Batch { changes: changes(&all), is_complete: true, problems: Vec::new() });
    let published = |bench: &Bench| {
        ["httpbin/a-newest", "httpbin/b-old", "httpbin/c-oldest"].map(|pod| bench.version(pod).is_some())
    };
    assert_eq!(published(&bench), [false, true, true]);
    let name = ObjectName::new("httpbin", "a-newest");
    let error = bench.engine.shared.workloads.error(&name).unwrap();
    assert!(error.starts_with("all policies of one namespace may take 0 MiB"), "{error}");
    assert_eq!(gauge.value("httpbin"), 1);
    let gone = ObjectKey { kind: Kind::Pod, name: ObjectName::new("httpbin", "b-old") };
    bench.apply(vec![Change::Delete(gone)]);
    assert_eq!(published(&bench), [true, false, true]);
    assert_eq!((bench.engine.shared.workloads.error(&name), gauge.value("httpbin")), (None, 0));
}

#[test]
fn what_stays_the_same_is_published_once() {
    let mut bench = Bench::started(&[HTTPBIN]);
    let name = ObjectName::parse("httpbin/httpbin-1").unwrap();
    let mut follower = bench.engine.shared.resources.subscriber("httpbin");
    follower.subscribe(Arc::new(listener(&name)));
    assert!(follower.next_change().is_some());
    let labelled = HTTPBIN.replace("app: httpbin}}", "app: httpbin, version: v2}}");
    assert_ne!(labelled, HTTPBIN);
    assert_eq!(bench.apply(changes(&[&labelled])), 1);
    assert!(!follower.has_changes());
    bench.apply(changes(&[&HTTPBIN.replace("targetPort: 14001", "targetPort: 14002")]));
    assert!(follower.has_changes());
}

#[test]
fn a_pod_that_is_gone_or_no_longer_ours_has_no_policy() {
    let mut bench = Bench::started(&[HTTPBIN]);
    assert_eq!(bench.engine.pods().borrow().len(), 1);
    bench.apply(changes(&[&HTTPBIN.replace("127.0.0.11", "10.0.0.1")]));
    assert!(bench.version("httpbin/httpbin-1").is_none());
    assert!(bench.engine.pods().borrow().is_empty());
    bench.apply(changes(&[HTTPBIN]));
    assert!(bench.version("httpbin/httpbin-1").is_some());
    let pods: Vec<_> = changes(&[HTTPBIN])
        .into_iter()
        .filter_map(|change| match change {
            Change::Apply { object: object @ Object::Pod(_), .. } => Some(Change::Delete(object.key())),
            _ => None,
        })
        .collect();
    bench.apply(pods);
    assert!(bench.version("httpbin/httpbin-1").is_none());
}

#[test]
fn local_pods_are_reported_with_what_a_sidecar_needs() {
    let annotated =
        HTTPBIN.replace("labels:", "uid: u-1, annotations: {tidegate.io/app-address: 127.0.0.5}, labels:");
    let bench = Bench::started(&[&annotated]);
    let pods = bench.engine.pods().borrow().clone();
    assert_eq!(
        *pods,
        [LocalPod {
            namespace: "httpbin".to_owned(),
            name: "httpbin-1".to_owned(),
            uid: Some("u-1".to_owned()),
            ip: Some("127.0.0.11".parse().unwrap()),
            service_account: "httpbin".to_owned(),
            annotations: [("tidegate.io/app-address".to_owned(), "127.0.0.5".to_owned())].into(),
            ports: vec![14001],
        }]
    );
}

#[test]
fn the_mesh_config_in_force_is_followed() {
    let config = |permissive: bool| {
        format!(
            "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
             metadata: {{name: osm-mesh-config, namespace: osm-system}}\n\
             spec: {{traffic: {{enablePermissiveTrafficPolicyMode: {permissive}}}}}\n"
        )
    };
    let mut bench = Bench::started(&[HTTPBIN, &other_namespace()]);
    let mut follower = bench.engine.mesh_config();
    assert!(follower.borrow_and_update().is_none());
    let before = bench.version("other/httpbin-1");
    assert_eq!(bench.apply(changes(&[&config(false)])), 2);
    assert!(!follower.borrow_and_update().as_ref().unwrap().is_permissive());
    assert_ne!(bench.version("other/httpbin-1"), before);
    bench.apply(changes(&[&config(false)]));
    assert!(!follower.has_changed().unwrap());
}

#[test]
fn a_status_is_written_when_it_changes_and_removed_with_its_object() {
    let ib = ingress_backend("ib", &backend("grpc", ""), FROM_GATEWAY);
    let mut bench = Bench::started(&[HTTPBIN, GATEWAY, &ib]);
    let written = bench.statuses.take();
    assert!(written[0].contains("got: grpc"), "{written:?}");
    let key = ObjectKey { kind: Kind::IngressBackend, name: ObjectName::new("httpbin", "ib") };
    assert_eq!(bench.engine.written[&key].status.current, CurrentStatus::Error);
    bench.apply(changes(&[HTTPBIN, GATEWAY, &ib]));
    assert_eq!(bench.statuses.take(), Vec::<String>::new());
    bench.apply(vec![Change::Delete(key)]);
    assert_eq!(bench.statuses.take(), ["IngressBackend httpbin/ib: removed"]);
}

/// Writes an IngressBackend that opens Service `ns-0/app-0` to a range of its own for each change.
fn write_policy(api: &FakeApi, change: usize) {
    let backend = json!({"name": "app-0", "port": {"number": 8080, "protocol": "http"}});
    let source = json!({"kind": "IPRange", "name": format!("10.{change}.0.0/16")});
    api.apply(
        "policy.openservicemesh.io/v1alpha1/ingressbackends",
        json!({"apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
            "metadata": {"namespace": "ns-0", "name": "app-0"},
            "spec": {"backends": [backend], "sources": [source]}}),
    );
}

/// Writes 20 namespaces of the mesh with 10 Services each, and 10 Pods with a sidecar behind each Service.
fn write_two_thousand_workloads(api: &FakeApi) {
    for i in 0..2000 {
        let (namespace, app, name) =
            (format!("ns-{}", i / 100), format!("app-{}", i / 10), format!("pod-{i}"));
        if i % 100 == 0 {
            let labels = json!({"openservicemesh.io/monitored-by": "osm"});
            api.apply("v1/namespaces", json!({"metadata": {"name": namespace, "labels": labels}}));
        }
        if i % 10 == 0 {
            let spec = json!({"selector": {"app": app}, "ports": [{"port": 80, "targetPort": 8080}]});
            api.apply(
                "v1/services",
                json!({"metadata": {"namespace": namespace, "name": app}, "spec": spec}),
            );
        }
        let labels = json!({"app": app, "tidegate.io/sidecar": "injected"});
        let sidecar = json!({"name": "tidegate-sidecar", "restartPolicy": "Always"});
        let ip = format!("10.0.{}.{}", i / 250, 1 + i % 250);
        api.apply(
            "v1/pods",
            json!({"metadata": {"namespace": namespace, "name": name, "labels": labels},
                "spec": {"containers": [], "initContainers": [sidecar]}, "status": {"podIP": ip}}),
        );
    }
}

/// From the write of a policy at the API server to the compiled policy that streams are woken with, in a mesh of
/// 2,000 workloads; and that the cost is that of the Pods behind it, not of the mesh.
#[tokio::test]
async fn a_policy_change_is_compiled_at_once_in_a_mesh_of_two_thousand_workloads() {
    let api = FakeApi::start().await;
    write_two_thousand_workloads(&api);
    write_policy(&api, 0);
    let mut bench = Bench::new();
    bench.engine.shared.is_workload = is_injected;
    *bench.engine.shared.index.write().unwrap() = Index::for_mesh(Some("osm"));
    let shared = bench.engine.shared.clone();
    let metrics = bench.engine.metrics.clone();
    let mut policy = shared.resources.subscriber("httpbin");
    policy.subscribe(Arc::new(listener(&ObjectName::new("ns-0", "pod-0"))));
    let watches = WatchMetrics::new(&Metrics::new());
    let source = KubernetesSource::new(api.client(), "tidegate-system", watches);
    let (sender, batches) = mpsc::channel(16);
    tokio::spawn(Box::new(source).run(sender));
    tokio::task::spawn_blocking(move || bench.engine.run(batches, watch::channel(Arc::default()).1));
    let mut synced = shared.workloads.synced();
    synced.wait_for(|synced| *synced).await.unwrap();
    let compiled = metrics.compiled.get();
    assert_eq!(compiled, 2000);
    while policy.next_change().is_some() {}
    let mut times = Vec::new();
    for change in 1..=21 {
        let begun = Instant::now();
        write_policy(&api, change);
        while policy.next_change().is_none() {
            tokio::time::timeout(Duration::from_secs(30), policy.changed()).await.unwrap();
        }
        times.push(begun.elapsed());
    }
    times.sort();
    println!("policy written to policy compiled, 2,000 workloads: p50 {:?}, most {:?}", times[10], times[20]);
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
    // The engine goes on with the other Pods when the first one's policy is there.
    let all = async {
        while metrics.compiled.get() - compiled < 21 * 10 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap();
    assert_eq!(metrics.compiled.get() - compiled, 21 * 10, "only the Pods behind the policy are compiled");
}

#[test]
fn a_route_s_status_follows_its_parents_and_is_written_once() {
    let route = |name: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: httpbin}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: httpbin}}], rules: [{{backendRefs: [{{name: httpbin, port: 80}}]}}]}}\n"
        )
    };
    let mut bench = Bench::started(&[&route("a")]);
    let missing = "HTTPRoute httpbin/a: NoMatchingParent: there is no Service httpbin/httpbin";
    assert_eq!(bench.statuses.take(), [missing]);
    bench.apply(changes(&[&route("a")]));
    assert_eq!(bench.statuses.take(), [""; 0], "nothing is new");
    bench.apply(changes(&[HTTPBIN]));
    let [found] = &bench.statuses.take()[..] else { panic!("one status") };
    assert!(!found.contains("NoMatchingParent"), "{found}");
    bench.apply(changes(&[&route("b")]));
    let [other] = &bench.statuses.take()[..] else { panic!("the one of the new route") };
    assert!(other.starts_with("HTTPRoute httpbin/b: "), "{other}");
    let key = ObjectKey { kind: Kind::HTTPRoute, name: ObjectName::new("httpbin", "a") };
    bench.apply(vec![Change::Delete(key)]);
    assert_eq!(bench.statuses.take(), ["HTTPRoute httpbin/a: removed"]);
}

#[test]
fn the_state_of_proxies_is_written_to_the_status_of_their_object_and_compiles_nothing() {
    let proxy = "apiVersion: tidegate.io/v1alpha1\nkind: EgressProxy\nmetadata: {name: squid, namespace: shop}\n\
                 spec: {proxies: [{address: 10.9.9.9, port: 3128}]}";
    let mut bench = Bench::started(&[proxy]);
    let probes = bench.engine.probes().borrow().clone();
    assert_eq!(
        probes.iter().map(|probe| probe.proxy.to_string()).collect::<Vec<_>>(),
        ["http://10.9.9.9:3128"]
    );
    bench.statuses.take();
    let compiled = bench.engine.metrics.compiled.get();
    let defects = vec![ProxyDefect { reason: "Closed", message: "forward proxy x: closed".into() }];
    let health = ProxyHealth::from([(probes[0].object.clone(), ProbedProxies { count: 1, defects })]);
    let health = Arc::new(health);
    bench.engine.take_health(health.clone());
    assert_eq!(bench.statuses.take(), ["EgressProxy shop/squid: successfully committed by the system"]);
    let written: Vec<_> = bench.engine.written.values().map(|written| &written.status.warnings).collect();
    assert_eq!(written, [&["1 of 1 proxies fail: forward proxy x: closed"]]);
    bench.engine.take_health(health);
    assert_eq!(bench.statuses.take(), Vec::<String>::new(), "no news");
    assert_eq!(bench.engine.metrics.compiled.get(), compiled);
}
