use std::net::IpAddr;

use proptest::prelude::*;
use tidegate_core::policy::{
    AppProtocol, ClientCheck, Decision, InboundPolicy, IngressRule, IngressTransport, MeshProtocol, MeshRule,
    Opening, Reason, RuleState, Session, Sources, Terms,
};
use tidegate_core::{DnsName, ObjectRef, Principal, San, TrustDomain};

use super::ingress_backend::TOO_LARGE;
use super::mesh_config::{NO_MESH_CONFIG, NOT_PERMISSIVE};
use super::status::{self, CurrentStatus};
use super::workload::{NamespaceRules, workload, workload_by};
use crate::index::Index;
use crate::object::ObjectName;
use crate::testing::{FROM_GATEWAY, GATEWAY, HTTPBIN, PERMISSIVE, backend, index, ingress_backend};

const GATEWAY_ADDRESS: &str = "127.0.0.2";

fn policy(index: &Index) -> InboundPolicy {
    policy_of(index, "httpbin/httpbin-1")
}

fn policy_of(index: &Index, pod: &str) -> InboundPolicy {
    let pod = index.pod(&ObjectName::parse(pod).unwrap()).unwrap();
    workload(index, pod, &TrustDomain::default()).unwrap()
}

fn rules(policy: &InboundPolicy, port: u16) -> &[IngressRule] {
    &policy.ports[&port].ingress
}

fn only_rule(policy: &InboundPolicy, port: u16) -> &tidegate_core::policy::ActiveIngressRule {
    match rules(policy, port) {
        [IngressRule { state: RuleState::Active(rule), .. }] => rule,
        rules => panic!("{rules:?}"),
    }
}

fn status(index: &Index, name: &str) -> status::ObjectStatus {
    let (name, object) =
        index.ingress_backends().find(|(n, _)| &*n.name == name).unwrap_or_else(|| panic!("no {name}"));
    super::ingress_backend::ingress_backend(index, name, object)
}

fn assert_committed(index: &Index, name: &str) -> Vec<String> {
    let status = status(index, name);
    assert_eq!(status.current, CurrentStatus::Committed, "{}", status.reason);
    assert_eq!(status.reason, "successfully committed by the system");
    status.warnings
}

fn assert_error(index: &Index, name: &str) -> String {
    let status = status(index, name);
    assert_eq!(status.current, CurrentStatus::Error);
    status.reason
}

fn service(name: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: httpbin}}\n\
         spec: {{selector: {{app: httpbin}}, ports: [{ports}]}}\n"
    )
}

#[test]
fn a_workload_without_an_ingress_backend_lets_only_the_mesh_in() {
    let policy = policy(&index(&[HTTPBIN, PERMISSIVE]));
    assert_eq!(&*policy.workload, "httpbin/httpbin-1");
    assert_eq!(policy.identity.dns_name(), "httpbin.httpbin.cluster.local");
    assert_eq!(policy.ports.keys().copied().collect::<Vec<_>>(), [14001]);
    let port = &policy.ports[&14001];
    assert_eq!((port.services.as_slice(), &port.mesh), (&["httpbin/httpbin".into()][..], &MeshRule::AnyPeer));
    assert!(port.ingress.is_empty());
}

#[test]
fn mesh_peers_reach_ports_that_only_a_container_declares_in_permissive_mode_and_not_without_it() {
    let pod = HTTPBIN.replace(
        "{name: web, containerPort: 14001}",
        "{name: web, containerPort: 14001}, {name: tcp-db, containerPort: 5432}, {containerPort: 53, protocol: UDP}",
    );
    let config = |permissive: bool| {
        format!(
            "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
             metadata: {{name: osm-mesh-config, namespace: tidegate-system}}\n\
             spec: {{traffic: {{enablePermissiveTrafficPolicyMode: {permissive}}}}}\n"
        )
    };
    let open = policy(&index(&[&pod, &config(true)]));
    assert_eq!(open.ports.keys().copied().collect::<Vec<_>>(), [5432, 14001]);
    let declared = &open.ports[&5432];
    assert_eq!((declared.protocol, &declared.mesh), (AppProtocol::Tcp, &MeshRule::AnyPeer));
    assert!(declared.services.is_empty() && declared.ingress.is_empty());
    let closed = policy(&index(&[&pod, &config(false)]));
    assert_eq!(closed.ports[&5432].mesh, MeshRule::Deny(NOT_PERMISSIVE.into()));
    assert_eq!(closed.ports[&14001].mesh, MeshRule::Deny(NOT_PERMISSIVE.into()));
}

#[test]
fn http_from_a_service_admits_its_ready_endpoints_only() {
    let ib = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    let index = index(&[HTTPBIN, GATEWAY, &ib]);
    let policy = policy(&index);
    let rule = only_rule(&policy, 14001);
    assert_eq!(rule.sources.to_string(), "127.0.0.2/32, 127.0.0.4/32");
    assert_eq!(rule.transport, IngressTransport::Http);
    assert_eq!(assert_committed(&index, "ib"), Vec::<String>::new());
}

#[test]
fn an_ipv6_endpoint_is_one_address() {
    let slice = GATEWAY.replace("IPv4", "IPv6").replace("127.0.0.2", "fd00::1");
    let ib = ingress_backend("ib", &backend("http", ""), FROM_GATEWAY);
    let policy = policy(&index(&[HTTPBIN, &slice, &ib]));
    let sources = &only_rule(&policy, 14001).sources;
    assert!(sources.to_string().contains("fd00::1/128"), "{sources}");
    assert!(!sources.contains("fd00::2".parse().unwrap()));
}

#[test]
fn a_source_service_without_endpoints_closes_the_whole_object_even_beside_good_sources() {
    let missing = "{kind: Service, name: gone, namespace: nowhere}";
    let none_ready = GATEWAY.replace("ready: true", "ready: false").replace("- addresses: [127.0.0.4]", "");
    for (gateway, sources, expected) in [
        (GATEWAY, format!("{FROM_GATEWAY}, {missing}"), "nowhere/gone"),
        (GATEWAY, format!("{missing}, {{kind: IPRange, name: 127.0.0.0/8}}"), "nowhere/gone"),
        (&none_ready, FROM_GATEWAY.to_owned(), "ingress-nginx/ingress-nginx-controller"),
    ] {
        let index = index(&[HTTPBIN, gateway, &ingress_backend("ib", &backend("http", ""), &sources)]);
        let expected = format!("endpoints not found for service {expected}");
        assert_eq!(assert_error(&index, "ib"), expected);
        let policy = policy(&index);
        assert_eq!(rules(&policy, 14001)[0].state, RuleState::Invalid(expected.into()));
        let address = GATEWAY_ADDRESS.parse().unwrap();
        assert!(matches!(
            policy.open(14001, address, Opening::Plaintext).unwrap_err().reason,
            Reason::InvalidRule(_)
        ));
    }
}

#[test]
fn endpoints_of_a_service_that_is_gone_count_for_nothing() {
    let (_, slice) = GATEWAY.split_once("---").unwrap();
    let index = index(&[HTTPBIN, slice, &ingress_backend("ib", &backend("http", ""), FROM_GATEWAY)]);
    assert!(assert_error(&index, "ib").starts_with("endpoints not found"));
}

#[test]
fn https_without_a_principal_wants_any_certificate_of_the_mesh_and_warns() {
    for tls in ["", ", tls: {skipClientCertValidation: false}"] {
        let index = index(&[HTTPBIN, GATEWAY, &ingress_backend("ib", &backend("https", tls), FROM_GATEWAY)]);
        let policy = policy(&index);
        let IngressTransport::Https { sni_hosts, client } = &only_rule(&policy, 14001).transport else {
            panic!()
        };
        assert!(sni_hosts.is_empty());
        assert_eq!(*client, ClientCheck::Principals([Principal::Any].into()));
        let warnings = assert_committed(&index, "ib");
        assert!(warnings[0].contains("every certificate of the mesh's CA"), "{warnings:?}");
    }
}

#[test]
fn no_sources_let_every_address_in_and_warn() {
    let index = index(&[HTTPBIN, &ingress_backend("ib", &backend("http", ""), "")]);
    assert_eq!(only_rule(&policy(&index), 14001).sources, Sources::Any);
    assert_eq!(
        assert_committed(&index, "ib"),
        ["spec.sources: no source is listed, so every address is admitted"]
    );
}

#[test]
fn http_ignores_principals_and_server_names() {
    let tls = ", tls: {skipClientCertValidation: false, sniHosts: [a.example]}";
    let sources = "{kind: AuthenticatedPrincipal, name: gw.ns.cluster.local}";
    let index = index(&[HTTPBIN, &ingress_backend("ib", &backend("HTTP", tls), sources)]);
    let policy = policy(&index);
    let rule = only_rule(&policy, 14001);
    assert_eq!((&rule.sources, &rule.transport), (&Sources::Any, &IngressTransport::Http));
    assert_eq!(assert_committed(&index, "ib").len(), 2);
}

#[test]
fn server_names_that_can_match_nothing_let_nothing_in() {
    let with = |hosts: &str| {
        let tls = format!(", tls: {{skipClientCertValidation: true, sniHosts: [{hosts}]}}");
        index(&[HTTPBIN, &ingress_backend("ib", &backend("https", &tls), "")])
    };
    let all_bad = with("'*', 'a b'");
    assert!(assert_error(&all_bad, "ib").contains("none of the sniHosts"));
    assert!(matches!(rules(&policy(&all_bad), 14001)[0].state, RuleState::Invalid(_)));
    let one_good = policy(&with("'*', '*.b.example'"));
    let open =
        |name| one_good.open(14001, GATEWAY_ADDRESS.parse().unwrap(), Opening::Tls { server_name: name });
    assert_eq!(open(Some("a.b.example")), Ok(Terms::IngressTls));
    assert!(open(Some("a.example")).is_err() && open(None).is_err());
}

#[test]
fn the_number_in_a_backend_is_the_target_port() {
    let wrong = "{name: httpbin, port: {number: 80, protocol: http}}";
    let index_of =
        |backends: &str| index(&[HTTPBIN, GATEWAY, &ingress_backend("ib", backends, FROM_GATEWAY)]);
    let index = index_of(wrong);
    assert_eq!(
        assert_error(&index, "ib"),
        "no port of service httpbin/httpbin has targetPort 80: it has 14001; 80 is the service's own port, and \
         port.number is the targetPort"
    );
    assert!(rules(&policy(&index), 14001).is_empty());
    let unknown = index_of("{name: httpbin, port: {number: 9, protocol: http}}");
    assert_eq!(
        assert_error(&unknown, "ib"),
        "no port of service httpbin/httpbin has targetPort 9: it has 14001"
    );
    let no_service = index_of("{name: other, port: {number: 14001, protocol: http}}");
    assert_eq!(
        assert_error(&no_service, "ib"),
        "no port of service httpbin/other has targetPort 14001: there is no such service"
    );
}

#[test]
fn of_several_backends_the_first_error_is_the_status() {
    let backends = "{name: httpbin, port: {number: 14001, protocol: http}}, \
                    {name: first, port: {number: 1, protocol: http}}, \
                    {name: second, port: {number: 2, protocol: http}}";
    let index = index(&[HTTPBIN, &ingress_backend("ib", backends, "{kind: IPRange, name: 10.0.0.0/8}")]);
    assert!(assert_error(&index, "ib").contains("httpbin/first"));
    assert_eq!(rules(&policy(&index), 14001).len(), 1, "the good backend is in force");
}

#[test]
fn a_named_target_port_is_the_pod_s_and_follows_each_pod() {
    let other =
        HTTPBIN.split("---").next().unwrap().replace("httpbin-1", "httpbin-2").replace("14001", "15001");
    let named = HTTPBIN.replace("targetPort: 14001", "targetPort: web");
    let backends = "{name: httpbin, port: {number: 14001, protocol: http}}, \
                    {name: httpbin, port: {number: 15001, protocol: http}}";
    let index = index(&[&named, &other, &ingress_backend("ib", backends, "")]);
    assert_committed(&index, "ib");
    assert!(only_rule(&policy(&index), 14001).sources.contains(GATEWAY_ADDRESS.parse().unwrap()));
    only_rule(&policy_of(&index, "httpbin/httpbin-2"), 15001);
}

#[test]
fn a_port_without_a_target_port_is_its_own() {
    let policy =
        policy(&index(&[HTTPBIN, &service("plain", "{port: 8080}, {port: 53, protocol: UDP, name: dns}")]));
    assert_eq!(policy.ports.keys().copied().collect::<Vec<_>>(), [8080, 14001]);
}

#[test]
fn a_service_without_a_selector_stands_where_its_endpoint_slice_says() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: manual, namespace: httpbin}\n\
                   spec: {ports: [{name: api, port: 80, appProtocol: grpc}]}\n";
    let slice = |target: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: s, namespace: httpbin, labels: {{kubernetes.io/service-name: manual}}}}\n\
             ports: [{{name: api, port: 9000}}]\nendpoints: [{{addresses: [127.0.0.11]{target}}}]\n"
        )
    };
    let by_address = policy(&index(&[HTTPBIN, service, &slice("")]));
    assert_eq!(by_address.ports[&9000].protocol, AppProtocol::H2c);
    let to_pod = |name: &str| format!(", targetRef: {{kind: Pod, name: {name}, namespace: httpbin}}");
    let by_name = policy(&index(&[HTTPBIN, service, &slice(&to_pod("httpbin-1"))]));
    assert!(by_name.ports.contains_key(&9000));
    let another_s_old_address = policy(&index(&[HTTPBIN, service, &slice(&to_pod("other"))]));
    assert!(!another_s_old_address.ports.contains_key(&9000));
}

#[test]
fn an_unready_pod_keeps_its_policy() {
    let unready = HTTPBIN
        .replace("{podIP: 127.0.0.11}", "{podIP: 127.0.0.11, conditions: [{type: Ready, status: 'False'}]}");
    assert!(policy(&index(&[&unready])).ports.contains_key(&14001));
}

#[test]
fn rules_of_one_port_do_not_reach_another() {
    let two = service("httpbin2", "{name: b, port: 81, targetPort: 14002}");
    let open = ingress_backend("open", &backend("http", ""), "");
    let closed = ingress_backend(
        "closed",
        "{name: httpbin2, port: {number: 14002, protocol: https}}",
        "{kind: AuthenticatedPrincipal, name: gw.ns.cluster.local}",
    );
    let index = index(&[HTTPBIN, &two, &open, &closed]);
    let policy = policy(&index);
    assert_eq!(rules(&policy, 14001).len(), 1);
    assert_eq!(rules(&policy, 14002).len(), 1);
    let stranger = [San::Dns(DnsName::parse("x.y.cluster.local").unwrap())];
    let decision = policy.authorize(&Session {
        port: 14002,
        source: GATEWAY_ADDRESS.parse().unwrap(),
        opening: Opening::Tls { server_name: None },
        client: Some(&stranger),
    });
    assert!(matches!(decision, Decision::Deny(denial) if denial.reason == Reason::PrincipalNotAllowed));
}

#[test]
fn two_services_on_one_pod_and_port_both_count_and_their_statuses_are_true() {
    let second = service("httpbin2", "{name: tcp-x, port: 81, targetPort: 14001}");
    let a = ingress_backend("a", &backend("http", ""), "{kind: IPRange, name: 10.0.0.0/8}");
    let b = ingress_backend(
        "b",
        "{name: httpbin2, port: {number: 14001, protocol: http}}",
        "{kind: IPRange, name: 192.168.0.0/16}",
    );
    let index = index(&[HTTPBIN, &second, &a, &b]);
    let policy = policy(&index);
    assert_eq!(policy.ports[&14001].services, ["httpbin/httpbin".into(), "httpbin/httpbin2".into()]);
    for address in ["10.1.1.1", "192.168.1.1"] {
        assert_eq!(
            policy.open(14001, address.parse().unwrap(), Opening::Plaintext),
            Ok(Terms::IngressPlaintext),
            "{address}"
        );
    }
    assert!(policy.open(14001, "172.16.0.1".parse().unwrap(), Opening::Plaintext).is_err());
    assert_committed(&index, "a");
    assert_committed(&index, "b");
}

#[test]
fn several_objects_that_open_one_port_are_all_in_force_and_name_each_other() {
    let a = ingress_backend("a", &backend("http", ""), "{kind: IPRange, name: 10.0.0.0/8}");
    let b = ingress_backend(
        "b",
        &backend("https", ""),
        "{kind: AuthenticatedPrincipal, name: gw.ns.cluster.local}",
    );
    let index = index(&[HTTPBIN, &a, &b]);
    assert_eq!(rules(&policy(&index), 14001).len(), 2);
    for (name, other) in [("a", "httpbin/b"), ("b", "httpbin/a")] {
        let warnings = assert_committed(&index, name);
        assert!(
            warnings.iter().any(|w| w.contains(&format!("also opened by IngressBackend {other}"))),
            "{warnings:?}"
        );
    }
}

#[test]
fn an_object_of_another_namespace_opens_nothing() {
    let elsewhere =
        ingress_backend("ib", &backend("http", ""), "").replace("namespace: httpbin", "namespace: other");
    let index = index(&[HTTPBIN, &elsewhere]);
    assert!(rules(&policy(&index), 14001).is_empty());
    assert!(assert_error(&index, "ib").contains("other/httpbin"));
}

#[test]
fn an_object_that_fails_validation_denies_with_the_reason() {
    for (backends, sources, reason) in [
        (backend("grpc", ""), FROM_GATEWAY, "Expected 'port.protocol' to be 'http' or 'https', got: grpc"),
        (backend("http", ""), "{kind: Pod, name: x}", "Invalid 'source.kind' value specified."),
        (
            backend("http", ""),
            "{kind: IPRange, name: 10.0.0.1}",
            "Expected CIDR notation 'a.b.c.d/x', got '10.0.0.1'",
        ),
        (
            format!("{}, {}", backend("http", ""), backend("http", "")),
            FROM_GATEWAY,
            "Duplicate backends detected with service name: httpbin and port: 14001",
        ),
        (
            backend("tcp", ""),
            "{kind: AuthenticatedPrincipal, name: a.b}",
            "client certificates cannot be checked",
        ),
    ] {
        let index = index(&[HTTPBIN, GATEWAY, &ingress_backend("ib", &backends, sources)]);
        let error = assert_error(&index, "ib");
        assert!(error.contains(reason), "{error}");
        for rule in rules(&policy(&index), 14001) {
            assert_eq!(rule.state, RuleState::Invalid(error.as_str().into()));
        }
        assert!(!rules(&policy(&index), 14001).is_empty());
    }
}

#[test]
fn the_inverted_rule_of_osm_is_a_warning() {
    let tls = ", tls: {skipClientCertValidation: true}";
    let index = index(&[HTTPBIN, GATEWAY, &ingress_backend("ib", &backend("https", tls), FROM_GATEWAY)]);
    assert_eq!(assert_committed(&index, "ib").len(), 1);
}

#[test]
fn tcp_passes_bytes_from_the_sources() {
    let index = index(&[HTTPBIN, GATEWAY, &ingress_backend("ib", &backend("tcp", ""), FROM_GATEWAY)]);
    let policy = policy(&index);
    let open =
        |address: &str| policy.open(14001, address.parse().unwrap(), Opening::Tls { server_name: None });
    assert_eq!(open("127.0.0.2"), Ok(Terms::Opaque));
    assert!(open("127.0.0.9").is_err());
}

#[test]
fn permissive_mode_is_for_mesh_peers_only() {
    let config = |permissive: bool| {
        format!(
            "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
             metadata: {{name: osm-mesh-config, namespace: osm-system}}\n\
             spec: {{traffic: {{enablePermissiveTrafficPolicyMode: {permissive}}}}}\n"
        )
    };
    let on = policy(&index(&[HTTPBIN, &config(true)]));
    assert_eq!(on.ports[&14001].mesh, MeshRule::AnyPeer);
    let address = GATEWAY_ADDRESS.parse().unwrap();
    assert!(on.open(14001, address, Opening::Plaintext).is_err());
    let off = policy(&index(&[HTTPBIN, &config(false)]));
    assert_eq!(off.ports[&14001].mesh, MeshRule::Deny(NOT_PERMISSIVE.into()));
    assert!(matches!(
        off.open(14001, address, Opening::Mesh(MeshProtocol::Http1)).unwrap_err().reason,
        Reason::MeshDenied(_)
    ));
}

#[test]
fn without_a_word_for_it_permissive_mode_is_off() {
    let mesh = |config: &str| policy(&index(&[HTTPBIN, config])).ports[&14001].mesh.clone();
    assert_eq!(mesh(PERMISSIVE), MeshRule::AnyPeer);
    for spec in ["{}", "{traffic: {}}", "{traffic: {enableEgress: true}}"] {
        let config = PERMISSIVE.replace("{traffic: {enablePermissiveTrafficPolicyMode: true}}", spec);
        assert_eq!(mesh(&config), MeshRule::Deny(NOT_PERMISSIVE.into()), "{spec}");
    }
    let denied = mesh("");
    assert_eq!(denied, MeshRule::Deny(NO_MESH_CONFIG.into()));
    assert_eq!(mesh(&PERMISSIVE.replace("osm-mesh-config", "another")), denied);
}

#[test]
fn a_policy_says_what_its_workload_is_called_and_where_its_spans_go() {
    let telemetry = |spec: &str| {
        let config = PERMISSIVE.replace("{traffic: {enablePermissiveTrafficPolicyMode: true}}", spec);
        policy(&index(&[HTTPBIN, &config])).telemetry
    };
    let untraced = telemetry("{}");
    assert_eq!((untraced.workload.as_deref(), untraced.tracing), (Some("httpbin-1"), None));
    let tracing = |fields: &str| telemetry(&format!("{{observability: {{tracing: {{{fields}}}}}}}")).tracing;
    let traced = tracing("enable: true, sampledFraction: '0.5'").unwrap();
    assert_eq!(traced.collector.to_string(), "jaeger.tidegate-system.svc.cluster.local:4317");
    assert_eq!(traced.sampled_per_million, 500_000);
    assert_eq!(tracing("enable: true, port: 9411"), None);
    assert_eq!(tracing("port: 4317"), None);
}

#[test]
fn a_mesh_config_that_no_pod_can_be_made_with_is_an_error_in_its_status() {
    let index = index(&["apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
                         metadata: {name: osm-mesh-config, namespace: a}\nspec: {}\n"]);
    let (name, good) = index.mesh_config().unwrap();
    assert_eq!(super::mesh_config::mesh_config(&index, name, good).current, CurrentStatus::Committed);
    // As a cluster may have stored it before it was validated.
    let mut bad = tidegate_crds::MeshConfig::clone(good);
    bad.spec = serde_json::from_value(serde_json::json!({
        "sidecar": {"resources": {"limits": {"cpu": "much"}}},
        "certificate": {"serviceCertValidityDuration": "soon", "certKeyBitSize": 2048},
    }))
    .unwrap();
    let status = super::mesh_config::mesh_config(&index, name, &bad);
    assert_eq!(status.current, CurrentStatus::Error);
    let expected = "spec.sidecar.resources.limits.cpu: Expected a quantity such as 100m or 64Mi, got 'much'";
    assert_eq!(status.reason, expected);
    let is_warned = |path: &str| status.warnings.iter().any(|warning| warning.starts_with(path));
    assert!(is_warned("spec.certificate.serviceCertValidityDuration: "), "{:?}", status.warnings);
    assert!(!is_warned("spec.sidecar.resources.limits.cpu"), "{:?}", status.warnings);
}

#[test]
fn of_several_mesh_configs_the_one_with_osm_s_name_is_in_force() {
    let config = |name: &str, namespace: &str| {
        format!(
            "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{}}\n"
        )
    };
    let index =
        index(&[&config("aaa", "a"), &config("osm-mesh-config", "b"), &config("osm-mesh-config", "c")]);
    let reasons: Vec<_> =
        index.mesh_configs().map(|(n, o)| super::mesh_config::mesh_config(&index, n, o).reason).collect();
    assert_eq!(
        reasons,
        [
            "not in force: b/osm-mesh-config is",
            "successfully committed by the system",
            "not in force: b/osm-mesh-config is"
        ]
    );
}

#[test]
fn a_pod_without_a_service_account_runs_as_default() {
    let pod = HTTPBIN.replace("serviceAccountName: httpbin", "restartPolicy: Always");
    assert_eq!(policy(&index(&[&pod])).identity.dns_name(), "default.httpbin.cluster.local");
}

#[test]
fn what_the_app_speaks_comes_from_the_service() {
    let grpc = HTTPBIN.replace("name: http,", "name: grpc-api,");
    assert_eq!(policy(&index(&[&grpc])).ports[&14001].protocol, AppProtocol::H2c);
    let smtp = HTTPBIN.replace("port: 80,", "port: 80, appProtocol: tcp-server-first,");
    assert_eq!(policy(&index(&[&smtp])).ports[&14001].protocol, AppProtocol::TcpServerFirst);
}

/// A row of the reference's table of sources by protocol, as its author would say it.
#[derive(Clone, Debug)]
struct Written {
    protocol: &'static str,
    skip: Option<bool>,
    service: bool,
    range: bool,
    principals: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Client {
    address: &'static str,
    tls: bool,
    names: Option<Vec<&'static str>>,
}

impl Written {
    fn manifest(&self) -> String {
        let mut sources: Vec<_> = self
            .principals
            .iter()
            .map(|p| format!("{{kind: AuthenticatedPrincipal, name: {p:?}}}"))
            .collect();
        if self.service {
            sources.push(FROM_GATEWAY.to_owned());
        }
        if self.range {
            sources.insert(0, "{kind: IPRange, name: 10.0.0.0/8}".to_owned());
        }
        let tls =
            self.skip.map(|skip| format!(", tls: {{skipClientCertValidation: {skip}}}")).unwrap_or_default();
        ingress_backend("ib", &backend(self.protocol, &tls), &sources.join(", "))
    }

    /// Addresses are OR-ed, identities are OR-ed, and both must hold where both are given.
    fn lets_in(&self, client: &Client) -> bool {
        let address_is_good = match (self.service, self.range) {
            (false, false) => true,
            (service, range) => {
                (service && client.address == GATEWAY_ADDRESS) || (range && client.address.starts_with("10."))
            }
        };
        let is_https = self.protocol.eq_ignore_ascii_case("https");
        if !address_is_good || client.tls != is_https {
            return false;
        }
        if !is_https || self.skip == Some(true) {
            return true;
        }
        client.names.as_ref().is_some_and(|names| {
            self.principals.is_empty() || self.principals.iter().any(|p| *p == "*" || names.contains(p))
        })
    }
}

fn written() -> impl Strategy<Value = Written> {
    let names = ["gw.ns.cluster.local", "other.ns.cluster.local", "*", "*.cluster.local"];
    (
        prop::sample::select(vec!["http", "https", "HTTPS", "Http"]),
        prop::option::of(any::<bool>()),
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(prop::sample::select(names.to_vec()), 0..3),
    )
        .prop_map(|(protocol, skip, service, range, principals)| Written {
            protocol,
            skip,
            service,
            range,
            principals,
        })
}

fn client() -> impl Strategy<Value = Client> {
    let names = prop::sample::select(vec!["gw.ns.cluster.local", "stranger.ns.cluster.local"]);
    (
        prop::sample::select(vec![GATEWAY_ADDRESS, "127.0.0.3", "10.1.2.3", "192.0.2.1"]),
        any::<bool>(),
        prop::option::of(prop::collection::vec(names, 0..2)),
    )
        .prop_map(|(address, tls, names)| Client { address, tls, names })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_is_compiled_decides_as_the_reference_s_table_says(written in written(), client in client()) {
        let index = index(&[HTTPBIN, GATEWAY, &written.manifest()]);
        let policy = policy(&index);
        let sans: Option<Vec<San>> = client
            .names
            .as_ref()
            .map(|names| names.iter().map(|name| San::Dns(DnsName::parse(name).unwrap())).collect());
        let source: IpAddr = client.address.parse().unwrap();
        let opening = if client.tls { Opening::Tls { server_name: None } } else { Opening::Plaintext };
        let decision =
            policy.authorize(&Session { port: 14001, source, opening, client: sans.as_deref() });
        prop_assert_eq!(matches!(decision, Decision::Allow(_)), written.lets_in(&client), "{:?}", decision);
        prop_assert_eq!(status(&index, "ib").current, CurrentStatus::Committed);
    }
}

#[test]
fn sources_are_shared_by_all_rules_of_an_object_and_by_all_workloads() {
    let sources: Vec<String> = (0..200).map(|i| format!("{{kind: IPRange, name: 10.{i}.0.0/17}}")).collect();
    let sources = sources.join(", ");
    let index = index(&[HTTPBIN, &ingress_backend("a", &backend("http", ""), &sources)]);
    let rules = NamespaceRules::new(&index, "httpbin", &TrustDomain::default());
    let pod = index.pods_in("httpbin").next().unwrap().1;
    let compile = || workload_by(&rules, pod).unwrap().policy;
    let first = compile();
    let held = allocation_counter::measure(|| {
        assert_eq!(compile(), first);
    });
    assert!(held.bytes_max < 4096, "{} bytes for a policy with 200 ranges", held.bytes_max);
}

#[test]
fn more_than_one_object_may_have_is_denied_with_a_reason() {
    let backends: Vec<String> =
        (0..256).map(|i| format!("{{name: s{i}, port: {{number: 80, protocol: https}}}}")).collect();
    let principals: Vec<String> = (0..200)
        .map(|i| format!("{{kind: AuthenticatedPrincipal, name: \"{}{i}.b\"}}", "a.".repeat(30)))
        .collect();
    let index = index(&[HTTPBIN, &ingress_backend("a", &backends.join(", "), &principals.join(", "))]);
    let reason = status(&index, "a").reason;
    assert!(
        reason.starts_with("spec: 256 backends, each with sources of ")
            && reason.contains("of which one object may have 1048576"),
        "{reason}"
    );
}

#[test]
fn what_one_workload_has_no_room_for_denies_and_what_comes_before_it_holds() {
    let ranges: Vec<String> =
        (0..1024).map(|i| format!("{{kind: IPRange, name: \"fd00:{:x}::/32\"}}", 2 * i)).collect();
    let documents: Vec<String> = (0..20)
        .map(|i| ingress_backend(&format!("p{i:02}"), &backend("http", ""), &ranges.join(", ")))
        .collect();
    let mut all = vec![HTTPBIN];
    all.extend(documents.iter().map(String::as_str));
    let index = index(&all);
    let pod = index.pods_in("httpbin").next().unwrap().1;
    let compiled =
        workload_by(&NamespaceRules::new(&index, "httpbin", &TrustDomain::default()), pod).unwrap();
    let rules = &compiled.policy.ports[&14001].ingress;
    let active = rules.iter().filter(|rule| matches!(rule.state, RuleState::Active(_))).count();
    assert_eq!((rules.len(), active), (20, 11), "11 times 1,024 ranges are 495 KiB");
    assert_eq!(rules[11].state, RuleState::Invalid(TOO_LARGE.into()));
    assert_eq!(compiled.left_out.len(), 9);
    assert!(compiled.left_out.contains(&ObjectRef::new("IngressBackend", "httpbin", "p11")));
}
