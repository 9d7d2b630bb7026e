use super::*;
use crate::route::matching::PathMatch;

/// A request for a path.
struct Path(&'static [u8]);

impl RequestView for Path {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn path(&self) -> &[u8] {
        self.0
    }

    fn query(&self) -> Option<&[u8]> {
        None
    }

    fn authority(&self) -> &[u8] {
        b""
    }

    fn field<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> {
        std::iter::empty()
    }
}

fn hosts(names: &[&str]) -> Vec<DnsPattern> {
    names.iter().map(|name| DnsPattern::parse(name).unwrap()).collect()
}

fn rule(ports: &[u16], ranges: &[&str], traffic: EgressTraffic) -> EgressRule {
    let addresses = (!ranges.is_empty()).then(|| CidrSet::parse(ranges.iter().copied()).unwrap());
    let (origin, limits) = (ObjectRef::new("Egress", "shop", "api"), BackendLimits::default());
    EgressRule { origin, ports: ports.to_vec(), addresses, traffic, limits }
}

fn policies(rules: Vec<EgressRule>) -> EgressPolicies {
    EgressPolicies { reason: "egress is off".into(), is_audit: false, rules }
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn opaque_bytes_are_allowed_by_port_and_address() {
    let policies = policies(vec![
        rule(&[5432, 5433], &["192.0.2.0/24"], EgressTraffic::Tcp),
        rule(&[22], &[], EgressTraffic::Tcp),
    ]);
    for (address, allowed) in [
        ("192.0.2.9:5432", true),
        ("192.0.2.9:5433", true),
        ("192.0.3.9:5432", false),
        ("192.0.2.9:5434", false),
        ("[2001:db8::1]:22", true),
    ] {
        assert_eq!(policies.for_bytes(at(address)).is_some(), allowed, "{address}");
        assert!(!policies.depends_on_server(at(address)));
        assert!(policies.for_tls(at(address), Some("a.example")).is_none());
    }
}

#[test]
fn tls_is_allowed_by_server_name_and_without_hosts_to_every_server_at_the_addresses() {
    let policies = policies(vec![
        rule(&[443], &[], EgressTraffic::Tls(hosts(&["api.example.com", "*.cdn.example"]))),
        rule(&[443], &["192.0.2.0/24"], EgressTraffic::Tls(Vec::new())),
    ]);
    for (address, server, allowed) in [
        ("198.51.100.1:443", Some("API.example.com"), true),
        ("198.51.100.1:443", Some("a.cdn.example"), true),
        ("198.51.100.1:443", Some("cdn.example"), false),
        ("198.51.100.1:443", None, false),
        ("192.0.2.1:443", None, true),
        ("192.0.2.1:443", Some("other.example"), true),
        ("198.51.100.1:444", Some("api.example.com"), false),
    ] {
        assert_eq!(policies.for_tls(at(address), server).is_some(), allowed, "{address} {server:?}");
    }
    assert!(policies.for_bytes(at("192.0.2.1:443")).is_none());
    assert!(policies.depends_on_server(at("198.51.100.1:443")));
}

#[test]
fn a_request_needs_its_host_and_where_rules_list_requests_one_of_these() {
    let get = RouteMatch::new(Some(PathMatch::regex("/get.*").unwrap()), vec![], vec![], vec![]);
    let http = |names: &[&str], requests| EgressTraffic::Http { hosts: hosts(names), requests };
    let policies = policies(vec![
        rule(&[80], &[], http(&["a.example"], Some(vec![Arc::new(get)]))),
        rule(&[80], &[], http(&["b.example"], None)),
        rule(&[80], &[], http(&[], None)),
    ]);
    let asked = |host: &str, path| policies.for_request(at("192.0.2.1:80"), host, &Path(path)).map(|_| ());
    assert_eq!(asked("a.example", b"/get/1"), Ok(()));
    assert_eq!(asked("a.example", b"/post"), Err(EgressDenial::Request));
    assert_eq!(asked("b.example", b"/post"), Ok(()));
    assert_eq!(asked("c.example", b"/get"), Err(EgressDenial::Host));
    assert!(policies.needs_normal_path());
}
