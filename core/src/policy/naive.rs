//! Compares the evaluator with a naive second one, written directly from the documented table of source kinds by
//! protocol.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::cidr::CidrSet;
use crate::dns_name::{DnsName, DnsPattern};
use crate::egress::EgressMode;
use crate::identity::{Identity, TrustDomain};
use crate::object_ref::ObjectRef;
use crate::principal::Principal;
use crate::san::San;

const NAMES: [&str; 3] = ["gw.ingress.cluster.local", "other.ns.cluster.local", "gw.ingress.cluster.loca1"];
const HOSTS: [&str; 4] = ["foo.example", "a.bar.example", "bar.example", "FOO.example"];
const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.1.1", "fd00::1", "fd00::2"];

/// An IngressBackend as written by its author.
#[derive(Clone, Debug)]
struct Written {
    protocol: &'static str,
    skip: bool,
    sni_hosts: Vec<&'static str>,
    ranges: Vec<&'static str>,
    principals: Vec<&'static str>,
    broken: bool,
}

#[derive(Clone, Debug)]
struct Client {
    address: &'static str,
    tls: bool,
    server_name: Option<&'static str>,
    certificate: Option<Vec<&'static str>>,
}

/// One sentence of the documentation per line: "plaintext; IPs restrict; principals ignored" and so on.
fn allows(rule: &Written, client: &Client) -> bool {
    if rule.broken {
        return false;
    }
    let address: IpAddr = client.address.parse().unwrap();
    let in_range = rule.ranges.iter().any(|range| range.parse::<ipnet::IpNet>().unwrap().contains(&address));
    let from_there = rule.ranges.is_empty() || in_range;
    if rule.protocol == "http" {
        return from_there && !client.tls;
    }
    let sni = rule.sni_hosts.is_empty()
        || client.server_name.is_some_and(|name| {
            let name = name.to_lowercase();
            rule.sni_hosts.iter().any(|host| match host.strip_prefix('*') {
                Some(suffix) => name.ends_with(suffix) && name.len() > suffix.len(),
                None => name == *host,
            })
        });
    if !(client.tls && from_there && sni) {
        return false;
    }
    if rule.skip {
        return true;
    }
    let Some(names) = &client.certificate else { return false };
    // https without a principal: any certificate of the mesh's CA.
    rule.principals.is_empty() || rule.principals.iter().any(|p| *p == "*" || names.contains(p))
}

fn compile(rule: &Written) -> IngressRule {
    let sources = if rule.ranges.is_empty() {
        Sources::Any
    } else {
        Sources::Ranges(CidrSet::parse(rule.ranges.iter().copied()).unwrap())
    };
    let principals: Vec<_> = rule.principals.iter().map(|p| Principal::parse(p)).collect();
    let client = match (rule.skip, principals.is_empty()) {
        (true, _) => ClientCheck::Skip,
        (false, true) => ClientCheck::Principals([Principal::Any].into()),
        (false, false) => ClientCheck::Principals(principals.into()),
    };
    let sni_hosts = rule.sni_hosts.iter().map(|host| DnsPattern::parse(host).unwrap()).collect();
    let transport = match rule.protocol {
        "http" => IngressTransport::Http,
        _ => IngressTransport::Https { sni_hosts, client },
    };
    let state = if rule.broken {
        RuleState::Invalid("endpoints not found for service a/b".into())
    } else {
        RuleState::Active(ActiveIngressRule { sources, transport })
    };
    IngressRule {
        origin: ObjectRef::new("IngressBackend", "httpbin", "httpbin"),
        backend: "httpbin/httpbin".into(),
        state,
    }
}

fn policy(rules: &[Written], mesh: MeshRule) -> InboundPolicy {
    let port = PortPolicy {
        protocol: AppProtocol::Http,
        services: vec!["httpbin/httpbin".into()],
        mesh,
        ingress: rules.iter().map(compile).collect(),
        rate_limits: vec![],
    };
    of_port(14001, port)
}

/// The policy of a workload that has one port.
pub(super) fn of_port(number: u16, port: PortPolicy) -> InboundPolicy {
    InboundPolicy {
        workload: "httpbin/httpbin-0".into(),
        identity: Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap(),
        locality: None,
        telemetry: Default::default(),
        external_authorization: None,
        egress: EgressMode::AllowAny,
        retries: Vec::new(),
        egress_proxies: Vec::new(),
        ports: BTreeMap::from([(number, port)]),
    }
}

/// Evaluates all three phases, as the sidecar does.
fn evaluate(policy: &InboundPolicy, client: &Client) -> Decision {
    let source = client.address.parse().unwrap();
    let opening =
        if client.tls { Opening::Tls { server_name: client.server_name } } else { Opening::Plaintext };
    let terms = match policy.admit(14001, source).and_then(|()| policy.open(14001, source, opening)) {
        Ok(Terms::BadRequest) => return Decision::Deny(Denial::new(Reason::PlaintextRequired)),
        Ok(terms) => terms,
        Err(denial) => return Decision::Deny(denial),
    };
    let names: Option<Vec<San>> = match terms {
        Terms::IngressMutualTls => client
            .certificate
            .as_ref()
            .map(|c| c.iter().map(|n| San::Dns(DnsName::parse(n).unwrap())).collect()),
        _ => None,
    };
    policy.authorize(&Session { port: 14001, source, opening, client: names.as_deref() })
}

fn written() -> impl Strategy<Value = Written> {
    let ranges = prop::sample::subsequence(vec!["10.0.0.0/24", "10.0.1.1/32", "fd00::1/128"], 0..=2);
    let hosts = prop::sample::subsequence(vec!["foo.example", "*.bar.example"], 0..=2);
    let principals = prop::sample::subsequence(vec![NAMES[0], NAMES[1], "*"], 0..=2);
    let protocol = prop::sample::select(vec!["http", "https", "https"]);
    (protocol, any::<bool>(), hosts, ranges, principals, prop::bool::weighted(0.1)).prop_map(
        |(protocol, skip, sni_hosts, ranges, principals, broken)| Written {
            protocol,
            skip,
            sni_hosts,
            ranges,
            principals,
            broken,
        },
    )
}

fn client() -> impl Strategy<Value = Client> {
    (
        prop::sample::select(ADDRESSES.to_vec()),
        any::<bool>(),
        prop::option::of(prop::sample::select(HOSTS.to_vec())),
        prop::option::of(prop::sample::subsequence(NAMES.to_vec(), 0..=2)),
    )
        .prop_map(|(address, tls, server_name, certificate)| Client {
            address,
            tls,
            server_name,
            certificate,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_single_rule_allows_what_the_documentation_says(rule in written(), client in client()) {
        let decision = evaluate(&policy(std::slice::from_ref(&rule), MeshRule::AnyPeer), &client);
        prop_assert_eq!(matches!(decision, Decision::Allow(_)), allows(&rule, &client), "{:?}", decision);
    }

    #[test]
    fn several_rules_allow_no_more_than_one_of_them_does(
        rules in prop::collection::vec(written(), 0..4),
        client in client(),
    ) {
        let allowed = matches!(evaluate(&policy(&rules, MeshRule::Deny("off".into())), &client), Decision::Allow(_));
        prop_assert!(!allowed || rules.iter().any(|rule| allows(rule, &client)));
        // Where no rule skips the client certificate, the rules together grant exactly what each of them grants.
        if !rules.iter().any(|rule| rule.skip) {
            prop_assert_eq!(allowed, rules.iter().any(|rule| allows(rule, &client)));
        }
    }

    #[test]
    fn a_denial_names_a_policy_unless_there_is_none(rules in prop::collection::vec(written(), 1..3), client in client()) {
        if let Decision::Deny(denial) = evaluate(&policy(&rules, MeshRule::Deny("off".into())), &client) {
            prop_assert!(denial.origin.is_some() || denial.reason == Reason::PlaintextRequired, "{denial}");
        }
    }
}

fn workload_names(account: &str) -> Vec<San> {
    let identity = Identity::new(TrustDomain::default(), "ns", account).unwrap();
    vec![San::Dns(DnsName::parse(&identity.dns_name()).unwrap()), San::Uri(identity.spiffe_uri().into())]
}

fn mesh_decision(rule: MeshRule, names: Option<&[San]>) -> Result<Grant, Reason> {
    let policy = policy(&[], rule);
    let opening = Opening::Mesh(MeshProtocol::Tcp);
    let source = "10.9.9.9".parse().unwrap();
    policy.open(14001, source, opening).map_err(|denial| denial.reason)?;
    match policy.authorize(&Session { port: 14001, source, opening, client: names }) {
        Decision::Allow(grant) => Ok(grant),
        Decision::Deny(denial) => Err(denial.reason),
    }
}

#[test]
fn permissive_mode_allows_workloads_but_not_the_certificate_of_the_ingress_controller() {
    assert_eq!(mesh_decision(MeshRule::AnyPeer, Some(&workload_names("a"))), Ok(Grant::AnyPeer));
    let gateway = [San::Dns(DnsName::parse("ingress-nginx.ingress-nginx.cluster.local").unwrap())];
    assert_eq!(mesh_decision(MeshRule::AnyPeer, Some(&gateway)), Err(Reason::NotAWorkload));
    assert_eq!(mesh_decision(MeshRule::AnyPeer, None), Err(Reason::ClientCertificateRequired));
    let foreign = [San::Uri("spiffe://other.example/ns/ns/sa/a".into())];
    assert_eq!(mesh_decision(MeshRule::AnyPeer, Some(&foreign)), Err(Reason::NotAWorkload));
}

#[test]
fn a_port_that_refuses_mesh_peers_says_why() {
    let denied = MeshRule::Deny("no policy".into());
    assert_eq!(
        mesh_decision(denied, Some(&workload_names("a"))),
        Err(Reason::MeshDenied("no policy".into()))
    );
}

/// The check of a request for `host` on a connection that was opened for `server_name`.
fn directed(rules: &[Written], server_name: Option<&str>, host: &str) -> Result<(), Reason> {
    let policy = policy(rules, MeshRule::AnyPeer);
    let session = Session {
        port: 14001,
        source: "10.0.0.1".parse().unwrap(),
        opening: Opening::Tls { server_name },
        client: None,
    };
    assert!(policy.differs_by_name(&session));
    assert!(matches!(policy.authorize(&session), Decision::Allow(_)));
    policy.direct(&session, host).map_err(|denial| denial.reason)
}

#[test]
fn a_host_among_another_rule_s_names_needs_another_connection_unless_the_connection_s_rule_names_it_too() {
    let rule = |sni_hosts: &[&'static str], skip| Written {
        protocol: "https",
        skip,
        sni_hosts: sni_hosts.to_vec(),
        ranges: vec![],
        principals: vec![NAMES[0]],
        broken: false,
    };
    let two = [rule(&["foo.example"], true), rule(&["*.bar.example"], false)];
    assert_eq!(directed(&two, Some("foo.example"), "FOO.example."), Ok(()));
    assert_eq!(directed(&two, Some("foo.example"), "a.bar.example"), Err(Reason::Misdirected));
    for host in ["bar.example", "httpbin", "10.0.0.1", "[::1]", ""] {
        assert_eq!(directed(&two, Some("foo.example"), host), Ok(()), "{host}: no rule names it");
    }
    let both = [rule(&["foo.example", "*.bar.example"], true), rule(&["*.bar.example"], false)];
    assert_eq!(directed(&both, Some("foo.example"), "a.bar.example"), Ok(()));
    let any = [rule(&["*.bar.example"], false), rule(&[], true)];
    for server_name in [None, Some("foo.example")] {
        assert_eq!(directed(&any, server_name, "a.bar.example"), Ok(()));
    }
}

#[test]
fn a_port_without_a_service_is_refused_before_a_byte_is_read() {
    let denial = policy(&[], MeshRule::AnyPeer).admit(80, "10.0.0.1".parse().unwrap()).unwrap_err();
    assert_eq!(denial.reason, Reason::NoSuchPort);
}

#[test]
fn a_rule_that_is_not_in_force_is_named_by_the_kind_of_its_object() {
    let mut policy = policy(&[], MeshRule::Deny("no policy".into()));
    policy.ports.get_mut(&14001).unwrap().ingress.push(IngressRule {
        origin: ObjectRef::new("HTTPRoute", "a", "b"),
        backend: "a/c".into(),
        state: RuleState::Invalid("x".into()),
    });
    let denial = policy.admit(14001, "10.0.0.1".parse().unwrap()).unwrap_err();
    assert_eq!(denial.to_string(), "the HTTPRoute is not in force: x (HTTPRoute a/b)");
}

#[test]
fn tls_to_a_plaintext_backend_is_a_bad_request_only_for_an_admitted_address() {
    let rule = Written {
        protocol: "http",
        skip: false,
        sni_hosts: vec![],
        ranges: vec!["10.0.0.0/24"],
        principals: vec![],
        broken: false,
    };
    let policy = policy(&[rule], MeshRule::AnyPeer);
    let tls = Opening::Tls { server_name: None };
    assert_eq!(policy.open(14001, "10.0.0.1".parse().unwrap(), tls), Ok(Terms::BadRequest));
    assert!(policy.open(14001, "10.0.1.1".parse().unwrap(), tls).is_err());
}

#[test]
fn an_app_that_sends_first_is_forwarded_only_where_a_tcp_rule_admits_the_address() {
    let mut policy = policy(&[], MeshRule::AnyPeer);
    let port = policy.ports.get_mut(&14001).unwrap();
    port.protocol = AppProtocol::TcpServerFirst;
    let sources = Sources::Ranges(CidrSet::parse(["10.0.0.0/24"]).unwrap());
    let state = RuleState::Active(ActiveIngressRule { sources, transport: IngressTransport::Tcp });
    port.ingress.push(IngressRule {
        origin: ObjectRef::new("IngressBackend", "a", "b"),
        backend: "a/c".into(),
        state,
    });
    assert!(policy.serves_first(14001, "10.0.0.1".parse().unwrap()));
    assert!(!policy.serves_first(14001, "10.0.1.1".parse().unwrap()));
}

#[test]
fn the_policy_serializes_to_json() {
    let rule = Written {
        protocol: "https",
        skip: false,
        sni_hosts: vec!["*.bar.example"],
        ranges: vec!["10.0.0.0/24"],
        principals: vec![NAMES[0]],
        broken: false,
    };
    let json = serde_json::to_value(policy(&[rule], MeshRule::AnyPeer)).unwrap();
    assert_eq!(json["identity"], "httpbin.httpbin.cluster.local");
    let port = &json["ports"]["14001"];
    assert_eq!(port["mesh"], "anyPeer");
    let rule = &port["ingress"][0]["state"]["active"];
    assert_eq!(rule["sources"]["ranges"][0], "10.0.0.0/24");
    assert_eq!(rule["transport"]["https"]["sniHosts"][0], "*.bar.example");
    assert_eq!(rule["transport"]["https"]["client"]["principals"][0], NAMES[0]);
}
