//! The choice of an entry for a host against a second implementation, which goes by the rules of docs/egress.md ("Several
//! entries, one address") one after the other, whatever order entries come in.

use proptest::prelude::*;

use super::naive::{addresses, arrived, seen_entry};
use super::*;

#[derive(Clone, Debug)]
struct HostEntry {
    namespace: char,
    second: u8,
    /// Of 10.0.0.1, or 0 for none.
    prefix: u8,
    is_tcp: bool,
    host: &'static str,
    is_exported: bool,
}

fn host_entry() -> impl Strategy<Value = HostEntry> {
    let hosts = prop::sample::select(vec!["x.a.example", "'*.a.example'", "'*.example'", "y.example"]);
    let prefixes = prop::sample::select(vec![0_u8, 0, 8, 24, 32]);
    (
        prop::char::range('a', 'b'),
        0..3_u8,
        prefixes,
        prop::bool::weighted(0.3),
        hosts,
        prop::bool::weighted(0.8),
    )
        .prop_map(|(namespace, second, prefix, is_tcp, host, is_exported)| HostEntry {
            namespace,
            second,
            prefix,
            is_tcp,
            host,
            is_exported,
        })
}

fn document(number: usize, written: &HostEntry) -> String {
    let HostEntry { namespace, second, prefix, is_tcp, host, is_exported } = written;
    let addresses = addresses(*prefix);
    let (export, protocol) = (if *is_exported { "*" } else { "." }, if *is_tcp { "TCP" } else { "TLS" });
    let spec = format!(
        "hosts: [{host}], addresses: [{addresses}], ports: [{{number: 1, name: p, protocol: {protocol}}}], exportTo: ['{export}']"
    );
    entry(&format!("{namespace}/e{number}"), *second, &spec)
}

/// The entry that a client gets at 10.0.0.1:1 for x.a.example.
fn expected(all: &[HostEntry], client: char) -> Option<String> {
    let mut seen: Vec<_> = all.iter().enumerate().collect();
    seen.retain(|(_, entry)| entry.is_exported || entry.namespace == client);
    // Rules 2 to 5.
    seen.sort_by_key(|(number, entry)| {
        let decides_by_host = !entry.is_tcp && entry.prefix != 32;
        let place = (entry.namespace != client, 32 - entry.prefix, decides_by_host);
        (place, entry.second, entry.namespace, format!("e{number}"))
    });
    let by_address = seen.iter().position(|(_, entry)| entry.is_tcp || entry.prefix == 32);
    let first = by_address.and_then(|at| seen.get(at)).copied();
    let name = |(number, entry): (usize, &HostEntry)| seen_entry(entry.namespace, number);
    // At an address that an entry lists by itself, no other is looked at.
    if first.is_some_and(|(_, entry)| entry.prefix == 32) {
        return first.map(name);
    }
    let before = seen.get(..by_address.unwrap_or(seen.len())).unwrap_or_default();
    for host in ["x.a.example", "'*.a.example'", "'*.example'"] {
        if let Some(found) = before.iter().find(|(_, entry)| entry.host == host) {
            return Some(name(*found));
        }
    }
    first.map(name)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn clients_get_the_entry_for_a_host_that_the_rules_say_in_any_order_of_arrival(
        all in prop::collection::vec(host_entry(), 0..6),
        is_reversed: bool,
    ) {
        let documents = all.iter().enumerate().map(|(number, entry)| document(number, entry));
        let index = arrived(documents.collect(), is_reversed);
        for client in ['a', 'b', 'c'] {
            let client_name = client.to_string();
            let at = |key: &str| seen_host(&index, key, Some(&client_name));
            let address = seen(&index, "10.0.0.1:1", Some(&client_name));
            let found = if address.starts_with("ByHost") { at("10.0.0.1:1/tls/x.a.example") } else { address };
            prop_assert_eq!(found, expected(&all, client).unwrap_or_else(|| "Unknown".to_owned()));
        }
    }
}
