//! Compares the evaluator of rules for mesh peers with a naive second one: a union, rule by rule and match by match.

use std::sync::Arc;

use proptest::prelude::*;

use super::naive::of_port;
use super::*;
use crate::dns_name::DnsName;
use crate::identity::{Identity, TrustDomain};
use crate::object_ref::ObjectRef;
use crate::route::matching::{HeaderMatch, PathMatch};
use crate::route::test_request::TestRequest;
use crate::route::{Method, RouteMatch};
use crate::san::San;

const PEERS: [&str; 3] = ["cart", "shop", "pay"];
const PATHS: [&str; 4] = ["/books", "/books/1", "/", "/admin"];
const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
const VERSIONS: [&str; 3] = ["", "1", "2"];

/// A rule as written: sources, and either everything or matches.
#[derive(Clone, Debug)]
struct Written {
    sources: Vec<&'static str>,
    matches: Option<Vec<WrittenMatch>>,
    broken: bool,
}

#[derive(Clone, Debug)]
struct WrittenMatch {
    path: Option<&'static str>,
    methods: Vec<&'static str>,
    version: Option<&'static str>,
}

#[derive(Clone, Debug)]
struct Asked {
    peer: &'static str,
    protocol: MeshProtocol,
    path: &'static str,
    method: &'static str,
    version: &'static str,
}

/// One sentence of the documentation per line.
fn grants(rule: &Written, asked: &Asked) -> bool {
    if rule.broken || !rule.sources.contains(&asked.peer) {
        return false;
    }
    let Some(matches) = &rule.matches else { return true };
    let is_http = asked.protocol != MeshProtocol::Tcp;
    is_http && matches.iter().any(|one| is_met(one, asked))
}

fn is_met(one: &WrittenMatch, asked: &Asked) -> bool {
    let path = match one.path {
        None | Some(".*") => true,
        Some("/books.*") => asked.path.starts_with("/books"),
        Some(text) => text == asked.path,
    };
    path && (one.methods.is_empty() || one.methods.contains(&asked.method))
        && one.version.is_none_or(|version| version == asked.version)
}

fn compile(number: usize, rule: &Written) -> Arc<PeerRule> {
    let matching = |one: &WrittenMatch| {
        let path = one.path.map(|path| PathMatch::regex(path).unwrap());
        let methods = one.methods.iter().map(|method| Method::parse(method).unwrap()).collect();
        let header = |version| HeaderMatch::regex("x-version", version).unwrap();
        Arc::new(RouteMatch::new(path, methods, one.version.map(header).into_iter().collect(), vec![]))
    };
    let traffic = match &rule.matches {
        None => PeerTraffic::Any,
        Some(matches) => PeerTraffic::Requests(matches.iter().map(matching).collect()),
    };
    let sources = rule.sources.iter().map(|account| identity(account)).collect();
    let state = if rule.broken {
        PeerRuleState::Invalid("broken".into())
    } else {
        PeerRuleState::Active(ActivePeerRule { sources, traffic })
    };
    Arc::new(PeerRule { origin: ObjectRef::new("TrafficTarget", "ns", &number.to_string()), state })
}

fn identity(account: &str) -> Identity {
    Identity::new(TrustDomain::default(), "ns", account).unwrap()
}

fn policy(mesh: MeshRule) -> InboundPolicy {
    let port = PortPolicy {
        protocol: AppProtocol::Http,
        services: vec![],
        mesh,
        ingress: vec![],
        rate_limits: vec![],
    };
    of_port(80, port)
}

/// The decision about a connection and then about its request, as the sidecar makes it.
fn decide(policy: &InboundPolicy, asked: &Asked) -> Decision {
    let peer = identity(asked.peer);
    let names = [San::Dns(DnsName::parse(&peer.dns_name()).unwrap()), San::Uri(peer.spiffe_uri().into())];
    let (source, opening) = ("10.0.0.1".parse().unwrap(), Opening::Mesh(asked.protocol));
    policy.admit(80, source).unwrap();
    policy.open(80, source, opening).unwrap();
    let session = Session { port: 80, source, opening, client: Some(&names) };
    let decision = policy.authorize(&session);
    let Some(rules) = policy.request_rules(&session) else { return decision };
    assert!(matches!(decision, Decision::Allow(_)), "a connection is open whose requests are decided");
    let request = TestRequest::new(asked.method, "a", asked.path);
    let request = if asked.version.is_empty() { request } else { request.with("x-version", asked.version) };
    match rules.select(&request) {
        Ok(granting) => {
            let (rule, matching) = rules.matches().nth(granting.matching).unwrap();
            assert!(rule == granting.rule && matching.matches(&request));
            let mut earlier = rules.matches().take(granting.matching);
            assert!(!earlier.any(|(_, one)| one.matches(&request)), "the first match that grants it");
            rules.allowed(granting.rule)
        }
        Err(closest) => rules.refused(closest),
    }
}

fn written() -> impl Strategy<Value = Written> {
    let path = prop::option::of(prop::sample::select(vec!["/books", "/books.*", ".*", "/admin"]));
    let methods = prop::sample::subsequence(METHODS.to_vec(), 0..=2);
    let version = prop::option::weighted(0.2, prop::sample::select(vec!["1", "2"]));
    let one =
        (path, methods, version).prop_map(|(path, methods, version)| WrittenMatch { path, methods, version });
    let matches = prop::option::weighted(0.7, prop::collection::vec(one, 0..3));
    let sources = prop::sample::subsequence(PEERS.to_vec(), 0..=2);
    (sources, matches, prop::bool::weighted(0.1)).prop_map(|(sources, matches, broken)| Written {
        sources,
        matches,
        broken,
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    use MeshProtocol::{Http1, Http2, Tcp};
    let protocol = prop::sample::select(vec![Http1, Http2, Tcp]);
    let select = |values: &[&'static str]| prop::sample::select(values.to_vec());
    (select(&PEERS), protocol, select(&PATHS), select(&METHODS), select(&VERSIONS))
        .prop_map(|(peer, protocol, path, method, version)| Asked { peer, protocol, path, method, version })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn rules_are_a_union(rules in prop::collection::vec(written(), 0..4), asked in asked()) {
        let compiled: Vec<_> = rules.iter().enumerate().map(|(number, rule)| compile(number, rule)).collect();
        let expected = rules.iter().any(|rule| grants(rule, &asked));
        let decision = decide(&policy(MeshRule::Rules(compiled.clone())), &asked);
        prop_assert_eq!(matches!(decision, Decision::Allow(_)), expected, "{:?}", decision);
        match &decision {
            Decision::Allow(Grant::Peer(origin, peer)) => {
                let number: usize = origin.name.parse().unwrap();
                prop_assert!(grants(&rules[number], &asked), "the log names a rule that grants it");
                prop_assert_eq!(peer, &identity(asked.peer));
            }
            Decision::Allow(grant) => prop_assert!(false, "{}", grant),
            Decision::Deny(denial) => prop_assert_eq!(denial.origin.is_none(), rules.is_empty(), "{}", denial),
        }
        // In audit mode everything is allowed, with the same reason.
        let audit = decide(&policy(MeshRule::Audit(compiled)), &asked);
        match decision {
            Decision::Deny(denial) => prop_assert_eq!(audit, Decision::Allow(Grant::Audit(denial))),
            allowed => prop_assert_eq!(audit, allowed),
        }
    }
}

fn rule(matches: Option<Vec<WrittenMatch>>) -> Written {
    Written { sources: vec!["cart"], matches, broken: false }
}

fn refusal(rules: &[Written], asked: &Asked) -> String {
    let rules = rules.iter().enumerate().map(|(number, rule)| compile(number, rule)).collect();
    match decide(&policy(MeshRule::Rules(rules)), asked) {
        Decision::Deny(denial) => format!("{} {}", denial.reason.code(), denial.origin.unwrap().name),
        Decision::Allow(grant) => panic!("{grant}"),
    }
}

#[test]
fn a_refusal_names_the_rule_that_came_closest() {
    let get =
        Asked { peer: "cart", protocol: MeshProtocol::Http1, path: "/books", method: "GET", version: "" };
    let with = |path, methods: &[&'static str]| {
        rule(Some(vec![WrittenMatch { path: Some(path), methods: methods.to_vec(), version: None }]))
    };
    let broken = || Written { broken: true, ..rule(None) };
    let others = || Written { sources: vec!["pay"], ..rule(None) };
    assert_eq!(refusal(&[with("/admin", &[]), with("/books", &["POST"])], &get), "request_not_allowed 1");
    assert_eq!(refusal(&[others(), broken()], &get), "invalid_rule 1");
    assert_eq!(refusal(&[others()], &get), "peer_not_allowed 0");
    let opaque = Asked { protocol: MeshProtocol::Tcp, ..get };
    assert_eq!(refusal(&[others(), broken(), with("/books", &[])], &opaque), "not_parsed 2");
}

#[test]
fn deciding_about_a_request_allocates_nothing() {
    let rules = (0..100).map(|number| {
        let path = if number == 99 { "/books.*" } else { "/admin" };
        compile(
            number,
            &rule(Some(vec![WrittenMatch { path: Some(path), methods: vec!["GET"], version: None }])),
        )
    });
    let mesh = MeshRule::Rules(rules.collect());
    let rules = RequestRules::new(&mesh, identity("cart")).unwrap();
    let request = TestRequest::new("GET", "a", "/books/1");
    // The program's cache is made by the first match.
    assert_eq!(rules.select(&request).unwrap().rule, 99);
    let allocated = allocation_counter::measure(|| assert!(rules.select(&request).is_ok()));
    assert_eq!(allocated.count_total, 0);
}
