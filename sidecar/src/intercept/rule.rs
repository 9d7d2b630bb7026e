//! An iptables rule as a value, and its canonical text, for `iptables-restore` and `iptables -C`.
//!
//! Rules contain only parsed values: addresses, ports and names, so that no annotation of a Pod can become an argument
//! of iptables.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use tidegate_core::is_interface;

/// Maximum number of ports in a `multiport` match.
pub(super) const MULTIPORT: usize = 15;

/// Prefix of our chains. Other chains are never changed, except for the jumps to ours.
pub(super) const PREFIX: &str = "TIDEGATE_";

/// A rule and where it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IptablesRule {
    pub(super) table: Table,
    pub(super) chain: Chain,
    pub(super) matches: Vec<RuleMatch>,
    pub(super) target: RuleTarget,
}

/// `iptables` or `ip6tables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IpFamily {
    V4,
    V6,
}

/// A table of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Table {
    Nat,
    Mangle,
    Filter,
}

/// A chain that our rules belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chain {
    /// Built-in: packets that arrive.
    Prerouting,
    /// Built-in: packets that this pod sends.
    Output,
    /// Inbound connections.
    Inbound,
    /// Redirects to the sidecar's inbound listener.
    InboundRedirect,
    /// Outbound connections.
    Outbound,
    /// Redirects to the sidecar's outbound listener.
    OutboundRedirect,
    /// Packets that connection tracking marks as invalid.
    Invalid,
    /// Outbound UDP datagrams.
    Udp,
}

/// A condition of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuleMatch {
    Tcp,
    Udp,
    From(Interface),
    To(Interface),
    Destination(IpNet),
    NotDestination(IpNet),
    /// Sent by a process of this user.
    User(u32),
    /// Sent by a process of any other user.
    NotUser(u32),
    /// One to fifteen ports.
    DestinationPorts(Vec<u16>),
    /// Invalid for connection tracking.
    Invalid,
    /// A reply to traffic from the other side.
    Reply,
}

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuleTarget {
    Return,
    Jump(Chain),
    Redirect(u16),
    DestinationNat(IpAddr),
    Drop,
    Reject,
}

/// The name of a network interface; a trailing `+` matches any suffix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface(String);

/// Text that is not the name of a network interface.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a network interface name: 1 to 15 letters, digits, '.', '_', '-' or '@'")]
pub struct InterfaceError(String);

/// The `iptables-restore` text of rules. Our chains are replaced as a whole, atomically. Built-in chains keep their
/// rules; a jump from them is added unless `has_jump` reports it as present.
pub(super) fn restore_text(rules: &[IptablesRule], has_jump: impl Fn(&IptablesRule) -> bool) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let of_table = || rules.iter().filter(|rule| rule.table == table);
        if of_table().next().is_none() {
            continue;
        }
        text += &format!("*{table}\n");
        let mut chains = Vec::new();
        for chain in of_table().map(|rule| rule.chain).filter(|chain| chain.is_ours()) {
            if !chains.contains(&chain) {
                text += &format!(":{chain} - [0:0]\n");
                chains.push(chain);
            }
        }
        for rule in of_table().filter(|rule| rule.chain.is_ours() || !has_jump(rule)) {
            text += &format!("-A {} {rule}\n", rule.chain);
        }
        text += "COMMIT\n";
    }
    text
}

impl Interface {
    /// The loopback interface.
    pub(super) fn loopback() -> Self {
        Self("lo".to_owned())
    }
}

impl Table {
    pub(super) const ALL: [Self; 3] = [Self::Nat, Self::Mangle, Self::Filter];
}

impl Chain {
    /// Whether it is not built in.
    pub(super) fn is_ours(self) -> bool {
        !matches!(self, Self::Prerouting | Self::Output)
    }
}

impl fmt::Display for IptablesRule {
    /// The part that follows `-A CHAIN` or `-C CHAIN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        self.target.fmt(f)
    }
}

impl fmt::Display for RuleMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("-p tcp"),
            Self::Udp => f.write_str("-p udp"),
            Self::From(interface) => write!(f, "-i {}", interface.0),
            Self::To(interface) => write!(f, "-o {}", interface.0),
            Self::Destination(net) => write!(f, "-d {net}"),
            Self::NotDestination(net) => write!(f, "! -d {net}"),
            Self::User(user) => write!(f, "-m owner --uid-owner {user}"),
            Self::NotUser(user) => write!(f, "-m owner ! --uid-owner {user}"),
            Self::DestinationPorts(ports) => {
                let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
                write!(f, "-m multiport --dports {}", ports.join(","))
            }
            Self::Invalid => f.write_str("-m conntrack --ctstate INVALID"),
            Self::Reply => f.write_str("-m conntrack --ctdir REPLY"),
        }
    }
}

impl fmt::Display for RuleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Return => f.write_str("-j RETURN"),
            Self::Jump(chain) => write!(f, "-j {chain}"),
            Self::Redirect(port) => write!(f, "-j REDIRECT --to-ports {port}"),
            Self::DestinationNat(ip) => write!(f, "-j DNAT --to-destination {ip}"),
            Self::Drop => f.write_str("-j DROP"),
            Self::Reject => f.write_str("-j REJECT"),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nat => "nat",
            Self::Mangle => "mangle",
            Self::Filter => "filter",
        })
    }
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Prerouting => return f.write_str("PREROUTING"),
            Self::Output => return f.write_str("OUTPUT"),
            Self::Inbound => "INBOUND",
            Self::InboundRedirect => "IN_REDIRECT",
            Self::Outbound => "OUTBOUND",
            Self::OutboundRedirect => "OUT_REDIRECT",
            Self::Invalid => "INVALID",
            Self::Udp => "UDP",
        };
        write!(f, "{PREFIX}{name}")
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl FromStr for Interface {
    type Err = InterfaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_interface(text) { Ok(Self(text.to_owned())) } else { Err(InterfaceError(text.to_owned())) }
    }
}
