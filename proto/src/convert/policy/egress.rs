//! What egress policies allow a workload to reach. The reason why everything else is refused is a field of the policy.
//!
//! Absent ranges mean any address, an empty list none; hosts that cannot be parsed refuse the policy: without one of them a rule
//! could allow more than its object. Refused, too: more than [`MAX_EXPRESSIONS`] regular expressions.

use std::sync::Arc;

use tidegate_core::CidrSet;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::egress::policies::{EgressPolicies, EgressRule, EgressTraffic};
use tidegate_core::route::MAX_EXPRESSIONS;

use super::super::backend_limits::{limits_from_wire, limits_to_wire};
use super::super::routes::matching::{expressions, match_from_wire, match_to_wire};
use super::super::{ConversionError, bad, missing, object_from_wire, object_to_wire, port_number};
use crate::discovery as wire;

pub(super) fn egress_to_wire(policies: &EgressPolicies) -> wire::EgressPolicies {
    wire::EgressPolicies {
        is_audit: policies.is_audit,
        rules: policies.rules.iter().map(rule_to_wire).collect(),
    }
}

pub(super) fn egress_from_wire(
    reason: Arc<str>,
    policies: wire::EgressPolicies,
) -> Result<EgressPolicies, ConversionError> {
    let matches = policies.rules.iter().filter_map(|rule| match &rule.traffic {
        Some(wire::egress_rule::Traffic::Http(http)) => http.requests.as_ref(),
        _ => None,
    });
    let expressions: usize = matches.flat_map(|requests| &requests.matches).map(expressions).sum();
    if expressions > MAX_EXPRESSIONS {
        let problem = format!("{expressions} regular expressions, more than {MAX_EXPRESSIONS}");
        return Err(bad("egress_policies", problem));
    }
    let rule = |(i, rule)| rule_from_wire(&format!("egress_policies.rules[{i}]"), rule);
    let rules = policies.rules.into_iter().enumerate().map(rule).collect::<Result<_, _>>()?;
    Ok(EgressPolicies { reason, is_audit: policies.is_audit, rules })
}

fn rule_to_wire(rule: &EgressRule) -> wire::EgressRule {
    let hosts = |hosts: &[DnsPattern]| hosts.iter().map(ToString::to_string).collect();
    let traffic = match &rule.traffic {
        EgressTraffic::Tcp => wire::egress_rule::Traffic::Tcp(wire::AnyTraffic {}),
        EgressTraffic::Tls(names) => wire::egress_rule::Traffic::Tls(wire::EgressTls { hosts: hosts(names) }),
        EgressTraffic::Http { hosts: names, requests } => {
            let requests = requests.as_ref().map(|requests| wire::RequestMatches {
                matches: requests.iter().map(|one| match_to_wire(one)).collect(),
            });
            wire::egress_rule::Traffic::Http(wire::EgressHttp { hosts: hosts(names), requests })
        }
    };
    let addresses = rule.addresses.as_ref().map(|ranges| wire::SourceRanges {
        cidrs: ranges.ranges().iter().map(ToString::to_string).collect(),
    });
    wire::EgressRule {
        origin: Some(object_to_wire(&rule.origin)),
        ports: rule.ports.iter().map(|port| u32::from(*port)).collect(),
        addresses,
        traffic: Some(traffic),
        limits: limits_to_wire(&rule.limits),
    }
}

fn rule_from_wire(path: &str, rule: wire::EgressRule) -> Result<EgressRule, ConversionError> {
    let hosts = |names: Vec<String>| {
        let hosts = names.iter().map(|name| DnsPattern::parse(name)).collect::<Result<Vec<_>, _>>();
        hosts.map_err(|error| bad(&format!("{path}.hosts"), error))
    };
    let traffic = match rule.traffic.ok_or_else(|| missing(&format!("{path}.traffic")))? {
        wire::egress_rule::Traffic::Tcp(wire::AnyTraffic {}) => EgressTraffic::Tcp,
        wire::egress_rule::Traffic::Tls(tls) => EgressTraffic::Tls(hosts(tls.hosts)?),
        wire::egress_rule::Traffic::Http(http) => {
            let one = |(i, one)| match_from_wire(&format!("{path}.requests[{i}]"), one).map(Arc::new);
            let requests = |requests: wire::RequestMatches| {
                requests.matches.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
            };
            EgressTraffic::Http {
                hosts: hosts(http.hosts)?,
                requests: http.requests.map(requests).transpose()?,
            }
        }
    };
    let addresses = rule.addresses.map(|ranges| CidrSet::parse(ranges.cidrs.iter().map(String::as_str)));
    let limits = limits_from_wire(&format!("{path}.limits"), rule.limits)?;
    let ports = rule.ports.iter().map(|port| port_number(&format!("{path}.ports"), *port));
    Ok(EgressRule {
        origin: object_from_wire(&format!("{path}.origin"), rule.origin)?,
        ports: ports.collect::<Result<_, _>>()?,
        addresses: addresses.transpose().map_err(|error| bad(&format!("{path}.addresses"), error))?,
        traffic,
        limits,
    })
}

#[cfg(test)]
mod tests {
    use tidegate_core::ObjectRef;
    use tidegate_core::backend::BackendLimits;
    use tidegate_core::route::RouteMatch;
    use tidegate_core::route::matching::PathMatch;

    use super::*;

    fn rule(addresses: Option<CidrSet>, traffic: EgressTraffic) -> EgressRule {
        EgressRule {
            origin: ObjectRef::new("Egress", "shop", "api"),
            ports: vec![80, 443],
            addresses,
            traffic,
            limits: BackendLimits { max_connections: Some(3), ..BackendLimits::default() },
        }
    }

    #[test]
    fn policies_survive_the_wire_with_absent_and_empty_told_apart() {
        let hosts = || vec![DnsPattern::parse("*.example.com").unwrap()];
        let get = RouteMatch::new(Some(PathMatch::regex("/get").unwrap()), vec![], vec![], vec![]);
        let ranges = CidrSet::parse(["192.0.2.0/24"]).unwrap();
        let policies = EgressPolicies {
            reason: "egress is off".into(),
            is_audit: true,
            rules: vec![
                rule(None, EgressTraffic::Tcp),
                rule(Some(CidrSet::default()), EgressTraffic::Tls(Vec::new())),
                rule(Some(ranges), EgressTraffic::Tls(hosts())),
                rule(None, EgressTraffic::Http { hosts: hosts(), requests: None }),
                rule(None, EgressTraffic::Http { hosts: hosts(), requests: Some(Vec::new()) }),
                rule(None, EgressTraffic::Http { hosts: hosts(), requests: Some(vec![Arc::new(get)]) }),
            ],
        };
        let wire = egress_to_wire(&policies);
        assert_eq!(egress_from_wire(policies.reason.clone(), wire).unwrap(), policies);
    }

    #[test]
    fn what_cannot_be_read_refuses_the_policy() {
        let wire = || {
            egress_to_wire(&EgressPolicies {
                reason: "off".into(),
                is_audit: false,
                rules: vec![rule(None, EgressTraffic::Tls(Vec::new()))],
            })
        };
        let refused = |change: fn(&mut wire::EgressRule)| {
            let mut policies = wire();
            change(&mut policies.rules[0]);
            egress_from_wire("off".into(), policies).unwrap_err().to_string()
        };
        assert!(refused(|rule| rule.traffic = None).contains("egress_policies.rules[0].traffic"));
        assert!(refused(|rule| rule.ports = vec![70_000]).contains("ports"));
        let hosts = wire::EgressTls { hosts: vec!["a b".to_owned()] };
        let mut policies = wire();
        policies.rules[0].traffic = Some(wire::egress_rule::Traffic::Tls(hosts));
        assert!(egress_from_wire("off".into(), policies).unwrap_err().to_string().contains("hosts"));
        let ranges = wire::SourceRanges { cidrs: vec!["192.0.2.1".to_owned()] };
        let mut policies = wire();
        policies.rules[0].addresses = Some(ranges);
        assert!(egress_from_wire("off".into(), policies).unwrap_err().to_string().contains("addresses"));
    }
}
