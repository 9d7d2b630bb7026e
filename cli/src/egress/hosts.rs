//! The servers that workloads have reached, by service account: the reports of all their sidecars together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;
use tidegate_sidecar::detect::server::SpokenProtocol;
use tidegate_sidecar::telemetry::egress::{EgressOutcome, EgressReport, ReachedHost};

use crate::output;

/// A port of a server that workloads of one service account have reached.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LearnedHost {
    /// The workloads' namespace.
    pub(super) namespace: String,
    /// Their service account.
    pub(super) service_account: String,
    #[serde(flatten)]
    pub(super) reached: ReachedHost,
}

/// What is one server to a service account.
type HostKey<'r> = (&'r str, &'r str, Option<&'r str>, Option<&'r [IpAddr]>, u16, SpokenProtocol);

/// The servers of all reports, sorted.
pub(super) fn of(reports: &[EgressReport]) -> Vec<LearnedHost> {
    let mut hosts: BTreeMap<HostKey<'_>, LearnedHost> = BTreeMap::new();
    for report in reports {
        let (namespace, account) = (namespace(report), report.service_account.as_deref().unwrap_or("-"));
        for reached in &report.reached {
            let host = reached.host.as_deref();
            let addresses = host.is_none().then_some(&reached.addresses[..]);
            let key = (namespace, account, host, addresses, reached.port, reached.protocol);
            let learned = || LearnedHost {
                namespace: namespace.to_owned(),
                service_account: account.to_owned(),
                reached: reached.clone(),
            };
            hosts.entry(key).and_modify(|known| known.reached.add(reached.clone())).or_insert_with(learned);
        }
    }
    hosts.into_values().collect()
}

/// The namespace of a report's workload.
pub(super) fn namespace(report: &EgressReport) -> &str {
    report.workload.split_once('/').map_or("", |(namespace, _)| namespace)
}

impl LearnedHost {
    /// Whether it would be refused if `enableEgress` was false: no object has allowed the last connection.
    pub(super) fn needs_egress(&self) -> bool {
        self.reached.outcome == EgressOutcome::EnableEgress
    }

    /// `name:port`, or the address of a server without a name.
    pub(super) fn server(&self) -> String {
        match (&self.reached.host, self.reached.addresses.first()) {
            (Some(host), _) => format!("{host}:{}", self.reached.port),
            (None, Some(IpAddr::V6(address))) => format!("[{address}]:{}", self.reached.port),
            (None, Some(address)) => format!("{address}:{}", self.reached.port),
            (None, None) => format!("-:{}", self.reached.port),
        }
    }

    /// What the app speaks.
    pub(super) fn protocol(&self) -> &'static str {
        match self.reached.protocol {
            SpokenProtocol::Tls => "TLS",
            SpokenProtocol::Http => "HTTP",
            SpokenProtocol::HttpProxy => "HTTP proxy",
            SpokenProtocol::Tcp => "TCP",
        }
    }

    /// What happens to it if `enableEgress` is false.
    pub(super) fn when_locked(&self) -> String {
        match (self.reached.outcome, &self.reached.allowed_by) {
            (EgressOutcome::EnableEgress, _) => "would be refused".to_owned(),
            (EgressOutcome::Refused, _) => "is refused".to_owned(),
            (EgressOutcome::Allowed, Some(object)) => format!("allowed by {object}"),
            (EgressOutcome::Allowed, None) => "allowed".to_owned(),
        }
    }

    /// When it was reached last.
    pub(super) fn last_seen(&self) -> String {
        humantime::format_rfc3339_seconds(self.reached.last_seen).to_string()
    }
}

/// The table.
pub(super) fn table(hosts: &[LearnedHost]) -> String {
    let heading = [
        "NAMESPACE",
        "ACCOUNT",
        "SERVER",
        "SPEAKS",
        "COUNT",
        "BYTES SENT",
        "RECEIVED",
        "LAST SEEN",
        "WITHOUT EGRESS",
    ];
    let row = |host: &LearnedHost| {
        vec![
            host.namespace.clone(),
            host.service_account.clone(),
            host.server(),
            host.protocol().to_owned(),
            host.reached.count.to_string(),
            host.reached.bytes_sent.to_string(),
            host.reached.bytes_received.to_string(),
            host.last_seen(),
            host.when_locked(),
        ]
    };
    output::table(&heading, &hosts.iter().map(row).collect::<Vec<_>>())
}

/// The service accounts of these servers, sorted.
pub(super) fn accounts<'h>(hosts: impl IntoIterator<Item = &'h LearnedHost>) -> BTreeSet<&'h str> {
    hosts.into_iter().map(|host| host.service_account.as_str()).collect()
}
