//! The program on a cluster: its requests to the API server, the rights of its role, and its costs.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate_kubernetes::fake_api::{FakeApi, Rights, memory_limit};

const NAMESPACE: &str = "tidegate-system";
const BACKENDS: &str = "policy.openservicemesh.io/v1alpha1/ingressbackends";
const CONFIGS: &str = "config.openservicemesh.io/v1alpha2/meshconfigs";
/// The kinds besides those of Tidegate that have a status, by collection.
const OTHERS: [(&str, &str, &str); 13] = [
    ("access.smi-spec.io/v1alpha3/traffictargets", "access.smi-spec.io/v1alpha3", "TrafficTarget"),
    ("split.smi-spec.io/v1alpha4/trafficsplits", "split.smi-spec.io/v1alpha4", "TrafficSplit"),
    ("specs.smi-spec.io/v1alpha4/httproutegroups", "specs.smi-spec.io/v1alpha4", "HTTPRouteGroup"),
    ("specs.smi-spec.io/v1alpha4/tcproutes", "specs.smi-spec.io/v1alpha4", "TCPRoute"),
    (
        "policy.openservicemesh.io/v1alpha1/upstreamtrafficsettings",
        "policy.openservicemesh.io/v1alpha1",
        "UpstreamTrafficSetting",
    ),
    ("policy.openservicemesh.io/v1alpha1/retries", "policy.openservicemesh.io/v1alpha1", "Retry"),
    ("networking.istio.io/v1/serviceentries", "networking.istio.io/v1", "ServiceEntry"),
    ("tidegate.io/v1alpha1/egressproxies", "tidegate.io/v1alpha1", "EgressProxy"),
    ("policy.openservicemesh.io/v1alpha1/egresses", "policy.openservicemesh.io/v1alpha1", "Egress"),
    ("gateway.networking.k8s.io/v1/httproutes", "gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("gateway.networking.k8s.io/v1/grpcroutes", "gateway.networking.k8s.io/v1", "GRPCRoute"),
    ("gateway.networking.k8s.io/v1/tlsroutes", "gateway.networking.k8s.io/v1", "TLSRoute"),
    ("gateway.networking.k8s.io/v1/tcproutes", "gateway.networking.k8s.io/v1", "TCPRoute"),
];
const LEASES: &str = "coordination.k8s.io/v1/leases";

/// A running controller; killed when dropped.
struct Program {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start(api: &FakeApi, pod: &str) -> Self {
        Self::start_within(api, pod, None)
    }

    /// With an `RLIMIT_DATA` of this many mebibytes, if given.
    fn start_within(api: &FakeApi, pod: &str, limit: Option<u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = parameters.self_signed(&key).unwrap().pem();
        let limit = limit.map_or_else(|| "unlimited".to_owned(), |limit| (limit * 1024).to_string());
        let child = Command::new("sh")
            .args([
                "-c",
                "ulimit -d \"$0\" && exec \"$@\"",
                &limit,
                env!("CARGO_BIN_EXE_tidegate-controller"),
            ])
            .args(["--kubernetes", "--namespace", NAMESPACE, "--pod-name", pod])
            .args(["--listen=127.0.0.1:0", "--admin-address=127.0.0.1:0", "--health-address=127.0.0.1:0"])
            // No CA runs here: policies are compiled and written anyway.
            .args(["--ca-address=https://127.0.0.1:1", "--log-level=error"])
            .arg("--kubeconfig")
            .arg(file("kubeconfig", &api.kubeconfig()))
            .arg("--ca-trust-bundle")
            .arg(file("ca.crt", &root))
            .arg("--token-file")
            .arg(file("token", "token"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, _folder: folder }
    }

    /// Mebibytes of memory that the process holds now.
    fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    }

    /// The CPU time that it has used so far.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Ends it as kubelet does.
    async fn terminate(mut self, api: &FakeApi) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        // The API server runs in this thread and must keep answering until the end.
        api.wait_for(|_| self.child.try_wait().unwrap().is_some_and(|status| status.success())).await;
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn backend(namespace: &str, name: &str) -> Value {
    let backend = json!({"name": name, "port": {"number": 8080, "protocol": "http"}});
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"backends": [backend], "sources": [{"kind": "IPRange", "name": "10.0.0.0/8"}]},
    })
}

/// Namespaces of the mesh with 10 Services each, every Service with 10 Pods and an IngressBackend.
fn populate(api: &FakeApi, pods: usize) {
    for pod in 0..pods {
        let (namespace, app) = (format!("ns-{}", pod / 100), format!("app-{}", pod / 10));
        if pod % 100 == 0 {
            let labels = json!({"openservicemesh.io/monitored-by": "osm"});
            api.apply("v1/namespaces", json!({"metadata": {"name": namespace, "labels": labels}}));
        }
        if pod % 10 == 0 {
            let metadata = json!({"namespace": namespace, "name": app});
            let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
            let spec = json!({"selector": {"app": app}, "clusterIP": ip("10.96", pod), "ports": ports});
            api.apply("v1/services", json!({"metadata": metadata, "spec": spec}));
            api.apply(BACKENDS, backend(&namespace, &app));
        }
        api.apply("v1/pods", injected(&namespace, &app, pod));
    }
}

/// A Pod about as large as real ones.
fn injected(namespace: &str, app: &str, number: usize) -> Value {
    let ip = ip("10.0", number);
    let environment: Vec<_> =
        (0..20).map(|i| json!({"name": format!("E{i}"), "value": "x".repeat(40)})).collect();
    json!({
        "metadata": {"namespace": namespace, "name": pod_name(app, number),
            "labels": {"app": app, "tidegate.io/sidecar": "injected", "pod-template-hash": "6d5f8c7b9"},
            "annotations": {"note": "y".repeat(200)},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:metadata": {"f:labels": {}}}}]},
        "spec": {"serviceAccountName": app,
            "initContainers": [
                {"name": "tidegate-intercept", "image": "sidecar", "args": ["intercept"]},
                {"name": "tidegate-sidecar", "restartPolicy": "Always", "image": "sidecar", "env": environment}],
            "containers": [{"name": "app", "image": "app", "env": environment,
                "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn pod_name(app: &str, number: usize) -> String {
    format!("{app}-6d5f8c7b9-{number:05}")
}

fn ip(prefix: &str, number: usize) -> String {
    format!("{prefix}.{}.{}", number / 250, 1 + number % 250)
}

fn is_committed(api: &FakeApi, namespace: &str, name: &str) -> bool {
    let object = api.get(BACKENDS, namespace, name);
    object.is_some_and(|object| object["status"]["currentStatus"] == "committed")
}

fn has_status(api: &FakeApi, namespace: &str, name: &str) -> bool {
    let object = api.get(BACKENDS, namespace, name);
    object.is_some_and(|object| object["status"]["currentStatus"].is_string())
}

/// A spec of each of [`OTHERS`], in their order.
fn specs_of_others() -> [Value; OTHERS.len()] {
    let account = json!({"kind": "ServiceAccount", "name": "app", "namespace": "ns-0"});
    let service = json!({"group": "", "kind": "Service", "name": "none"});
    let retried = json!({"kind": "Service", "name": "app-0", "namespace": "ns-0"});
    [
        json!({"destination": account, "sources": [account], "rules": [{"kind": "TCPRoute", "name": "other"}]}),
        json!({"service": "none", "backends": []}),
        json!({"matches": [{"name": "all", "methods": ["GET"]}]}),
        json!({"matches": {"ports": [80]}}),
        json!({"host": "app-0.ns-0.svc.cluster.local"}),
        json!({"source": account, "destinations": [retried], "retryPolicy": {"retryOn": "5xx"}}),
        json!({"hosts": ["a.example"]}),
        json!({"proxies": [{"address": "192.0.2.1", "port": 3128}]}),
        json!({"sources": [account], "hosts": ["a.example"], "ports": [{"number": 443, "protocol": "https"}]}),
        json!({"parentRefs": [service]}),
        json!({"parentRefs": [service]}),
        json!({"parentRefs": [service]}),
        json!({"parentRefs": [service]}),
    ]
}

#[tokio::test]
async fn the_program_needs_all_of_its_role_and_no_more_and_hands_its_lease_over() {
    let api = FakeApi::start().await;
    populate(&api, 10);
    let metadata = json!({"namespace": NAMESPACE, "name": "osm-mesh-config"});
    let version = "config.openservicemesh.io/v1alpha2";
    let config = json!({"apiVersion": version, "kind": "MeshConfig", "metadata": metadata, "spec": {}});
    api.apply(CONFIGS, config);
    for ((collection, version, kind), spec) in OTHERS.into_iter().zip(specs_of_others()) {
        let metadata = json!({"namespace": "ns-0", "name": "other"});
        api.apply(
            collection,
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}),
        );
    }
    let first = Program::start(&api, "controller-a");
    api.wait_for(|api| is_committed(api, "ns-0", "app-0")).await;
    for (collection, ..) in OTHERS {
        let has_status =
            |object: Value| object["status"].as_object().is_some_and(|status| !status.is_empty());
        api.wait_for(|api| api.get(collection, "ns-0", "other").is_some_and(has_status)).await;
    }
    let holder = |api: &FakeApi| {
        let lease = api.get(LEASES, NAMESPACE, "tidegate-controller");
        lease.and_then(|lease| lease["spec"]["holderIdentity"].as_str().map(str::to_owned))
    };
    assert_eq!(holder(&api).as_deref(), Some("controller-a"));
    let second = Program::start(&api, "controller-b");
    let watches = |api: &FakeApi| api.requests().iter().filter(|request| request.verb == "watch").count();
    api.wait_for(|api| watches(api) >= 12).await;
    first.terminate(&api).await;
    // The status is lost while no replica leads; the next leader restores it.
    api.apply(BACKENDS, backend("ns-0", "app-0"));
    api.wait_for(|api| holder(api).as_deref() == Some("controller-b")).await;
    api.wait_for(|api| is_committed(api, "ns-0", "app-0")).await;
    second.terminate(&api).await;
    assert_eq!(holder(&api).as_deref(), Some(""));

    let (rights, requests) = (Rights::of_chart("tidegate-controller"), api.requests());
    let beyond = rights.beyond(&requests);
    assert!(beyond.is_empty(), "the role does not grant {beyond:#?}");
    let mut needless = rights.needless(&requests);
    // The webhook's rights are used only if it is enabled.
    needless.retain(|(group, ..)| group != "admissionregistration.k8s.io");
    assert!(needless.is_empty(), "the role grants rights that are never used: {needless:?}");
}

#[tokio::test]
async fn two_thousand_pods_fit_in_little_memory_also_when_all_of_them_are_replaced() {
    let mut figures = Vec::new();
    for (pods, most) in [(200, 60), (2000, 120)] {
        let api = FakeApi::start().await;
        populate(&api, pods);
        let begun = Instant::now();
        let program = Program::start(&api, "controller-a");
        let mut apps = (0..pods)
            .step_by(10)
            .map(|pod| (format!("ns-{}", pod / 100), format!("app-{}", pod / 10)))
            .peekable();
        api.wait_for(|api| {
            while apps.next_if(|(namespace, app)| is_committed(api, namespace, app)).is_some() {}
            apps.peek().is_none()
        })
        .await;
        let (took, memory) = (begun.elapsed(), program.memory());
        figures.push(format!("{pods} pods: {memory} MiB, every status written after {took:.1?}"));
        assert!(memory <= most, "{figures:?}");
        assert!(took < Duration::from_secs(30), "{figures:?}");

        // A tenth of the Pods is replaced, round after round.
        let mut slowest = Duration::ZERO;
        for round in 0..10 {
            for pod in (round..pods).step_by(10) {
                let (namespace, app) = (format!("ns-{}", pod / 100), format!("app-{}", pod / 10));
                api.delete("v1/pods", &namespace, &pod_name(&app, pod));
                api.apply("v1/pods", injected(&namespace, &app, pods + pod));
            }
            // Its status is written after everything before it was processed.
            let last = format!("round-{round}");
            api.apply(BACKENDS, backend("ns-0", &last));
            let begun = Instant::now();
            api.wait_for(|api| has_status(api, "ns-0", &last)).await;
            slowest = slowest.max(begun.elapsed());
        }
        let after = program.memory();
        figures.push(format!("every Pod replaced: {after} MiB, slowest status after {slowest:.1?}"));
        assert!(after <= most && slowest < Duration::from_secs(5), "{figures:?}");
    }
    println!("{}", figures.join("; "));
}

/// The chart's memory limit of a controller, in mebibytes.
fn chart_limit() -> u64 {
    memory_limit("controller") >> 20
}

/// An IngressBackend of namespace `hostile` with this many backends and sources.
fn large(name: &str, backends: usize, sources: usize, backend: impl Fn(usize) -> String) -> Value {
    let backends: Vec<_> = (0..backends)
        .map(|i| json!({"name": backend(i), "port": {"number": 8080, "protocol": "http"}}))
        .collect();
    let source = |i: usize| json!({"kind": "IPRange", "name": format!("10.{}.{}.0/25", i / 256, i % 256)});
    let sources: Vec<_> = (0..sources).map(source).collect();
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
        "metadata": {"namespace": "hostile", "name": name}, "spec": {"backends": backends, "sources": sources},
    })
}

/// Objects as large as one tenant could store, before and since there are bounds.
fn store_as_a_hostile_tenant(api: &FakeApi) {
    let labels = json!({"openservicemesh.io/monitored-by": "osm"});
    api.apply("v1/namespaces", json!({"metadata": {"name": "hostile", "labels": labels}}));
    // Stored before bounds existed.
    api.apply(BACKENDS, large("many", 6_000, 6_000, |i| format!("b{i}")));
    api.apply(BACKENDS, large("long", 1, 3_000, |_| "x".repeat(150_000)));
    // As much as the bounds allow, many times, all about one Service with ten Pods.
    for i in 0..8 {
        api.apply(BACKENDS, large(&format!("bound-{i}"), 10, 1_024, |i| format!("b{i}")));
    }
    for i in 0..10 {
        let spec = json!({"selector": {"app": "hostile"}, "ports": [{"port": 80, "targetPort": 8080}]});
        api.apply(
            "v1/services",
            json!({"metadata": {"namespace": "hostile", "name": format!("b{i}")}, "spec": spec}),
        );
    }
    for i in 0..10 {
        api.apply("v1/pods", injected("hostile", "hostile", 1_000 + i));
    }
    for i in 0..3 {
        let volumes: Vec<_> = (0..30_000).map(|i| json!({"name": format!("v{i}"), "emptyDir": {}})).collect();
        api.apply(
            "v1/pods",
            json!({"metadata": {"namespace": "hostile", "name": format!("pending-{i}")},
                "spec": {"containers": [{"name": "a"}], "volumes": volumes}, "status": {"phase": "Pending"}}),
        );
    }
}

#[tokio::test]
async fn what_one_tenant_stores_neither_kills_the_controller_nor_keeps_it_from_others() {
    let api = FakeApi::start().await;
    populate(&api, 10);
    store_as_a_hostile_tenant(&api);
    let mut program = Program::start_within(&api, "controller-a", Some(chart_limit()));
    api.wait_for(|api| is_committed(api, "ns-0", "app-0")).await;
    let reason = |api: &FakeApi, name: &str| {
        let object = api.get(BACKENDS, "hostile", name)?;
        (object["status"]["currentStatus"] == "error")
            .then(|| object["status"]["reason"].as_str().unwrap_or_default().to_owned())
    };
    let names: Vec<String> =
        (0..8).map(|i| format!("bound-{i}")).chain(["many".into(), "long".into()]).collect();
    let mut waited_for = names.iter().peekable();
    api.wait_for(|api| {
        while waited_for.next_if(|name| has_status(api, "hostile", name)).is_some() {}
        waited_for.peek().is_none()
    })
    .await;
    assert_eq!(reason(&api, "many").unwrap(), "spec.backends: Too many: must have at most 256 items");
    assert_eq!(
        reason(&api, "long").unwrap(),
        "cannot be read: Too long: may not be more than 253 characters"
    );
    let without_room =
        names.iter().filter_map(|name| reason(&api, name)).filter(|r| r.contains("512 KiB")).count();
    assert!((1..8).contains(&without_room), "{without_room} of 8");
    let start = program.processor_time();

    // Another tenant is served, and a change of the large objects costs little.
    api.apply(BACKENDS, large("bound-8", 10, 1_024, |i| format!("b{i}")));
    api.apply(BACKENDS, backend("ns-0", "another"));
    let begun = Instant::now();
    api.wait_for(|api| has_status(api, "ns-0", "another") && has_status(api, "hostile", "bound-8")).await;
    let (took, change) = (begun.elapsed(), program.processor_time() - start);
    let most = program.status("VmHWM:");
    println!(
        "{most} MiB at most; processor: {start:.1?} at start, {change:.1?} for a change, there after {took:.1?}"
    );
    assert!(program.child.try_wait().unwrap().is_none(), "it lives");
    assert!(most < chart_limit() / 2 && change < Duration::from_secs(4), "{most} MiB, {change:?}");
    assert!(start < Duration::from_secs(6), "{start:?}");
}

#[tokio::test]
async fn many_pods_behind_many_rules_of_one_tenant_neither_kill_the_controller_nor_keep_it_from_others() {
    let api = FakeApi::start().await;
    populate(&api, 10);
    let labels = json!({"openservicemesh.io/monitored-by": "osm"});
    api.apply("v1/namespaces", json!({"metadata": {"name": "hostile", "labels": labels}}));
    // Every Service selects every Pod, and every object opens every Service: each Pod gets more rules than the bound,
    // and together they exceed the memory.
    for i in 0..256 {
        let ports = json!([{"name": format!("p{i}"), "port": 80, "targetPort": 1000 + i}]);
        let metadata = json!({"namespace": "hostile", "name": format!("b{i}")});
        api.apply(
            "v1/services",
            json!({"metadata": metadata, "spec": {"selector": {"app": "hostile"}, "ports": ports}}),
        );
    }
    for i in 0..60 {
        let mut object = large(&format!("p{i}"), 256, 1, |i| format!("b{i}"));
        for (port, backend) in object["spec"]["backends"].as_array_mut().unwrap().iter_mut().enumerate() {
            backend["port"]["number"] = (1000 + port).into();
        }
        api.apply(BACKENDS, object);
    }
    for i in 0..1_000 {
        api.apply("v1/pods", injected("hostile", "hostile", 1_000 + i));
    }
    let mut program = Program::start_within(&api, "controller-a", Some(chart_limit()));
    api.wait_for(|api| is_committed(api, "ns-0", "app-0")).await;
    let start = program.processor_time();
    // A change that affects all of it, and another tenant's.
    let metadata = json!({"namespace": "hostile", "name": "b0"});
    let ports = json!([{"name": "p0", "port": 81, "targetPort": 1000}]);
    api.apply(
        "v1/services",
        json!({"metadata": metadata, "spec": {"selector": {"app": "hostile"}, "ports": ports}}),
    );
    api.apply(BACKENDS, backend("ns-0", "another"));
    let begun = Instant::now();
    api.wait_for(|api| has_status(api, "ns-0", "another")).await;
    let (took, change) = (begun.elapsed(), program.processor_time() - start);
    let most = program.status("VmHWM:");
    println!(
        "{most} MiB at most; processor: {start:.1?} at start, {change:.1?} for a change, there after {took:.1?}"
    );
    assert!(program.child.try_wait().unwrap().is_none(), "it lives");
    let most_time = Duration::from_secs(30);
    assert!(
        most < chart_limit() / 2 && start < most_time && change < most_time,
        "{most} MiB, {start:?}, {change:?}"
    );
}
