use proptest::prelude::*;
use tidegate_core::policy::{
    AppProtocol, Decision, Grant, InboundPolicy, MeshProtocol, MeshRule, Opening, PeerRuleState, Reason,
    Session,
};
use tidegate_core::{DnsName, Identity, San, TrustDomain};

use crate::compile::status::{self, CurrentStatus, ObjectStatus, StatusScope};
use crate::compile::workload;
use crate::explain::HttpRequest;
use crate::index::{Affected, Index};
use crate::object::{Kind, ObjectName};
use crate::source::folder::FolderSource;
use crate::testing::{BOOKS, HTTPBIN, NOT_PERMISSIVE, PERMISSIVE, index};

const AUDIT: &str = "annotations: {tidegate.io/audit: \"true\"}, ";

fn policy(index: &Index) -> InboundPolicy {
    let pod = index.pod(&ObjectName::new("httpbin", "httpbin-1")).unwrap();
    workload(index, pod, &TrustDomain::default()).unwrap()
}

fn mesh(index: &Index) -> MeshRule {
    policy(index).ports[&14001].mesh.clone()
}

fn status(index: &Index, kind: Kind, name: &str) -> ObjectStatus {
    let all = status::statuses(&StatusScope::everything(index));
    let found = all.into_iter().find(|(found, judged)| *found == kind && &*judged.name.name == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}")).1.status
}

/// A TrafficTarget of `httpbin`; `rules` and `sources` are YAML lists without their brackets.
fn target(name: &str, more: &str, rules: &str, sources: &str) -> String {
    format!(
        "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\n\
         metadata: {{{more}name: {name}, namespace: httpbin}}\n\
         spec: {{destination: {{kind: ServiceAccount, name: httpbin}}, rules: [{rules}], sources: [{sources}]}}\n"
    )
}

fn source(account: &str) -> String {
    format!("{{kind: ServiceAccount, name: {account}, namespace: shop}}")
}

fn tcp_route(name: &str, ports: &str) -> String {
    format!(
        "apiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: {{name: {name}, namespace: httpbin}}\n\
         spec: {{matches: {{ports: [{ports}]}}}}\n"
    )
}

fn group(matches: &str) -> String {
    format!(
        "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{name: books, namespace: httpbin}}\n\
         spec: {{matches: [{matches}]}}\n"
    )
}

/// The decision about a mesh peer's connection and request at a port: the reason's code, or `allowed`.
fn decide(policy: &InboundPolicy, account: &str, port: u16, protocol: MeshProtocol, request: &str) -> String {
    let peer = Identity::new(TrustDomain::default(), "shop", account).unwrap();
    let names = [San::Uri(peer.spiffe_uri().into()), San::Dns(DnsName::parse(&peer.dns_name()).unwrap())];
    let session = Session {
        port,
        source: "127.0.0.9".parse().unwrap(),
        opening: Opening::Mesh(protocol),
        client: Some(&names),
    };
    let mut decision = policy.authorize(&session);
    if let Some(rules) = policy.request_rules(&session) {
        let (method, path) = request.split_once(' ').unwrap();
        let request = HttpRequest { method: method.into(), path: path.into(), headers: vec![] };
        decision = request.decide(&rules).unwrap();
    }
    match decision {
        Decision::Allow(Grant::Audit(denial)) => format!("audit: {}", denial.reason.code()),
        Decision::Allow(_) => "allowed".to_owned(),
        Decision::Deny(denial) => denial.reason.code().to_owned(),
    }
}

fn http(policy: &InboundPolicy, account: &str, request: &str) -> String {
    decide(policy, account, 14001, MeshProtocol::Http1, request)
}

#[test]
fn a_target_lets_its_sources_send_what_its_group_names_and_nothing_else() {
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, BOOKS]);
    let policy = policy(&index);
    assert_eq!(http(&policy, "buyer", "GET /books/1?a=b"), "allowed");
    assert_eq!(http(&policy, "buyer", "POST /books/1"), "request_not_allowed");
    assert_eq!(http(&policy, "thief", "GET /books/1"), "peer_not_allowed");
    assert_eq!(decide(&policy, "buyer", 14001, MeshProtocol::Tcp, ""), "not_parsed");
    let status = status(&index, Kind::TrafficTarget, "books");
    assert_eq!((status.current, status.condition), (CurrentStatus::Committed, Some("Accepted")));
    assert_eq!(status.warnings, Vec::<String>::new());
}

#[test]
fn a_rule_without_matches_means_all_of_its_group_and_a_match_of_everything_also_opens_opaque_connections() {
    let all = BOOKS.replace(", matches: [get]", "");
    let policy = policy(&index(&[HTTPBIN, NOT_PERMISSIVE, &all]));
    assert_eq!(http(&policy, "buyer", "DELETE /x"), "allowed");
    assert_eq!(decide(&policy, "buyer", 14001, MeshProtocol::Tcp, ""), "allowed");
}

#[test]
fn permissive_mode_admits_everyone_whatever_targets_say_and_the_status_says_so() {
    let index = index(&[HTTPBIN, PERMISSIVE, BOOKS]);
    assert_eq!(mesh(&index), MeshRule::AnyPeer);
    let status = status(&index, Kind::TrafficTarget, "books");
    assert_eq!(
        status.warnings,
        ["permissive mode is on: every workload of the mesh is admitted, and this has no effect"]
    );
}

#[test]
fn without_a_target_of_the_account_peers_are_refused_with_the_mode_as_the_reason() {
    let other = BOOKS.replace(
        "destination: {kind: ServiceAccount, name: httpbin,",
        "destination: {kind: ServiceAccount, name: x,",
    );
    for documents in [vec![HTTPBIN, NOT_PERMISSIVE], vec![HTTPBIN, NOT_PERMISSIVE, &other]] {
        let MeshRule::Deny(reason) = mesh(&index(&documents)) else { panic!() };
        assert_eq!(&*reason, "permissive mode is off and no TrafficTarget lets mesh peers in");
    }
    let MeshRule::Deny(reason) = mesh(&index(&[HTTPBIN])) else { panic!() };
    assert!(reason.starts_with("there is no MeshConfig osm-mesh-config"), "{reason}");
    assert_eq!(
        http(&policy(&index(&[HTTPBIN, BOOKS])), "buyer", "GET /books"),
        "allowed",
        "off is the default"
    );
}

#[test]
fn tcp_routes_limit_the_ports_and_groups_the_requests_of_one_target() {
    let pod = HTTPBIN.replace(
        "{name: web, containerPort: 14001}",
        "{name: web, containerPort: 14001}, {name: tcp-db, containerPort: 5432}",
    );
    let of = |rules: &str, ports: &str| {
        let documents = [
            pod.as_str(),
            NOT_PERMISSIVE,
            &group("{name: get, methods: [GET]}"),
            &tcp_route("ports", ports),
            &target("t", "", rules, &source("buyer")),
        ];
        let policy = policy(&index(&documents));
        [
            http(&policy, "buyer", "GET /"),
            http(&policy, "buyer", "POST /"),
            decide(&policy, "buyer", 14001, MeshProtocol::Tcp, ""),
            decide(&policy, "buyer", 5432, MeshProtocol::Tcp, ""),
        ]
    };
    let (groups, tcp) = ("{kind: HTTPRouteGroup, name: books}", "{kind: TCPRoute, name: ports}");
    let both = format!("{groups}, {tcp}");
    assert_eq!(of(groups, ""), ["allowed", "request_not_allowed", "not_parsed", "mesh_denied"]);
    assert_eq!(of(tcp, ""), ["allowed"; 4], "no port means every port");
    assert_eq!(of(tcp, "5432"), ["mesh_denied", "mesh_denied", "mesh_denied", "allowed"]);
    assert_eq!(of(&both, "14001"), ["allowed", "request_not_allowed", "not_parsed", "mesh_denied"]);
    assert_eq!(of(&both, "5432"), ["mesh_denied", "mesh_denied", "mesh_denied", "allowed"]);
}

#[test]
fn a_port_that_no_target_is_about_says_what_it_needs() {
    let pod = HTTPBIN.replace("name: http,", "name: tcp-db,");
    let MeshRule::Deny(reason) = mesh(&index(&[&pod, NOT_PERMISSIVE, BOOKS])) else { panic!() };
    assert_eq!(
        &*reason,
        "permissive mode is off and no TrafficTarget of service account httpbin is about the port; bytes that are not HTTP \
         need one with a TCPRoute"
    );
}

#[test]
fn a_target_that_cannot_be_understood_grants_nothing_and_says_why_in_its_status_and_in_refusals() {
    let rule = "{kind: HTTPRouteGroup, name: books, matches: [get]}";
    let bad_group = group("{name: get, pathRegex: '/a('}, {name: fine}");
    let good_group = group("{name: get}");
    for (documents, word, reason) in [
        (
            vec![target("t", "", rule, &source("buyer"))],
            "ReferenceNotFound",
            "HTTPRouteGroup httpbin/books does not exist",
        ),
        (
            vec![target("t", "", "{kind: TCPRoute, name: x}", &source("buyer"))],
            "ReferenceNotFound",
            "TCPRoute httpbin/x does not exist",
        ),
        (
            vec![target("t", "", &rule.replace("get", "put"), &source("buyer")), good_group.clone()],
            "ReferenceNotFound",
            "HTTPRouteGroup httpbin/books has no match 'put'; it has 'get'",
        ),
        (
            vec![target("t", "", rule, &source("buyer")), bad_group],
            "InvalidReference",
            "HTTPRouteGroup httpbin/books: spec.matches[0], 'get': \"/a(\" is not a regular expression: unclosed group",
        ),
        (
            vec![target("t", "", "", &source("buyer"))],
            "Invalid",
            "spec.rules: no rule is listed, so this target grants nothing",
        ),
        (
            vec![target("t", "", "{kind: UDPRoute, name: u}", &source("buyer"))],
            "Invalid",
            "spec.rules[0].kind: 'UDPRoute' is not supported: only HTTPRouteGroup and TCPRoute are",
        ),
        (
            vec![target("t", "", rule, "{kind: Group, name: a}"), good_group.clone()],
            "Invalid",
            "spec.sources[0].kind: 'Group' is not supported: only ServiceAccount is",
        ),
        (
            vec![target("t", "", rule, &source("B_d")), good_group],
            "Invalid",
            "spec.sources[0]: service account \"B_d\" is not a DNS-1123 subdomain",
        ),
    ] {
        let documents: Vec<&str> =
            [HTTPBIN, NOT_PERMISSIVE].into_iter().chain(documents.iter().map(String::as_str)).collect();
        let index = index(&documents);
        let status = status(&index, Kind::TrafficTarget, "t");
        assert_eq!((status.current, status.condition), (CurrentStatus::Error, Some(word)), "{reason}");
        assert_eq!(status.reason, reason);
        let MeshRule::Rules(rules) = mesh(&index) else { panic!("{reason}") };
        assert_eq!(rules[0].state, PeerRuleState::Invalid(reason.into()));
        assert_eq!(http(&policy(&index), "buyer", "GET /"), "invalid_rule");
    }
}

#[test]
fn a_match_is_sound_beside_one_of_its_group_that_cannot_be_understood() {
    let fine = target("t", "", "{kind: HTTPRouteGroup, name: books, matches: [fine]}", &source("buyer"));
    let bad_group = group("{name: get, pathRegex: '/a('}, {name: fine}");
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, &fine, &bad_group]);
    assert_eq!(http(&policy(&index), "buyer", "GET /"), "allowed");
    let status = status(&index, Kind::HTTPRouteGroup, "books");
    assert_eq!((status.current, status.condition), (CurrentStatus::Error, Some("Invalid")));
}

#[test]
fn a_destination_in_another_namespace_is_an_error_in_osm_s_words_and_opens_nothing() {
    let elsewhere = BOOKS
        .replace("name: httpbin, namespace: httpbin}\n  rules", "name: httpbin, namespace: other}\n  rules");
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, &elsewhere]);
    assert_eq!(http(&policy(&index), "buyer", "GET /books"), "invalid_rule");
}

#[test]
fn a_target_in_audit_mode_refuses_nothing_and_admits_no_more_than_one_that_is_enforced() {
    let audit = BOOKS.replace(
        "metadata: {name: books, namespace: httpbin}\nspec:\n  dest",
        &format!("metadata: {{{AUDIT}name: books, namespace: httpbin}}\nspec:\n  dest"),
    );
    let of = |mode: &str, more: &str| {
        let index = index(&[HTTPBIN, mode, &audit, more]);
        let status = status(&index, Kind::TrafficTarget, "books");
        assert_eq!(status.current, CurrentStatus::Committed);
        let policy = policy(&index);
        let answers = [http(&policy, "buyer", "GET /books"), http(&policy, "thief", "GET /books")];
        (answers, status.warnings)
    };
    for mode in [PERMISSIVE, NOT_PERMISSIVE] {
        let (answers, warnings) = of(mode, "");
        assert_eq!(answers, ["allowed", "audit: peer_not_allowed"]);
        assert!(warnings[0].starts_with("audit mode: what would be refused"), "{warnings:?}");
    }
    let enforced = target("pay", "", "{kind: HTTPRouteGroup, name: books}", &source("payer"));
    let (answers, warnings) = of(NOT_PERMISSIVE, &enforced);
    assert_eq!(answers, ["peer_not_allowed", "peer_not_allowed"]);
    assert!(
        warnings[1].ends_with("other targets of the same destination are enforced: httpbin/pay"),
        "{warnings:?}"
    );
    // In permissive mode it is reported what all targets together would refuse.
    assert_eq!(of(PERMISSIVE, &enforced).0, ["allowed", "audit: peer_not_allowed"]);
    let wrong = target(
        "t",
        "annotations: {tidegate.io/audit: \"yes\"}, ",
        "{kind: HTTPRouteGroup, name: books}",
        &source("payer"),
    );
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, BOOKS, &wrong]);
    assert!(matches!(mesh(&index), MeshRule::Rules(_)));
    assert_eq!(
        status(&index, Kind::TrafficTarget, "t").warnings,
        ["annotation tidegate.io/audit: expected \"true\" or \"false\", got \"yes\"; this is enforced"]
    );
}

#[test]
fn a_rule_is_one_for_all_ports_of_a_workload_and_what_has_no_room_denies_and_is_named() {
    let pod = HTTPBIN
        .replace("containerPort: 14001}", "containerPort: 14001}, {name: http-b, containerPort: 14002}");
    let policy_ = policy(&index(&[&pod, NOT_PERMISSIVE, BOOKS]));
    let (MeshRule::Rules(a), MeshRule::Rules(b)) = (&policy_.ports[&14001].mesh, &policy_.ports[&14002].mesh)
    else {
        panic!()
    };
    assert!(std::sync::Arc::ptr_eq(&a[0], &b[0]));
    let matches: Vec<_> =
        (0..200).map(|i| format!("{{name: m{i}, pathRegex: '/{i}/.*', methods: [GET]}}")).collect();
    let targets: Vec<_> = (0..8)
        .map(|i| {
            let group = group(&matches.join(", ")).replace("name: books", &format!("name: g{i}"));
            let rule = format!("{{kind: HTTPRouteGroup, name: g{i}}}");
            format!("{group}---\n{}", target(&format!("t{i}"), "", &rule, &source("buyer")))
        })
        .collect();
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, &targets.join("---\n")]);
    let MeshRule::Rules(rules) = mesh(&index) else { panic!() };
    let is_active = |rule: &std::sync::Arc<tidegate_core::policy::PeerRule>| {
        matches!(rule.state, PeerRuleState::Active(_))
    };
    assert_eq!(
        (rules.iter().filter(|rule| is_active(rule)).count(), rules.len()),
        (5, 8),
        "1024 expressions"
    );
    assert_eq!(http(&policy(&index), "buyer", "GET /7/x"), "allowed");
}

#[test]
fn of_very_many_targets_the_oldest_are_compiled_and_the_others_say_so() {
    let targets: Vec<_> = (0..1026)
        .map(|i| target(&format!("t{i:04}"), "", "{kind: TCPRoute, name: ports}", &source("buyer")))
        .collect();
    let index = index(&[HTTPBIN, NOT_PERMISSIVE, &tcp_route("ports", ""), &targets.join("---\n")]);
    let MeshRule::Rules(rules) = mesh(&index) else { panic!() };
    assert_eq!(rules.len(), 1024);
    for (name, word) in [("t1023", "Accepted"), ("t1024", "TooLarge")] {
        assert_eq!(status(&index, Kind::TrafficTarget, name).condition, Some(word), "{name}");
    }
}

/// What a change affects: the Pods, and the namespaces of statuses.
fn affected(documents: &[&str], changed: &str) -> (Vec<String>, usize) {
    let mut index = index(documents);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), changed).unwrap();
    let mut affected = Affected::default();
    for change in FolderSource::new(folder.path()).load().changes {
        index.apply(change, &mut affected);
    }
    assert!(!affected.all && affected.namespaces.is_empty(), "{affected:?}");
    (affected.pods.iter().map(ToString::to_string).collect(), affected.policies.len())
}

#[test]
fn a_change_of_a_target_or_of_what_it_refers_to_affects_the_pods_of_its_account_alone() {
    let other = HTTPBIN
        .replace("httpbin-1", "other-1")
        .replace("serviceAccountName: httpbin", "serviceAccountName: other");
    let documents = [
        HTTPBIN,
        &other,
        NOT_PERMISSIVE,
        BOOKS,
        &tcp_route("ports", "1"),
        &target("t", "", "{kind: TCPRoute, name: ports}", &source("buyer")),
    ];
    let group = BOOKS.split_once("---").unwrap().1.replace("/books.*", "/b.*");
    let changes = [
        target("books", "", "{kind: TCPRoute, name: ports}", &source("buyer")),
        group,
        tcp_route("ports", "14001"),
    ];
    for change in changes {
        assert_eq!(affected(&documents, &change), (vec!["httpbin/httpbin-1".to_owned()], 1), "{change}");
    }
    let unused = tcp_route("unused", "1");
    assert_eq!(affected(&documents, &unused), (vec![], 1));
}

/// A naive reading of targets: sources, ports and requests as written.
#[derive(Clone, Debug)]
struct Written {
    sources: Vec<&'static str>,
    /// Ports of a TCPRoute, if the target has one.
    ports: Option<Vec<u16>>,
    /// Matches of an HTTPRouteGroup, if it has one.
    matches: Option<Vec<(&'static str, &'static str)>>,
    is_audit: bool,
}

const NAMED: [(&str, &str); 3] = [("GET", "/a"), ("POST", "/a"), ("*", "/b")];

fn written() -> impl Strategy<Value = Written> {
    let sources = prop::sample::subsequence(vec!["buyer", "payer"], 0..=2);
    let ports = prop::option::of(prop::sample::subsequence(vec![14001, 5432], 0..=2));
    let matches = prop::option::of(prop::sample::subsequence(NAMED.to_vec(), 0..=2));
    (sources, ports, matches, prop::bool::weighted(0.2))
        .prop_map(|(sources, ports, matches, is_audit)| Written { sources, ports, matches, is_audit })
}

impl Written {
    fn yaml(&self, number: usize) -> String {
        let mut rules = Vec::new();
        let mut more = String::new();
        if let Some(ports) = &self.ports {
            let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
            more += &format!("---\n{}", tcp_route(&format!("r{number}"), &ports.join(", ")));
            rules.push(format!("{{kind: TCPRoute, name: r{number}}}"));
        }
        if let Some(matches) = &self.matches {
            let named = |(i, _): (usize, _)| format!("m{i}");
            let all = NAMED.iter().enumerate().filter(|(_, one)| matches.contains(one)).map(named);
            // Without names, a rule means all of its group.
            let names = all.collect::<Vec<_>>().join(", ");
            rules.push(format!("{{kind: HTTPRouteGroup, name: books, matches: [{names}]}}"));
        }
        let sources: Vec<_> = self.sources.iter().map(|account| source(account)).collect();
        let audit = if self.is_audit { AUDIT } else { "" };
        format!("{}{more}", target(&format!("t{number}"), audit, &rules.join(", "), &sources.join(", ")))
    }

    /// Whether it says anything about a port: its TCPRoute names it, and bytes that are not HTTP need a TCPRoute.
    fn is_about(&self, port: u16) -> bool {
        let is_valid = self.ports.is_some() || self.matches.is_some();
        let is_named = self.ports.as_ref().is_none_or(|ports| ports.is_empty() || ports.contains(&port));
        !is_valid || is_named && (port == 14001 || self.ports.is_some())
    }

    fn grants(&self, account: &str, port: u16, request: (&str, &str)) -> bool {
        let matches = |matches: &Vec<(&'static str, &'static str)>| {
            let named = if matches.is_empty() { NAMED.to_vec() } else { matches.clone() };
            named.iter().any(|(method, path)| [request.0, "*"].contains(method) && *path == request.1)
        };
        (self.ports.is_some() || self.matches.is_some())
            && self.is_about(port)
            && self.sources.contains(&account)
            && (port == 5432 || self.matches.as_ref().is_none_or(matches))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_targets_compile_to_is_what_they_say(
        targets in prop::collection::vec(written(), 0..4),
        account in prop::sample::select(vec!["buyer", "payer", "thief"]),
        port in prop::sample::select(vec![14001u16, 5432]),
        request in prop::sample::select(vec![("GET", "/a"), ("POST", "/a"), ("PUT", "/b"), ("GET", "/c")]),
        is_permissive in prop::bool::weighted(0.3),
    ) {
        let pod = HTTPBIN.replace("containerPort: 14001}", "containerPort: 14001}, {name: tcp-db, containerPort: 5432}");
        let matches: Vec<_> = NAMED
            .iter()
            .enumerate()
            .map(|(i, (method, path))| format!("{{name: m{i}, methods: ['{method}'], pathRegex: {path}}}"))
            .collect();
        let mode = if is_permissive { PERMISSIVE } else { NOT_PERMISSIVE };
        let mut documents = vec![pod, mode.to_owned(), group(&matches.join(", "))];
        documents.extend(targets.iter().enumerate().map(|(number, target)| target.yaml(number)));
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let policy = policy(&index(&documents));
        let protocol = if port == 14001 { MeshProtocol::Http2 } else { MeshProtocol::Tcp };
        let decision = decide(&policy, account, port, protocol, &format!("{} {}", request.0, request.1));

        let about: Vec<_> = targets.iter().filter(|target| target.is_about(port)).collect();
        let (audit, enforced): (Vec<&Written>, Vec<&Written>) = about.iter().partition(|target| target.is_audit);
        let grants = |targets: &[&Written]| targets.iter().any(|target| target.grants(account, port, request));
        let expected = match (is_permissive, audit.is_empty(), enforced.is_empty()) {
            (true, true, _) => "allowed",
            (true, false, _) => if grants(&about) { "allowed" } else { "audit" },
            (false, _, false) => if grants(&enforced) { "allowed" } else { "denied" },
            (false, false, true) => if grants(&audit) { "allowed" } else { "audit" },
            (false, true, true) => "denied",
        };
        let decided = match decision.as_str() {
            "allowed" => "allowed",
            code if code.starts_with("audit") => "audit",
            _ => "denied",
        };
        prop_assert_eq!(decided, expected, "{}", decision);
    }
}

#[test]
fn the_app_protocol_of_a_port_does_not_depend_on_targets() {
    let with = policy(&index(&[HTTPBIN, NOT_PERMISSIVE, BOOKS]));
    assert_eq!(with.ports[&14001].protocol, AppProtocol::Http);
    let denial = with.open(14001, "127.0.0.9".parse().unwrap(), Opening::Plaintext).unwrap_err();
    assert_eq!(denial.reason, Reason::NoIngressBackend, "targets are about mesh peers alone");
}
