//! Whether a TrafficSplit is in force. What it means at a port of its root is in `shares`.

mod shares;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use tidegate_crds::{Finding, TrafficSplit, validate};

use super::fault::ObjectFault;
use super::gateway_route;
use super::status::{ACCEPTED, Compiled, Judged, ObjectStatus, StatusScope};
use crate::index::{Index, split_backend, split_root};
use crate::object::ObjectName;
use crate::service::tcp_ports;

pub(super) use shares::at;

use shares::{PortShare, Split};

impl Compiled for TrafficSplit {
    fn statuses(scope: &StatusScope<'_>) -> Vec<Judged> {
        let wanted = scope.index.traffic_splits().filter(|(name, _)| Self::is_wanted(scope, name));
        wanted.map(|(name, object)| judged(scope.index, Split { name, object })).collect()
    }
}

/// The status of one split: its fault, or which other split of the Service comes first.
fn judged(index: &Index, split: Split<'_>) -> Judged {
    let Split { name, object } = split;
    let faults = faults(index, split);
    let error =
        (!faults.is_empty()).then(|| validate::listed(faults.iter().map(|fault| fault.reason.clone())));
    let word = faults.first().map_or(ACCEPTED, |fault| fault.word);
    let findings = validate::traffic_split(&name.namespace, &object.spec);
    let findings = findings.iter().map(Finding::to_string);
    let findings = findings.filter(|text| !faults.iter().any(|fault| fault.reason == *text));
    let warnings = findings.chain(effects(index, split)).collect();
    Judged {
        name: name.clone(),
        status: ObjectStatus::new(error, warnings, &object.metadata).with_condition(word),
        uid: object.metadata.uid.clone(),
        is_incomplete: !faults.is_empty() && faults.iter().all(ObjectFault::is_missing),
    }
}

/// What keeps a split, or some of its shares, from being in force.
fn faults(index: &Index, split: Split<'_>) -> Vec<ObjectFault> {
    let service = match split.root(index).and_then(|service| split.requests(index).map(|_| service)) {
        Ok(service) => service,
        Err(fault) => return vec![fault],
    };
    let mut faults: Vec<ObjectFault> = split.no_weight().into_iter().collect();
    for fault in
        tcp_ports(service).flat_map(|port| split.shares(index, port)).filter_map(PortShare::into_fault)
    {
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    if faults.is_empty() {
        faults.extend(precedence(index, split, service).err());
    }
    faults
}

/// The routes that take precedence at some ports; an error if they do at all ports.
fn precedence(index: &Index, split: Split<'_>, service: &Service) -> Result<Vec<String>, ObjectFault> {
    let Some(root) = split_root(split.name, split.object) else { return Ok(Vec::new()) };
    let ports: BTreeSet<u16> = tcp_ports(service).filter_map(|port| u16::try_from(port.port).ok()).collect();
    let decides = |port: &u16| {
        let (kind, name) = gateway_route::deciding(index, &root, *port, &root.namespace)?;
        Some(format!("{kind} {name} takes precedence at port {port}"))
    };
    let all: Vec<_> = ports.iter().filter_map(decides).collect();
    if !all.is_empty() && all.len() == ports.len() {
        return Err(ObjectFault::conflicted(validate::listed(all.into_iter())));
    }
    Ok(all)
}

/// What keeps a split that is in force from having its usual effect.
fn effects(index: &Index, split: Split<'_>) -> Vec<String> {
    let Ok(service) = split.root(index) else { return Vec::new() };
    let mut effects = precedence(index, split, service).unwrap_or_default();
    effects.extend(consumers(index, split, service));
    effects.extend(tcp_ports(service).filter_map(|port| left_out(index, split, port)));
    let is_root = |backend: &ObjectName| {
        Some(backend) != split_root(split.name, split.object).as_ref()
            && index.splits_of(backend).next().is_some()
    };
    let backends = split.object.spec.backends.iter().filter_map(|backend| split_backend(split.name, backend));
    let nested: BTreeSet<_> = backends.filter(is_root).collect();
    if !nested.is_empty() {
        let nested = validate::listed(nested.iter().map(|backend| backend.name.to_string()));
        effects
            .push(format!("splits do not nest: those of the backends {nested} do not apply to their shares"));
    }
    effects
}

/// The namespaces that have routes of their own for the root.
fn consumers(index: &Index, split: Split<'_>, service: &Service) -> Option<String> {
    let root = split_root(split.name, split.object)?;
    let others: BTreeSet<_> = index.routes_of(&root).map(|route| &route.name.namespace).collect();
    let ports = || tcp_ports(service).filter_map(|port| u16::try_from(port.port).ok());
    let decides = |namespace: &str| {
        ports().any(|port| gateway_route::deciding(index, &root, port, namespace).is_some())
    };
    let others = others.into_iter().filter(|namespace| **namespace != root.namespace && decides(namespace));
    let others = validate::listed(others.map(ToString::to_string));
    (!others.is_empty())
        .then(|| format!("routes of the namespaces {others} take precedence for their own clients"))
}

/// The backends that do not have a port of the root.
fn left_out(index: &Index, split: Split<'_>, port: &ServicePort) -> Option<String> {
    let shares = split.shares(index, port);
    let without: Vec<_> = shares.iter().filter_map(PortShare::without_port).collect();
    let number = port.port;
    match without.len() {
        0 => None,
        all if all == shares.len() => Some(format!("port {number} is not split: no backend has it")),
        _ => {
            let without = validate::listed(without.into_iter().map(str::to_owned));
            Some(format!("these backends do not have port {number} and get nothing of it: {without}"))
        }
    }
}
