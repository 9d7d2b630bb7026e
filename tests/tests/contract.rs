//! What parts of an installation must spell alike is in `core/src/contract/`, and everything else agrees with it.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tidegate_core::contract::flags::{self, argument};
use tidegate_core::contract::names::{
    self, CERT_MANAGER, CONTROLLER, DEFAULT_CONTROL_PLANE, INJECTOR, TOKEN_FOLDER, TOKEN_KEY,
    TRUST_BUNDLE_KEY, TRUST_FOLDER, service_host, token_audience, trust_bundle_config_map,
};
use tidegate_core::contract::{annotations, labels, ports};
use tidegate_tests::golden::repository;
use tidegate_tests::helm::{Objects, read};

/// A constant of the contract.
#[derive(Debug)]
struct Fact {
    file: String,
    value: String,
}

/// Every constant of the contract that is one literal.
fn facts() -> Vec<Fact> {
    let mut facts = Vec::new();
    for file in files("core/src/contract", "rs") {
        for line in read(&file).lines() {
            let Some((declared, value)) = line.split_once(" = ") else { continue };
            let value = value.trim_end_matches(';').trim_matches('"');
            let kinds = ["&str", "u16", "u32"];
            if declared.starts_with("pub const ") && kinds.iter().any(|kind| declared.ends_with(kind)) {
                facts.push(Fact { file: file.clone(), value: value.to_owned() });
            }
        }
    }
    assert!(facts.len() > 100, "only {} constants were found; has their form changed?", facts.len());
    facts
}

/// The values in one file of the contract.
fn values(name: &str) -> BTreeSet<String> {
    let file = format!("core/src/contract/{name}.rs");
    let values: BTreeSet<_> =
        facts().into_iter().filter(|fact| fact.file == file).map(|fact| fact.value).collect();
    assert!(!values.is_empty(), "{file}");
    values
}

/// The files below a folder of the repository whose names end so, as paths from the repository.
fn files(folder: &str, extension: &str) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    walk(&repository().join(folder), &mut found);
    found.retain(|path| extension.is_empty() || path.extension().is_some_and(|found| found == extension));
    found.sort();
    found.iter().map(|path| path.strip_prefix(repository()).unwrap().display().to_string()).collect()
}

/// Words that may be a flag, a path, a name, a key of a label or annotation, a variable or a port.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    text.lines().enumerate().flat_map(move |(at, line)| {
        let words = line.split(move |c| !is_part(c)).map(|word| word.trim_end_matches(['.', '/']));
        words.filter(|word| !word.is_empty()).map(move |word| (at + 1, word))
    })
}

/// Whether a number is one of the range that our ports are in; user IDs of images are above it.
fn is_port(word: &str) -> bool {
    word.parse().is_ok_and(|number: u32| (9_000..65_000).contains(&number))
}

/// Whether a word is a key of a label or annotation of ours, of Open Service Mesh, or of what we use of others.
fn is_key(word: &str) -> bool {
    ["tidegate.io/", "openservicemesh.io/", "prometheus.io/", "app.kubernetes.io/"]
        .iter()
        .any(|prefix| word.starts_with(prefix) && word.len() > prefix.len())
}

/// Keys of labels and annotations.
fn keys() -> BTreeSet<String> {
    values("labels").into_iter().chain(values("annotations")).collect()
}

/// Whether a key is of the contract; the resources that one prefix goes on with are Kubernetes's.
fn is_known_key(word: &str, keys: &BTreeSet<String>) -> bool {
    keys.contains(word) || word.starts_with(annotations::SIDECAR_RESOURCE)
}

#[test]
fn charts_spell_flags_names_keys_variables_and_ports_as_the_contract_does() {
    let (ports, flags, names, variables) =
        (values("ports"), values("flags"), values("names"), values("environment"));
    let keys = keys();
    let mounted = [
        TRUST_FOLDER.to_owned(),
        TOKEN_FOLDER.to_owned(),
        format!("{TRUST_FOLDER}/{TRUST_BUNDLE_KEY}"),
        format!("{TOKEN_FOLDER}/{TOKEN_KEY}"),
    ];
    // A chart's own name, the helper of help texts, and a name that stands for any.
    let others = ["tidegate-crds", "tidegate-x"];
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for file in files("charts/tidegate", "") {
        if file.ends_with(".schema.json") {
            continue;
        }
        let text = read(&file);
        for (line, word) in words(&text) {
            let (known, of) = match word {
                word if is_port(word) => (ports.contains(word), "ports"),
                word if word.starts_with("--") && word.len() > 3 => (flags.contains(&word[2..]), "flags"),
                word if word.starts_with("tidegate-") => {
                    (names.contains(word) || others.contains(&word), "names")
                }
                word if word.starts_with("osm-") => (names.contains(word), "names"),
                word if word.starts_with("TIDEGATE_") => (variables.contains(word), "environment"),
                word if word.starts_with("/var/run/tidegate") => {
                    (mounted.iter().any(|path| path == word), "names")
                }
                word if is_key(word) => (is_known_key(word, &keys), "labels or annotations"),
                _ => continue,
            };
            seen += 1;
            if !known {
                wrong.push(format!("{file}:{line}: {word} is not among the contract's {of}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 60, "only {seen} words were compared; have the charts changed their form?");
}

/// One rendering of the chart, whose golden file `tests/tests/chart.rs` keeps true.
struct Installed {
    objects: Objects,
    mesh_name: &'static str,
    control_plane: &'static str,
}

impl Installed {
    fn all() -> [Self; 2] {
        [("default", "osm", DEFAULT_CONTROL_PLANE), ("other-namespace", "blue", "mesh")].map(
            |(golden, mesh_name, control_plane)| {
                let objects = Objects::parse(&read(&format!("tests/golden/chart/{golden}.yaml")));
                Self { objects, mesh_name, control_plane }
            },
        )
    }

    fn pod(&self, daemon: &str) -> &Value {
        &self.objects.one("Deployment", daemon)["spec"]["template"]["spec"]
    }

    fn assert_argument(&self, daemon: &str, expected: &str) {
        let arguments = self.pod(daemon)["containers"][0]["args"].as_array().unwrap();
        assert!(
            arguments.iter().any(|argument| argument == expected),
            "{daemon} in {}: {expected} is expected among {arguments:#?}",
            self.control_plane
        );
    }

    fn assert_ports(&self, daemon: &str, served: &[u16]) {
        let pod = self.pod(daemon);
        let container: BTreeSet<_> = numbers(&pod["containers"][0]["ports"], "containerPort");
        let expected: BTreeSet<_> =
            served.iter().copied().chain([ports::DAEMON_HEALTH]).map(u64::from).collect();
        assert_eq!(container, expected, "container ports of {daemon}");
        let policy = &self.objects.one("NetworkPolicy", daemon)["spec"]["ingress"];
        let admitted: BTreeSet<_> =
            policy.as_array().unwrap().iter().flat_map(|rule| numbers(&rule["ports"], "port")).collect();
        assert_eq!(admitted, expected, "NetworkPolicy of {daemon}");
    }
}

fn numbers(list: &Value, field: &str) -> BTreeSet<u64> {
    list.as_array().unwrap().iter().map(|port| port[field].as_u64().unwrap()).collect()
}

#[test]
fn daemons_serve_and_find_each_other_where_the_contract_says() {
    for installed in Installed::all() {
        let Installed { mesh_name, control_plane, .. } = installed;
        for daemon in [CERT_MANAGER, CONTROLLER, INJECTOR] {
            installed.assert_argument(daemon, &argument(flags::MESH_NAME, mesh_name));
            installed.assert_argument(daemon, &argument(flags::ADMIN_ADDRESS, ports::ADMIN_ADDRESS));
            let health = format!("[::]:{}", ports::DAEMON_HEALTH);
            installed.assert_argument(daemon, &argument(flags::HEALTH_ADDRESS, health));
            let probes = &installed.pod(daemon)["containers"][0];
            assert_eq!(probes["livenessProbe"]["httpGet"]["path"], names::LIVE_PATH);
            assert_eq!(probes["readinessProbe"]["httpGet"]["path"], names::READY_PATH);
        }
        for daemon in [CONTROLLER, INJECTOR] {
            installed.assert_argument(daemon, &argument(flags::CA_ADDRESS, names::ca_address(control_plane)));
            let host = service_host(CERT_MANAGER, control_plane);
            installed.assert_argument(daemon, &argument(flags::CA_SERVER_NAME, host));
            let (bundle, token) =
                (format!("{TRUST_FOLDER}/{TRUST_BUNDLE_KEY}"), format!("{TOKEN_FOLDER}/{TOKEN_KEY}"));
            installed.assert_argument(daemon, &argument(flags::CA_TRUST_BUNDLE, bundle));
            installed.assert_argument(daemon, &argument(flags::TOKEN_FILE, token));
            let webhook = format!("[::]:{}", ports::WEBHOOK);
            installed.assert_argument(daemon, &argument(flags::WEBHOOK_ADDRESS, webhook));
            let volumes = installed.pod(daemon)["volumes"].as_array().unwrap();
            assert_eq!(volumes[0]["configMap"]["name"], trust_bundle_config_map(mesh_name));
            let token = &volumes[1]["projected"]["sources"][0]["serviceAccountToken"];
            assert_eq!(token["audience"], token_audience(mesh_name));
            assert_eq!(token["path"], TOKEN_KEY);
        }
        let discovery = names::discovery_address(control_plane);
        installed.assert_argument(INJECTOR, &argument(flags::DISCOVERY_ADDRESS, discovery));
        for (daemon, port) in [(CERT_MANAGER, ports::CA), (CONTROLLER, ports::DISCOVERY)] {
            installed.assert_argument(daemon, &argument(flags::LISTEN, format!("[::]:{port}")));
            let service = &installed.objects.one("Service", daemon)["spec"];
            assert!(numbers(&service["ports"], "port").contains(&port.into()), "Service {daemon}: {service}");
        }
        installed.assert_ports(CERT_MANAGER, &[ports::CA]);
        installed.assert_ports(CONTROLLER, &[ports::DISCOVERY, ports::WEBHOOK]);
        installed.assert_ports(INJECTOR, &[ports::WEBHOOK]);
        for (kind, daemon, path) in [
            ("MutatingWebhookConfiguration", INJECTOR, names::MUTATE_PATH),
            ("ValidatingWebhookConfiguration", CONTROLLER, names::VALIDATE_PATH),
        ] {
            let object = installed.objects.one(kind, &names::name_in_mesh(daemon, mesh_name));
            for webhook in object["webhooks"].as_array().unwrap() {
                let service = &webhook["clientConfig"]["service"];
                assert_eq!(
                    (&service["name"], &service["namespace"], &service["path"]),
                    (&json!(daemon), &json!(control_plane), &json!(path))
                );
            }
        }
        let config = installed.objects.one("MeshConfig", names::MESH_CONFIG_NAME);
        let labels = &config["metadata"]["labels"];
        assert_eq!(
            (&labels[labels::INSTANCE], &labels[labels::PART_OF]),
            (&json!(mesh_name), &json!(labels::TIDEGATE))
        );
    }
}

#[test]
fn docs_name_the_contract_s_keys_and_ports_and_no_others() {
    // Only the cert-manager reads and writes this one.
    let unlisted = [annotations::GATEWAY_SECRETS];
    // A comment in trust bundles, a name in the status of routes, and a version of objects.
    let others = ["tidegate.io/retired-root", names::GATEWAY_CONTROLLER, "tidegate.io/v1alpha1"];
    let (keys, known_ports) = (keys(), values("ports"));
    let (mut wrong, mut named) = (Vec::new(), BTreeSet::new());
    for file in files("docs", "md").into_iter().chain(["README.md".to_owned()]) {
        for (line, word) in words(&read(&file)) {
            let is_ours =
                ["tidegate.io/", "openservicemesh.io/"].iter().any(|prefix| word.starts_with(prefix));
            if is_ours && !others.contains(&word) && !is_known_key(word, &keys) {
                wrong.push(format!("{file}:{line}: {word} is not a key of the contract"));
            }
            if word.len() == 5 && word.starts_with("15") && is_port(word) && !known_ports.contains(word) {
                wrong.push(format!("{file}:{line}: {word} is not a port of the contract"));
            }
            named.insert(word.to_owned());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let is_ours = |key: &&String| key.starts_with("tidegate.io/") || key.starts_with("openservicemesh.io/");
    let is_named =
        |key: &str| named.iter().any(|word| word == key || key.ends_with('-') && word.starts_with(key));
    for key in keys.iter().filter(is_ours).filter(|key| !unlisted.contains(&key.as_str())) {
        assert!(is_named(key), "no page in docs/ describes {key}");
    }
    let of_users = [
        ports::ADMIN,
        ports::OUTBOUND,
        ports::INBOUND,
        ports::HEALTH,
        ports::LIVENESS,
        ports::HOOKS,
        ports::CHECK,
        ports::DAEMON_HEALTH,
    ];
    for port in of_users {
        assert!(named.contains(&port.to_string()), "no page in docs/ names port {port}");
    }
}

/// The lines of a source file that end up in a program: no comments, nothing from the unit tests on, and no text that
/// takes several lines, which is prose.
fn program(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let mut is_continued = false;
    let lines = text[..end].lines().enumerate().map(|(at, line)| (at + 1, line));
    lines.filter(move |(_, line)| {
        let is_prose = std::mem::replace(&mut is_continued, line.ends_with('\\'));
        !is_prose && !line.trim_start().starts_with("//")
    })
}

/// The string literals of a line.
fn literals(line: &str) -> impl Iterator<Item = &str> {
    line.split('"').skip(1).step_by(2)
}

#[test]
fn no_program_spells_a_second_time_what_the_contract_has() {
    let crates =
        ["core", "crds", "runtime", "kubernetes", "cert-manager", "controller", "injector", "sidecar", "cli"];
    let is_for_tests = |file: &str| {
        let parts = ["/tests/", "/tests.rs", "/testing.rs", "/test_", "/fake_api", "/contract/"];
        parts.iter().any(|part| file.contains(part))
    };
    let (facts, flags) = (facts(), values("flags"));
    let ports = values("ports");
    // Words such as `udp` mean other things, too.
    let is_distinctive = |value: &str| {
        value.contains('/')
            || value.starts_with("TIDEGATE_")
            || value.starts_with("tidegate-")
            || value.starts_with("osm-")
    };
    let mut wrong = Vec::new();
    for file in crates.iter().flat_map(|name| files(&format!("{name}/src"), "rs")) {
        if is_for_tests(&file) {
            continue;
        }
        for (at, line) in program(&read(&file)) {
            let mut report = |value: &str, of: &str| {
                wrong.push(format!("{file}:{at}: {value} is in {of}"));
            };
            for literal in literals(line).filter(|literal| !literal.contains(' ')) {
                for fact in facts.iter().filter(|fact| is_distinctive(&fact.value)) {
                    if words(literal).any(|(_, word)| word == fact.value) {
                        report(&fact.value, &fact.file);
                    }
                }
                let flag = literal.strip_prefix("--").map(|flag| flag.split('=').next().unwrap());
                if let Some(flag) = flag.filter(|flag| flags.contains(*flag)) {
                    report(flag, "core/src/contract/flags.rs");
                }
            }
            let is_prose = |port: &str| literals(line).any(|text| text.contains(' ') && text.contains(port));
            for (_, word) in words(&line.replace('_', "")) {
                if is_port(word) && ports.contains(word) && !is_prose(word) {
                    report(word, "core/src/contract/ports.rs");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
