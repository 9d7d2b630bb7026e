//! Which pods get a sidecar, which are refused, and the result of injection, on a real API server.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::{Value, json};
use tidegate_tests::kubernetes::mesh::Mesh;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::PodOutcome;
use tidegate_tests::kubernetes::workload::{IMAGE, Workload};

const SIDECAR: &str = "tidegate-sidecar";
const INTERCEPT: &str = "tidegate-intercept";
const INJECTION: &str = "openservicemesh.io/sidecar-injection";

/// A container of the test app.
fn app(name: &str, arguments: &[&str]) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": arguments})
}

/// One with a readiness probe at its own port.
fn serving(name: &str, port: u16) -> Value {
    let mut container = app(name, &["serve", &format!("--http={port}")]);
    container["readinessProbe"] = json!({"httpGet": {"path": "/healthz", "port": port}, "periodSeconds": 1});
    container
}

fn with(mut value: Value, fields: Value) -> Value {
    for (name, field) in fields.as_object().unwrap() {
        value[name] = field.clone();
    }
    value
}

/// A pod spec with one container that serves; `fields` are added.
fn spec(fields: Value) -> Value {
    with(json!({"terminationGracePeriodSeconds": 5, "containers": [serving("app", 8080)]}), fields)
}

fn pod(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

fn annotated(name: &str, annotation: &str, value: &str) -> Value {
    let mut pod = pod(name, &spec(json!({})));
    pod["metadata"]["annotations"] = json!({ annotation: value });
    pod
}

/// A controller that creates pods from this template.
fn controller(kind: &str, name: &str, more: Value) -> Value {
    let labels = json!({"app": name});
    let template = json!({"metadata": {"labels": labels}, "spec": spec(json!({}))});
    let spec = with(json!({"selector": {"matchLabels": labels}, "template": template}), more);
    json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Whether the first containers of a pod, as the API server would create it, are both of ours.
fn is_injected(pod: &Value) -> bool {
    let names: Vec<&str> = pod["spec"]["initContainers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| container["name"].as_str())
        .collect();
    let is_injected = names.starts_with(&[SIDECAR, INTERCEPT]);
    assert!(is_injected || !names.iter().any(|name| name.starts_with("tidegate-")), "{names:?}");
    is_injected
}

/// A namespace in which pods can be created at once.
fn meshed(prefix: &str) -> Namespace {
    let namespace = Namespace::meshed(prefix);
    namespace.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    namespace
}

/// Pods with everything that injection must cope with.
fn various_pods() -> Vec<Value> {
    let restricted = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    let own_sidecar = with(serving("own", 8081), json!({"restartPolicy": "Always"}));
    // Init containers run within the mesh, too.
    let first = app("first", &["get", "http://dialled/get", "--until=200", "--within=60"]);
    vec![
        pod("bare", &spec(json!({}))),
        pod("dialled", &spec(json!({}))),
        pod(
            "several",
            &spec(json!({"containers": [serving("a", 8080), serving("b", 8081), serving("c", 8082)]})),
        ),
        pod("init", &spec(json!({"initContainers": [first]}))),
        pod("native", &spec(json!({"initContainers": [own_sidecar, first]}))),
        pod(
            "user",
            &spec(
                json!({"securityContext": {"runAsUser": 4711, "runAsGroup": 4711, "fsGroup": 4712, "runAsNonRoot": true}}),
            ),
        ),
        pod(
            "restricted",
            &spec(json!({
                "securityContext": {"runAsUser": 4711},
                "containers": [with(serving("app", 8080), json!({"securityContext": restricted}))],
            })),
        ),
        pod("without-token", &spec(json!({"automountServiceAccountToken": false}))),
        pod("shared", &spec(json!({"shareProcessNamespace": true, "enableServiceLinks": false}))),
    ]
}

#[test]
fn pods_of_every_kind_become_ready_with_their_sidecar() {
    Mesh::get();
    let namespace = meshed("kinds");
    let pods = various_pods();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "dialled"},
        "spec": {"selector": {"app": "dialled"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    let mut items = vec![service];
    items.extend_from_slice(&pods);
    items.push(controller("Deployment", "deployment", json!({"replicas": 2})));
    items.push(controller("StatefulSet", "stateful", json!({"serviceName": "stateful"})));
    items.push(controller("DaemonSet", "daemon", json!({})));
    namespace.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    for pod in &pods {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let ready = namespace.pod(name).json();
        assert!(is_injected(&ready), "{name}: {:#}", ready["spec"]);
    }
    for (kind, name) in [("deployment", "deployment"), ("statefulset", "stateful"), ("daemonset", "daemon")] {
        namespace.wait_rolled_out(&format!("{kind}/{name}"));
        let pods = namespace.pods(name);
        assert!(!pods.is_empty() && pods.iter().all(|pod| is_injected(&pod.json())), "{kind}");
    }

    // A copy of an injected pod is injected the same way.
    let mut copy = namespace.pod("several").json();
    let containers = copy["spec"]["initContainers"].clone();
    copy["metadata"] = json!({
        "name": "copied", "labels": with(copy["metadata"]["labels"].clone(), json!({"app": "copied"})),
    });
    copy.as_object_mut().unwrap().remove("status");
    copy["spec"].as_object_mut().unwrap().remove("nodeName");
    namespace.apply(&copy.to_string());
    assert_eq!(namespace.pod("copied").json()["spec"]["initContainers"], containers);
}

/// Pods that cannot be in the mesh, each with a part of the refusal.
fn refused_pods() -> Vec<(Value, &'static str)> {
    [pods_with_refused_annotations(), pods_with_refused_specs()].concat()
}

/// Pods whose spec collides with what the injector adds, or cannot be read by it.
fn pods_with_refused_specs() -> Vec<(Value, &'static str)> {
    let own_user = json!({"securityContext": {"runAsUser": 1500}});
    let port = json!({"ports": [{"containerPort": 15001}]});
    let probe = json!({"readinessProbe": {"tcpSocket": {"port": 15901}}});
    let no_path = json!({"livenessProbe": {"httpGet": {"path": "mailto:a", "port": 8080}}});
    vec![
        (pod("user", &spec(own_user.clone())), "spec.securityContext.runAsUser: user 1500 is the sidecar's"),
        (
            pod("app-user", &spec(json!({"containers": [with(serving("app", 8080), own_user.clone())]}))),
            "spec.containers[0].securityContext.runAsUser: user 1500 is the sidecar's",
        ),
        (
            pod("init-user", &spec(json!({"initContainers": [with(app("i", &["serve"]), own_user)]}))),
            "spec.initContainers[0].securityContext.runAsUser: user 1500 is the sidecar's",
        ),
        (
            pod("name", &spec(json!({"containers": [serving(SIDECAR, 8080)]}))),
            "spec.containers[0].name: tidegate-sidecar is the name of a container that the injector adds",
        ),
        (
            pod("init-name", &spec(json!({"initContainers": [app(INTERCEPT, &["serve"])]}))),
            "spec.initContainers[0].name: tidegate-intercept is the name of a container that the injector adds",
        ),
        (
            pod("volume", &spec(json!({"volumes": [{"name": "tidegate-token", "emptyDir": {}}]}))),
            "spec.volumes[0].name: tidegate-token is the name of a volume that the injector adds",
        ),
        (
            pod("port", &spec(json!({"containers": [with(serving("app", 8080), port)]}))),
            "spec.containers[0].ports[0].containerPort: port 15001 is the sidecar's; let the container listen elsewhere",
        ),
        (
            pod("probe", &spec(json!({"containers": [with(app("app", &["serve"]), probe)]}))),
            "container app: readinessProbe.tcpSocket.port: 15901 is a port of the sidecar",
        ),
        (
            pod("path", &spec(json!({"containers": [with(app("app", &["serve"]), no_path)]}))),
            "container app: livenessProbe.httpGet.path: \"mailto:a\" is a URL without a path",
        ),
    ]
}

/// Pods whose annotations cannot be read, or cannot be followed.
fn pods_with_refused_annotations() -> Vec<(Value, &'static str)> {
    let host_network = {
        let mut pod = annotated("host", INJECTION, "enabled");
        pod["spec"]["hostNetwork"] = true.into();
        pod
    };
    let ports = "openservicemesh.io/outbound-port-exclusion-list";
    vec![
        (
            host_network,
            "its hostNetwork is true: the node's network cannot be redirected. Remove one of the two",
        ),
        (
            annotated("word", INJECTION, "maybe"),
            "expected enabled, yes, true, disabled, no or false, got \"maybe\"",
        ),
        (
            annotated("ports", ports, "80;81"),
            "expected ports from 1 to 65535, separated by commas, got \"80;81\"",
        ),
        (
            annotated("ranges", "openservicemesh.io/outbound-ip-range-exclusion-list", "10.0.0.1"),
            "expected ranges in CIDR notation, separated by commas, got \"10.0.0.1\"",
        ),
        (annotated("udp", "tidegate.io/udp", "deny"), "expected allow or refuse, got \"deny\""),
        (
            annotated("resource", "openservicemesh.io/sidecar-resource-limits-gpu", "1"),
            "the name must end in cpu, memory or ephemeral-storage",
        ),
    ]
}

#[test]
fn pods_that_cannot_be_in_the_mesh_are_refused_with_what_to_do() {
    Mesh::get();
    let namespace = meshed("refused");
    let table = refused_pods();
    let pods: Vec<Value> = table.iter().map(|(pod, _)| pod.clone()).collect();
    let (made, refusals) = namespace.would_make(&pods);
    assert_eq!(made, Vec::<Value>::new());
    assert_eq!(refusals.len(), table.len(), "{refusals:#?}");
    for ((pod, reason), refusal) in table.iter().zip(&refusals) {
        // The API server escapes kubectl's quotes.
        let refusal = refusal.replace("\\\"", "\"");
        assert!(
            refusal.contains("denied the request: ") && refusal.contains(reason),
            "{}: {refusal}",
            pod["metadata"]["name"]
        );
    }
    // Unless it asks for a sidecar itself, a pod on its node's network is left alone.
    let (made, _) = namespace.would_make(&[pod("host", &spec(json!({"hostNetwork": true})))]);
    assert!(!is_injected(&made[0]));
}

#[test]
fn a_namespace_that_allows_no_privileges_is_warned_about_and_names_what_it_refuses() {
    let cluster = Mesh::get().cluster();
    let namespace = Namespace::new("restricted");
    let level = "pod-security.kubernetes.io/enforce";
    cluster.kubectl(["label", "namespace", namespace.name(), &format!("{level}=restricted")]);
    namespace.join();
    namespace.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    let refusal = namespace.try_apply(&pod("app", &spec(json!({}))).to_string()).unwrap_err();
    assert!(refusal.stderr.contains("violates PodSecurity"), "{refusal}");
    assert!(refusal.stderr.contains(INTERCEPT) && refusal.stderr.contains("NET_ADMIN"), "{refusal}");
    // As in the command that adds it.
    cluster.kubectl(["label", "namespace", namespace.name(), "--overwrite", &format!("{level}=privileged")]);
    let (made, refusals) = namespace.would_make(&[pod("app", &spec(json!({})))]);
    assert_eq!(refusals, Vec::<String>::new());
    assert!(is_injected(&made[0]));
}

#[test]
fn a_quota_finds_the_requests_that_it_wants_of_every_container() {
    Mesh::get();
    let namespace = meshed("quota");
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "all"},
        "spec": {"hard": {"requests.cpu": "1", "requests.memory": "1Gi"}},
    });
    namespace.apply(&quota.to_string());
    namespace.wait_for("the quota counts", &["resourcequota", "all"], |quota| {
        quota["status"]["hard"].is_object().then_some(())
    });
    let requests = json!({"resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}});
    let (made, refusals) = namespace
        .would_make(&[pod("app", &spec(json!({"containers": [with(serving("app", 8080), requests)]})))]);
    assert_eq!(refusals, Vec::<String>::new());
    assert!(is_injected(&made[0]));
}

#[test]
fn the_pods_word_counts_before_its_namespaces_in_every_combination() {
    let cluster = Mesh::get().cluster();
    let (monitored, enabled) = ("openservicemesh.io/monitored-by=osm", "tidegate.io/injection=enabled");
    // Labels and annotation of the namespace; whether a pod gets a sidecar if its own annotation is absent, yes, or no.
    let table: [(&[&str], Option<&str>, [bool; 3]); 11] = [
        (&[], None, [false, false, false]),
        (&[], Some("enabled"), [false, false, false]),
        (&[monitored], None, [false, true, false]),
        (&[monitored], Some("enabled"), [true, true, false]),
        (&[monitored], Some("disabled"), [false, true, false]),
        (&[enabled], None, [true, true, false]),
        (&[enabled], Some("disabled"), [false, true, false]),
        (&[monitored, enabled], None, [true, true, false]),
        (&[monitored, "openservicemesh.io/ignore=true"], Some("enabled"), [false, false, false]),
        (&["openservicemesh.io/monitored-by=other"], Some("enabled"), [false, false, false]),
        (&["openservicemesh.io/monitored-by=other", enabled], Some("enabled"), [false, false, false]),
    ];
    let words = [None, Some("yes"), Some("no")];
    for (labels, annotation, expected) in table {
        let namespace = Namespace::new("word");
        for label in labels {
            cluster.kubectl(["label", "namespace", namespace.name(), label]);
        }
        if let Some(word) = annotation {
            cluster.kubectl(["annotate", "namespace", namespace.name(), &format!("{INJECTION}={word}")]);
        }
        namespace.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
        let pods = words.map(|word| match word {
            Some(word) => annotated(word, INJECTION, word),
            None => pod("silent", &spec(json!({}))),
        });
        // For a moment the API server sees the namespace's old labels.
        let found = tidegate_tests::wait::until("three answers", std::time::Duration::from_secs(30), || {
            let (made, refusals) = namespace.would_make(&pods);
            assert_eq!(refusals, Vec::<String>::new(), "{labels:?} {annotation:?}");
            let found: Vec<bool> = made.iter().map(is_injected).collect();
            (found == expected).then_some(found)
        });
        assert_eq!(found, expected, "{labels:?} {annotation:?}");
    }
}

#[test]
fn excluded_ports_and_ranges_go_around_the_sidecar() {
    Mesh::get();
    let (meshed, plain) = (Namespace::meshed("excluded"), Namespace::new("outside"));
    let ports = "--http=8080,8081";
    let server = |name: &str| {
        Workload::new(name, &["serve", ports])
            .port("http", 80, 8080)
            .port("http-two", 81, 8081)
            .ready_over_http(8080)
    };
    let annotation = |name: &str| format!("openservicemesh.io/{name}-list");
    server("server").apply(&meshed);
    server("open").annotation(&annotation("inbound-port-exclusion"), "8081, 9999").apply(&meshed);
    server("server").apply(&plain);
    Workload::client("client").apply(&plain);
    Workload::client("within").apply(&meshed);
    Workload::client("port").annotation(&annotation("outbound-port-exclusion"), "25,81").apply(&meshed);
    let service = |name: &str| {
        meshed.wait_for("its address", &["service", name], |service| {
            service["spec"]["clusterIP"].as_str().map(str::to_owned)
        })
    };
    let around = format!("{}/32", service("server"));
    Workload::client("range").annotation(&annotation("outbound-ip-range-exclusion"), &around).apply(&meshed);
    let only = format!("{}/32,2001:db8::/32", service("server"));
    Workload::client("only").annotation(&annotation("outbound-ip-range-inclusion"), &only).apply(&meshed);

    let refused = PodOutcome::Refused("reset".to_owned());
    // Inbound: clients outside the mesh are admitted only where the sidecar is bypassed.
    let client = plain.pod("client");
    let open = meshed.pod("open");
    client.get_until(&format!("http://{}:8081/get", open.ip()), 200);
    assert_eq!(client.get(&format!("http://{}:8080/get", open.ip())), refused);

    // Outbound: a server of the mesh admits only connections from a sidecar.
    let (server, other) = ("http://server:80/get", "http://server:81/get");
    meshed.pod("within").get_until(server, 200);
    meshed.pod("within").get_until(other, 200);
    let port = meshed.pod("port");
    port.get_until(server, 200);
    assert_eq!(port.get(other), refused);
    let elsewhere = format!("http://{}:8080/get", meshed.pod("server").ip());
    let range = meshed.pod("range");
    range.get_until(&elsewhere, 200);
    assert_eq!(range.get(server), refused);
    let only = meshed.pod("only");
    only.get_until(server, 200);
    assert_eq!(only.get(&elsewhere), refused);
    // All of them reach what is outside the mesh.
    for pod in [&port, &range, &only] {
        pod.get_until(&format!("http://server.{}/get", plain.name()), 200);
    }
}

#[test]
fn udp_passes_by_the_mesh_unless_namespace_or_pod_refuse_it() {
    let cluster = Mesh::get().cluster();
    let (refusing, plain) = (Namespace::meshed("udp"), Namespace::new("outside"));
    cluster.kubectl(["annotate", "namespace", refusing.name(), "tidegate.io/udp=refuse"]);
    // For a moment the API server sees the namespace's old labels.
    refusing.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    tidegate_tests::wait::until_true("the annotation counts", std::time::Duration::from_secs(30), || {
        let (made, _) = refusing.would_make(&[pod("app", &spec(json!({})))]);
        made[0]["spec"]["initContainers"][1]["args"].as_array().unwrap().contains(&"--udp=refuse".into())
    });
    Workload::new("server", &["serve", "--udp=9000"]).deploy(&plain);
    Workload::client("silent").apply(&refusing);
    Workload::client("allowed").annotation("tidegate.io/udp", "allow").apply(&refusing);
    let target = format!("{}:9000", plain.pod("server").ip());
    assert_eq!(refusing.pod("allowed").udp(&target, "hello"), Ok("hello".to_owned()));
    assert_eq!(refusing.pod("silent").udp(&target, "hello"), Err("refused".to_owned()));
    // Names are resolved nevertheless.
    Workload::http("found").deploy(&refusing);
    refusing.pod("silent").get_until("http://found/get", 200);
}
