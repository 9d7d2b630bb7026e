//! Every case in `testdata/pods` is a Pod with its namespace and MeshConfig; the expected patch is in
//! `testdata/patches` under the same name. `just golden` regenerates the patches.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Namespace;
use serde::Deserialize;
use serde_json::{Value, json};
use tidegate_core::contract::annotations::SIDECAR_INJECTION;
use tidegate_core::contract::labels::INJECTION;
use tidegate_crds::MeshConfigSpec;

use super::*;
use crate::hook_key::HookKey;
use crate::sidecar_proxies::SidecarProxies;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    /// Of the namespace; the default asks for injection.
    #[serde(default)]
    namespace: Option<Value>,
    /// A MeshConfig's spec.
    #[serde(default)]
    mesh_config: Option<MeshConfigSpec>,
    pod: Value,
}

fn settings() -> Settings {
    let settings = Settings::of_mesh("tidegate-system", "cluster.local", "tidegate/sidecar:1.0.0");
    Settings { hook_key: HookKey::known(), ..settings }
}

fn shop(metadata: Value) -> NamespaceView {
    let mut metadata = metadata;
    metadata["name"] = json!("shop");
    serde_json::from_value::<Namespace>(json!({ "metadata": metadata })).unwrap().into()
}

impl Case {
    fn run(&self, pod: &Value) -> Result<Injection, PodRefusal> {
        let json = pod.to_string();
        let pod = PodView::parse(&json).unwrap();
        let namespace = self.namespace.clone().unwrap_or_else(|| json!({"labels": {INJECTION: "enabled"}}));
        let mesh = MeshSettings::parse(self.mesh_config.as_ref())?;
        inject(&pod, &shop(namespace), &settings(), &mesh)
    }
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata")
}

fn cases() -> Vec<(String, Case)> {
    let mut cases: Vec<_> = std::fs::read_dir(testdata().join("pods"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let case = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            (name, case)
        })
        .collect();
    cases.sort_by(|(a, _), (b, _)| a.cmp(b));
    cases
}

fn applied(pod: &Value, patch: &Patch) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, patch).unwrap();
    pod
}

fn meshed(case: &Case, pod: &Value) -> Value {
    match case.run(pod) {
        Ok(Injection::Meshed(patch)) => applied(pod, &patch),
        other => panic!("not injected: {other:?}"),
    }
}

/// A case whose pod has one container more than `spec` says.
fn case(spec: Value) -> Case {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "app", "image": "app"}]);
    }
    Case { namespace: None, mesh_config: None, pod: json!({"metadata": {"name": "app"}, "spec": spec}) }
}

/// The probes in the arguments of an injected Pod's sidecar.
fn probes_flag(pod: &Value) -> String {
    let json = pod.to_string();
    PodView::parse(&json).unwrap().sidecar().and_then(containers::probes_flag).unwrap()
}

fn refusal(spec: Value) -> String {
    let case = case(spec);
    case.run(&case.pod).unwrap_err().to_string()
}

#[test]
fn every_pod_of_the_table_gets_the_patch_in_its_golden_file() {
    let update = std::env::var_os("TIDEGATE_WRITE_GOLDEN").is_some();
    let cases = cases();
    assert!(cases.len() > 15, "the table has {} pods", cases.len());
    for (name, case) in cases {
        let outcome = match case.run(&case.pod) {
            Ok(Injection::Meshed(patch)) => serde_json::to_value(&patch).unwrap(),
            Ok(Injection::Left(reason)) => json!({ "left": format!("{reason:?}") }),
            Err(refusal) => json!({ "refused": refusal.to_string() }),
        };
        let text = format!("{}\n", serde_json::to_string_pretty(&outcome).unwrap());
        let path = testdata().join("patches").join(format!("{name}.json"));
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(golden == text, "{name} became another one; look at it and run `just golden`:\n{text}");
    }
}

#[test]
fn a_second_pass_changes_nothing() {
    for (name, case) in cases() {
        let Ok(Injection::Meshed(patch)) = case.run(&case.pod) else { continue };
        let once = applied(&case.pod, &patch);
        assert_ne!(once, case.pod, "{name}");
        match case.run(&once) {
            Ok(Injection::Meshed(patch)) => assert!(patch.is_empty(), "{name}: {patch}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn what_kubernetes_adds_in_between_changes_nothing_either() {
    let case = case(json!({}));
    let mut once = meshed(&case, &case.pod);
    for container in once["spec"]["initContainers"].as_array_mut().unwrap() {
        container["terminationMessagePath"] = json!("/dev/termination-log");
        container["resources"] = json!({"limits": {"cpu": "1"}});
        container["env"].as_array_mut().unwrap().iter_mut().for_each(|env| {
            env["valueFrom"]["fieldRef"]["apiVersion"] = json!("v1");
        });
        let token = json!({"name": "t", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true});
        match container.get_mut("volumeMounts") {
            Some(mounts) => mounts.as_array_mut().unwrap().push(token),
            None => container["volumeMounts"] = json!([token]),
        }
    }
    once["spec"]["volumes"][0]["configMap"]["defaultMode"] = json!(420);
    once["spec"]["volumes"][1]["projected"]["defaultMode"] = json!(420);
    assert!(matches!(case.run(&once), Ok(Injection::Meshed(patch)) if patch.is_empty()));
}

#[test]
fn changes_of_our_containers_are_undone() {
    let case = case(json!({}));
    let once = meshed(&case, &case.pod);
    let change = |change: &dyn Fn(&mut Value)| {
        let mut pod = once.clone();
        change(&mut pod["spec"]);
        assert_eq!(meshed(&case, &pod), once);
    };
    change(&|spec| spec["initContainers"][0]["image"] = json!("evil"));
    change(&|spec| spec["initContainers"][0]["args"][0] = json!("--workload=shop/other"));
    change(&|spec| spec["initContainers"][0]["command"] = json!(["/bin/sh"]));
    change(&|spec| spec["initContainers"][0]["securityContext"]["privileged"] = json!(true));
    change(&|spec| spec["initContainers"][0]["volumeMounts"][0]["mountPath"] = json!("/usr/local/bin"));
    change(&|spec| {
        let preload = json!({"name": "LD_PRELOAD", "value": "/tmp/evil.so"});
        spec["initContainers"][0]["env"].as_array_mut().unwrap().push(preload);
    });
    change(&|spec| drop(spec["initContainers"].as_array_mut().unwrap().remove(1)));
    change(&|spec| spec["initContainers"].as_array_mut().unwrap().swap(0, 1));
    change(&|spec| spec["volumes"][0]["configMap"]["name"] = json!("my-roots"));
    change(&|spec| drop(spec["volumes"].as_array_mut().unwrap().remove(1)));
}

#[test]
fn a_container_that_another_webhook_adds_after_us_gets_its_probes_rewritten() {
    let probe = |port: u16| json!({"httpGet": {"path": "/healthz", "port": port}});
    let case = case(json!({"containers": [{"name": "app", "image": "a", "livenessProbe": probe(8080)}]}));
    let mut pod = meshed(&case, &case.pod);
    let late = json!({"name": "late", "image": "b", "livenessProbe": probe(9090)});
    pod["spec"]["containers"].as_array_mut().unwrap().push(late);
    pod["spec"]["initContainers"].as_array_mut().unwrap().insert(0, json!({"name": "first", "image": "c"}));
    let twice = meshed(&case, &pod);
    let names: Vec<_> =
        twice["spec"]["initContainers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["tidegate-sidecar", "tidegate-intercept", "first"]);
    assert_eq!(
        twice["spec"]["containers"][1]["livenessProbe"]["httpGet"]["path"],
        "/osm-liveness-probe/late"
    );
    let probes = probes::from_flag(&probes_flag(&twice)).unwrap();
    assert_eq!(probes.len(), 2);
    assert!(matches!(case.run(&twice), Ok(Injection::Meshed(patch)) if patch.is_empty()));
}

#[test]
fn nothing_in_a_probe_is_expanded_by_kubernetes() {
    let headers = json!([{"name": "x", "value": "$(POD_NAME) $$ \"'"}]);
    let probe = json!({"httpGet": {"path": "/$(POD_NAME)", "port": 80, "httpHeaders": headers}});
    let case = case(json!({"containers": [{"name": "app", "image": "a", "readinessProbe": probe}]}));
    let pod = meshed(&case, &case.pod);
    let flag = probes_flag(&pod);
    assert!(!flag.contains('$'), "{flag}");
    let value: Value = serde_json::from_str(&flag).unwrap();
    assert_eq!(value[0]["target"]["http"]["path"], "/$(POD_NAME)");
    assert_eq!(value[0]["target"]["http"]["headers"], json!([["x", "$(POD_NAME) $$ \"'"]]));
}

#[test]
fn who_runs_as_the_sidecar_s_user_is_refused_wherever_it_says_so() {
    let own = json!({"runAsUser": 1500});
    for (spec, field) in [
        (json!({"securityContext": own}), "spec.securityContext.runAsUser"),
        (
            json!({"containers": [{"name": "a"}, {"name": "b", "securityContext": own}]}),
            "spec.containers[1].securityContext.runAsUser",
        ),
        (
            json!({"initContainers": [{"name": "i", "securityContext": own}]}),
            "spec.initContainers[0].securityContext.runAsUser",
        ),
        (
            json!({"ephemeralContainers": [{"name": "d", "securityContext": own}]}),
            "spec.ephemeralContainers[0].securityContext.runAsUser",
        ),
    ] {
        assert_eq!(
            refusal(spec),
            format!(
                "{field}: user 1500 is the sidecar's, whose traffic passes the mesh by; run as another user"
            )
        );
    }
}

#[test]
fn reserved_names_and_ports_are_refused_with_the_field() {
    for name in ["tidegate-sidecar", "tidegate-intercept"] {
        let text = refusal(json!({"containers": [{"name": name}]}));
        assert!(text.starts_with("spec.containers[0].name: ") && text.contains(name), "{text}");
        let text = refusal(json!({"initContainers": [{"name": name, "restartPolicy": "Always"}]}));
        assert!(text.starts_with("spec.initContainers[0].name: "), "{text}");
    }
    for name in ["tidegate-trust", "tidegate-token"] {
        let text = refusal(json!({"volumes": [{"name": "a"}, {"name": name, "hostPath": {"path": "/"}}]}));
        assert!(text.starts_with("spec.volumes[1].name: "), "{text}");
    }
    for port in [15000, 15001, 15003, 15010, 15901, 15902, 15903, 15904] {
        let container = |protocol: Option<&str>| json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": port, "protocol": protocol}]}]});
        assert_eq!(
            refusal(container(None)),
            format!(
                "spec.containers[0].ports[1].containerPort: port {port} is the sidecar's; let the container listen elsewhere"
            )
        );
        let udp = case(container(Some("UDP")));
        meshed(&udp, &udp.pod);
    }
}

#[test]
fn a_probe_that_cannot_be_pointed_at_the_sidecar_refuses_the_pod() {
    let of = |probe: Value| refusal(json!({"containers": [{"name": "app", "readinessProbe": probe}]}));
    assert_eq!(
        of(json!({"httpGet": {"port": "web"}})),
        "container app: readinessProbe.httpGet.port: the container has no port named \"web\""
    );
    assert_eq!(
        of(json!({"tcpSocket": {"port": 15001}})),
        "container app: readinessProbe.tcpSocket.port: 15001 is a port of the sidecar"
    );
    assert_eq!(
        of(json!({"grpc": {"port": 70000}})),
        "container app: readinessProbe.grpc.port: 70000 is not within 1..=65535"
    );
    let text = of(json!({"httpGet": {"port": 15902, "path": "/osm-readiness-probe/app"}}));
    assert!(text.contains("name the app's own port and path"), "{text}");
}

#[test]
fn a_hook_that_cannot_be_pointed_at_the_sidecar_refuses_the_pod() {
    let of = |hook: Value| refusal(json!({"containers": [{"name": "app", "lifecycle": {"preStop": hook}}]}));
    assert_eq!(
        of(json!({"httpGet": {"port": "web"}})),
        "container app: lifecycle.preStop.httpGet.port: the container has no port named \"web\""
    );
    assert_eq!(
        of(json!({"httpGet": {"port": 80, "scheme": "FTP"}})),
        "container app: lifecycle.preStop.httpGet.scheme: expected HTTP or HTTPS, got \"FTP\""
    );
    assert_eq!(
        of(json!({"httpGet": {"port": 15904, "path": "/stop"}})),
        "container app: lifecycle.preStop.httpGet.port: 15904 is a port of the sidecar"
    );
    let text = of(json!({"httpGet": {"port": 15904, "path": "/osm-lifecycle/app/pre-stop/guessed"}}));
    assert!(text.contains("name the app's own port and path"), "{text}");
}

#[test]
fn the_path_of_a_hook_is_known_to_readers_of_the_pod_alone() {
    let hook = json!({"preStop": {"httpGet": {"path": "/stop", "port": 80}}});
    let case = case(json!({"containers": [{"name": "app", "image": "a", "lifecycle": hook}]}));
    let path = |pod: &Value| {
        let path = &pod["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"];
        path.as_str().unwrap().to_owned()
    };
    let mut paths = std::collections::BTreeSet::new();
    for name in ["one", "two"] {
        let mut pod = case.pod.clone();
        pod["metadata"]["name"] = json!(name);
        let once = path(&meshed(&case, &pod));
        assert_eq!(once, path(&meshed(&case, &pod)), "asked again, the patch is the same");
        paths.insert(once);
        let mut settings = settings();
        settings.hook_key = HookKey::of_process();
        let json = pod.to_string();
        let view = PodView::parse(&json).unwrap();
        let namespace = shop(json!({"labels": {INJECTION: "enabled"}}));
        let Ok(Injection::Meshed(patch)) = inject(&view, &namespace, &settings, &MeshSettings::default())
        else {
            panic!("not injected");
        };
        paths.insert(path(&applied(&pod, &patch)));
    }
    assert_eq!(paths.len(), 4, "{paths:?}");
    let is_secret = |path: &String| {
        let word = path.strip_prefix("/osm-lifecycle/app/pre-stop/").unwrap();
        word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    assert!(paths.iter().all(is_secret), "{paths:?}");
}

#[test]
fn our_containers_ask_for_cpu_and_memory_unless_a_limit_says_how_much() {
    let resources = |annotations: Value| {
        let mut case = case(json!({}));
        case.pod["metadata"]["annotations"] = annotations;
        let pod = meshed(&case, &case.pod);
        [0, 1].map(|index| pod["spec"]["initContainers"][index]["resources"].clone())
    };
    let [sidecar, intercept] = resources(json!({}));
    assert_eq!(sidecar, json!({"requests": {"cpu": "5m", "memory": "16Mi"}}));
    assert_eq!(intercept, json!({"requests": {"cpu": "1m", "memory": "8Mi"}}));
    let name = |rest: &str| format!("openservicemesh.io/sidecar-resource-{rest}");
    let [sidecar, intercept] =
        resources(json!({name("requests-cpu"): "2m", name("limits-ephemeral-storage"): "1Mi"}));
    let limits = json!({"ephemeral-storage": "1Mi"});
    assert_eq!(sidecar, json!({"requests": {"cpu": "2m", "memory": "16Mi"}, "limits": limits}));
    assert_eq!(intercept, json!({"requests": {"cpu": "2m", "memory": "8Mi"}, "limits": limits}));
    // A request of ours beyond a limit would refuse the Pod; Kubernetes takes the limit for the request.
    for container in resources(json!({name("limits-cpu"): "3m", name("limits-memory"): "12Mi"})) {
        assert_eq!(container, json!({"limits": {"cpu": "3m", "memory": "12Mi"}}));
    }
}

#[test]
fn resources_that_others_raise_stay_and_those_that_users_set_are_put_back() {
    let mut case = case(json!({}));
    let mut raised = meshed(&case, &case.pod);
    raised["spec"]["initContainers"][0]["resources"] = json!({"requests": {"cpu": "25m", "memory": "20Mi"}});
    assert!(matches!(case.run(&raised), Ok(Injection::Meshed(patch)) if patch.is_empty()));
    case.pod["metadata"]["annotations"] = json!({"openservicemesh.io/sidecar-resource-limits-cpu": "1"});
    let made = meshed(&case, &case.pod);
    let mut changed = made.clone();
    changed["spec"]["initContainers"][0]["resources"]["limits"]["cpu"] = json!("2");
    assert_eq!(meshed(&case, &changed), made);
}

#[test]
fn a_slip_in_an_annotation_refuses_the_pod() {
    let mut case = case(json!({}));
    case.pod["metadata"]["annotations"] =
        json!({"openservicemesh.io/inbound-port-exclusion-list": "80,http"});
    let text = case.run(&case.pod).unwrap_err().to_string();
    assert!(
        text.starts_with("annotation openservicemesh.io/inbound-port-exclusion-list of the pod: "),
        "{text}"
    );
    case.pod["metadata"]["annotations"] = json!({SIDECAR_INJECTION: "enable"});
    assert!(case.run(&case.pod).unwrap_err().to_string().contains("got \"enable\""));
}

#[test]
fn a_pod_takes_far_less_than_its_share_of_ten_milliseconds() {
    let (_, case) = cases().into_iter().find(|(name, _)| name == "many_probes").unwrap();
    let start = std::time::Instant::now();
    for _ in 0..20 {
        meshed(&case, &case.pod);
    }
    let each = start.elapsed() / 20;
    assert!(each < std::time::Duration::from_millis(10), "{each:?} a pod");
}

#[test]
fn a_sidecar_has_the_variables_of_the_way_out_of_the_cluster() {
    let arguments = [
        "--sidecar-https-proxy=http://squid.corp:3128",
        "--sidecar-no-proxy=.svc,$(HOME)",
        "--sidecar-http-proxy=",
        "--sidecar-image=x",
    ];
    let arguments = arguments.map(str::to_owned);
    let settings = Settings { proxies: SidecarProxies::of_arguments(&arguments), ..settings() };
    let pod = case(json!({})).pod.to_string();
    let pod = PodView::parse(&pod).unwrap();
    let namespace = shop(json!({"labels": {INJECTION: "enabled"}}));
    let injected = inject(&pod, &namespace, &settings, &MeshSettings::parse(None).unwrap()).unwrap();
    let Injection::Meshed(patch) = injected else { panic!("not injected") };
    let patch = serde_json::to_string(&patch).unwrap();
    for expected in [
        r#"{"name":"HTTPS_PROXY","value":"http://squid.corp:3128"}"#,
        r#"{"name":"NO_PROXY","value":".svc,$$(HOME)"}"#,
    ] {
        assert!(patch.contains(expected), "{patch}");
    }
    assert!(!patch.contains("HTTP_PROXY\""), "{patch}");
}
