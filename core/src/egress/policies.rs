//! What egress policies allow one workload to reach outside the mesh, at addresses that no object has.
//!
//! A union: what one rule allows is allowed. Rules for opaque bytes are decided by the address that is dialled, the others
//! by the server that the first bytes name. None of it allocates. Rules are named by their place.

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::backend::BackendLimits;
use crate::cidr::CidrSet;
use crate::dns_name::DnsPattern;
use crate::object_ref::ObjectRef;
use crate::route::{RequestView, RouteMatch};

/// The rules for one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressPolicies {
    /// Why everything that they do not allow is refused.
    pub reason: Arc<str>,
    /// Whether it is only logged, and goes where the app dialled.
    pub is_audit: bool,
    /// In the order of their objects.
    pub rules: Vec<EgressRule>,
}

/// What one object allows at some ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressRule {
    /// The object.
    pub origin: ObjectRef,
    /// The ports that are dialled.
    pub ports: Vec<u16>,
    /// The addresses that are dialled; `None`: any.
    pub addresses: Option<CidrSet>,
    /// What connections carry.
    pub traffic: EgressTraffic,
    /// What one workload may have open at each of the ports.
    #[serde(skip_serializing_if = "BackendLimits::is_unlimited")]
    pub limits: BackendLimits,
}

/// What connections carry that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EgressTraffic {
    /// Any bytes, which are not looked at.
    Tcp,
    /// TLS for these server names. Empty: for any, and without one.
    Tls(Vec<DnsPattern>),
    /// HTTP in plaintext for these hosts.
    Http {
        /// The hosts. Empty: none.
        hosts: Vec<DnsPattern>,
        /// The requests, of which one must match; `None`: all.
        requests: Option<Vec<Arc<RouteMatch>>>,
    },
}

/// Why a request is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EgressDenial {
    /// No rule is for its host.
    Host,
    /// Rules are for its host, and for other requests.
    Request,
}

impl EgressRule {
    /// Whether it allows a connection because of its address alone, whatever server that names.
    pub fn decides_by_address(&self) -> bool {
        let names_server = match &self.traffic {
            EgressTraffic::Tcp => false,
            EgressTraffic::Tls(hosts) => !hosts.is_empty(),
            EgressTraffic::Http { .. } => true,
        };
        self.addresses.is_some() && !names_server
    }
}

impl EgressPolicies {
    /// The rule that allows opaque bytes to an address.
    pub fn for_bytes(&self, dialled: SocketAddr) -> Option<usize> {
        self.at(dialled).find(|(_, rule)| rule.traffic == EgressTraffic::Tcp).map(|(place, _)| place)
    }

    /// Whether rules at an address depend on what connections carry.
    pub fn depends_on_server(&self, dialled: SocketAddr) -> bool {
        self.at(dialled).any(|(_, rule)| rule.traffic != EgressTraffic::Tcp)
    }

    /// The rule that allows TLS for a server name, or without one.
    pub fn for_tls(&self, dialled: SocketAddr, server: Option<&str>) -> Option<usize> {
        let allows = |rule: &EgressRule| match &rule.traffic {
            EgressTraffic::Tls(hosts) => {
                hosts.is_empty() || server.is_some_and(|server| hosts.iter().any(|host| host.matches(server)))
            }
            EgressTraffic::Tcp | EgressTraffic::Http { .. } => false,
        };
        self.at(dialled).find(|(_, rule)| allows(rule)).map(|(place, _)| place)
    }

    /// The rule that allows a request for a host, which has no port.
    pub fn for_request(
        &self,
        dialled: SocketAddr,
        host: &str,
        request: &impl RequestView,
    ) -> Result<usize, EgressDenial> {
        let mut denial = EgressDenial::Host;
        for (place, rule) in self.at(dialled) {
            let EgressTraffic::Http { hosts, requests } = &rule.traffic else { continue };
            if !hosts.iter().any(|pattern| pattern.matches(host)) {
                continue;
            }
            match requests {
                Some(requests) if !requests.iter().any(|one| one.matches(request)) => {
                    denial = EgressDenial::Request;
                }
                _ => return Ok(place),
            }
        }
        Err(denial)
    }

    /// Whether requests must be in their normal form to be matched.
    pub fn needs_normal_path(&self) -> bool {
        let requests = self.rules.iter().filter_map(|rule| match &rule.traffic {
            EgressTraffic::Http { requests, .. } => requests.as_ref(),
            EgressTraffic::Tcp | EgressTraffic::Tls(_) => None,
        });
        requests.flatten().any(|one| one.needs_normal_path())
    }

    fn at(&self, dialled: SocketAddr) -> impl Iterator<Item = (usize, &EgressRule)> {
        self.rules.iter().enumerate().filter(move |(_, rule)| {
            rule.ports.contains(&dialled.port())
                && rule.addresses.as_ref().is_none_or(|ranges| ranges.contains(dialled.ip()))
        })
    }
}

#[cfg(test)]
mod tests;
