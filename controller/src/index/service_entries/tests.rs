use serde_json::{Value, json};

use super::*;
use crate::object::stored::size;

fn entry(spec: &Value) -> Object {
    let text = json!({"metadata": {"name": "a", "namespace": "shop"}, "spec": spec}).to_string();
    <ServiceEntry as Stored>::decode(&text, "tidegate-system").unwrap()
}

fn add(part: &mut ServiceEntries, name: &str, addresses: &[&str]) {
    let ports = json!([{"number": 443, "name": "tcp", "protocol": "TCP"}]);
    let spec = json!({"hosts": ["a.example"], "addresses": addresses, "ports": ports});
    let Object::ServiceEntry(object) = entry(&spec) else { panic!() };
    Indexed::insert(part, ObjectName::parse(name).unwrap(), object);
}

fn at(part: &ServiceEntries, ip: &str) -> Vec<String> {
    let ranges = part.ranges_at(ip.parse().unwrap());
    ranges.flat_map(|(range, names)| names.iter().map(move |name| format!("{range} {name}"))).collect()
}

#[test]
fn an_address_is_found_in_all_ranges_that_contain_it_the_longest_prefix_first() {
    let mut part = ServiceEntries::default();
    add(&mut part, "a/wide", &["10.0.0.0/8", "fd00::/16"]);
    add(&mut part, "a/one", &["10.1.2.3"]);
    add(&mut part, "b/one", &["10.1.2.3/32", "10.1.2.3"]);
    add(&mut part, "b/port", &[]);
    assert_eq!(at(&part, "10.1.2.3"), ["10.1.2.3/32 a/one", "10.1.2.3/32 b/one", "10.0.0.0/8 a/wide"]);
    assert_eq!(at(&part, "10.9.9.9"), ["10.0.0.0/8 a/wide"]);
    assert_eq!(at(&part, "fd00::1"), ["fd00::/16 a/wide"]);
    assert_eq!(part.anywhere(443).count(), 1);
    for name in ["a/wide", "a/one", "b/one", "b/port"] {
        <ServiceEntry as Indexed>::remove(&mut part, &ObjectName::parse(name).unwrap());
    }
    let ServiceEntries { by_name, by_range, lengths, anywhere, hosts, .. } = part;
    assert!(by_name.is_empty() && by_range.is_empty(), "nothing is left");
    assert!(anywhere.is_empty() && hosts.is_empty(), "nothing is left");
    assert!(lengths.iter().all(BTreeMap::is_empty));
}

#[test]
fn an_entry_with_errors_is_found_by_its_name_alone() {
    let mut part = ServiceEntries::default();
    add(&mut part, "a/bad", &["10.1.2.3", "nonsense"]);
    assert!(at(&part, "10.1.2.3").is_empty());
    assert!(part.entry(&ObjectName::new("a", "bad")).is_some());
}

#[test]
fn names_of_services_differ_from_others() {
    let cart = Some(ObjectName::new("shop", "cart"));
    for (host, service) in [
        ("cart.shop.svc", cart.clone()),
        ("Cart.shop.svc.cluster.local", cart),
        ("cart.shop", None),
        ("www.example.com", None),
    ] {
        assert_eq!(service_named(host), service, "{host}");
    }
}

#[test]
fn an_entry_takes_no_more_than_what_is_reckoned_for_it() {
    let ports: Vec<_> =
        (1..=200).map(|i| json!({"number": i, "name": format!("port-{i}"), "protocol": "TCP"})).collect();
    let endpoint_ports: serde_json::Map<_, _> = (1..=100).map(|i| (format!("port-{i}"), i.into())).collect();
    let endpoint = json!({"address": "192.0.2.1", "ports": endpoint_ports, "labels": {"a": "b".repeat(60)},
        "locality": "region/zone/sub", "serviceAccount": "a".repeat(60)});
    let hosts: Vec<_> = (0..256).map(|i| format!("host-{i}.example.com")).collect();
    let plain: Vec<_> =
        (0..4096).map(|i| json!({"address": format!("10.0.{}.{}", i / 256, i % 256)})).collect();
    for spec in [
        json!({"hosts": hosts, "ports": ports, "resolution": "STATIC", "endpoints": vec![endpoint; 200]}),
        json!({"hosts": ["a"], "resolution": "STATIC", "endpoints": plain}),
    ] {
        let reckoned = size::of(&entry(&spec));
        let mut kept = None;
        let held = allocation_counter::measure(|| kept = Some(entry(&spec))).bytes_current;
        drop(kept);
        let held = usize::try_from(held).unwrap();
        assert!(held <= reckoned && reckoned < 4 * held + 16 * STATUS, "{held} held, {reckoned} reckoned");
    }
}
