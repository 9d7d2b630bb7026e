//! The commands on a real API server, as users run them: their output, their effects, their exit codes.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidegate_tests::daemon::ours;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::{CommandFailure, run};
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, DAEMONS, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::{Pod, PodOutcome};
use tidegate_tests::kubernetes::workload::Workload;

/// An app's password, in its environment and its arguments.
const PASSWORD: &str = "correct-horse-battery-staple";

/// `tidegate` for the suites' mesh.
fn command(words: &[&str]) -> Command {
    let mut command = Mesh::get().cluster().command(ours("tidegate"));
    command.env("TIDEGATE_NAMESPACE", CONTROL_PLANE).args(words);
    command
}

fn try_tidegate(words: &[&str]) -> Result<String, CommandFailure> {
    run(&mut command(words), "")
}

#[track_caller]
fn tidegate(words: &[&str]) -> String {
    try_tidegate(words).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Its output when something is wrong, which means exit code 1.
#[track_caller]
fn not_well(words: &[&str]) -> CommandFailure {
    let failure = try_tidegate(words).unwrap_err();
    assert_eq!(failure.code, Some(1), "{failure}");
    failure
}

#[track_caller]
fn json_of(words: &[&str]) -> Value {
    parse(&tidegate(&[words, &["-o", "json"]].concat()))
}

#[track_caller]
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The cells of a table's row that begins with this.
#[track_caller]
fn row<'t>(table: &'t str, first: &[&str]) -> Vec<&'t str> {
    let cells = |line: &'t str| line.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    let rows: Vec<Vec<&str>> = table.lines().map(cells).collect();
    rows.into_iter()
        .find(|row| row.starts_with(first))
        .unwrap_or_else(|| panic!("{first:?} is not in:\n{table}"))
}

fn policy(name: &str, backend: Value, sources: &[Value]) -> String {
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "IngressBackend",
        "metadata": {"name": name},
        "spec": {"backends": [backend], "sources": sources},
    })
    .to_string()
}

fn backend(port: u16, protocol: &str) -> Value {
    json!({"name": "server", "port": {"number": port, "protocol": protocol}})
}

fn range(range: &str) -> Value {
    json!({"kind": "IPRange", "name": range})
}

fn finding(report: &Value, id: &str) -> Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("no {id}: {report:#}")).clone()
}

fn assert_check_passes() {
    // Pods of other tests may be starting.
    let report = json_of(&["check", "--wait", "90s"]);
    assert_ne!(report["status"], "failed", "{report:#}");
    for id in [
        "api-reachable",
        "api-version",
        "crds-installed",
        "deployments-ready",
        "control-plane-version",
        "mesh-config",
        "root-certificate",
        "injector-webhook",
        "validating-webhook",
    ] {
        assert_eq!(finding(&report, id)["status"], "ok", "{report:#}");
    }
    let text = tidegate(&["check", "--wait", "90s"]);
    assert!(text.contains("✓ the API server answers"), "{text}");

    let taken = not_well(&["check", "--pre", "-o", "json"]);
    let report = parse(&taken.stdout);
    for id in ["api-reachable", "api-version", "install-permissions"] {
        assert_eq!(finding(&report, id)["status"], "ok", "{report:#}");
    }
    let alone = finding(&report, "no-control-plane");
    assert_eq!(alone["status"], "failed");
    assert!(alone["hint"].as_str().unwrap().contains("tidegate upgrade"), "{alone}");
}

#[test]
fn check_is_content_with_a_fresh_installation_and_names_what_is_wrong() {
    let cluster = Mesh::get().cluster();
    assert_check_passes();

    // A pod created before its namespace joined the mesh, and a policy whose source has no endpoints.
    let shop = Namespace::new("checked");
    Workload::http("server").deploy(&shop);
    shop.join();
    shop.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nobody"}, "spec": {
            "selector": {"app": "nobody"}, "ports": [{"port": 80}],
        }})
        .to_string(),
    );
    let source = json!({"kind": "Service", "name": "nobody", "namespace": shop.name()});
    shop.apply(&policy("open", backend(8080, "http"), &[source]));
    assert_eq!(shop.policy_status("open").0, "error");
    let report = parse(&not_well(&["check", "--proxy", "-o", "json"]).stdout);
    let pod = shop.pod("server");
    for (id, status, message) in [
        ("pods-injected", "warning", format!("{}/{}", shop.name(), pod.name())),
        ("policies-committed", "failed", format!("{}/open: ", shop.name())),
        (
            "sources-have-endpoints",
            "warning",
            format!("Service {}/nobody has no ready endpoints", shop.name()),
        ),
    ] {
        let finding = finding(&report, id);
        assert_eq!(finding["status"], status, "{finding}");
        assert!(finding["message"].as_str().unwrap().contains(&message), "{message}: {finding}");
        assert!(finding["hint"].is_string(), "{finding}");
    }

    let mut nowhere = cluster.command(ours("tidegate"));
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": ""}}],
    });
    std::fs::write(kubeconfig.path(), text.to_string()).unwrap();
    nowhere.arg("check").arg("--kubeconfig").arg(kubeconfig.path());
    let failure = run(&mut nowhere, "").unwrap_err();
    assert_eq!(failure.code, Some(1), "{failure}");
    assert!(format!("{failure}").contains("http://127.0.0.1:1"), "{failure}");
    // An invalid command line.
    assert_eq!(try_tidegate(&["check", "--pre", "--proxy"]).unwrap_err().code, Some(2));
}

#[test]
fn namespaces_are_added_listed_ignored_and_removed() {
    let cluster = Mesh::get().cluster();
    let [a, b] = ["a", "b"].map(|prefix| Namespace::new(&format!("cli-{prefix}")));
    let said = tidegate(&["namespace", "add", a.name()]);
    assert_eq!(said, format!("Namespace [{}] successfully added to mesh [osm]\n", a.name()));
    tidegate(&["ns", "add", b.name(), "--disable-sidecar-injection"]);
    let table = tidegate(&["namespace", "list", "--mesh-name", "osm"]);
    assert_eq!(row(&table, &[a.name()]), [a.name(), "osm", "enabled"]);
    assert_eq!(row(&table, &[b.name()]), [b.name(), "osm", "disabled"]);
    let listed = json_of(&["namespace", "list"]);
    let entry = json!({"namespace": a.name(), "mesh": "osm", "sidecarInjection": "enabled"});
    assert!(listed.as_array().unwrap().contains(&entry), "{listed}");
    let yaml: Value = serde_saphyr::from_str(&tidegate(&["namespace", "list", "-o", "yaml"])).unwrap();
    assert!(yaml.as_array().unwrap().contains(&entry), "{yaml}");

    tidegate(&["namespace", "ignore", b.name()]);
    let failure = not_well(&["namespace", "add", b.name(), "no-such-namespace"]);
    assert!(failure.stderr.contains("openservicemesh.io/ignore-"), "{failure}");
    assert!(failure.stderr.contains("namespace [no-such-namespace] does not exist"), "{failure}");
    for name in ["kube-system", CONTROL_PLANE] {
        assert!(not_well(&["namespace", "add", name]).stderr.contains("Could not add namespace"), "{name}");
    }
    for _ in 0..2 {
        tidegate(&["namespace", "remove", a.name()]);
    }
    let left = json_of(&["namespace", "list"]);
    let names: Vec<_> = left.as_array().unwrap().iter().map(|entry| &entry["namespace"]).collect();
    assert!(!names.iter().any(|name| *name == a.name() || *name == b.name()), "{left}");
    let labels = &cluster.get_json(&["namespace", a.name()])["metadata"]["labels"];
    assert_eq!(labels.as_object().unwrap().keys().collect::<Vec<_>>(), ["kubernetes.io/metadata.name"]);
}

#[test]
fn the_mesh_its_policies_and_their_conflicts_are_listed() {
    Mesh::get();
    let shop = Namespace::meshed("policies");
    Workload::http("server").apply(&shop);
    shop.apply(&policy("one", backend(8080, "http"), &[range("10.0.0.0/8")]));
    shop.policy_status("one");
    let conflicts = ["policy", "check-conflicts", "ingressbackend", "-n", shop.name()];
    assert!(tidegate(&conflicts).contains("No conflicts"));
    shop.apply(&policy("two", backend(8080, "http"), &[range("192.0.2.0/24")]));
    shop.policy_status("two");
    let failure = not_well(&conflicts);
    let named = format!("IngressBackend {0}/one conflicts with {0}/two", shop.name());
    assert!(failure.stdout.contains(&named), "{failure}");
    let listed = parse(&not_well(&[&conflicts[..], &["-o", "json"]].concat()).stdout);
    assert_eq!((&listed[0]["port"], &listed[0]["ingressBackends"]), (&json!(8080), &json!(["one", "two"])));

    let table = tidegate(&["policy", "list"]);
    assert_eq!(row(&table, &[shop.name(), "IngressBackend", "one"])[3], "committed");
    let policies: Value = serde_saphyr::from_str(&tidegate(&["policy", "list", "-o", "yaml"])).unwrap();
    let two = policies.as_array().unwrap().iter().find(|policy| policy["name"] == "two").unwrap();
    assert_eq!((&two["namespace"], &two["currentStatus"]), (&json!(shop.name()), &json!("committed")));
    assert!(two["warnings"][0].as_str().unwrap().contains("one"), "{two}");

    let meshes = json_of(&["mesh", "list"]);
    let mesh = meshes.as_array().unwrap().iter().find(|mesh| mesh["namespace"] == CONTROL_PLANE).unwrap();
    assert_eq!((&mesh["mesh"], &mesh["ready"], &mesh["replicas"]), (&json!("osm"), &json!(1), &json!(1)));
    assert!(mesh["addedNamespaces"].as_array().unwrap().contains(&json!(shop.name())), "{mesh}");
    assert_eq!(row(&tidegate(&["mesh", "list"]), &["osm"])[1], CONTROL_PLANE);
}

#[test]
fn a_sidecar_is_asked_by_the_name_of_its_pod() {
    Mesh::get();
    let (shop, plain) = (Namespace::meshed("asked"), Namespace::new("plain"));
    Workload::http("server").apply(&shop);
    Workload::client("client").apply(&plain);
    let (server, client) = (shop.pod("server"), plain.pod("client"));
    let key = format!("{}/{}", shop.name(), server.name());
    let listed = json_of(&["proxy", "status", &key]);
    let status = &listed[0];
    assert_eq!((&status["connected"], &status["policy"]), (&json!(true), &json!("inForce")), "{listed:#}");
    assert_eq!(status["ackedVersion"], status["version"]);
    let table = tidegate(&["proxy", "status", "-n", shop.name()]);
    assert_eq!(row(&table, &[shop.name()])[1..4], [server.name(), "yes", "in force"]);

    let get = |query: &str| tidegate(&["proxy", "get", query, server.name(), "-n", shop.name()]);
    let config = parse(&get("config"));
    assert_eq!(config["workload"], key);
    assert_eq!(parse(&get("config_dump"))["policy"], parse(&get("policy")));
    let certificates = parse(&get("certs"));
    let name = format!("server.{}.cluster.local", shop.name());
    assert!(certificates["certificate"]["names"].to_string().contains(&name), "{certificates}");
    assert_eq!(certificates["trustBundle"], status["trustedRoots"]);
    let inbound = parse(&get("inbound"));
    assert_eq!(
        (&inbound[0]["redirected"], &inbound[0]["ports"]),
        (&json!(true), &json!([8080])),
        "{inbound}"
    );
    assert!(get("metrics").contains("tidegate_tls_handshakes_total"));
    assert_eq!(get("ready"), "ready\n");
    assert!(!get("log").trim().is_empty());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    tidegate(&["proxy", "get", "config", &key, "-f", file.to_str().unwrap()]);
    assert_eq!(parse(&std::fs::read_to_string(&file).unwrap())["workload"], key);

    let without = not_well(&["proxy", "get", "config", client.name(), "-n", plain.name()]);
    assert!(without.stderr.contains("has no sidecar; `tidegate namespace list`"), "{without}");
    let absent = not_well(&["proxy", "status", "missing", "-n", shop.name()]);
    assert!(absent.stderr.contains("pod missing does not exist in namespace"), "{absent}");
}

/// A pod's certificate and key, and the roots, as PEM.
fn gateway(principal: &str) -> (String, String) {
    let mesh = Mesh::get();
    mesh.patch_config(&json!({"certificate": {"ingressGateway": {
        "secret": {"name": "cli-gateway", "namespace": CONTROL_PLANE},
        "subjectAltNames": [principal],
        "validityDuration": "24h",
    }}}));
    mesh.cluster().wait_for(
        "the gateway's Secret",
        &["secret", "cli-gateway", "-n", CONTROL_PLANE],
        |secret| {
            let part = |key: &str| {
                String::from_utf8(BASE64_STANDARD.decode(secret["data"][key].as_str()?).unwrap()).ok()
            };
            Some((part("tls.crt")? + &part("tls.key")?, part("ca.crt")?))
        },
    )
}

/// Whether `explain` exits with 0, and its answer.
fn explained(words: &[&str]) -> (bool, Value) {
    match try_tidegate(words) {
        Ok(text) => (true, parse(&text)),
        Err(failure) if failure.code == Some(1) && failure.stdout.starts_with('{') => {
            (false, parse(&failure.stdout))
        }
        Err(failure) => panic!("{failure}"),
    }
}

/// Asserts that an explanation (whether the command succeeded, and its JSON) is of this decision, and that a request
/// got the outcome that the decision means.
fn assert_explained(case: &str, (is_fine, answer): &(bool, Value), decision: &str, outcome: PodOutcome) {
    let case = format!("{case}: {answer} {outcome:?}");
    assert_eq!(answer["decision"], decision, "{case}");
    assert_eq!(*is_fine, decision == "allow", "{case}");
    assert!(!answer["reason"].as_str().unwrap().is_empty(), "{case}");
    match outcome {
        PodOutcome::Answer(200, _) => assert_eq!(decision, "allow", "{case}"),
        PodOutcome::Answer(403, _) => {
            assert_eq!(decision, "deny", "{case}");
            assert_eq!(answer["code"], "principal_not_allowed", "{case}");
        }
        outcome => {
            let reset = PodOutcome::Refused("reset".to_owned());
            assert_eq!((outcome, decision), (reset, "deny"), "{case}");
        }
    }
}

#[test]
fn what_explain_says_is_what_a_request_then_gets() {
    Mesh::get();
    let (shop, outside) = (Namespace::meshed("explained"), Namespace::new("outside"));
    Workload::new("server", &["serve", "--http=8080,8081,8082"])
        .port("http", 80, 8080)
        .port("http-tls", 81, 8081)
        .port("http-none", 82, 8082)
        .ready_over_http(8080)
        .apply(&shop);
    Workload::client("peer").apply(&shop);
    for name in ["friend", "stranger"] {
        Workload::client(name).apply(&outside);
    }
    let principal = "ingress.explained.cluster.local";
    let (credentials, roots) = gateway(principal);
    let (friend, stranger, peer) = (outside.pod("friend"), outside.pod("stranger"), shop.pod("peer"));
    let server = shop.pod("server");
    let only = range(&format!("{}/32", friend.ip()));
    shop.apply(&policy("plain", backend(8080, "http"), std::slice::from_ref(&only)));
    let named = json!({"kind": "AuthenticatedPrincipal", "name": principal});
    shop.apply(&policy("mutual", backend(8081, "https"), &[only, named]));
    friend.get_until(&format!("http://{}:8080/get", server.ip()), 200);

    let explain = |from: &Pod, port: u16, more: &[&str]| {
        let (backend, port) = (format!("{}/server", shop.name()), port.to_string());
        explained(
            &[&["explain", &backend, "--port", &port, "--source", from.ip(), "-o", "json"], more].concat(),
        )
    };
    let plain = |from: &Pod, port: u16| from.get(&format!("http://{}:{port}/get", server.ip()));
    let tls = |from: &Pod, credentials: Option<&str>| {
        let name = format!("server.{}.cluster.local", shop.name());
        let credentials = credentials.map(|pem| format!("--credentials={pem}"));
        let roots = format!("--roots={roots}");
        let target = format!("{}:8081", server.ip());
        let mut words = vec!["tls", &target, &roots, "--expect", &name];
        words.extend(credentials.as_deref());
        PodOutcome::of(&from.ask(&words))
    };
    let other = credentials_of(&shop, &peer);
    let mesh_peer = format!("spiffe://cluster.local/ns/{}/sa/peer", shop.name());
    let table: [(&Pod, u16, &[&str], &str, PodOutcome); 8] = [
        (&friend, 8080, &[], "allow", plain(&friend, 8080)),
        (&stranger, 8080, &[], "deny", plain(&stranger, 8080)),
        (&friend, 8082, &[], "deny", plain(&friend, 8082)),
        (&friend, 8081, &["--speaks", "plaintext"], "deny", plain(&friend, 8081)),
        (&friend, 8081, &["--principal", principal], "allow", tls(&friend, Some(&credentials))),
        (&friend, 8081, &["--principal", &mesh_peer], "deny", tls(&friend, Some(&other))),
        (&stranger, 8081, &["--principal", principal], "deny", tls(&stranger, Some(&credentials))),
        (&peer, 8082, &["--speaks", "mesh", "--principal", &mesh_peer], "allow", plain(&peer, 8082)),
    ];
    for (from, port, more, decision, outcome) in table {
        let explanation = explain(from, port, more);
        assert_explained(&format!("{} {port} {more:?}", from.name()), &explanation, decision, outcome);
    }
    let absent = not_well(&["explain", "nobody/nothing", "--source", "10.0.0.1"]);
    assert!(absent.stderr.contains("there is no service nobody/nothing"), "{absent}");
}

/// The certificate that the authority issues to a pod: chain and key, PEM.
fn credentials_of(namespace: &Namespace, pod: &Pod) -> String {
    let bound = format!("--bound-object-name={}", pod.name());
    let words = ["create", "token", "peer", "--audience=tidegate-ca", "--bound-object-kind=Pod", &bound];
    let token = namespace.kubectl(&words);
    let what = ["configmap", "tidegate-trust-bundle", "-n", CONTROL_PLANE];
    let map = namespace.cluster().get_json(&what);
    let roots = format!("--roots={}", map["data"]["ca.crt"].as_str().unwrap());
    let host = format!("tidegate-cert-manager.{CONTROL_PLANE}.svc");
    let (target, token) = (format!("{host}:15012"), format!("--token={}", token.trim()));
    let given = pod.ask(&["certify", &target, &roots, "--expect", &host, &token]);
    given["chain"].as_str().unwrap().to_owned() + given["key"].as_str().unwrap()
}

/// Every file below a folder, with its text.
fn files(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            let text = String::from_utf8(std::fs::read(&path).unwrap()).unwrap();
            found.push((path, text));
        }
    }
    found
}

#[test]
fn a_bug_report_holds_what_helps_and_nothing_secret() {
    let cluster = Mesh::get().cluster();
    let shop = Namespace::meshed("reported");
    shop.kubectl(&["create", "secret", "generic", "login", &format!("--from-literal=password={PASSWORD}")]);
    let header = json!([{"name": "authorization", "value": PASSWORD}]);
    Workload::new("server", &["serve", "--http=8080"])
        .port("http", 80, 8080)
        .container("env", json!([{"name": "PASSWORD", "value": PASSWORD}]))
        .container(
            "readinessProbe",
            json!({"httpGet": {"path": "/healthz", "port": 8080, "httpHeaders": header}, "periodSeconds": 1}),
        )
        .deploy(&shop);
    let server = shop.pod("server");
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("report.tar.gz");
    let said = tidegate(&["bug-report", "-o", archive.to_str().unwrap(), "--namespaces", shop.name()]);
    assert!(said.contains("review them before you share them"), "{said}");
    run(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()), "").unwrap();
    std::fs::remove_file(&archive).unwrap();
    let files = files(folder.path());
    let find = |wanted: &str| {
        files.iter().find(|(path, _)| path.to_str().unwrap().ends_with(wanted)).map(|(_, text)| text)
    };
    assert!(find("check.txt").is_some_and(|text| text.contains("the API server answers")));
    assert!(find("objects/ingressbackends.policy.openservicemesh.io.yaml").is_some());
    assert!(find("/workloads").is_some_and(|text| text.contains(server.name())));
    assert!(find("/rotation").is_some_and(|text| text.contains("issuing_root")));
    assert!(find(&format!("{}/config", server.name())).is_some_and(|text| text.contains("trustBundle")));
    for daemon in DAEMONS {
        assert!(find(&format!("{daemon}.log")).is_some_and(|text| !text.is_empty()), "{daemon}");
    }
    assert!(find("objects/secret-names.yaml").is_some_and(|text| text.contains("tidegate-ca-bundle")));

    let secret = cluster.get_json(&["secret", "tidegate-ca-bundle", "-n", CONTROL_PLANE]);
    let mut secrets = vec!["PRIVATE KEY-----".to_owned(), "eyJhbGciOi".to_owned(), PASSWORD.to_owned()];
    secrets.push(BASE64_STANDARD.encode(PASSWORD));
    secrets.extend(secret["data"].as_object().unwrap().iter().filter(|(name, _)| name.contains("key")).map(
        |(_, data)| {
            let pem = String::from_utf8(BASE64_STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap();
            pem.lines().nth(1).unwrap().to_owned()
        },
    ));
    for (path, text) in &files {
        for secret in &secrets {
            assert!(!text.contains(secret), "{} holds {secret:?}", path.display());
        }
    }
    // An existing file is not overwritten.
    std::fs::write(&archive, "mine").unwrap();
    let failure = not_well(&["bug-report", "-o", archive.to_str().unwrap()]);
    assert!(failure.stderr.contains("already exists"), "{failure}");
}

#[test]
fn what_inject_prints_is_what_the_webhook_makes() {
    Mesh::get();
    let shop = Namespace::meshed("manifests");
    shop.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    let template = Workload::http("server").pod("serviceAccountName", json!("default")).template();
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "server"},
        "spec": {"selector": {"matchLabels": {"app": "server"}}, "template": template},
    });
    let printed =
        run(&mut command(&["inject", "-f", "-", "-n", shop.name()]), &deployment.to_string()).unwrap();
    let injected: Value = serde_saphyr::from_str(&printed).unwrap();
    let pod = |name: &str, template: &Value| {
        let mut metadata = template["metadata"].clone();
        metadata["name"] = name.into();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    };
    let pods = [pod("by-hand", &injected["spec"]["template"]), pod("by-webhook", &template)];
    let (mut made, refusals) = shop.would_make(&pods);
    assert_eq!(refusals, Vec::<String>::new());
    for pod in &mut made {
        assert_eq!(pod["spec"]["initContainers"][0]["name"], "tidegate-sidecar");
        // Names that the API server generates for each pod.
        let own = |name: &Value| name.as_str().is_some_and(|name| name.starts_with("kube-api-access-"));
        pod["spec"]["volumes"].as_array_mut().unwrap().retain(|volume| !own(&volume["name"]));
        for list in ["initContainers", "containers"] {
            for container in pod["spec"][list].as_array_mut().unwrap() {
                container["volumeMounts"].as_array_mut().unwrap().retain(|mount| !own(&mount["name"]));
            }
        }
        pod["metadata"] =
            json!({"labels": pod["metadata"]["labels"], "annotations": pod["metadata"]["annotations"]});
    }
    assert_eq!(made[0], made[1]);

    // Once applied, it runs; an object that already has a sidecar is printed unchanged.
    shop.apply(&printed);
    shop.wait_rolled_out("deployment/server");
    assert_eq!(run(&mut command(&["inject", "-f", "-", "-n", shop.name()]), &printed).unwrap(), printed);
}

#[test]
fn it_is_a_plugin_of_kubectl_and_completes_names_of_the_cluster() {
    let cluster: &Cluster = Mesh::get().cluster();
    let shop = Namespace::meshed("plugin");
    Workload::client("client").apply(&shop);
    let client = shop.pod("client");
    let folder = tempfile::tempdir().unwrap();
    for name in ["kubectl-tidegate", "kubectl_complete-tidegate"] {
        symlink(ours("tidegate"), folder.path().join(name)).unwrap();
    }
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let kubectl = |words: &[&str]| {
        let mut command = cluster.command(cluster.kubectl_program());
        run(command.env("PATH", &path).env("TIDEGATE_NAMESPACE", CONTROL_PLANE).args(words), "")
    };
    assert!(kubectl(&["tidegate", "namespace", "list"]).unwrap().contains(shop.name()));
    let help = kubectl(&["tidegate", "proxy", "--help"]).unwrap();
    assert!(help.contains("Usage: kubectl tidegate proxy"), "{help}");
    let failure = kubectl(&["tidegate", "proxy", "get", "config", "nobody", "-n", shop.name()]).unwrap_err();
    assert_eq!(failure.code, Some(1), "{failure}");

    let completed = |words: &[&str]| {
        let text = kubectl(&[&["__complete", "tidegate"], words].concat()).unwrap();
        text.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(completed(&["namespace", "remove", "plugin-"]).contains(&shop.name().to_owned()));
    assert!(
        completed(&["proxy", "get", "-n", shop.name(), "config", ""]).contains(&client.name().to_owned())
    );
    assert!(completed(&["proxy", "get", "co"]).contains(&"config".to_owned()));

    // As bash completes, by the script that the command prints.
    assert!(tidegate(&["completions", "bash"]).contains("COMPLETE="));
    let mut bash = command(&["--", "tidegate", "namespace", "ignore", "plugin-"]);
    bash.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", "3").env("_CLAP_COMPLETE_COMP_TYPE", "9");
    bash.env("_CLAP_COMPLETE_SPACE", "false").env("_CLAP_IFS", "\n");
    let offered = run(&mut bash, "").unwrap();
    assert!(offered.lines().any(|line| line == shop.name()), "{offered}");
}
