//! What the workload has open by rules of its egress policies that limit it.

use std::sync::Arc;

use tidegate_core::backend::LimitedUsage;
use tidegate_core::egress::policies::{EgressRule, EgressTraffic};
use tidegate_core::{EgressMode, ObjectRef};

/// The counts of each limited rule, a port at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct EgressUsages(Vec<LimitedEgress>);

#[derive(Clone, Debug)]
struct LimitedEgress {
    origin: ObjectRef,
    server: EgressTraffic,
    port: u16,
    usage: Arc<LimitedUsage>,
}

impl EgressUsages {
    /// Those of the policies in force. What was counted before goes on.
    pub(super) fn new(mode: &EgressMode, before: &Self) -> Self {
        let EgressMode::Policies(policies) = mode else { return Self::default() };
        let ports = policies.rules.iter().flat_map(|rule| rule.ports.iter().map(move |port| (rule, *port)));
        let counted = ports.filter_map(|(rule, port)| {
            let usage = LimitedUsage::new(&rule.limits, before.of(rule, port))?;
            Some(LimitedEgress { origin: rule.origin.clone(), server: server(&rule.traffic), port, usage })
        });
        Self(counted.collect())
    }

    /// The counts of a rule at a port; `None`: it has no limits.
    pub(super) fn of(&self, rule: &EgressRule, port: u16) -> Option<&Arc<LimitedUsage>> {
        let is_it = |known: &&LimitedEgress| {
            known.port == port && known.origin == rule.origin && known.server == server(&rule.traffic)
        };
        self.0.iter().find(is_it).map(|known| &known.usage)
    }
}

/// What tells the rules of an object apart: the host of requests, and whether bytes are looked at.
fn server(traffic: &EgressTraffic) -> EgressTraffic {
    match traffic {
        EgressTraffic::Tcp => EgressTraffic::Tcp,
        EgressTraffic::Tls(_) => EgressTraffic::Tls(Vec::new()),
        EgressTraffic::Http { hosts, .. } => EgressTraffic::Http { hosts: hosts.clone(), requests: None },
    }
}

#[cfg(test)]
mod tests {
    use tidegate_core::backend::{BackendLimits, LimitedResource};
    use tidegate_core::dns_name::DnsPattern;
    use tidegate_core::egress::policies::EgressPolicies;

    use super::*;

    fn http(host: &str, most: Option<u32>) -> EgressRule {
        EgressRule {
            origin: ObjectRef::new("Egress", "shop", "api"),
            ports: vec![80, 8080],
            addresses: None,
            traffic: EgressTraffic::Http { hosts: vec![DnsPattern::parse(host).unwrap()], requests: None },
            limits: BackendLimits { max_requests: most, ..BackendLimits::default() },
        }
    }

    fn policies(rules: &[EgressRule]) -> EgressMode {
        let (reason, rules) = ("off".into(), rules.to_vec());
        EgressMode::Policies(Arc::new(EgressPolicies { reason, is_audit: false, rules }))
    }

    #[test]
    fn each_host_and_port_of_a_rule_is_counted_by_itself_and_goes_on_when_limits_change() {
        let rules = [http("a.example", Some(1)), http("b.example", Some(1))];
        let usages = EgressUsages::new(&policies(&rules), &EgressUsages::default());
        let take = |usages: &EgressUsages, rule: &EgressRule, port| {
            usages.of(rule, port).unwrap().take(LimitedResource::Request)
        };
        let held = [(&rules[0], 80), (&rules[0], 8080), (&rules[1], 80)];
        let _held = held.map(|(rule, port)| take(&usages, rule, port).unwrap());
        assert!(take(&usages, &rules[0], 80).is_none());
        let wider = [http("a.example", Some(2)), http("b.example", None)];
        let usages = EgressUsages::new(&policies(&wider), &usages);
        let second = take(&usages, &wider[0], 80);
        assert!(second.is_some() && take(&usages, &wider[0], 80).is_none());
        assert!(usages.of(&wider[1], 80).is_none());
    }
}
