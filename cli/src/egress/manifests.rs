//! ServiceEntries that allow what was reached, and comments for the reader.
//!
//! An entry is for one namespace, lists the addresses that were dialled, and has the hosts that were named there: an
//! address and port is in one entry only, so no two of them compete.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context;
use kube::api::ObjectMeta;
use tidegate_crds::service_entry::{EntryPort, ServiceEntry, ServiceEntrySpec};
use tidegate_sidecar::detect::server::SpokenProtocol;
use tidegate_sidecar::telemetry::egress::{EgressOutcome, EgressReport};

use super::hosts::{LearnedHost, accounts};
use crate::output::printable;

/// Maximum characters of a host within an entry's name.
const NAMED: usize = 200;

/// An entry in the making: servers that have addresses and a port in common.
#[derive(Debug, Default)]
struct LearnedEntry<'h> {
    servers: Vec<&'h LearnedHost>,
    addresses: BTreeSet<IpAddr>,
    ports: BTreeMap<u16, SpokenProtocol>,
}

/// What manifests cannot say, as comments: which sidecars were queried, and the servers that need no manifest or get none.
pub(super) fn preface(reports: &[EgressReport], hosts: &[LearnedHost]) -> String {
    let mut text = String::new();
    for report in reports {
        let since = humantime::format_rfc3339_seconds(report.since);
        text += &format!("# {} since {since}\n", printable(&report.workload));
    }
    for host in hosts.iter().filter(|host| !host.needs_egress()) {
        let what = match host.reached.outcome {
            EgressOutcome::Refused => "is refused; nothing below allows it".to_owned(),
            _ => host.when_locked(),
        };
        let (namespace, account) = (&host.namespace, &host.service_account);
        text += &format!("# {}: {what} ({namespace}/{account})\n", host.server());
    }
    text
}

/// The manifests of the servers that need one, each with its comments.
pub(super) fn text(hosts: &[LearnedHost]) -> anyhow::Result<String> {
    let mut text = String::new();
    let namespaces: BTreeSet<&str> = hosts.iter().map(|host| host.namespace.as_str()).collect();
    for namespace in namespaces {
        let open = hosts.iter().filter(|host| host.namespace == namespace && host.needs_egress());
        let mut names = BTreeSet::new();
        for entry in entries(open) {
            text += &entry.comments();
            let manifest = entry.manifest(namespace, &mut names);
            text += &serde_saphyr::to_string(&manifest).context("YAML")?;
        }
    }
    Ok(text)
}

/// Groups servers so that each address and port is in one entry.
fn entries<'h>(hosts: impl Iterator<Item = &'h LearnedHost>) -> Vec<LearnedEntry<'h>> {
    let mut of_port: Vec<LearnedEntry<'h>> = Vec::new();
    for host in hosts {
        let mut entry = LearnedEntry::of(host);
        // Those that it overlaps with become one with it.
        let (same, others) = of_port.into_iter().partition(|other| entry.overlaps(other));
        of_port = others;
        let same: Vec<LearnedEntry<'h>> = same;
        same.into_iter().for_each(|other| entry.join(other));
        of_port.push(entry);
    }
    let mut joined: Vec<LearnedEntry<'h>> = Vec::new();
    for entry in of_port {
        let is_same = |other: &&mut LearnedEntry<'h>| {
            other.addresses == entry.addresses && other.hosts() == entry.hosts()
        };
        match joined.iter_mut().find(is_same) {
            Some(other) => other.join(entry),
            None => joined.push(entry),
        }
    }
    joined.sort_by_key(|entry| (entry.hosts(), entry.ports.keys().copied().collect::<Vec<_>>()));
    joined
}

impl<'h> LearnedEntry<'h> {
    fn of(host: &'h LearnedHost) -> Self {
        Self {
            servers: vec![host],
            addresses: host.reached.addresses.iter().copied().collect(),
            ports: BTreeMap::from([(host.reached.port, host.reached.protocol)]),
        }
    }

    /// Whether both have an address and port.
    fn overlaps(&self, other: &Self) -> bool {
        self.ports.keys().any(|port| other.ports.contains_key(port))
            && !self.addresses.is_disjoint(&other.addresses)
    }

    /// Takes over the servers of an earlier entry. What is spoken in more than one way at a port is bytes.
    fn join(&mut self, other: Self) {
        self.servers.splice(..0, other.servers);
        self.addresses.extend(other.addresses);
        for (port, protocol) in other.ports {
            let known = self.ports.entry(port).or_insert(protocol);
            if *known != protocol {
                *known = SpokenProtocol::Tcp;
            }
        }
    }

    /// The names of the servers; of servers without one, a name that cannot exist (RFC 6761 §6.4).
    fn hosts(&self) -> Vec<String> {
        let names: BTreeSet<&str> =
            self.servers.iter().filter_map(|host| host.reached.host.as_deref()).collect();
        if !names.is_empty() {
            return names.into_iter().map(ToOwned::to_owned).collect();
        }
        let address = self.addresses.first().map(ToString::to_string).unwrap_or_default();
        vec![format!("ip-{}.invalid", address.replace([':', '.'], "-").trim_matches('-'))]
    }

    /// Who has reached what, and how often.
    fn comments(&self) -> String {
        let accounts: Vec<_> = accounts(self.servers.iter().copied()).into_iter().collect();
        let mut text = format!("---\n# Service accounts: {}\n", accounts.join(", "));
        for host in &self.servers {
            text += &comment(host);
        }
        text
    }

    fn manifest(&self, namespace: &str, names: &mut BTreeSet<String>) -> ServiceEntry {
        let hosts = self.hosts();
        let port = |(number, protocol): (&u16, &SpokenProtocol)| {
            let protocol = match protocol {
                SpokenProtocol::Tls => "TLS",
                SpokenProtocol::Http => "HTTP",
                SpokenProtocol::HttpProxy | SpokenProtocol::Tcp => "TCP",
            };
            EntryPort {
                number: (*number).into(),
                protocol: Some(protocol.to_owned()),
                name: format!("{}-{number}", protocol.to_lowercase()),
                target_port: None,
            }
        };
        let spec = ServiceEntrySpec {
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            ports: self.ports.iter().map(port).collect(),
            location: Some("MESH_EXTERNAL".to_owned()),
            resolution: Some("NONE".to_owned()),
            endpoints: Vec::new(),
            workload_selector: None,
            export_to: vec![".".to_owned()],
            subject_alt_names: Vec::new(),
            hosts,
        };
        let name = free_name(spec.hosts.first().map(String::as_str).unwrap_or_default(), names);
        let metadata = ObjectMeta { namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
        ServiceEntry { metadata: ObjectMeta { name: Some(name), ..metadata }, spec, status: None }
    }
}

/// How often a server was reached.
pub(super) fn comment(host: &LearnedHost) -> String {
    let (reached, protocol) = (&host.reached, host.protocol());
    format!(
        "# {} ({protocol}): {} times, {} bytes sent, {} received, last {}\n",
        host.server(),
        reached.count - reached.refused,
        reached.bytes_sent,
        reached.bytes_received,
        host.last_seen(),
    )
}

/// A name of an object that none before has.
fn free_name(host: &str, names: &mut BTreeSet<String>) -> String {
    let host: String = host.chars().take(NAMED).collect();
    let base = format!("learned-{}", host.replace('_', "-").trim_end_matches(['.', '-']));
    let mut name = base.clone();
    let mut count = 1;
    while !names.insert(name.clone()) {
        count += 1;
        name = format!("{base}-{count}");
    }
    name
}
