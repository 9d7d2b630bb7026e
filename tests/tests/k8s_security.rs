//! What strangers, tenants and their objects can do to the control plane of a real cluster, and what they learn from
//! it.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidegate_tests::kubernetes::ROLLOUT;
use tidegate_tests::kubernetes::cluster::CommandFailure;
use tidegate_tests::kubernetes::forward::Admin;
use tidegate_tests::kubernetes::mesh::{CONTROL_PLANE, DAEMONS, Mesh};
use tidegate_tests::kubernetes::namespace::Namespace;
use tidegate_tests::kubernetes::pod::{Pod, PodOutcome};
use tidegate_tests::kubernetes::workload::{IMAGE, Workload};
use tidegate_tests::pki::{Authority, Leaf};
use tidegate_tests::wait;

/// Texts with a meaning to a shell, a template, a parser or a terminal.
const HOSTILE: [&str; 9] = [
    "\"",
    "'; reboot #",
    "a\nb",
    "`reboot`",
    "{{ .Values.x }}",
    "$(reboot)",
    "${jndi:ldap://x}",
    "<!--#exec cmd=\"x\"-->",
    "\u{1b}[2J\u{202e}",
];
/// The API server caches for ten seconds that a token is valid.
const TOKEN_MEMORY: Duration = Duration::from_secs(30);

/// A service of the control plane: its address and the name in its certificate.
#[derive(Clone, Copy)]
enum ControlPlaneService {
    Authority,
    Controller,
    Injector,
    Validator,
}

impl ControlPlaneService {
    fn target(self) -> String {
        let (name, port) = match self {
            Self::Authority => ("tidegate-cert-manager", 15012),
            Self::Controller => ("tidegate-controller", 15128),
            Self::Injector => ("tidegate-injector", 443),
            Self::Validator => ("tidegate-controller", 443),
        };
        format!("{name}.{CONTROL_PLANE}.svc:{port}")
    }

    fn name(self) -> String {
        match self {
            Self::Controller => format!("tidegate-controller.{CONTROL_PLANE}.cluster.local"),
            _ => self.target().split(':').next().unwrap().to_owned(),
        }
    }

    /// The test app's output after a request from this pod. PEM begins with dashes, so it must be in one argument with
    /// its flag.
    #[track_caller]
    fn ask(self, from: &Pod, role: &str, arguments: &[String], input: &str) -> Value {
        let mut words = vec![role.to_owned(), self.target()];
        words.extend([format!("--roots={}", roots()), format!("--expect={}", self.name())]);
        words.extend_from_slice(arguments);
        from.ask_with(&words.iter().map(String::as_str).collect::<Vec<_>>(), input)
    }
}

/// PEM of the mesh's roots, which are public.
fn roots() -> String {
    let what = ["configmap", "tidegate-trust-bundle", "-n", CONTROL_PLANE];
    Mesh::get().cluster().get_json(&what)["data"]["ca.crt"].as_str().unwrap().to_owned()
}

/// Two clients in separate namespaces: one in the mesh, one outside.
struct ClientNamespaces {
    meshed: Namespace,
    plain: Namespace,
}

impl ClientNamespaces {
    fn start() -> Self {
        Mesh::get();
        let clients = Self { meshed: Namespace::meshed("client"), plain: Namespace::new("outside") };
        for namespace in [&clients.meshed, &clients.plain] {
            Workload::client("client").apply(namespace);
        }
        clients
    }

    fn pods(&self) -> [Pod; 2] {
        [&self.meshed, &self.plain].map(|namespace| namespace.pod("client"))
    }
}

/// A token of a pod, by default like the one that kubelet gives to the sidecar.
fn token(namespace: &Namespace, account: &str, pod: &Pod, arguments: &[&str]) -> String {
    let bound = format!("--bound-object-name={}", pod.name());
    let words = ["create", "token", account, "--bound-object-kind=Pod", &bound];
    let arguments = if arguments.is_empty() { &["--audience=tidegate-ca"] } else { arguments };
    namespace.kubectl(&[&words, arguments].concat()).trim().to_owned()
}

fn with_token(token: &str) -> String {
    format!("--token={token}")
}

/// PEM of the chain and the key that the authority issues to a pod.
#[track_caller]
fn credentials(namespace: &Namespace, account: &str, pod: &Pod) -> String {
    let token = token(namespace, account, pod, &[]);
    let given = ControlPlaneService::Authority.ask(pod, "certify", &[with_token(&token)], "");
    let text = |field: &str| given[field].as_str().unwrap_or_else(|| panic!("{given}")).to_owned();
    text("chain") + &text("key")
}

fn policy(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1",
        "kind": "IngressBackend",
        "metadata": {"name": name},
        "spec": spec,
    })
}

fn open_to(range: &str) -> Value {
    json!({
        "backends": [{"name": "server", "port": {"number": 8080, "protocol": "http"}}],
        "sources": [{"kind": "IPRange", "name": range}],
    })
}

/// How often containers of the control plane were restarted.
fn restarts() -> u64 {
    let pods = Mesh::get().cluster().get_json(&["pods", "-n", CONTROL_PLANE]);
    let statuses = |pod: &Value| pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let all = pods["items"].as_array().unwrap().iter().flat_map(statuses);
    all.map(|status| status["restartCount"].as_u64().unwrap_or_default()).sum()
}

#[test]
fn the_controller_refuses_clients_without_a_certificate_of_a_workload() {
    let clients = ClientNamespaces::start();
    let stranger = Authority::root("Stranger").issue(&Leaf::dns("client.default.cluster.local"));
    let stranger = format!("--credentials={}{}", stranger.chain_pem(), stranger.key_pem());
    for pod in clients.pods() {
        let tls = |more: &[String]| {
            let arguments = [&["--alpn=h2".to_owned()], more].concat();
            PodOutcome::of(&ControlPlaneService::Controller.ask(&pod, "tls", &arguments, ""))
        };
        // certificate_required and unknown_ca.
        assert_eq!(tls(&[]), PodOutcome::Refused("alert 116".to_owned()));
        assert_eq!(tls(std::slice::from_ref(&stranger)), PodOutcome::Refused("alert 48".to_owned()));
    }

    // A certificate of the mesh's authority that belongs to no workload, although its name looks like one.
    let name = format!("client.{}.cluster.local", clients.meshed.name());
    Mesh::get().patch_config(&json!({"certificate": {"ingressGateway": {
        "secret": {"name": "security-gateway", "namespace": CONTROL_PLANE},
        "subjectAltNames": [name],
        "validityDuration": "24h",
    }}}));
    let what = ["secret", "security-gateway", "-n", CONTROL_PLANE];
    let gateway = Mesh::get().cluster().wait_for("the gateway's Secret", &what, |secret| {
        let part = |key: &str| {
            String::from_utf8(BASE64_STANDARD.decode(secret["data"][key].as_str()?).unwrap()).ok()
        };
        Some(part("tls.crt")? + &part("tls.key")?)
    });
    let [meshed, _] = clients.pods();
    let workload = format!("--workload={}/{}", clients.meshed.name(), meshed.name());
    let arguments = [workload, format!("--credentials={gateway}")];
    let refused = ControlPlaneService::Controller.ask(&meshed, "discover", &arguments, "");
    assert_eq!(refused["code"], "PermissionDenied", "{refused}");
}

#[test]
fn a_workload_gets_its_own_policy_and_learns_nothing_of_another_namespace() {
    Mesh::get();
    let namespaces = [Namespace::meshed("ours"), Namespace::meshed("theirs")];
    for namespace in &namespaces {
        Workload::http("server").apply(namespace);
        namespace.apply(&policy("open", &open_to("10.0.0.0/8")).to_string());
    }
    let pods = namespaces.each_ref().map(|namespace| namespace.pod("server"));
    let shown = [0, 1]
        .map(|index| format!("--credentials={}", credentials(&namespaces[index], "server", &pods[index])));
    let discover = |who: usize, workload: String| {
        let arguments = [format!("--workload={workload}"), shown[who].clone()];
        ControlPlaneService::Controller.ask(&pods[who], "discover", &arguments, "")
    };
    for (own, other) in [(0, 1), (1, 0)] {
        let [name, theirs] = [own, other].map(|index| namespaces[index].name());
        let [pod, their_pod] = [own, other].map(|index| pods[index].name());
        let given = discover(own, format!("{name}/{pod}"));
        assert_eq!(given["resources"][0]["name"], format!("listener/{name}/{pod}"), "{given}");
        let text = given.to_string();
        let content = given["resources"][0]["content"].as_str().unwrap();
        assert!(content.contains(&format!("namespace: {name:?}, name: \"open\"")), "{text}");
        assert!(!text.contains(theirs), "{text}");

        // The answer reveals neither the policy nor whether the workload exists.
        for workload in [their_pod, "nobody"] {
            let refused = discover(own, format!("{theirs}/{workload}"));
            assert_eq!(refused["code"], "PermissionDenied", "{refused}");
            let client = format!("server.{name}.cluster.local");
            let reason = format!("{client} is not the identity of workload {theirs}/{workload}");
            assert_eq!(refused["error"], reason);
        }

        // The sidecar itself gets the same answer.
        let config = Admin::of(namespaces[own].cluster(), name, pod).get("/config").text();
        let origin = format!(r#""origin":{{"kind":"IngressBackend","name":"open","namespace":"{name}"}}"#);
        assert!(config.contains(&origin) && !config.contains(theirs), "{config}");
    }
}

#[test]
fn the_authority_gives_no_client_a_certificate_for_another_identity() {
    let clients = ClientNamespaces::start();
    let [meshed, plain] = clients.pods();
    for (namespace, pod) in [(&clients.meshed, &meshed), (&clients.plain, &plain)] {
        let certify =
            |arguments: &[String]| ControlPlaneService::Authority.ask(pod, "certify", arguments, "");
        let api_server = with_token(&token(namespace, "client", pod, &["--duration=1h"]));
        let other = with_token(&token(namespace, "client", pod, &["--audience=other"]));
        for arguments in [vec![], vec![with_token("rubbish")], vec![api_server], vec![other]] {
            let refused = certify(&arguments);
            assert_eq!(refused["code"], "Unauthenticated", "{arguments:?}: {refused}");
        }
    }
    let certify =
        |arguments: &[String]| ControlPlaneService::Authority.ask(&meshed, "certify", arguments, "");
    let good = with_token(&token(&clients.meshed, "client", &meshed, &[]));
    let uri = |namespace: &str| format!("--uri=spiffe://cluster.local/ns/{namespace}/sa/client");
    let own = uri(clients.meshed.name());
    for asked in [
        vec![uri("kube-system")],
        vec![own.clone(), uri("kube-system")],
        vec![own.clone(), format!("--dns=tidegate-controller.{CONTROL_PLANE}.svc")],
        vec!["--dns=*".to_owned()],
    ] {
        let refused = certify(&[vec![good.clone()], asked.clone()].concat());
        assert_eq!(refused["code"], "InvalidArgument", "{asked:?}: {refused}");
    }
    assert!(certify(&[good, own])["chain"].is_string());

    // With a certificate it would be admitted wherever mesh peers are.
    let outsider = with_token(&token(&clients.plain, "client", &plain, &[]));
    let certify =
        || ControlPlaneService::Authority.ask(&plain, "certify", std::slice::from_ref(&outsider), "");
    let refused = certify();
    assert_eq!(refused["code"], "PermissionDenied", "{refused}");
    clients.plain.cluster().tidegate([
        "namespace",
        "add",
        clients.plain.name(),
        "--disable-sidecar-injection",
    ]);
    wait::until_true("a namespace that joins gets certificates", ROLLOUT, || certify()["chain"].is_string());
    clients.plain.cluster().tidegate(["namespace", "remove", clients.plain.name()]);
    wait::until_true("one that leaves gets none", ROLLOUT, || certify()["code"] == "PermissionDenied");

    // The account is deleted, the pod is not.
    let token = with_token(&token(&clients.meshed, "client", &meshed, &[]));
    let certify = || ControlPlaneService::Authority.ask(&meshed, "certify", std::slice::from_ref(&token), "");
    assert!(certify()["chain"].is_string());
    clients.meshed.kubectl(&["delete", "serviceaccount", "client"]);
    wait::until_true("the token ends with its account", TOKEN_MEMORY, || {
        certify()["code"] == "Unauthenticated"
    });
}

/// An AdmissionReview as the API server writes it.
fn review(kind: [&str; 3], namespace: &str, object: &Value) -> String {
    let [group, version, kind] = kind;
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "kind": {"group": group, "version": version, "kind": kind},
            "name": object["metadata"]["name"],
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "system:admin", "groups": ["system:masters"]},
            "object": object,
        },
    })
    .to_string()
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "annotations": {}},
        "spec": {"containers": [{
            "name": "app",
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "args": ["serve"],
        }]},
    })
}

#[test]
fn requests_to_a_webhook_change_nothing_and_rubbish_does_not_hurt_it() {
    let clients = ClientNamespaces::start();
    let before = restarts();
    let ghost = review(["", "v1", "Pod"], clients.meshed.name(), &pod("ghost"));
    let shut = policy("ghost", &open_to("10.0.0.0/99"));
    let ours = ["policy.openservicemesh.io", "v1alpha1", "IngressBackend"];
    let shut = review(ours, clients.meshed.name(), &shut);
    let deep = format!("{{\"request\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for from in clients.pods() {
        for (service, path, good) in [
            (ControlPlaneService::Injector, "/mutate", &ghost),
            (ControlPlaneService::Validator, "/validate", &shut),
        ] {
            let post = |path: &str, kind: &str, body: &str| {
                let arguments =
                    ["--method=POST".to_owned(), format!("--path={path}"), format!("--content-type={kind}")];
                service.ask(&from, "tls", &arguments, body)
            };
            let json = "application/json";
            let large = "x".repeat(8 << 20);
            for (path, kind, body, status) in [
                ("/", json, good.as_str(), 404),
                ("/../etc/passwd", json, good, 404),
                (path, "text/plain", good, 415),
                (path, json, "", 400),
                (path, json, "{}", 400),
                (path, json, &deep, 400),
            ] {
                let answer = post(path, kind, body);
                assert_eq!(answer["status"], status, "{path} {kind}: {answer}");
            }
            let get = [format!("--path={path}")];
            assert_eq!(service.ask(&from, "tls", &get, "")["status"], 405);
            // The connection may end before all is sent, and the answer is then lost.
            let refused = post(path, json, &large);
            assert!(refused["status"] == 413 || refused["error"].is_string(), "{refused}");

            let answer = post(path, json, good);
            assert_eq!(answer["status"], 200, "{answer}");
            let response = &answer["body"]["response"];
            match service {
                ControlPlaneService::Injector => assert!(response["patch"].is_string(), "{answer}"),
                _ => assert_eq!(response["allowed"], false, "{answer}"),
            }
        }
    }
    for what in ["pod/ghost", "ingressbackend/ghost"] {
        let absent = clients.meshed.cluster().try_get_json(&["-n", clients.meshed.name(), what]).unwrap_err();
        assert!(absent.stderr.contains("NotFound"), "{absent}");
    }
    assert_eq!(restarts(), before);
}

/// A namespace in which Pods can be created at once.
fn meshed(prefix: &str) -> Namespace {
    Mesh::get();
    let namespace = Namespace::meshed(prefix);
    namespace.wait_for("the account", &["serviceaccount", "default"], |_| Some(()));
    namespace
}

#[test]
fn hostile_text_in_an_annotation_is_refused() {
    let namespace = meshed("hostile");
    let read = [
        "openservicemesh.io/sidecar-injection",
        "openservicemesh.io/metrics",
        "openservicemesh.io/inbound-port-exclusion-list",
        "openservicemesh.io/outbound-port-exclusion-list",
        "openservicemesh.io/outbound-ip-range-exclusion-list",
        "openservicemesh.io/outbound-ip-range-inclusion-list",
        "openservicemesh.io/sidecar-resource-limits-cpu",
        "openservicemesh.io/sidecar-resource-requests-memory",
    ];
    let mut refused = Vec::new();
    for name in read {
        for text in HOSTILE {
            let mut pod = pod(&format!("refused-{}", refused.len()));
            pod["metadata"]["annotations"][name] = text.into();
            refused.push(pod);
        }
    }
    let (made, refusals) = namespace.would_make(&refused);
    assert_eq!(made, Vec::<Value>::new());
    for name in read {
        let named = format!("denied the request: annotation {name} of the pod: ");
        let count = refusals.iter().filter(|line| line.contains(&named)).count();
        assert_eq!(count, HOSTILE.len(), "{name}: {refusals:#?}");
    }
}

#[test]
fn hostile_text_of_an_app_changes_nothing_that_is_injected() {
    let namespace = meshed("hostile");
    let ours = |pod: &Value| {
        let mut ours = pod["spec"]["initContainers"].clone();
        assert_eq!(ours.as_array().map(Vec::len), Some(2), "{pod:#}");
        for container in ours.as_array_mut().unwrap() {
            // Generated for each pod.
            container["volumeMounts"]
                .as_array_mut()
                .unwrap()
                .retain(|mount| mount["mountPath"] != "/var/run/secrets/kubernetes.io/serviceaccount");
        }
        ours
    };
    let mut pods = vec![pod("plain")];
    for (index, text) in HOSTILE.into_iter().enumerate() {
        let mut pod = pod(&format!("inert-{index}"));
        pod["metadata"]["annotations"]["openservicemesh.io/else"] = text.into();
        pod["metadata"]["annotations"]["tidegate.io/else"] = text.into();
        let container = &mut pod["spec"]["containers"][0];
        container["args"] = json!([text]);
        container["env"] = json!([{"name": "TEXT", "value": text}]);
        container["workingDir"] = text.into();
        pods.push(pod);
    }
    let (made, refusals) = namespace.would_make(&pods);
    assert_eq!((made.len(), refusals), (pods.len(), Vec::new()));
    for pod in &made[1..] {
        assert_eq!(ours(pod), ours(&made[0]));
    }
}

#[test]
fn hostile_text_in_a_probe_reaches_the_sidecar_as_data() {
    let namespace = meshed("hostile");
    let probed = |(index, text): (usize, &str)| {
        let mut pod = pod(&format!("probed-{index}"));
        let headers = json!([{"name": "x", "value": text}]);
        pod["spec"]["containers"][0]["readinessProbe"] =
            json!({"httpGet": {"path": format!("/{text}"), "port": 8080, "httpHeaders": headers}});
        pod
    };
    let (made, _) = namespace.would_make(&HOSTILE.into_iter().enumerate().map(probed).collect::<Vec<_>>());
    assert!(!made.is_empty());
    for pod in made {
        let arguments = pod["spec"]["initContainers"][0]["args"].as_array().unwrap();
        let probes =
            arguments.iter().find_map(|argument| argument.as_str()?.strip_prefix("--probes=")).unwrap();
        assert!(!probes.contains('$'), "{probes}");
        let probes: Value = serde_json::from_str(probes).unwrap();
        let text = probes[0]["target"]["http"]["headers"][0][1].as_str().unwrap();
        let path = probes[0]["target"]["http"]["path"].as_str().unwrap();
        assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}");
        // kubelet drops the fragment.
        let asked = text.split('#').next().unwrap();
        assert_eq!(unescaped(path), format!("/{asked}"));
        assert!(HOSTILE.contains(&text), "{text:?}");
    }
}

/// The paths to every member and item of a value, the deepest last.
fn paths(value: &Value) -> Vec<String> {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(i, value)| (i.to_string(), value)).collect(),
        _ => Vec::new(),
    };
    let mut found = Vec::new();
    for (name, child) in children {
        found.push(format!("/{name}"));
        found.extend(paths(child).iter().map(|path| format!("/{name}{path}")));
    }
    found
}

/// Values that are invalid for almost every field.
fn oddities() -> Vec<Value> {
    let nested = (0..40).fold(json!(1), |inner, _| json!([inner]));
    let mut odd = vec![
        Value::Null,
        json!(""),
        json!([]),
        json!({}),
        json!(true),
        json!(-1),
        json!(0),
        json!(u64::MAX),
        json!(1.5),
        json!([null]),
        json!("x".repeat(100_000)),
        json!("*"),
        nested,
    ];
    odd.extend(HOSTILE.map(Value::from));
    odd
}

/// An object for each field and oddity.
fn odd_objects(make: impl Fn(&str, &Value) -> Value, spec: &Value) -> Vec<Value> {
    let mut objects = Vec::new();
    for path in paths(spec) {
        for odd in oddities() {
            let mut spec = spec.clone();
            *spec.pointer_mut(&path).unwrap() = odd;
            objects.push(make(&format!("odd-{}", objects.len()), &spec));
        }
    }
    objects
}

/// Creates what the API server accepts; returns the names of those objects, and the errors for the others.
fn create(namespace: &Namespace, objects: &[Value]) -> (BTreeSet<String>, Vec<String>) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let arguments = ["create", "-n", namespace.name(), "--validate=false", "-o", "name", "-f", "-"];
    let result = namespace.cluster().try_kubectl(arguments, &list);
    let (made, refusals) = match result {
        Ok(made) => (made, String::new()),
        Err(CommandFailure { stdout, stderr, .. }) => (stdout, stderr),
    };
    let made = made.lines().filter_map(|line| line.split_once('/')).map(|(_, name)| name.to_owned());
    (made.collect(), refusals.lines().map(str::to_owned).collect())
}

/// Asserts that the webhook answers for the MeshConfig in force with anything in any of its fields.
fn assert_odd_mesh_configs_are_reviewed(mesh: &Mesh) {
    let config = |name: &str, spec: &Value| {
        json!({
            "apiVersion": "config.openservicemesh.io/v1alpha2",
            "kind": "MeshConfig",
            "metadata": {"name": name, "namespace": CONTROL_PLANE},
            "spec": spec,
        })
    };
    let in_force = mesh.cluster().get_json(&["meshconfig", "osm-mesh-config", "-n", CONTROL_PLANE]);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": odd_objects(config, &in_force["spec"])});
    let arguments = ["create", "--validate=false", "--dry-run=server", "-o", "name", "-f", "-"];
    if let Err(failure) = mesh.cluster().try_kubectl(arguments, &list.to_string()) {
        assert!(!failure.stderr.contains("failed calling webhook"), "{}", failure.stderr);
    }
}

#[test]
fn an_object_with_anything_in_any_field_gets_a_status_and_affects_no_other() {
    let mesh = Mesh::get();
    let before = restarts();
    let spec = json!({
        "backends": [{
            "name": "server",
            "port": {"number": 8080, "protocol": "https"},
            "tls": {"skipClientCertValidation": false, "sniHosts": ["a.example"]},
        }],
        "sources": [
            {"kind": "Service", "name": "nginx", "namespace": "default"},
            {"kind": "AuthenticatedPrincipal", "name": "a.b.cluster.local"},
        ],
        "matches": [{"apiGroup": "a", "kind": "b", "name": "c"}],
    });
    let objects = odd_objects(policy, &spec);
    assert!(objects.len() > 300, "{}", objects.len());
    // Created while the webhook is away, so that the controller gets everything that the schema accepts.
    let late = Namespace::new("odd");
    Workload::http("server").apply(&late);
    let (made, refusals) = create(&late, &objects);
    assert!(!made.is_empty() && !refusals.is_empty(), "{} made, {} not", made.len(), refusals.len());
    late.join();
    late.wait_for("each object has a status", &["ingressbackends"], |list| {
        let items = list["items"].as_array()?;
        let without: Vec<_> =
            items.iter().filter(|item| !item["status"]["currentStatus"].is_string()).collect();
        assert_eq!(items.len(), made.len());
        without.is_empty().then_some(())
    });

    // Listed on a terminal they are text, without control characters.
    let table = mesh.cluster().tidegate(["policy", "list", "--osm-namespace", CONTROL_PLANE]);
    let acting = table.lines().find(|line| line.contains(|c: char| c.is_control() || c == '\u{202e}'));
    assert_eq!(acting, None);
    assert!(table.contains("\\u{1b}[2J"), "{table}");

    // With reviews, each refusal comes from the schema or the webhook, never from a failing webhook.
    let meshed = Namespace::meshed("odd");
    let (_, refusals) = create(&meshed, &objects);
    for line in refusals.iter().filter(|line| line.starts_with("Error")) {
        let is_word = line.contains("is invalid") || line.contains("denied the request: ");
        let is_unreadable = line.contains("BadRequest") || line.contains("unable to decode");
        assert!(is_word || is_unreadable, "{}", line.chars().take(400).collect::<String>());
    }
    assert_odd_mesh_configs_are_reviewed(mesh);

    // Others are still served.
    let good = Namespace::meshed("good");
    Workload::http("server").apply(&good);
    good.apply(&policy("open", &open_to("10.0.0.0/8")).to_string());
    let (state, reason) = good.policy_status("open");
    assert_eq!(state, "committed", "{reason}");
    assert_eq!(restarts(), before);
}

#[test]
fn a_tenant_who_edits_a_running_pod_gains_nothing_by_it() {
    Mesh::get();
    let (shop, outside) = (Namespace::meshed("shop"), Namespace::new("outside"));
    Workload::http("server").deploy(&shop);
    Workload::client("client").deploy(&outside);
    let (server, client) = (shop.pod("server"), outside.pod("client"));
    let url = format!("http://{}:8080/get", server.ip());
    let refused = PodOutcome::Refused("reset".to_owned());
    assert_eq!(client.get(&url), refused);
    let admin = Admin::of(shop.cluster(), shop.name(), server.name());
    let policy = || -> Value {
        serde_json::from_slice::<Value>(&admin.get("/config").body).unwrap()["policy"].clone()
    };
    let before = policy();

    // A pod outside the mesh labels itself as a member.
    outside.kubectl(&["label", "pod", client.name(), "tidegate.io/sidecar=injected"]);
    outside.kubectl(&["annotate", "pod", client.name(), "openservicemesh.io/sidecar-injection=enabled"]);
    // A pod of the mesh adds annotations that would have kept it out.
    for annotation in [
        "openservicemesh.io/sidecar-injection=disabled",
        "openservicemesh.io/inbound-port-exclusion-list=8080",
        "tidegate.io/app-address=127.0.0.1",
    ] {
        shop.kubectl(&["annotate", "pod", server.name(), annotation]);
    }
    shop.kubectl(&["label", "pod", server.name(), "team=other", "tidegate.io/sidecar-"]);
    // Changes are seen in order: once the later object is in the policy, the earlier edits were processed.
    shop.apply(
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "mark"}, "spec": {
            "selector": {"app": "server"}, "ports": [{"port": 99, "targetPort": 8099}],
        }})
        .to_string(),
    );
    wait::until_true("the new Service is in the policy", Duration::from_secs(30), || {
        policy().to_string().contains("8099")
    });
    assert_eq!(client.get(&url), refused);
    assert_eq!(policy()["identity"], before["identity"]);
    let workloads = Mesh::get().cluster().tidegate([
        "proxy",
        "status",
        "-o",
        "json",
        "--osm-namespace",
        CONTROL_PLANE,
        "-n",
        outside.name(),
    ]);
    assert_eq!(workloads.trim(), "[]");
}

#[test]
fn debug_containers_may_not_undo_interception_whatever_the_labels_say() {
    Mesh::get();
    let shop = Namespace::meshed("debug");
    Workload::client("app").deploy(&shop);
    let app = shop.pod("app");
    let debug = |name: &str, context: Value| {
        let mut pod = app.json();
        pod["spec"]["ephemeralContainers"] = json!([{
            "name": name,
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "args": ["serve"],
            "securityContext": context,
        }]);
        let path = format!("/api/v1/namespaces/{}/pods/{}/ephemeralcontainers", shop.name(), app.name());
        shop.cluster().try_kubectl(["replace", "--raw", &path, "-f", "-"], &pod.to_string())
    };
    let undo = [
        (json!({"runAsUser": 1500}), "user 1500 is the sidecar's"),
        (
            json!({"capabilities": {"add": ["NET_ADMIN"]}}),
            "NET_ADMIN could take the pod's traffic out of the mesh",
        ),
        (
            json!({"capabilities": {"add": ["cap_net_admin"]}}),
            "NET_ADMIN could take the pod's traffic out of the mesh",
        ),
        (json!({"privileged": true}), "a privileged container could take the pod's traffic out of the mesh"),
    ];
    let assert_refused = || {
        for (context, reason) in &undo {
            let failure = debug("undo", context.clone()).unwrap_err();
            assert!(failure.stderr.contains("spec.ephemeralContainers[0].securityContext."), "{failure}");
            assert!(failure.stderr.contains(reason), "{failure}");
        }
    };
    assert_refused();
    shop.kubectl(&["label", "pod", app.name(), "tidegate.io/sidecar-"]);
    assert_refused();
    let ptrace = debug("looks", json!({"capabilities": {"add": ["SYS_PTRACE"]}})).unwrap_err();
    assert!(ptrace.stderr.contains("kubectl debug --profile=baseline"), "{ptrace}");
    debug("looks", json!({"capabilities": {"add": ["NET_RAW"]}})).unwrap();

    // The webhook is called for images of our containers, and for no other change.
    let set_image = |container: &str| {
        let image = format!("{container}=evil:1");
        shop.cluster().try_kubectl(["set", "image", "-n", shop.name(), "pod", app.name(), &image], "")
    };
    for container in ["tidegate-sidecar", "tidegate-intercept"] {
        let failure = set_image(container).unwrap_err();
        let expected = format!("a running pod keeps the {container} that it was made with");
        assert!(failure.stderr.contains(&expected), "{failure}");
    }
    shop.kubectl(&["annotate", "pod", app.name(), "example.com/a=b"]);
}

/// Secrets that must not appear anywhere: the key of the root in every encoding, tokens, keys.
fn secrets(mesh: &Mesh) -> Vec<String> {
    let mut found: Vec<String> =
        ["PRIVATE KEY", "LS0tLS1CRUdJTiBQUklWQVRF", "eyJhbGciOi", "Bearer ey"].map(str::to_owned).into();
    let secret = mesh.cluster().get_json(&["secret", "tidegate-ca-bundle", "-n", CONTROL_PLANE]);
    for (name, data) in secret["data"].as_object().unwrap().iter().filter(|(name, _)| name.contains("key")) {
        let pem = String::from_utf8(BASE64_STANDARD.decode(data.as_str().unwrap()).unwrap()).unwrap();
        // A line of its base64.
        found.push(pem.lines().nth(1).unwrap_or_else(|| panic!("{name} is not PEM")).to_owned());
    }
    assert!(found.len() > 4, "the root's Secret holds a key");
    found
}

/// A container of each daemon: its namespace, its Pod and its name.
fn daemons(mesh: &Mesh) -> Vec<(String, String, String)> {
    let one = |daemon: &&str| {
        let label = format!("app.kubernetes.io/name={daemon}");
        let pods = mesh.cluster().get_json(&["pods", "-n", CONTROL_PLANE, "-l", &label]);
        let pod = pods["items"][0]["metadata"]["name"].as_str().unwrap().to_owned();
        (CONTROL_PLANE.to_owned(), pod, (*daemon).to_owned())
    };
    DAEMONS.iter().map(one).collect()
}

#[test]
fn no_log_and_no_page_holds_a_key_or_a_token_even_at_trace_level() {
    let mesh = Mesh::get();
    let shop = Namespace::meshed("trace");
    Workload::http("server").deploy(&shop);
    let server = shop.pod("server");
    let mut daemons = daemons(mesh);
    daemons.push((shop.name().to_owned(), server.name().to_owned(), "tidegate-sidecar".to_owned()));
    let admins: Vec<Admin> =
        daemons.iter().map(|(namespace, pod, _)| Admin::of(mesh.cluster(), namespace, pod)).collect();
    let filters: Vec<String> = admins.iter().map(|admin| admin.get("/log").text()).collect();
    for admin in &admins {
        assert_eq!(admin.put("/log", "trace").status(), 200);
    }

    // Everything that involves keys and tokens: a sidecar that starts and requests its certificate and its policy, a
    // refused CSR, an invalid token, an admission.
    Workload::client("client").deploy(&shop);
    let client = shop.pod("client");
    client.get_until("http://server/get", 200);
    let good = token(&shop, "client", &client, &[]);
    let foreign = "--uri=spiffe://cluster.local/ns/kube-system/sa/x".to_owned();
    let certify =
        |arguments: &[String]| ControlPlaneService::Authority.ask(&client, "certify", arguments, "");
    assert_eq!(certify(&[with_token(&good), foreign])["code"], "InvalidArgument");
    assert_eq!(certify(&[with_token(&format!("{good}x"))])["code"], "Unauthenticated");
    // A token in a field where none belongs.
    let header = format!("authorization: Bearer {good}");
    assert_eq!(client.ask(&["get", "http://server/get", "--header", &header])["status"], 200);

    let secrets = secrets(mesh);
    for ((namespace, pod, container), (admin, filter)) in daemons.iter().zip(admins.iter().zip(&filters)) {
        let mut texts = vec![(
            "its log".to_owned(),
            mesh.cluster().kubectl(["logs", "-n", namespace, pod, "-c", container]),
        )];
        let own: &[&str] = match container.as_str() {
            "tidegate-controller" => &["/policies", "/problems", "/workloads"],
            "tidegate-cert-manager" => &["/rotation"],
            "tidegate-injector" => &[],
            _ => &["/config"],
        };
        for page in ["/", "/live", "/ready", "/metrics", "/log"].iter().chain(own) {
            let answer = admin.get(page);
            assert_eq!(answer.status(), 200, "{container} {page}");
            texts.push(((*page).to_owned(), answer.text()));
        }
        assert_eq!(admin.put("/log", filter.trim()).status(), 200);
        assert!(texts[0].1.contains("log filter changed"), "{container} logs no more: {}", texts[0].1);
        for (place, text) in texts {
            for secret in secrets.iter().chain([&good]) {
                let at = text.find(secret.as_str());
                let around = at.map(|at| text[..at].lines().last().unwrap_or_default());
                assert_eq!(around, None, "{container}: {place} holds {secret:?} after this");
            }
        }
    }
}

/// A URL's path without its percent-encoding.
fn unescaped(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
        bytes.extend(rest.as_bytes());
    }
    String::from_utf8(bytes).unwrap()
}
