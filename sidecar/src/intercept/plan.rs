//! Decides which rules are needed, for one address family.
//!
//! ```text
//! PREROUTING ─ tcp ─► INBOUND ─► excluded: RETURN · else IN_REDIRECT ─► 15003
//! OUTPUT ──── tcp ─► OUTBOUND ─► the sidecar to the pod's own address: INBOUND · the sidecar: RETURN
//!                              · loopback, excluded, not included: RETURN · the check's ─► 15905
//!                              · else OUT_REDIRECT ─► 15001
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tidegate_core::contract::ports;

use super::rule::{Chain, Interface, IpFamily, IptablesRule, MULTIPORT, RuleMatch, RuleTarget, Table};

/// DNS is never refused.
const DNS: u16 = 53;

/// Settings from which the rules follow.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) inbound_port: u16,
    pub(super) outbound_port: u16,
    /// The sidecar's user ID; its traffic is not redirected.
    pub(super) user: u32,
    pub(super) excluded_inbound_ports: BTreeSet<u16>,
    pub(super) excluded_outbound_ports: BTreeSet<u16>,
    pub(super) excluded_ranges: Vec<IpNet>,
    /// If not empty, nothing else is redirected; may contain either family.
    pub(super) included_ranges: Vec<IpNet>,
    pub(super) excluded_interfaces: BTreeSet<Interface>,
    /// Where the sidecar's connections to loopback are redirected, because the app listens on the pod's addresses only.
    pub(super) app_ips: Vec<IpAddr>,
    pub(super) refuses_udp: bool,
}

impl Plan {
    /// The rules, in order within each chain.
    pub(super) fn rules(&self, family: IpFamily) -> Vec<IptablesRule> {
        let mut rules = Vec::new();
        self.inbound(&mut rules);
        self.outbound(family, &mut rules);
        self.invalid(&mut rules);
        if self.refuses_udp {
            self.udp(family, &mut rules);
        }
        rules
    }

    /// Where the check connects to: an unassigned address and a port that the rules redirect; `None` if they redirect
    /// none.
    pub(super) fn check_target(&self, family: IpFamily) -> Option<SocketAddr> {
        let is_excluded = |ip: &IpAddr| self.excluded_ranges.iter().any(|net| net.contains(ip));
        let included = self.included_ranges.iter().filter(|net| family.has(&net.addr()));
        let ip = if self.included_ranges.is_empty() {
            documentation_addresses(family).into_iter().find(|ip| !is_excluded(ip))
        } else {
            included.map(last).find(|ip| !is_excluded(ip) && !ip.is_loopback())
        }?;
        let is_free = |port: &u16| !self.excluded_outbound_ports.contains(port);
        let port = [9, 80, 443].into_iter().chain(1024..).find(is_free)?;
        Some(SocketAddr::new(ip, port))
    }

    fn inbound(&self, rules: &mut Vec<IptablesRule>) {
        let mut add = adder(rules, Table::Nat);
        add(Chain::Prerouting, vec![RuleMatch::Tcp], RuleTarget::Jump(Chain::Inbound));
        for interface in &self.excluded_interfaces {
            add(Chain::Inbound, vec![RuleMatch::From(interface.clone())], RuleTarget::Return);
        }
        let own = ports::NOT_REDIRECTED.into_iter();
        let excluded: BTreeSet<u16> = own.chain(self.excluded_inbound_ports.iter().copied()).collect();
        for ports in groups(&excluded) {
            add(Chain::Inbound, vec![RuleMatch::Tcp, ports], RuleTarget::Return);
        }
        add(Chain::Inbound, Vec::new(), RuleTarget::Jump(Chain::InboundRedirect));
        add(Chain::InboundRedirect, vec![RuleMatch::Tcp], RuleTarget::Redirect(self.inbound_port));
    }

    fn outbound(&self, family: IpFamily, rules: &mut Vec<IptablesRule>) {
        let mut add = adder(rules, Table::Nat);
        let (loopback, user) = (family.loopback(), self.user);
        let to_loopback = || RuleMatch::To(Interface::loopback());
        add(Chain::Output, vec![RuleMatch::Tcp], RuleTarget::Jump(Chain::Outbound));
        for ip in self.app_ips.iter().filter(|ip| family.has(ip)).take(1) {
            let dials_the_app = vec![
                RuleMatch::Tcp,
                to_loopback(),
                RuleMatch::Destination(family.localhost()),
                RuleMatch::User(user),
            ];
            add(Chain::Outbound, dials_the_app, RuleTarget::DestinationNat(*ip));
        }
        // The app calls itself through its Service, and the sidecar has chosen this pod.
        let dials_this_pod =
            vec![RuleMatch::Tcp, to_loopback(), RuleMatch::NotDestination(loopback), RuleMatch::User(user)];
        add(Chain::Outbound, dials_this_pod, RuleTarget::Jump(Chain::Inbound));
        add(Chain::Outbound, vec![to_loopback(), RuleMatch::NotUser(user)], RuleTarget::Return);
        add(Chain::Outbound, vec![RuleMatch::User(user)], RuleTarget::Return);
        add(Chain::Outbound, vec![RuleMatch::Destination(loopback)], RuleTarget::Return);
        for conditions in self.excluded_outbound(family, RuleMatch::Tcp) {
            add(Chain::Outbound, conditions, RuleTarget::Return);
        }
        // Directly before the rule that it stands in for: placed earlier, it would redirect other connections, too.
        if let Some(target) = self.check_target(family) {
            let dials_it = vec![
                RuleMatch::Tcp,
                RuleMatch::Destination(target.ip().into()),
                RuleMatch::DestinationPorts(vec![target.port()]),
            ];
            add(Chain::Outbound, dials_it, RuleTarget::Redirect(ports::CHECK));
        }
        let redirect = RuleTarget::Jump(Chain::OutboundRedirect);
        if self.included_ranges.is_empty() {
            add(Chain::Outbound, Vec::new(), redirect);
        } else {
            for net in self.included_ranges.iter().filter(|net| family.has(&net.addr())) {
                add(Chain::Outbound, vec![RuleMatch::Destination(*net)], redirect.clone());
            }
        }
        add(Chain::OutboundRedirect, vec![RuleMatch::Tcp], RuleTarget::Redirect(self.outbound_port));
    }

    /// Drops packets that connection tracking marks as invalid. They would reach the app without redirection, and the
    /// app would reset the connection, of which it has no record.
    fn invalid(&self, rules: &mut Vec<IptablesRule>) {
        let mut add = adder(rules, Table::Mangle);
        add(Chain::Prerouting, vec![RuleMatch::Tcp], RuleTarget::Jump(Chain::Invalid));
        for interface in self.excluded_interfaces.iter().chain([&Interface::loopback()]) {
            add(Chain::Invalid, vec![RuleMatch::From(interface.clone())], RuleTarget::Return);
        }
        add(Chain::Invalid, vec![RuleMatch::Invalid], RuleTarget::Drop);
    }

    fn udp(&self, family: IpFamily, rules: &mut Vec<IptablesRule>) {
        let mut add = adder(rules, Table::Filter);
        add(Chain::Output, vec![RuleMatch::Udp], RuleTarget::Jump(Chain::Udp));
        let allowed = [
            vec![RuleMatch::To(Interface::loopback())],
            vec![RuleMatch::User(self.user)],
            vec![RuleMatch::Reply],
            vec![RuleMatch::Udp, RuleMatch::DestinationPorts(vec![DNS])],
        ];
        for conditions in allowed.into_iter().chain(self.excluded_outbound(family, RuleMatch::Udp)) {
            add(Chain::Udp, conditions, RuleTarget::Return);
        }
        if self.included_ranges.is_empty() {
            add(Chain::Udp, Vec::new(), RuleTarget::Reject);
        } else {
            for net in self.included_ranges.iter().filter(|net| family.has(&net.addr())) {
                add(Chain::Udp, vec![RuleMatch::Destination(*net)], RuleTarget::Reject);
            }
        }
    }

    /// Outbound traffic that the user excluded.
    fn excluded_outbound(
        &self,
        family: IpFamily,
        protocol: RuleMatch,
    ) -> impl Iterator<Item = Vec<RuleMatch>> {
        let interfaces =
            self.excluded_interfaces.iter().map(|interface| vec![RuleMatch::To(interface.clone())]);
        let ranges = self.excluded_ranges.iter().filter(move |net| family.has(&net.addr()));
        let ranges = ranges.map(|net| vec![RuleMatch::Destination(*net)]);
        let ports = groups(&self.excluded_outbound_ports).map(move |ports| vec![protocol.clone(), ports]);
        interfaces.chain(ranges).chain(ports)
    }
}

impl IpFamily {
    pub(super) fn has(self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }

    /// The whole loopback range.
    fn loopback(self) -> IpNet {
        match self {
            Self::V4 => Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8).into(),
            Self::V6 => self.localhost(),
        }
    }

    /// The address at which the sidecar dials the app.
    fn localhost(self) -> IpNet {
        match self {
            Self::V4 => Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 32).into(),
            Self::V6 => Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128).into(),
        }
    }
}

/// Documentation addresses (RFC 5737, RFC 3849, RFC 9637): never assigned to a host.
fn documentation_addresses(family: IpFamily) -> Vec<IpAddr> {
    match family {
        IpFamily::V4 => {
            [[192, 0, 2, 1], [198, 51, 100, 1], [203, 0, 113, 1]].map(|ip| Ipv4Addr::from(ip).into()).into()
        }
        IpFamily::V6 => {
            [Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1)]
                .map(IpAddr::from)
                .into()
        }
    }
}

/// The last usable address of a range: a broadcast address cannot be dialled.
fn last(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let last = u32::from(net.broadcast());
            Ipv4Addr::from(if net.prefix_len() < 31 { last - 1 } else { last }).into()
        }
        IpNet::V6(net) => net.broadcast().into(),
    }
}

/// Adds rules to a table.
fn adder(rules: &mut Vec<IptablesRule>, table: Table) -> impl FnMut(Chain, Vec<RuleMatch>, RuleTarget) {
    move |chain, matches, target| rules.push(IptablesRule { table, chain, matches, target })
}

/// `multiport` matches for these ports.
fn groups(ports: &BTreeSet<u16>) -> impl Iterator<Item = RuleMatch> {
    let ports: Vec<u16> = ports.iter().copied().collect();
    let groups: Vec<_> =
        ports.chunks(MULTIPORT).map(|group| RuleMatch::DestinationPorts(group.to_vec())).collect();
    groups.into_iter()
}

#[cfg(test)]
mod tests {
    use super::super::rule::restore_text;
    use super::*;

    fn plan() -> Plan {
        Plan { inbound_port: 15003, outbound_port: 15001, user: 1500, ..Plan::default() }
    }

    fn text(plan: &Plan, family: IpFamily) -> String {
        restore_text(&plan.rules(family), |_| false)
    }

    #[test]
    fn the_rules_of_a_pod_with_defaults() {
        assert_eq!(text(&plan(), IpFamily::V4), include_str!("golden/plain.v4"));
        assert_eq!(text(&plan(), IpFamily::V6), include_str!("golden/plain.v6"));
    }

    #[test]
    fn the_rules_of_a_pod_with_every_option() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let plan = Plan {
            excluded_inbound_ports: (9000..9020).collect(),
            excluded_outbound_ports: (1..=31).collect(),
            excluded_ranges: nets(&["10.1.0.0/16", "fd00:1::/32"]),
            included_ranges: nets(&["10.0.0.0/8", "fd00::/8"]),
            excluded_interfaces: ["net1", "net2"].map(|name| name.parse().unwrap()).into(),
            app_ips: vec!["10.244.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            refuses_udp: true,
            ..plan()
        };
        assert_eq!(text(&plan, IpFamily::V4), include_str!("golden/full.v4"));
        assert_eq!(text(&plan, IpFamily::V6), include_str!("golden/full.v6"));
    }

    #[test]
    fn a_check_dials_what_the_rules_redirect() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let target = |plan: &Plan| plan.check_target(IpFamily::V4).map(|target| target.to_string());
        let plan = Plan::default();
        assert_eq!(target(&plan).unwrap(), "192.0.2.1:9");
        let plan = Plan { excluded_ranges: nets(&["192.0.0.0/16"]), ..plan };
        assert_eq!(target(&plan).unwrap(), "198.51.100.1:9");
        let plan = Plan { excluded_outbound_ports: [9, 80, 443, 1024].into(), ..plan };
        assert_eq!(target(&plan).unwrap(), "198.51.100.1:1025");
        let plan = Plan { included_ranges: nets(&["10.1.2.0/24"]), ..plan };
        assert_eq!(target(&plan).unwrap(), "10.1.2.254:1025");
        let plan = Plan { included_ranges: nets(&["fd00::/8"]), ..plan };
        assert_eq!(target(&plan), None);
        let plan = Plan { excluded_ranges: nets(&["0.0.0.0/0"]), ..Plan::default() };
        assert_eq!(target(&plan), None);
    }

    #[test]
    fn with_ranges_of_one_family_alone_nothing_of_the_other_is_redirected() {
        let plan = Plan { included_ranges: vec!["10.0.0.0/8".parse().unwrap()], ..plan() };
        assert!(!text(&plan, IpFamily::V6).contains("-j TIDEGATE_OUT_REDIRECT"));
        assert!(
            text(&plan, IpFamily::V4).contains("-A TIDEGATE_OUTBOUND -d 10.0.0.0/8 -j TIDEGATE_OUT_REDIRECT")
        );
    }

    #[test]
    fn a_jump_that_is_there_is_not_made_again() {
        let text = restore_text(&plan().rules(IpFamily::V4), |_| true);
        assert!(!text.contains("-A PREROUTING") && !text.contains("-A OUTPUT"), "{text}");
        assert!(text.contains("-A TIDEGATE_IN_REDIRECT"), "{text}");
    }
}
