//! The Helm charts, rendered by real Helm 3 and Helm 4 without a cluster.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::{Map, Value, json};
use tidegate_core::contract::labels::{CONTROL_PLANE, IGNORE, INJECTION, MONITORED_BY};
use tidegate_core::contract::names::name_in_mesh;
use tidegate_crds::injection::is_in_mesh;
use tidegate_tests::daemon::ours;
use tidegate_tests::golden::{assert_golden, is_written, repository};
use tidegate_tests::helm::{Helm, Objects, read};

const CHART: &str = "charts/tidegate";
const CRDS: &str = "charts/tidegate-crds";
const HA: &str = "charts/tidegate/values-ha.yaml";
const EVERYTHING: &str = "tests/golden/chart/everything.values.yaml";
const NAMESPACE: &str = "tidegate-system";
const DAEMONS: [&str; 3] = ["tidegate-cert-manager", "tidegate-controller", "tidegate-injector"];

#[test]
fn helm_lint_finds_nothing() {
    for helm in Helm::all() {
        for arguments in [
            &["lint", "--strict", CHART, CRDS][..],
            &["lint", "--strict", CHART, "-f", HA],
            &["lint", "--strict", CHART, "-f", EVERYTHING],
        ] {
            helm.must(arguments);
        }
    }
}

#[test]
fn renderings_are_the_golden_ones_with_helm_3_and_helm_4() {
    let cases: [(&str, &str, &[&str]); 5] = [
        ("default", NAMESPACE, &[]),
        ("ha", NAMESPACE, &["-f", HA]),
        (
            "other-namespace",
            "mesh",
            &["--set", "meshName=blue,trustDomain=example.org,clusterDomain=cluster.example"],
        ),
        (
            "private-registry",
            NAMESPACE,
            &[
                "--set",
                "image.registry=registry.example.com:5000/tidegate/,image.pullPolicy=Always,imagePullSecrets[0].name=pull",
                "--set",
                "sidecar.image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef,controller.image.tag=1.2.3",
            ],
        ),
        ("everything", NAMESPACE, &["-f", EVERYTHING]),
    ];
    for (name, namespace, arguments) in cases {
        for helm in Helm::all() {
            let objects = helm.template(CHART, namespace, arguments);
            assert_golden(&format!("chart/{name}.yaml"), &objects.to_yaml());
        }
    }
}

#[test]
fn the_crds_chart_renders_the_crds_and_helm_keeps_them() {
    for helm in Helm::all() {
        let rendered = helm.template(CRDS, NAMESPACE, &[]);
        let mut files: Vec<_> =
            fs::read_dir(repository().join("crds/yaml")).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        assert_eq!(rendered.iter().count(), files.len());
        for file in files {
            let mut expected =
                Objects::parse(&fs::read_to_string(&file).unwrap()).iter().next().unwrap().clone();
            let name = expected["metadata"]["name"].as_str().unwrap().to_owned();
            let crd = rendered.one("CustomResourceDefinition", &name);
            assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
            expected["metadata"] = crd["metadata"].clone();
            assert!(*crd == expected, "{} is not what is rendered: run `just golden`", file.display());
        }
    }
}

#[test]
fn the_crds_chart_has_gateway_api_s_routes_on_request() {
    for helm in Helm::all() {
        let (without, with) = (
            helm.template(CRDS, NAMESPACE, &[]),
            helm.template(CRDS, NAMESPACE, &["--set", "gatewayApi.enabled=true"]),
        );
        let added: Vec<_> = with.iter().filter(|crd| !without.iter().any(|other| other == *crd)).collect();
        assert_eq!(added.len(), 4);
        for crd in added {
            let name = crd["metadata"]["name"].as_str().unwrap();
            let (plural, group) = name.split_once('.').unwrap();
            let file = read(&format!("{CRDS}/gateway-api/{group}_{plural}.yaml"));
            let expected = Objects::parse(&file);
            let expected = expected.one("CustomResourceDefinition", name);
            assert!(crd["spec"] == expected["spec"], "{name}");
            let annotations = &crd["metadata"]["annotations"];
            assert_eq!(annotations["helm.sh/resource-policy"], "keep");
            assert_eq!(annotations["gateway.networking.k8s.io/bundle-version"], "v1.7.0");
        }
    }
}

#[test]
fn invalid_values_are_refused_by_name() {
    // A value, and a part of the error from both versions of Helm.
    let cases = [
        ("controler.replicas=3", "controler"),
        ("controller.replica=3", "replica"),
        ("controller.replicas=many", "replicas"),
        ("controller.replicas=0", "replicas"),
        ("injector.image.digest=sha256:abc", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.name=x", "name"),
        ("meshName=Not a label", "meshName"),
        ("trustDomain=Cluster.Local", "trustDomain"),
        ("log.format=xml", "format"),
        ("proxy.httpsProxy=proxy:3128", "httpsProxy"),
        ("podAntiAffinity=maybe", "podAntiAffinity"),
        ("networkPolicy.enabled=1", "enabled"),
        ("podDisruptionBudget.minAvailable=1", "minAvailable"),
        ("controller.resources.limit.memory=1Gi", "limit"),
        ("webhooks.timeoutSeconds=60", "timeoutSeconds"),
        ("certManager.gatewaySecretNamespaces[0]=Not_A_Namespace", "gatewaySecretNamespaces"),
        ("meshConfig.spec.traffic.enablePermissiveMode=true", "enablePermissiveMode"),
        ("meshConfig.spec.sidecar.logLevel=loud", "logLevel"),
        ("meshConfig.spec.traffic.outboundPortExclusionList[0]=70000", "outboundPortExclusionList"),
        ("meshConfig.spec.certificate.ingressGateway.secret.name=x", "subjectAltNames"),
        ("meshConfig.spec.featureFlags.enableWASMStats=maybe", "enableWASMStats"),
    ];
    for helm in Helm::all() {
        for (set, key) in cases {
            let output = helm.run(&["template", CHART, "--set", set]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{set} was accepted");
            assert!(error.contains("schema") && error.contains(key), "{set}: {error}");
        }
    }
}

#[test]
fn the_schema_of_the_mesh_config_is_the_crds() {
    let crd = Objects::parse(&read("crds/yaml/config.openservicemesh.io_meshconfigs.yaml"));
    let crd = crd.iter().next().unwrap();
    let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let expected = strict(spec);
    let path = "charts/tidegate/values.schema.json";
    let text = read(path);
    if is_written() {
        fs::write(repository().join(path), with_mesh_config(&text, &expected)).unwrap();
        return;
    }
    let schema: Value = serde_json::from_str(&text).unwrap();
    let actual = &schema["properties"]["meshConfig"]["properties"]["spec"];
    assert!(*actual == expected, "{path} is not what the CRD says of a MeshConfig's spec; run `just golden`");
}

#[test]
fn every_value_is_in_the_schema_and_in_the_docs() {
    let values = Objects::parse(&read("charts/tidegate/values.yaml"));
    let schema: Value = serde_json::from_str(&read("charts/tidegate/values.schema.json")).unwrap();
    let docs = read("docs/install.md");
    let mut keys = Vec::new();
    leaves(values.iter().next().unwrap(), String::new(), &mut keys);
    for key in keys {
        if !key.starts_with("meshConfig.spec.") {
            assert!(docs.contains(&format!("`{key}`")), "docs/install.md does not tell what {key} is");
        }
        let path: Vec<&str> = key.split('.').collect();
        assert!(knows(&schema, &schema, &path), "the schema has no {key}");
    }
}

#[test]
fn what_each_daemon_may_do_is_in_its_golden_file() {
    for helm in Helm::all() {
        let objects = helm.template(CHART, NAMESPACE, &[]);
        for daemon in DAEMONS {
            let rights = rights(&objects, daemon);
            assert_golden(&format!("rbac/{daemon}.yaml"), &serde_saphyr::to_string(&rights).unwrap());
        }
        for kind in ["ClusterRoleBinding", "RoleBinding"] {
            for binding in objects.of(kind) {
                let subject = binding["subjects"][0]["name"].as_str().unwrap();
                assert!(DAEMONS.contains(&subject), "{subject} has rights that no golden file shows");
                assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
            }
        }
    }
}

#[test]
fn the_cert_manager_may_write_secrets_only_in_the_configured_namespaces() {
    let [helm, _] = Helm::all();
    let namespaces = |set: &[&str]| {
        let objects = helm.template(CHART, NAMESPACE, set);
        let rights = rights(&objects, "tidegate-cert-manager");
        let writes = |(place, rules): (&String, &Value)| {
            let writes = |rule: &Value| {
                let has = |key: &str, value: &str| rule[key].as_array().unwrap().contains(&json!(value));
                has("resources", "secrets") && has("verbs", "create")
            };
            rules.as_array().unwrap().iter().any(writes).then(|| place.clone())
        };
        rights.as_object().unwrap().iter().filter_map(writes).collect::<Vec<_>>()
    };
    assert_eq!(namespaces(&[]), [NAMESPACE]);
    assert_eq!(
        namespaces(&["--set", "certManager.gatewaySecretNamespaces={ingress-nginx}"]),
        ["ingress-nginx", NAMESPACE]
    );
    assert_eq!(
        namespaces(&["--set", "certManager.gatewaySecretNamespaces={*}"]),
        ["(everywhere)", NAMESPACE]
    );
}

#[test]
fn webhooks_select_exactly_the_namespaces_of_the_mesh_and_each_once() {
    let [helm, _] = Helm::all();
    for mesh in ["osm", "blue"] {
        let objects = helm.template(CHART, NAMESPACE, &["--set", &format!("meshName={mesh}")]);
        assert_selects_the_namespaces_of(mesh, &objects);
    }
}

fn assert_selects_the_namespaces_of(mesh: &str, objects: &Objects) {
    let name = |name: &str| name_in_mesh(name, mesh);
    let injector = objects.one("MutatingWebhookConfiguration", &name("tidegate-injector"));
    let controller = objects.one("ValidatingWebhookConfiguration", &name("tidegate-controller"));
    let selected = |configuration: &Value, labels: &BTreeMap<String, String>| {
        let webhooks = configuration["webhooks"].as_array().unwrap().iter();
        let failing_closed = webhooks.filter(|webhook| webhook["failurePolicy"] == "Fail");
        failing_closed.filter(|webhook| selects(&webhook["namespaceSelector"], labels)).count()
    };
    for monitored_by in [None, Some("osm"), Some("blue")] {
        for injection in [None, Some("enabled"), Some("disabled")] {
            for (keeps_out, value) in
                [(IGNORE, None), (IGNORE, Some("true")), (IGNORE, Some("")), (CONTROL_PLANE, Some("x"))]
            {
                for name in ["shop", "kube-system", "kube-public", "kube-node-lease", NAMESPACE] {
                    let mut labels =
                        BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())]);
                    for (label, value) in
                        [(MONITORED_BY, monitored_by), (INJECTION, injection), (keeps_out, value)]
                    {
                        labels.extend(value.map(|value| (label.to_owned(), value.to_owned())));
                    }
                    let expected = usize::from(name == "shop" && is_in_mesh(Some(&labels), mesh));
                    assert_eq!(selected(injector, &labels), expected, "injector of {mesh}: {labels:?}");
                    assert_eq!(selected(controller, &labels), expected, "controller of {mesh}: {labels:?}");
                }
            }
        }
    }
}

#[test]
fn two_meshes_share_no_object_but_the_definitions() {
    let [helm, _] = Helm::all();
    let objects = |mesh: &str| {
        // Objects in a namespace that both meshes use, such as the ingress controller's.
        let set = format!("meshName={mesh},certManager.gatewaySecretNamespaces={{edge}}");
        let rendered = helm.template(CHART, &format!("{mesh}-system"), &["--set", &set]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = |object: &Value| {
            let metadata = &object["metadata"];
            [text(&object["kind"]), text(&metadata["namespace"]), text(&metadata["name"])]
        };
        rendered.iter().map(name).collect::<BTreeSet<_>>()
    };
    let (osm, blue) = (objects("osm"), objects("blue"));
    assert!(osm.iter().any(|[_, namespace, _]| namespace == "edge"), "{osm:?}");
    let shared: Vec<_> = osm.intersection(&blue).collect();
    assert_eq!(shared, Vec::<&[String; 3]>::new());
}

#[test]
fn no_manifest_holds_a_ca_bundle_or_a_secret() {
    for helm in Helm::all() {
        let yaml = helm.template(CHART, NAMESPACE, &["-f", EVERYTHING]).to_yaml();
        for text in ["caBundle", "kind: Secret"] {
            assert!(!yaml.contains(text), "{text}");
        }
    }
}

#[test]
fn tidegate_install_prints_what_helm_renders() {
    for helm in Helm::all() {
        let mut command = Command::new(ours("tidegate"));
        command.args([
            "install",
            "--tidegate-namespace=mesh",
            "--ha",
            "--set",
            "controller.replicas=5",
            "--mesh-name=blue",
        ]);
        let output = command.env("TIDEGATE_HELM", helm.program()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = Objects::parse(&String::from_utf8(output.stdout).unwrap());
        let rendered =
            helm.template(CHART, "mesh", &["-f", HA, "--set", "controller.replicas=5,meshName=blue"]);
        let (crds, namespace) = (helm.template(CRDS, "mesh", &[]), printed.one("Namespace", "mesh"));
        for object in rendered.iter().chain(crds.iter()) {
            assert!(printed.iter().any(|one| one == object), "not printed: {}", object["metadata"]);
        }
        assert_eq!(
            *namespace,
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mesh"}})
        );
        assert_eq!(printed.iter().count(), rendered.iter().count() + crds.iter().count() + 1);
    }
}

#[test]
fn tidegate_install_refuses_what_the_chart_refuses() {
    let [helm, _] = Helm::all();
    let mut command = Command::new(ours("tidegate"));
    command.args(["install", "--set", "controller.replica=5"]).env("TIDEGATE_HELM", helm.program());
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("replica is not allowed") && error.contains("helm template failed"), "{error}");
    assert!(output.stdout.is_empty());
}

#[test]
fn the_programs_know_every_flag_that_the_chart_gives_them() {
    let [helm, _] = Helm::all();
    let objects = helm.template(CHART, NAMESPACE, &["-f", EVERYTHING]);
    for daemon in DAEMONS {
        let container = &objects.one("Deployment", daemon)["spec"]["template"]["spec"]["containers"][0];
        let mut command = Command::new(ours(daemon));
        command.env_clear().env("TIDEGATE_NAMESPACE", NAMESPACE).env("TIDEGATE_POD_NAME", "x");
        command.args(container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()));
        // Flags and values are validated before the help is printed.
        let output = command.arg("--help").output().unwrap();
        assert!(output.status.success(), "{daemon}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_meshconfig_is_left_out_on_request() {
    for helm in Helm::all() {
        let objects = helm.template(CHART, NAMESPACE, &["--set", "meshConfig.create=false"]);
        assert_eq!(objects.of("MeshConfig").count(), 0);
    }
}

#[test]
fn each_dockerfile_holds_the_program_that_the_chart_starts() {
    let [helm, _] = Helm::all();
    let objects = helm.template(CHART, NAMESPACE, &[]);
    for daemon in DAEMONS {
        let deployment = objects.one("Deployment", daemon);
        let pod = &deployment["spec"]["template"]["spec"];
        let command = pod["containers"][0]["command"][0].as_str().unwrap();
        let user = pod["securityContext"]["runAsUser"].to_string();
        assert_dockerfile(daemon, command, &user);
    }
    assert_dockerfile("tidegate-sidecar", "/usr/local/bin/tidegate-sidecar", "1500");
}

fn assert_dockerfile(program: &str, command: &str, user: &str) {
    let file = format!("docker/{}.Dockerfile", program.trim_start_matches("tidegate-"));
    let text = read(&file);
    for line in [
        format!("RUN cargo build --locked --release --package {program}"),
        format!("COPY --from=build /src/target/release/{program} {command}"),
        format!("ENTRYPOINT [\"{command}\"]"),
        format!("USER {user}:{user}"),
    ] {
        assert!(text.lines().any(|l| l == line), "{file} has no line {line:?}");
    }
    let stages: Vec<&str> = text.lines().filter(|line| line.starts_with("FROM ")).collect();
    assert_eq!(stages.len(), 2, "{file}: one stage builds, one is the image");
    for stage in stages {
        assert!(!stage.contains(":latest") && stage.contains(':'), "{file}: {stage} is not pinned");
    }
    let manifest = read(&format!("{}/Cargo.toml", program.trim_start_matches("tidegate-")));
    assert!(manifest.contains(&format!("name = \"{program}\"")), "no crate makes {program}");
}

/// Every rule of a daemon's service account, by scope.
fn rights(objects: &Objects, daemon: &str) -> Value {
    let mut rights = Map::new();
    for (kind, role_kind) in [("ClusterRoleBinding", "ClusterRole"), ("RoleBinding", "Role")] {
        for binding in objects.of(kind).filter(|binding| binding["subjects"][0]["name"] == daemon) {
            assert_eq!(binding["roleRef"]["kind"], role_kind);
            let namespace = &binding["metadata"]["namespace"];
            let role = objects.of(role_kind).find(|role| {
                role["metadata"]["name"] == binding["roleRef"]["name"]
                    && role["metadata"]["namespace"] == *namespace
            });
            let place = namespace.as_str().unwrap_or("(everywhere)").to_owned();
            let earlier = rights.insert(place, role.unwrap()["rules"].clone());
            assert!(earlier.is_none());
        }
    }
    Value::Object(rights)
}

/// As the API server evaluates `matchExpressions`.
fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    selector["matchExpressions"].as_array().unwrap().iter().all(|expression| {
        let value = labels.get(expression["key"].as_str().unwrap());
        let is_listed = || {
            let values = expression["values"].as_array().unwrap();
            value.is_some_and(|value| values.iter().any(|listed| listed == value))
        };
        match expression["operator"].as_str().unwrap() {
            "In" => is_listed(),
            "NotIn" => !is_listed(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            operator => panic!("{operator}"),
        }
    })
}

/// A CRD's schema as JSON Schema that refuses unknown fields, also where the API server would drop them.
fn strict(schema: &Value) -> Value {
    let Value::Object(schema) = schema else { panic!("{schema}") };
    let mut out = Map::new();
    for (key, value) in schema {
        match key.as_str() {
            "nullable" | "format" | "default" | "description" => {}
            "x-kubernetes-int-or-string" => {
                out.insert("type".into(), json!(["integer", "string"]));
            }
            "properties" => {
                let fields =
                    value.as_object().unwrap().iter().map(|(name, field)| (name.clone(), strict(field)));
                out.insert(key.clone(), Value::Object(fields.collect()));
                out.insert("additionalProperties".into(), json!(false));
            }
            "items" | "additionalProperties" => {
                out.insert(key.clone(), strict(value));
            }
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    Value::Object(out)
}

/// The schema's text with the MeshConfig's spec replaced and all else untouched.
fn with_mesh_config(text: &str, spec: &Value) -> String {
    let indent = " ".repeat(8);
    let start = text.find(&format!("{indent}\"spec\": ")).unwrap();
    let end = if text[start..].starts_with(&format!("{indent}\"spec\": {{}}")) {
        start + text[start..].find('\n').unwrap()
    } else {
        start + text[start..].find(&format!("\n{indent}}}")).unwrap() + indent.len() + 2
    };
    let spec = serde_json::to_string_pretty(spec).unwrap().replace('\n', &format!("\n{indent}"));
    format!("{}{indent}\"spec\": {spec}{}", &text[..start], &text[end..])
}

/// The path of each value, except for objects with fields.
fn leaves(value: &Value, path: String, into: &mut Vec<String>) {
    match value.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                if matches!(
                    path.as_str(),
                    "podSecurityContext"
                        | "securityContext"
                        | "nodeSelector"
                        | "controller.resources"
                        | "certManager.resources"
                        | "injector.resources"
                ) {
                    into.push(path);
                } else {
                    leaves(field, path, into);
                }
            }
        }
        _ => into.push(path),
    }
}

/// Whether a schema has a property of that path.
fn knows(root: &Value, schema: &Value, path: &[&str]) -> bool {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => &root["definitions"][reference.trim_start_matches("#/definitions/")],
        None => schema,
    };
    match path {
        [] => true,
        [first, rest @ ..] => schema["properties"].get(first).is_some_and(|field| knows(root, field, rest)),
    }
}
