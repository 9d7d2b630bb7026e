//! ServiceEntries: what the clients of a namespace reach at an address, and the status of each entry.
//!
//! An address that a Service or a workload of the mesh has is never an entry's. Of several entries at an address, clients get
//! the one of their own namespace, else the one with the longest prefix, else the oldest, else the first by namespace and
//! name. The order in which objects arrive makes no difference.
//!
//! At TLS and HTTP ports of entries that do not list the single address, hosts tell connections apart: the most specific host
//! comes before all of that. Where an entry for opaque bytes comes before one with hosts, nothing is read from connections.

mod conflicts;
mod endpoints;
mod entries_at;
mod support;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tidegate_crds::service_entry::ServiceEntry;
use tidegate_crds::{Finding, validate};

pub(crate) use self::endpoints::{proxied_as, selected_pods};
pub(crate) use self::entries_at::EntriesAt;
use super::status::{ACCEPTED, Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::{Index, service_named};
use crate::object::ObjectName;

impl Compiled for ServiceEntry {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let entries = scope.service_entries().filter(|(name, _)| Self::is_wanted(scope, name));
        entries
            .map(|(name, entry)| Judged {
                name: name.clone(),
                status: judge(scope.index, name, entry),
                uid: entry.metadata.uid.clone(),
                is_incomplete: false,
            })
            .collect()
    }

    fn is_affected(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.concerns_entry(name)
    }

    fn is_wanted(scope: &StatusScope<'_>, name: &ObjectName) -> bool {
        scope.concerns_entry(name) && !scope.is_of_another_mesh(&name.namespace)
    }
}

/// The Service whose name one of the hosts is, and the place of that host: names of the mesh are not an entry's.
fn claimed_service(index: &Index, entry: &ServiceEntry) -> Option<(usize, ObjectName)> {
    let hosts = entry.spec.hosts.iter().enumerate();
    let mut named = hosts.filter_map(|(i, host)| Some((i, service_named(host)?)));
    named.find(|(_, service)| index.service(service).is_some())
}

/// Whether an entry is in force, and as far as it is not, why.
fn judge(index: &Index, name: &ObjectName, entry: &ServiceEntry) -> ObjectStatus {
    let findings = validate::service_entry(&name.namespace, &entry.spec);
    let mut warnings: Vec<String> =
        findings.iter().filter(|finding| !finding.is_error()).map(Finding::to_string).collect();
    let error = index
        .outside_mesh(&name.namespace)
        .map(|reason| ("OutsideMesh", reason))
        .or_else(|| Some(("Invalid", findings.iter().find(|finding| finding.is_error())?.to_string())))
        .or_else(|| {
            let (i, service) = claimed_service(index, entry)?;
            let host = entry.spec.hosts.get(i).map(String::as_str).unwrap_or_default();
            Some(("Conflicted", format!("spec.hosts[{i}]: {host} is the name of Service {service}")))
        })
        .or_else(|| support::of_entry(entry).map(|reason| ("NotSupported", reason)))
        .or_else(|| {
            conflicts::of_entry(index, name, entry, &mut warnings).map(|reason| ("Conflicted", reason))
        });
    warnings.extend(support::unused(entry));
    let selects = error.is_none() && entry.spec.selected_pods().is_some();
    if selects && selected_pods(index, name, &entry.spec).next().is_none() {
        let namespace = &name.namespace;
        warnings.push(format!("spec.workloadSelector selects no Pod of namespace {namespace} that is ready"));
    }
    let (condition, error) = error.unzip();
    ObjectStatus::new(error, warnings, &entry.metadata).with_condition(condition.unwrap_or(ACCEPTED))
}

/// When an entry was made; objects of a folder have no age.
fn age(entry: &ServiceEntry) -> Option<&Time> {
    entry.metadata.creation_timestamp.as_ref()
}

#[cfg(test)]
mod tests;
