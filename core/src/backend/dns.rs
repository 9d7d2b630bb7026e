//! Endpoints whose addresses sidecars look up in DNS.

use serde::Serialize;

use super::endpoint::Transport;
use crate::dns_name::DnsName;

/// What is looked up, and how answers are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsEndpoints {
    /// The names. Not empty.
    pub names: Vec<DnsEndpoint>,
    /// Which addresses of an answer are used.
    pub answers: DnsAnswers,
}

/// A name, each address of which is an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsEndpoint {
    /// The name; `None`: the host that the connection or request is for
    /// ([`RequestedHost`](crate::destination::RequestedHost)).
    pub name: Option<DnsName>,
    /// The port there.
    pub port: u16,
    /// How to connect.
    pub transport: Transport,
    /// The share of each of its addresses, as in [`Backend::weights`](super::Backend).
    pub weight: u32,
}

/// Which addresses of an answer are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum DnsAnswers {
    /// All of them.
    All,
    /// The first one.
    First,
}
