use clap::Parser;
use serde_json::{Value, json};

use super::*;
use crate::cluster::testing::TestCluster;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    options: InjectOptions,
}

fn options(words: &[&str]) -> InjectOptions {
    Line::parse_from(["inject", "-f", "-"].iter().chain(words)).options
}

fn injector(arguments: &[&str]) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "tidegate-injector", "namespace": "tidegate-system"},
        "spec": {"selector": {}, "template": {"spec": {"containers": [
            {"name": "tidegate-injector", "image": "x", "args": arguments},
        ]}}},
    })
}

#[test]
fn offline_the_defaults_hold() {
    let settings = options(&["--offline"]).settings(InjectorFlags::default());
    assert_eq!(settings.image, IMAGE);
    assert_eq!(settings.discovery_server_name, "tidegate-controller.tidegate-system.cluster.local");
    let settings = options(&["--offline", "--osm-namespace", "mesh", "--mesh-name", "m"])
        .settings(InjectorFlags::default());
    assert_eq!(settings.ca_address, "https://tidegate-cert-manager.mesh.svc:15012");
    assert_eq!(settings.mesh_name, "m");
}

#[tokio::test]
async fn the_injectors_own_flags_count_and_the_command_lines_before_them() {
    let arguments =
        ["--sidecar-image=registry/sidecar:7", "--sidecar-image-pull-policy=Never", "--trust-domain=td"];
    let config = json!({
        "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "tidegate-system"},
        "spec": {"sidecar": {"enablePrivilegedInitContainer": true}},
    });
    let fake = TestCluster::start(vec![injector(&arguments), config]).await;
    let (flags, mesh) = from_cluster(&fake.cluster()).await.unwrap();
    assert!(mesh.privileged_interception);
    let settings = options(&["--sidecar-image", "mine:1"]).settings(flags);
    assert_eq!((settings.image.as_str(), settings.image_pull_policy.as_str()), ("mine:1", "Never"));
    assert_eq!(settings.discovery_server_name, "tidegate-controller.tidegate-system.td");
}

#[tokio::test]
async fn without_an_injector_the_way_out_is_shown() {
    let fake = TestCluster::start(Vec::new()).await;
    let error = from_cluster(&fake.cluster()).await.unwrap_err();
    let expected =
        "Deployment tidegate-system/tidegate-injector does not exist; --offline works without a cluster";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn the_cluster_s_namespaces_decide_and_the_one_of_objects_that_name_none_can_be_said() {
    let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    let shop = namespace("shop", json!({"tidegate.io/injection": "enabled"}));
    let fake = TestCluster::start(vec![shop, namespace("default", json!({}))]).await;
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a}]}}";
    for (words, gets_one) in [(&["-n", "shop"][..], true), (&[], false)] {
        let options = options(words);
        let namespaces = options.namespaces(&fake.cluster()).await.unwrap();
        let settings = options.settings(InjectorFlags::default());
        let injected =
            inject_manifests(pod, &settings, &MeshSettings::parse(None).unwrap(), &namespaces).unwrap();
        assert_eq!(injected.yaml.contains("tidegate-sidecar"), gets_one, "{:?}", injected.notes);
        assert_eq!(injected.notes.is_empty(), gets_one);
    }
}

/// The sidecar's flags for limits.
fn limit_command() -> clap::Command {
    tidegate_sidecar::options::LimitOptions::augment_args(clap::Command::new("limits"))
}

fn is_taken(flag: &str, value: &str) -> bool {
    limit_command().try_get_matches_from(["limits", &format!("--{flag}={value}")]).is_ok()
}

/// Each flag with its values, as the injector reads them.
fn limit_flags() -> String {
    let command = limit_command();
    let mut lines = String::new();
    for argument in command.get_arguments() {
        let flag = argument.get_long().unwrap();
        let kind = argument.get_value_names().unwrap()[0].as_str();
        let values = match kind {
            "DURATION" if is_taken(flag, "0s") => "0s".to_owned(),
            "DURATION" => "1ns".to_owned(),
            "BYTES" | "COUNT" => {
                let from = (0..=4096).find(|number: &u64| is_taken(flag, &number.to_string())).unwrap();
                let (mut to, mut beyond) = (from, u64::MAX);
                if is_taken(flag, &beyond.to_string()) {
                    to = beyond;
                }
                while to < beyond && beyond - to > 1 {
                    let between = to + (beyond - to) / 2;
                    let side = if is_taken(flag, &between.to_string()) { &mut to } else { &mut beyond };
                    *side = between;
                }
                format!("{from} {to}")
            }
            other => panic!("--{flag}: injector/src/limits.rs does not know values of kind {other}"),
        };
        lines += &format!("{flag} {kind} {values}\n");
    }
    lines
}

#[test]
fn every_limit_of_the_sidecar_is_in_the_injector_s_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../injector/src/limits/flags.txt");
    let flags = limit_flags();
    if std::env::var_os("TIDEGATE_WRITE_GOLDEN").is_some() {
        fs::write(path, &flags).unwrap();
    }
    let golden = fs::read_to_string(path).unwrap();
    assert!(golden == flags, "the sidecar's limits have changed; run `just golden`:\n{flags}");
}

#[test]
fn a_limit_by_annotation_is_taken_if_the_sidecar_s_flag_takes_it() {
    let values =
        ["", "0", "1", "65536", "4294967296", "-1", "1.5", "x", "0s", "5m", "1h 30m", "10", "$(A)", "1s 1"];
    let command = limit_command();
    for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
        for value in values {
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "a", "annotations": {"tidegate.io/sidecar-limits": format!("{flag}={value}")}},
                "spec": {"containers": [{"name": "a"}]},
            });
            let settings = options(&[]).settings(InjectorFlags::default());
            let (mesh, namespaces) = (MeshSettings::parse(None).unwrap(), ManifestNamespaces::default());
            let injected = inject_manifests(&pod.to_string(), &settings, &mesh, &namespaces);
            match injected {
                Ok(injected) => {
                    assert!(is_taken(flag, value), "{flag}={value}");
                    assert!(injected.yaml.contains(&format!("--{flag}={value}")), "{}", injected.yaml);
                }
                Err(error) => {
                    assert!(!is_taken(flag, value), "{flag}={value}: {error}");
                    let error = format!("{:#}", anyhow::Error::from(error));
                    assert!(error.contains(&format!("{flag}: expected ")), "{error}");
                }
            }
        }
    }
}

/// A pod with probes of every kind, and the sidecar's resulting arguments.
fn sidecar_arguments(path: &str, header: &str, seconds: i32, service: &str) -> Result<Vec<String>, String> {
    let probe = |action: Value| {
        let mut probe = action;
        probe["timeoutSeconds"] = seconds.into();
        probe
    };
    let get = json!({"path": path, "port": 8080, "httpHeaders": [{"name": "X-A", "value": header}]});
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "app"},
        "spec": {"containers": [
            {
                "name": "app",
                "image": "app",
                "livenessProbe": probe(json!({"httpGet": get})),
                "readinessProbe": probe(json!({"grpc": {"port": 9000, "service": service}})),
                "startupProbe": probe(json!({"tcpSocket": {"port": "80"}})),
                "lifecycle": {"preStop": {"httpGet": get}},
            },
        ]},
    });
    let settings = options(&[]).settings(InjectorFlags::default());
    // As YAML, where some characters must be escaped.
    let escaped = |c: char| match c {
        ' '..='~' => c.to_string(),
        other => format!("\\U{:08x}", u32::from(other)),
    };
    let yaml: String = pod.to_string().chars().map(escaped).collect();
    let namespaces = ManifestNamespaces::default();
    let injected = inject_manifests(&yaml, &settings, &MeshSettings::parse(None).unwrap(), &namespaces);
    let pod: Value = serde_saphyr::from_str(&injected.map_err(|error| error.to_string())?.yaml).unwrap();
    let arguments = pod["spec"]["initContainers"][0]["args"].as_array().unwrap();
    Ok(arguments.iter().map(|argument| argument.as_str().unwrap().to_owned()).collect())
}

#[track_caller]
fn assert_starts(path: &str, header: &str, seconds: i32, service: &str) {
    let arguments = sidecar_arguments(path, header, seconds, service).unwrap();
    let started = ["tidegate-sidecar".to_owned()].into_iter().chain(arguments.iter().cloned());
    let options = tidegate_sidecar::options::Options::try_parse_from(started);
    let options = options.unwrap_or_else(|error| panic!("{path:?} {header:?} {seconds}: {error}"));
    assert_eq!(options.pod.probes.0.len(), 4, "{arguments:?}");
}

#[test]
fn what_kubelet_can_ask_for_starts_a_sidecar_and_what_it_cannot_is_refused_by_field() {
    for path in [
        "",
        "healthz",
        "/a b",
        "/<`\"{|}\\^>",
        "/ü?x=ü \"<>`",
        "/%zz?x",
        "/a#b",
        "//h:1/a",
        "/$(A)",
        "/\u{7f}\n",
    ] {
        assert_starts(path, "plain", 1, "");
    }
    assert_starts("/", " ü\t\"$(A)\\ ", i32::MAX, "a b/ü\n");
    assert_starts("/", "", 0, "$(A)");
    for (path, header, field) in [
        ("mailto:a", "", "container app: livenessProbe.httpGet.path: "),
        ("/", "a\nb", "container app: livenessProbe.httpGet.httpHeaders: "),
        (&"/".repeat(20_000), "", "container app: livenessProbe.httpGet.path: "),
        ("/", &"x".repeat(100_000), "spec.containers: their probes and hooks take "),
    ] {
        let error = sidecar_arguments(path, header, 1, "").unwrap_err();
        assert!(error.contains(field), "{error}");
    }
}

proptest::proptest! {
    #[test]
    fn whatever_probe_is_injected_the_sidecar_can_be_started_with(
        path in "[ -~/?#%:@\\[\\]\\PC]{0,24}|\\PC{0,12}|/[a-z%0-9 ]{0,12}\\?.{0,8}",
        header in "\\PC{0,12}",
        seconds in proptest::num::i32::ANY,
        service in ".{0,8}",
    ) {
        match sidecar_arguments(&path, &header, seconds, &service) {
            Ok(_) => assert_starts(&path, &header, seconds, &service),
            Err(error) => proptest::prop_assert!(error.contains("Probe.httpGet."), "{path:?} {header:?}: {error}"),
        }
    }
}
