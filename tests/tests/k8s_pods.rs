//! Pods in the mesh behave as they do without it: Jobs end, apps start after their sidecar, probes reach the app,
//! rolling restarts lose no request.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::kubernetes::load::PodLoad;
use tidegate_tests::kubernetes::mesh::Mesh;
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::workload::{IMAGE, Workload};
use tidegate_tests::wait;

fn job(name: &str, arguments: &[&str], completions: u32) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completions": completions,
            "parallelism": 4,
            "backoffLimit": 0,
            "template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "app",
                    "image": IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "args": arguments,
                }],
            }},
        },
    })
}

/// Waits for the end of a Job; returns how many of its pods succeeded.
#[track_caller]
fn succeeded(namespace: &Namespace, name: &str) -> u64 {
    namespace.wait_for("the Job ends", &["job", name], |job| {
        let conditions = job["status"]["conditions"].as_array()?;
        let has_ended = conditions
            .iter()
            .any(|c| c["status"] == "True" && (c["type"] == "Complete" || c["type"] == "Failed"));
        has_ended.then(|| job["status"]["succeeded"].as_u64().unwrap_or_default())
    })
}

/// The second of the day in a timestamp of Kubernetes.
fn second_of_day(time: &Value) -> i64 {
    let time = time.as_str().unwrap().split('T').nth(1).unwrap().trim_end_matches('Z');
    time.split(':').fold(0, |seconds, part| 60 * seconds + part.parse::<i64>().unwrap())
}

/// How a container of a Pod ended, once it has.
fn end_of(pod: &Value, container: &str) -> Option<Value> {
    let status = &pod["status"];
    let mut statuses = ["containerStatuses", "initContainerStatuses"]
        .into_iter()
        .filter_map(|field| status[field].as_array())
        .flatten();
    let end = &statuses.find(|status| status["name"] == container)?["state"]["terminated"];
    end["finishedAt"].is_string().then(|| end.clone())
}

/// Seconds from the end of one container to that of another, also across midnight.
fn seconds_between(first: &Value, second: &Value) -> i64 {
    let [first, second] = [first, second].map(|end| second_of_day(&end["finishedAt"]));
    (second - first).rem_euclid(24 * 3600)
}

#[test]
fn jobs_complete_and_an_app_may_dial_a_meshed_service_at_its_first_instruction() {
    Mesh::get();
    let namespace = Namespace::meshed("jobs");
    Workload::http("server").deploy(&namespace);
    let dial = ["get", "http://server/get", "--expect", "200"];
    let mut dials = job("dials", &dial, 20);
    // The user's own init container also runs after the sidecar has started.
    dials["spec"]["template"]["spec"]["initContainers"] =
        json!([{"name": "before", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "args": dial}]);
    namespace.apply(&dials.to_string());
    assert_eq!(succeeded(&namespace, "dials"), 20);
    for pod in namespace.get_json(&["pods", "-l", "job-name=dials"])["items"].as_array().unwrap() {
        assert_eq!(pod["status"]["phase"], "Succeeded", "{:#}", pod["status"]);
        let [app, sidecar] = ["app", "tidegate-sidecar"].map(|name| end_of(pod, name).unwrap());
        assert_eq!(sidecar["exitCode"], 0, "{sidecar}");
        // kubelet signals it within a second or two; waiting for a connection would take 15 or 30.
        let later = seconds_between(&app, &sidecar);
        assert!(later < 10, "the sidecar ended {later} s after the app");
    }
    let events = namespace.get_json(&["events", "--field-selector=reason=Unhealthy"]);
    let of_sidecars = events["items"].as_array().unwrap().iter().filter(|event| {
        let is_of_sidecar = event["involvedObject"]["fieldPath"] == "spec.initContainers{tidegate-sidecar}";
        is_of_sidecar && event["message"].as_str().is_some_and(|message| message.contains("statuscode: 503"))
    });
    assert_eq!(of_sidecars.count(), 0, "a start leaves no event of a probe that came too early: {events:#}");
}

#[test]
fn a_job_whose_app_fails_is_a_failed_job() {
    Mesh::get();
    let namespace = Namespace::meshed("jobs");
    namespace.apply(&job("fails", &["get", "http://nobody.invalid/", "--expect", "200"], 1).to_string());
    assert_eq!(succeeded(&namespace, "fails"), 0);
}

#[test]
fn a_rolling_restart_of_the_backend_under_load_loses_no_request() {
    Mesh::get();
    let namespace = Namespace::meshed("rolling");
    let server = Workload::new("server", &["serve", "--http=8080", "--drain=3"])
        .port("http", 80, 8080)
        .ready_over_http(8080)
        .replicas(2)
        // As everywhere in Kubernetes: a pod gets its termination signal before all others know of it.
        .container("lifecycle", json!({"preStop": {"sleep": {"seconds": 5}}}))
        .pod("terminationGracePeriodSeconds", json!(30));
    server.deploy(&namespace);
    let fresh = PodLoad::start(&namespace, "fresh", "http://server/get", &["--requests-per-connection=1"]);
    let kept = PodLoad::start(&namespace, "kept", "http://server/get", &["--requests-per-connection=10"]);
    // Each request goes to an endpoint of its own, so the client's connections outlive the backends.
    let held = PodLoad::start(&namespace, "held", "http://server/get", &[]);
    let connections = || held.report()["connections"].as_u64().unwrap();
    let before = connections();
    for _ in 0..2 {
        namespace.kubectl(&["rollout", "restart", "deployment/server"]);
        namespace.wait_rolled_out("deployment/server");
        held.wait_for(20);
    }
    assert_eq!(connections(), before);
    for load in [&fresh, &kept, &held] {
        load.wait_for(20);
        load.assert_flawless();
    }
}

#[test]
fn probes_of_every_kind_ask_the_app_and_a_sick_app_is_restarted() {
    Mesh::get();
    let namespace = Namespace::meshed("probes");
    let kinds = [
        ("http", json!({"httpGet": {"path": "/healthz", "port": "http"}})),
        ("https", json!({"httpGet": {"scheme": "HTTPS", "path": "/healthz", "port": 8443}})),
        // kubelet escapes what a request line cannot contain, and does not wait for a day.
        ("odd", json!({"httpGet": {"path": "healthz?x=<a b>`", "port": 8080}, "timeoutSeconds": 100_000})),
        ("tcp", json!({"tcpSocket": {"port": 9000}})),
        ("grpc", json!({"grpc": {"port": 9001}})),
    ];
    for (kind, probe) in &kinds {
        let with = |fields: Value| {
            let mut probe = probe.clone();
            for (name, value) in fields.as_object().unwrap() {
                probe[name] = value.clone();
            }
            probe
        };
        Workload::new(kind, &["serve", "--http=8080", "--https=8443", "--tcp=9000", "--grpc=9001"])
            .port("http", 80, 8080)
            .container("startupProbe", with(json!({"periodSeconds": 1, "failureThreshold": 30})))
            .container("readinessProbe", with(json!({"periodSeconds": 1, "failureThreshold": 1})))
            .container("livenessProbe", with(json!({"periodSeconds": 1, "failureThreshold": 5})))
            .apply(&namespace);
    }
    for (kind, _) in &kinds {
        namespace.wait_rolled_out(&format!("deployment/{kind}"));
    }
    for (kind, _) in kinds {
        if kind == "tcp" {
            // An app that listens is healthy.
            continue;
        }
        namespace.pod(kind).get("http://127.0.0.1:8080/unhealthy").ok();
        wait::until_true(&format!("{kind}: not ready"), Duration::from_secs(30), || {
            namespace.pods(kind).is_empty()
        });
        namespace.wait_for("the app is restarted", &["pods", "-l", &format!("app={kind}")], |pods| {
            let statuses = pods["items"][0]["status"]["containerStatuses"].as_array()?;
            (statuses[0]["restartCount"].as_u64()? > 0 && statuses[0]["ready"] == true).then_some(())
        });
    }
}

#[test]
fn lifecycle_hooks_by_http_reach_the_app_and_fail_only_without_an_answer() {
    Mesh::get();
    let namespace = Namespace::meshed("hooks");
    // Receivers of the hooks' requests: containers that run before the app is started and while it is stopped.
    let told = |name: &str, port: u16| {
        json!({
            "name": name,
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "restartPolicy": "Always",
            "args": ["serve", format!("--http={port}")],
            "startupProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 30},
        })
    };
    let hook = |port: u16| json!({"httpGet": {"path": "/unhealthy", "port": port}});
    let serve = &["serve", "--http=8080"];
    Workload::new("hooked", serve)
        .port("http", 80, 8080)
        .pod("initContainers", json!([told("started", 8081), told("stopped", 8082)]))
        .container("lifecycle", json!({"postStart": hook(8081), "preStop": hook(8082)}))
        .container(
            "livenessProbe",
            json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1, "failureThreshold": 2}),
        )
        .deploy(&namespace);
    Workload::new("mute", serve)
        .port("http", 80, 8080)
        .container("lifecycle", json!({"preStop": hook(8083)}))
        .deploy(&namespace);

    let pod = namespace.pod("hooked");
    let status = |port: u16| pod.get(&format!("http://127.0.0.1:{port}/healthz")).status();
    assert_eq!((status(8081), status(8082)), (500, 200), "started, and not stopped");
    pod.get("http://127.0.0.1:8080/unhealthy").ok();
    namespace.wait_for("the app is restarted", &["pods", "-l", "app=hooked"], |pods| {
        let statuses = pods["items"][0]["status"]["containerStatuses"].as_array()?;
        (statuses[0]["restartCount"].as_u64()? > 0 && statuses[0]["ready"] == true).then_some(())
    });
    assert_eq!(status(8082), 500, "it received the hook of the app's stop");

    namespace.pod("mute").delete();
    let events = namespace.wait_for("kubelet gets no answer", &["events"], |events| {
        let failed =
            events["items"].as_array()?.iter().filter(|event| event["reason"] == "FailedPreStopHook");
        let pods: Vec<_> = failed.map(|event| event["involvedObject"]["name"].clone()).collect();
        (!pods.is_empty()).then_some(pods)
    });
    assert!(events.iter().all(|pod| pod.as_str().unwrap().starts_with("mute-")), "{events:?}");
}

/// A Pod with a `preStop` hook of each kind: one over HTTP in the app, one that runs a command in a second container.
fn leaver() -> Value {
    let container = |name: &str, arguments: &[&str], hook: Value| {
        json!({
            "name": name,
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "args": arguments,
            "lifecycle": {"preStop": hook},
        })
    };
    // It takes two seconds; a sidecar that ended together with the app would be gone by then.
    let command = ["/usr/local/bin/tidegate-test-app", "get", "--expect=200"];
    let urls = ["http://by-exec/delay/2000", "http://by-exec/unhealthy"];
    let telling = [&command[..], &urls[..]].concat();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        // The finalizer keeps its containers' statuses readable after their end.
        "metadata": {"name": "leaver", "labels": {"app": "leaver"}, "finalizers": ["tidegate.test/read"]},
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "containers": [
                container(
                    "app",
                    &["serve", "--http=8080"],
                    json!({"httpGet": {"path": "/tell/by-http", "port": 8080}}),
                ),
                container("second", &["serve"], json!({"exec": {"command": telling}})),
            ],
        },
    })
}

#[test]
fn hooks_before_the_end_of_a_deleted_pod_reach_the_app_and_have_the_mesh_until_they_are_done() {
    Mesh::get();
    let namespace = Namespace::meshed("last-words");
    // The hooks call these servers of the mesh, which admit no other client.
    let told = ["by-http", "by-exec"];
    for name in told {
        Workload::new(name, &["serve", "--http=8080"]).port("http", 80, 8080).deploy(&namespace);
    }
    namespace.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    namespace.apply(&leaver().to_string());
    let leaver = namespace.pod("leaver").json();
    let hook = &leaver["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"];
    assert_eq!(hook["port"], 15904, "kubelet asks the sidecar: {hook}");
    let has_heard = |name: &str| {
        let status = namespace.pod(name).get("http://127.0.0.1:8080/healthz").status();
        assert!([200, 500].contains(&status), "{name}: {status}");
        status == 500
    };
    assert_eq!(told.map(has_heard), [false, false], "no hook has run before");

    namespace.kubectl(&["delete", "pod", "leaver", "--wait=false"]);
    let ends = namespace.wait_for("everything in it has ended", &["pod", "leaver"], |pod| {
        Some([end_of(pod, "app")?, end_of(pod, "second")?, end_of(pod, "tidegate-sidecar")?])
    });
    let free = ["patch", "pod", "leaver", "--type=merge", "-p", "{\"metadata\":{\"finalizers\":null}}"];
    namespace.kubectl(&free);
    assert_eq!(told.map(has_heard), [true, true]);
    for end in &ends {
        assert_eq!(end["exitCode"], 0, "{ends:?}");
    }
    let [app, second, sidecar] = &ends;
    let later = |other: &Value| seconds_between(other, sidecar);
    assert!(later(app) < 3600 && later(second) < 3600, "the sidecar ends last: {ends:?}");
    let events = namespace.get_json(&["events", "--field-selector=reason=FailedPreStopHook"]);
    assert_eq!(events["items"], json!([]));
}
