//! Egress policies that allow what was reached: for each service account one for each protocol and port, so that no host is
//! allowed at a port at which it was not reached.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use kube::api::ObjectMeta;
use tidegate_crds::egress::{Egress, EgressPort, EgressSource, EgressSpec};
use tidegate_sidecar::detect::server::SpokenProtocol;

use super::hosts::LearnedHost;
use super::manifests;

/// Maximum characters of a service account within a policy's name.
const NAMED: usize = 200;

/// What one policy is for: namespace, service account, protocol, port, and whether it lists hosts or addresses.
type PolicyKey<'h> = (&'h str, &'h str, &'static str, u16, bool);

/// The manifests of the servers that need one, each with its comments.
pub(super) fn text(hosts: &[LearnedHost]) -> anyhow::Result<String> {
    let mut policies: BTreeMap<PolicyKey<'_>, Vec<&LearnedHost>> = BTreeMap::new();
    for host in hosts.iter().filter(|host| host.needs_egress()) {
        let (protocol, has_hosts) = match (host.reached.protocol, &host.reached.host) {
            (SpokenProtocol::Http, Some(_)) => ("http", true),
            (SpokenProtocol::Tls, host) => ("https", host.is_some()),
            _ => ("tcp", false),
        };
        let key =
            (host.namespace.as_str(), host.service_account.as_str(), protocol, host.reached.port, has_hosts);
        policies.entry(key).or_default().push(host);
    }
    let mut text = String::new();
    for (key, servers) in policies {
        text += "---\n";
        servers.iter().for_each(|host| text += &manifests::comment(host));
        text += &serde_saphyr::to_string(&policy(key, &servers)).context("YAML")?;
    }
    Ok(text)
}

fn policy(
    (namespace, account, protocol, port, has_hosts): PolicyKey<'_>,
    servers: &[&LearnedHost],
) -> Egress {
    let names: BTreeSet<_> = servers.iter().filter_map(|host| host.reached.host.clone()).collect();
    let addresses: BTreeSet<_> = servers.iter().flat_map(|host| &host.reached.addresses).collect();
    let range =
        |address: &&std::net::IpAddr| format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 });
    let spec = EgressSpec {
        sources: vec![EgressSource {
            kind: "ServiceAccount".to_owned(),
            name: account.to_owned(),
            namespace: namespace.to_owned(),
        }],
        hosts: names.into_iter().filter(|_| has_hosts).collect(),
        ip_addresses: addresses.iter().map(range).filter(|_| !has_hosts).collect(),
        ports: vec![EgressPort { number: port, protocol: protocol.to_owned() }],
        matches: Vec::new(),
    };
    let account: String = account.chars().take(NAMED).collect();
    let by = if has_hosts { "" } else { "-by-address" };
    let name = Some(format!("learned-{account}-{protocol}-{port}{by}"));
    let metadata = ObjectMeta { name, namespace: Some(namespace.to_owned()), ..ObjectMeta::default() };
    Egress { metadata, spec, status: None }
}
