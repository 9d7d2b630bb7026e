//! The choice of an entry against a second implementation that looks at all entries in turn, whatever order they come in.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Written {
    namespace: char,
    second: u8,
    /// Of 10.0.0.1, or 0 for none.
    prefix: u8,
    port: u16,
    export: &'static str,
}

fn written() -> impl Strategy<Value = Written> {
    let exports = prop::sample::select(vec!["", "*", ".", "~", "a", "b"]);
    let prefixes = prop::sample::select(vec![0_u8, 8, 24, 32]);
    (prop::char::range('a', 'c'), 0..4_u8, prefixes, 1..3_u16, exports).prop_map(
        |(namespace, second, prefix, port, export)| Written { namespace, second, prefix, port, export },
    )
}

fn document(number: usize, written: &Written) -> String {
    let Written { namespace, second, prefix, port, export } = written;
    let addresses = addresses(*prefix);
    let export = if export.is_empty() { String::new() } else { format!(", exportTo: ['{export}']") };
    let ports = format!("ports: [{{number: {port}, name: p, protocol: TCP}}]");
    let spec = format!("hosts: [a.example], addresses: [{addresses}], {ports}{export}");
    entry(&format!("{namespace}/e{number}"), *second, &spec)
}

/// The addresses that an entry lists: those of 10.0.0.1 with this prefix, or none for 0.
pub(super) fn addresses(prefix: u8) -> String {
    if prefix == 0 { String::new() } else { format!("10.0.0.1/{prefix}") }
}

/// An index of documents that arrive in this order, or the other way round.
pub(super) fn arrived(mut documents: Vec<String>, is_reversed: bool) -> Index {
    if is_reversed {
        documents.reverse();
    }
    index(&documents.iter().map(String::as_str).collect::<Vec<_>>())
}

/// What [`seen`] says of the entry with this number.
pub(super) fn seen_entry(namespace: char, number: usize) -> String {
    format!("Tcp ServiceEntry {namespace}/e{number} original")
}

/// The entry that a client gets at 10.0.0.1:1, by the rules one after the other.
fn expected(all: &[Written], client: char) -> Option<String> {
    let sees = |entry: &Written| match entry.export {
        "" | "*" => true,
        "." => entry.namespace == client,
        "~" => false,
        name => name == client.to_string(),
    };
    let mut best: Option<(usize, &Written)> = None;
    for (number, entry) in all.iter().enumerate().filter(|(_, entry)| entry.port == 1 && sees(entry)) {
        let is_better = best.is_none_or(|(other, before)| {
            let (own, its) = (entry.namespace == client, before.namespace == client);
            if own != its {
                own
            } else if entry.prefix != before.prefix {
                entry.prefix > before.prefix
            } else if entry.second != before.second {
                entry.second < before.second
            } else {
                (entry.namespace, format!("e{number}")) < (before.namespace, format!("e{other}"))
            }
        });
        if is_better {
            best = Some((number, entry));
        }
    }
    best.map(|(number, entry)| seen_entry(entry.namespace, number))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn clients_get_the_entry_that_the_rules_say_in_any_order_of_arrival(
        all in prop::collection::vec(written(), 0..6),
        is_reversed: bool,
    ) {
        let documents = all.iter().enumerate().map(|(number, entry)| document(number, entry));
        let index = arrived(documents.collect(), is_reversed);
        for client in ['a', 'b', 'c'] {
            let found = seen(&index, "10.0.0.1:1", Some(&client.to_string()));
            prop_assert_eq!(found, expected(&all, client).unwrap_or_else(|| "Unknown".to_owned()));
        }
    }
}
