//! The Egress policies of a service account as rules for its workloads.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidegate_core::backend::BackendLimits;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::egress::policies::{EgressPolicies, EgressRule, EgressTraffic};
use tidegate_core::route::RouteMatch;
use tidegate_core::{CidrSet, EgressMode};
use tidegate_crds::egress::{EgressMatch, EgressProtocol, EgressReference};
use tidegate_crds::{Egress, validate};

use crate::compile::audit::is_audit;
use crate::compile::fault::ObjectFault;
use crate::compile::traffic_target::rules::match_bytes;
use crate::compile::upstream_traffic_setting::connections::limits_of;
use crate::index::Index;
use crate::object::{Kind, ObjectName, OfKind};

/// What the workloads of a service account reach that no object has: `mode`, and what policies allow beyond it. `take`: whether
/// there is room for a rule.
pub(crate) fn egress_of(
    index: &Index,
    mode: &EgressMode,
    account: &ObjectName,
    mut take: impl FnMut(&EgressRule) -> bool,
) -> EgressMode {
    let EgressMode::RegistryOnly(reason) = mode else { return mode.clone() };
    let in_force = |(name, object): &(&ObjectName, &Arc<Egress>)| fault(index, name, object).is_none();
    let mut policies: Vec<_> = index.egresses_of(account).filter(in_force).collect();
    if policies.is_empty() {
        return mode.clone();
    }
    policies.sort_by(|(_, a), (_, b)| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
    let is_audit_only = policies.iter().all(|(_, object)| is_audit(&object.metadata));
    let wanted = policies.into_iter().filter(|(_, object)| is_audit(&object.metadata) == is_audit_only);
    let rules = wanted.flat_map(|(name, object)| rules(index, name, object)).filter(|rule| take(rule));
    let reason = format!("{reason}, and no Egress for service account {account} allows it");
    EgressMode::Policies(Arc::new(EgressPolicies {
        rules: rules.collect(),
        is_audit: is_audit_only,
        reason: reason.into(),
    }))
}

/// What keeps a policy from allowing anything.
pub(crate) fn fault(index: &Index, name: &ObjectName, object: &Egress) -> Option<ObjectFault> {
    if let Some(reason) = index.outside_mesh(&name.namespace) {
        return Some(ObjectFault::invalid(reason));
    }
    let findings = validate::egress(&object.spec);
    if let Some(error) = findings.iter().find(|finding| finding.is_error()) {
        return Some(ObjectFault::invalid(error.to_string()));
    }
    requests(index, name, object).err()
}

/// The requests that the HTTPRouteGroups of a policy name; `None` without any. A reference to an object that is missing
/// invalidates the whole policy, as in Open Service Mesh: without it, the policy would allow more or less than its author knows.
fn requests(
    index: &Index,
    name: &ObjectName,
    object: &Egress,
) -> Result<Option<Vec<Arc<RouteMatch>>>, ObjectFault> {
    let mut requests: Option<Vec<_>> = None;
    for reference in &object.spec.matches {
        let target = ObjectName::new(name.namespace.clone(), reference.name.as_str());
        match reference.refers_to() {
            Some(EgressReference::HttpRouteGroup) => {
                let group = index
                    .route_group(&target)
                    .ok_or_else(|| ObjectFault::missing(index, Kind::HTTPRouteGroup, &target))?;
                let invalid =
                    |why: &str| ObjectFault::invalid_reference(format!("HTTPRouteGroup {target}: {why}"));
                let matches = group.matches.as_ref().map_err(|why| invalid(why))?;
                for one in matches.all() {
                    requests.get_or_insert_default().push(one.as_ref().map_err(|why| invalid(why))?.clone());
                }
            }
            Some(EgressReference::UpstreamTrafficSetting)
                if index.upstream_traffic_setting(&target).is_none() =>
            {
                return Err(ObjectFault::missing(index, Kind::UpstreamTrafficSetting, &target));
            }
            Some(EgressReference::UpstreamTrafficSetting) | None => {}
        }
    }
    Ok(requests)
}

/// What the UpstreamTrafficSetting of a policy allows a workload to have open, whatever its host.
fn limits(index: &Index, name: &ObjectName, object: &Egress) -> BackendLimits {
    let is_setting = |one: &&EgressMatch| one.refers_to() == Some(EgressReference::UpstreamTrafficSetting);
    let reference = object.spec.matches.iter().find(is_setting);
    let setting = reference.and_then(|reference| {
        index.upstream_traffic_setting(&ObjectName::new(name.namespace.clone(), reference.name.as_str()))
    });
    setting.map(|setting| limits_of(setting)).unwrap_or_default()
}

/// The rules of a policy that is in force: one for each protocol, and for each host of HTTP whose requests are limited.
fn rules(index: &Index, name: &ObjectName, object: &Egress) -> Vec<EgressRule> {
    let spec = &object.spec;
    let requests = requests(index, name, object).ok().flatten();
    let hosts: Vec<_> = spec.hosts.iter().filter_map(|host| DnsPattern::parse(host).ok()).collect();
    let ranges = CidrSet::parse(spec.ip_addresses.iter().map(String::as_str)).unwrap_or_default();
    let addresses = (!spec.ip_addresses.is_empty()).then_some(ranges);
    let limits = limits(index, name, object);
    let rule = |protocol, hosts: &[DnsPattern]| {
        let ports = spec.ports.iter().filter(|port| port.carries() == Some(protocol));
        let ports: BTreeSet<u16> = ports.map(|port| port.number).collect();
        let traffic = match protocol {
            EgressProtocol::Tcp => EgressTraffic::Tcp,
            EgressProtocol::Https => EgressTraffic::Tls(hosts.to_vec()),
            EgressProtocol::Http => EgressTraffic::Http { hosts: hosts.to_vec(), requests: requests.clone() },
        };
        (!ports.is_empty()).then(|| EgressRule {
            origin: name.to_ref(Egress::KIND),
            ports: ports.into_iter().collect(),
            addresses: addresses.clone(),
            traffic,
            limits,
        })
    };
    let bytes = [EgressProtocol::Tcp, EgressProtocol::Https].map(|protocol| rule(protocol, &hosts));
    let http = hosts.chunks(if limits.is_unlimited() { hosts.len().max(1) } else { 1 });
    let http = http.filter_map(|hosts| rule(EgressProtocol::Http, hosts));
    bytes.into_iter().flatten().chain(http).collect()
}

/// Bytes of a rule on the wire, about.
pub(crate) fn wire_bytes(rule: &EgressRule) -> usize {
    let hosts = |hosts: &[DnsPattern]| hosts.iter().map(|host| host.to_string().len() + 2).sum::<usize>();
    let traffic = match &rule.traffic {
        EgressTraffic::Tcp => 0,
        EgressTraffic::Tls(names) => hosts(names),
        EgressTraffic::Http { hosts: names, requests } => {
            let requests = requests.iter().flatten().map(|one| match_bytes(one));
            hosts(names) + requests.sum::<usize>()
        }
    };
    let ranges = rule.addresses.as_ref().map_or(0, |ranges| 24 * ranges.ranges().len());
    let origin = &rule.origin;
    origin.kind.len()
        + origin.namespace.len()
        + origin.name.len()
        + 3 * rule.ports.len()
        + ranges
        + traffic
        + if rule.limits.is_unlimited() { 24 } else { 64 }
}

/// Number of regular expressions of a rule.
pub(crate) fn expressions(rule: &EgressRule) -> usize {
    match &rule.traffic {
        EgressTraffic::Http { requests: Some(requests), .. } => {
            requests.iter().map(|one| one.expressions()).sum()
        }
        _ => 0,
    }
}
