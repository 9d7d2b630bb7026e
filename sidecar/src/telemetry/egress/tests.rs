use std::net::SocketAddr;

use super::*;
use crate::connection_info::HostServices;
use crate::detect::server::SpokenProtocol;
use crate::remotes::RemoteId;
use crate::telemetry::DialledEndpoint;

/// An opaque connection to an address, in whose first bytes a server was named.
fn opaque<'a>(owner: &'a AddressOwner, dialled: &str, name: Option<&'a str>) -> Record<'a> {
    let outbound = OutboundRecord {
        peer: "10.0.0.1:5000".parse().unwrap(),
        dialled: dialled.parse().unwrap(),
        service: None,
        hosts: None,
        local: None,
        destination: RemoteId::OUTSIDE,
        endpoint: None,
        owner,
        spoken: if name.is_some() { SpokenProtocol::Tls } else { SpokenProtocol::Tcp },
        server_name: name,
    };
    Record {
        outbound: Some(outbound),
        start: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)),
        duration: Duration::from_secs(1),
        received: 10,
        sent: 200,
        ..Record::default()
    }
}

fn report(usage: &EgressUsage) -> EgressReport {
    usage.report("shop/cart-0", Some("cart"))
}

#[test]
fn workers_add_up_one_server_at_several_addresses_with_its_bytes_and_times() {
    let usage = EgressUsage::default();
    let workers = [usage.worker(), usage.worker()];
    let nothing = AddressOwner::Unregistered;
    workers[0].count(&opaque(&nothing, "192.0.2.1:443", Some("api.example.com")));
    workers[1].count(&opaque(&nothing, "192.0.2.2:443", Some("API.example.com.")));
    let mut last = opaque(&nothing, "192.0.2.1:443", Some("api.example.com"));
    last.start = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(2000));
    workers[0].count(&last);
    let report = report(&usage);
    assert_eq!((report.workload.as_str(), report.service_account.as_deref()), ("shop/cart-0", Some("cart")));
    let [reached] = &report.reached[..] else { panic!("{report:?}") };
    assert_eq!(reached.host.as_deref(), Some("api.example.com"));
    assert_eq!((reached.port, reached.protocol), (443, SpokenProtocol::Tls));
    let addresses: Vec<_> = reached.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.2"]);
    assert_eq!((reached.count, reached.bytes_sent, reached.bytes_received), (3, 30, 600));
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!((seconds(reached.first_seen), seconds(reached.last_seen)), (1000, 2001));
    assert_eq!(reached.outcome, EgressOutcome::EnableEgress);
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["reached"][0]["outcome"], "enableEgress");
    assert_eq!(serde_json::from_value::<EgressReport>(json).unwrap().reached, report.reached);
}

#[test]
fn the_last_outcome_counts_and_refusals_are_counted_apart() {
    let usage = EgressUsage::default();
    let worker = usage.worker();
    let (nothing, entry) = (AddressOwner::Unregistered, AddressOwner::Object("ServiceEntry shop/api".into()));
    let at = "192.0.2.1:443";
    let name = Some("a.example");
    let refused = || Record { details: UNREGISTERED, ..opaque(&nothing, at, name) };
    for (record, outcome, by) in [
        (opaque(&nothing, at, name), EgressOutcome::EnableEgress, None),
        (refused(), EgressOutcome::Refused, None),
        (opaque(&entry, at, name), EgressOutcome::Allowed, Some("ServiceEntry shop/api")),
        (refused(), EgressOutcome::Refused, None),
    ] {
        worker.count(&record);
        let reached = report(&usage).reached.remove(0);
        assert_eq!((reached.outcome, reached.allowed_by.as_deref()), (outcome, by));
    }
    let reached = report(&usage).reached.remove(0);
    assert_eq!((reached.count, reached.refused), (4, 2));
}

#[test]
fn what_stays_in_the_mesh_is_not_recorded() {
    let usage = EgressUsage::default();
    let worker = usage.worker();
    worker.count(&Record::default());
    worker.count(&opaque(&AddressOwner::Cluster, "10.96.0.1:443", Some("a.example")));
    let entry = AddressOwner::Object("ServiceEntry shop/internal".into());
    let mut internal = opaque(&entry, "10.0.0.9:443", None);
    let outbound = internal.outbound.as_mut().unwrap();
    let address: SocketAddr = "10.0.0.9:443".parse().unwrap();
    outbound.endpoint = Some(DialledEndpoint {
        address,
        is_mutual_tls: true,
        is_http_proxy: false,
        remote: RemoteId::UNKNOWN,
    });
    worker.count(&internal);
    assert_eq!(report(&usage).reached, []);
}

#[test]
fn a_request_is_recorded_by_its_host_and_an_invalid_name_by_its_address() {
    let usage = EgressUsage::default();
    let worker = usage.worker();
    let nothing = AddressOwner::Unregistered;
    for authority in ["Api.Example.com:8080", "192.0.2.7", "[fd00::1]:80", "a_b..c", "<script>", ""] {
        let request = Record {
            protocol: "HTTP/1.1",
            authority: authority.as_bytes(),
            ..opaque(&nothing, "192.0.2.1:8080", None)
        };
        worker.count(&request);
    }
    let mut proxied = opaque(&nothing, "192.0.2.9:3128", Some("en.wikipedia.org:443"));
    proxied.outbound.as_mut().unwrap().spoken = SpokenProtocol::HttpProxy;
    worker.count(&proxied);
    let found: Vec<_> = report(&usage)
        .reached
        .into_iter()
        .map(|reached| (reached.host, reached.addresses[0].to_string(), reached.protocol, reached.count))
        .collect();
    let named = (Some("api.example.com".to_owned()), "192.0.2.1".to_owned(), SpokenProtocol::Http, 1);
    let unnamed = (None, "192.0.2.1".to_owned(), SpokenProtocol::Http, 5);
    let proxy = (None, "192.0.2.9".to_owned(), SpokenProtocol::HttpProxy, 1);
    assert_eq!(found, [named, unnamed, proxy]);
}

#[test]
fn hosts_of_one_address_are_each_recorded_by_what_has_them() {
    let usage = EgressUsage::default();
    let worker = usage.worker();
    let nothing = AddressOwner::Unregistered;
    let hosts = HostServices::default();
    hosts.set(b"api.example", None, &AddressOwner::Object("ServiceEntry shop/api".into()));
    hosts.set(b"other.example", None, &nothing);
    for authority in ["api.example", "other.example"] {
        let mut request = Record {
            protocol: "HTTP/1.1",
            authority: authority.as_bytes(),
            ..opaque(&nothing, "192.0.2.1:80", None)
        };
        request.outbound.as_mut().unwrap().hosts = Some(&hosts);
        worker.count(&request);
    }
    let found: Vec<_> =
        report(&usage).reached.into_iter().map(|reached| (reached.host, reached.allowed_by)).collect();
    let host = |name: &str| Some(name.to_owned());
    assert_eq!(found, [(host("api.example"), host("ServiceEntry shop/api")), (host("other.example"), None)]);
}

#[test]
fn servers_and_addresses_beyond_the_bound_are_counted_and_not_told_apart() {
    let usage = EgressUsage::default();
    let worker = usage.worker();
    let nothing = AddressOwner::Unregistered;
    for i in 0..MOST_SERVERS + 5 {
        worker.count(&opaque(&nothing, "192.0.2.1:443", Some(&format!("h{i}.example"))));
    }
    for i in 0..=255 {
        worker.count(&opaque(&nothing, &format!("192.0.2.{i}:443"), Some("h7.example")));
    }
    let report = report(&usage);
    assert_eq!((report.reached.len(), report.unlisted), (MOST_SERVERS, 5));
    let many = report.reached.iter().find(|reached| reached.host.as_deref() == Some("h7.example")).unwrap();
    assert_eq!((many.count, many.addresses.len()), (257, MOST_ADDRESSES));
}

#[test]
fn a_known_server_costs_no_allocation() {
    let usage = EgressUsage::default();
    let worker = usage.worker();
    let entry = AddressOwner::Object("ServiceEntry shop/api".into());
    let record = opaque(&entry, "192.0.2.1:443", Some("api.example.com"));
    worker.count(&record);
    let counted = allocation_counter::measure(|| worker.count(&record));
    assert_eq!(counted.count_total, 0);
}
