use std::time::Duration;

use tidegate_core::backend::{
    BackendLimits, DnsAnswers, DnsEndpoint, DnsEndpoints, OriginalDestination, ProxiedAs,
};
use tidegate_core::cidr::CidrSet;
use tidegate_core::destination::{DestinationKey, RequestedHost};
use tidegate_core::egress::policies::{EgressPolicies, EgressRule, EgressTraffic};
use tidegate_core::forward_proxy::{ForwardedHeaders, NoProxy, ProxySettings};
use tidegate_core::policy::AppProtocol;
use tidegate_core::{Destination, DnsName, EgressMode, ObjectRef};
use tidegate_proto::ResourceName;

use super::*;
use crate::destinations::{Destinations, Lookup, ResolvedDestination, ResolvedTarget, Resource};

const PROXY: &str = "10.9.9.9:3128";
const DIALLED: &str = "192.0.2.1:443";

fn rule(hosts: &[&str]) -> Arc<EgressProxyRule> {
    Arc::new(EgressProxyRule {
        hosts: patterns(hosts),
        ports: vec![443],
        no_proxy: NoProxy::default(),
        proxies: vec![PROXY.parse().unwrap()],
        http_proxies: Vec::new(),
        settings: Arc::new(ProxySettings {
            origin: ObjectRef::new("EgressProxy", "shop", "squid"),
            credentials: None,
            credentials_version: "".into(),
            tls: None,
            connect_timeout: Duration::from_secs(5),
            response_timeout: Duration::from_secs(5),
            forwarded_headers: ForwardedHeaders::Transparent,
        }),
    })
}

fn patterns(hosts: &[&str]) -> Vec<DnsPattern> {
    hosts.iter().map(|host| DnsPattern::parse(host).unwrap()).collect()
}

fn name() -> BackendRef {
    BackendRef { object: ObjectRef::new("ServiceEntry", "shop", "api"), port: 443 }
}

/// A ServiceEntry's port; connections go to the address that was dialled.
fn entry(protocol: BackendProtocol, hosts: &[&str], proxied_as: Option<ProxiedAs>) -> Backend {
    let original_destination = Some(OriginalDestination { port: None });
    let backend = Backend::new(name(), protocol, Vec::new());
    Backend { hosts: patterns(hosts), original_destination, proxied_as, ..backend }
}

/// What an address is, or a host at it, while egress is off.
fn resolved(
    rules: &[Arc<EgressProxyRule>],
    (carried, backend): (AppProtocol, Backend),
    host: Option<&str>,
) -> (Destinations, Arc<ResolvedDestination>) {
    let host = host.map(|host| RequestedHost::of_server_name(DnsName::parse(host).unwrap()));
    let key = DestinationKey { host, ..DIALLED.parse::<SocketAddr>().unwrap().into() };
    let destinations = Destinations::default();
    destinations.set_egress(EgressMode::RegistryOnly("off".into()), rules);
    destinations.look_up(&key);
    let set = |name: &ResourceName, value| destinations.set(name, "1".into(), value, 100).unwrap();
    let destination = Destination::backend(carried, name());
    set(&ResourceName::Destination(key.clone()), Resource::Destination(destination));
    set(&ResourceName::Backend(name()), Resource::Backend(backend));
    destinations.settle(true);
    let found = known(&destinations, &key);
    (destinations, found)
}

fn known(destinations: &Destinations, key: &DestinationKey) -> Arc<ResolvedDestination> {
    match destinations.look_up(key) {
        Lookup::Known(known) => known,
        _ => panic!("{key:?} is not known"),
    }
}

/// The address that is connected to, and what is requested of a proxy there.
fn way(choice: Result<EndpointChoice, NoEndpoint>) -> String {
    let Ok(EndpointChoice { endpoint, .. }) = choice else { panic!("no endpoint") };
    match endpoint.via.as_ref().map(|proxy| &proxy.request) {
        None => endpoint.address.to_string(),
        Some(ProxyRequest::AbsoluteForm) => format!("{} for requests", endpoint.address),
        Some(ProxyRequest::Tunnel(target)) => format!("{} to {target}", endpoint.address),
    }
}

#[test]
fn bytes_of_a_service_entry_go_to_its_host_by_connect_where_that_is_known() {
    use ProxiedAs::{Address, Host};
    type Case = (&'static [&'static str], Option<ProxiedAs>, Option<&'static str>, &'static str);
    let table: [Case; 7] = [
        (&["db.example"], Some(Host), None, "10.9.9.9:3128 to db.example:443"),
        (&["db.example", "b.example"], Some(Host), None, "10.9.9.9:3128 to 192.0.2.1:443"),
        (&["*.example"], Some(Host), None, "10.9.9.9:3128 to 192.0.2.1:443"),
        (&["db.example"], Some(Address), None, "10.9.9.9:3128 to 192.0.2.1:443"),
        (&["*.example"], Some(Address), Some("a.example"), "10.9.9.9:3128 to a.example:443"),
        (&["db.example"], None, None, "192.0.2.1:443"),
        (&["db.example"], None, Some("db.example"), "192.0.2.1:443"),
    ];
    for (hosts, proxied_as, host, expected) in table {
        let entry = (AppProtocol::Tcp, entry(BackendProtocol::Tcp, hosts, proxied_as));
        let (_, found) = resolved(&[rule(&[])], entry, host);
        // Another name in its bytes changes nothing.
        for server in [None, Some("evil.example")] {
            assert_eq!(
                way(found.choose_for_connection(server)),
                expected,
                "{hosts:?} {proxied_as:?} {host:?}"
            );
        }
        assert!(!found.is_proxied(), "its first bytes are not waited for");
    }
}

#[test]
fn requests_of_a_service_entry_go_to_its_hosts_and_others_to_the_address_that_was_dialled() {
    let entry = || {
        let hosts = ["api.example", "*.api.example"];
        (AppProtocol::Http, entry(BackendProtocol::Http, &hosts, Some(ProxiedAs::Host)))
    };
    let request = |found: &ResolvedDestination, host, is_absolute| {
        let ResolvedTarget::Proxied(proxied) = found.target() else { panic!("direct") };
        way(proxied.choose_for_request(Some(host), is_absolute))
    };
    let (_, found) = resolved(&[rule(&[])], entry(), None);
    assert_eq!(request(&found, "API.example", true), "10.9.9.9:3128 for requests");
    assert_eq!(request(&found, "v1.api.example", false), "10.9.9.9:3128 to v1.api.example:443");
    for is_absolute in [true, false] {
        let forged = request(&found, "evil.example", is_absolute);
        assert_eq!(forged, "10.9.9.9:3128 to 192.0.2.1:443", "the entry has no such host");
    }
    let (_, found) = resolved(&[rule(&["*.api.example"])], entry(), None);
    assert_eq!(request(&found, "v1.api.example", true), "10.9.9.9:3128 for requests");
    assert_eq!(request(&found, "api.example", true), "192.0.2.1:443", "the EgressProxy is for others");
    let (_, found) = resolved(&[rule(&[])], entry(), Some("api.example"));
    assert_eq!(request(&found, "Api.example.", true), "10.9.9.9:3128 for requests");
    assert_eq!((found.service().map(|name| &**name), found.name().is_some()), (Some("api.example"), true));
}

#[test]
fn a_name_that_only_a_proxy_resolves_is_not_looked_up() {
    let looked_up = |name: Option<&str>| {
        let name = name.map(|name| DnsName::parse(name).unwrap());
        let names = vec![DnsEndpoint { name, port: 443, transport: Transport::Plain, weight: 1 }];
        let dns = Some(DnsEndpoints { names, answers: DnsAnswers::All });
        let entry = entry(BackendProtocol::Tcp, &["api.example"], Some(ProxiedAs::Host));
        Backend { original_destination: None, dns, ..entry }
    };
    for (name, host) in [(Some("api.example"), None), (None, Some("api.example"))] {
        let (destinations, found) = resolved(&[rule(&[])], (AppProtocol::Tcp, looked_up(name)), host);
        assert_eq!(way(found.choose_for_connection(None)), "10.9.9.9:3128 to api.example:443");
        assert!(destinations.names().borrow().is_empty());
        // It is once the connection is direct.
        destinations.set_egress(EgressMode::AllowAny, &[]);
        destinations.settle(true);
        assert_eq!(destinations.names().borrow().len(), 1);
    }
}

#[test]
fn a_change_of_the_rules_reaches_service_entries() {
    let entry = (AppProtocol::Tcp, entry(BackendProtocol::Tcp, &["db.example"], Some(ProxiedAs::Host)));
    let (destinations, before) = resolved(&[], entry, None);
    assert_eq!(way(before.choose_for_connection(None)), DIALLED);
    destinations.set_egress(EgressMode::AllowAny, &[rule(&[])]);
    destinations.settle(true);
    let after = known(&destinations, &DIALLED.parse::<SocketAddr>().unwrap().into());
    assert_eq!(way(after.choose_for_connection(None)), "10.9.9.9:3128 to db.example:443");
}

#[test]
fn a_policy_that_allows_an_address_opens_no_other_one_by_its_name() {
    let rule_of = |traffic, addresses: Option<&str>| EgressRule {
        origin: ObjectRef::new("Egress", "shop", "out"),
        ports: vec![443],
        addresses: addresses.map(|range| CidrSet::parse([range]).unwrap()),
        traffic,
        limits: BackendLimits::default(),
    };
    let range = Some("192.0.2.0/24");
    let tls = |hosts: &[&str]| EgressTraffic::Tls(patterns(hosts));
    for (rule_of, expected) in [
        (rule_of(EgressTraffic::Tcp, range), "10.9.9.9:3128 to 192.0.2.1:443"),
        (rule_of(EgressTraffic::Tcp, None), "10.9.9.9:3128 to a.example:443"),
        (rule_of(tls(&[]), range), "10.9.9.9:3128 to 192.0.2.1:443"),
        (rule_of(tls(&[]), None), "10.9.9.9:3128 to a.example:443"),
        (rule_of(tls(&["a.example"]), range), "10.9.9.9:3128 to a.example:443"),
    ] {
        let policies = EgressPolicies { reason: "off".into(), is_audit: false, rules: vec![rule_of.clone()] };
        let destinations = Destinations::default();
        destinations.set_egress(EgressMode::Policies(Arc::new(policies)), &[rule(&[])]);
        let found = Arc::new(destinations.unanswered(DIALLED.parse().unwrap()));
        let allowed = match found.target() {
            ResolvedTarget::Policies(address) => address.allowed(Some(0)).clone(),
            _ => found,
        };
        assert_eq!(way(allowed.choose_for_connection(Some("a.example"))), expected, "{rule_of:?}");
    }
}
