//! Endpoints whose addresses sidecars look up. Refused: an empty list, and a name that DNS cannot have.

use tidegate_core::DnsName;
use tidegate_core::backend::{DnsAnswers, DnsEndpoint, DnsEndpoints, Transport};

use super::{
    ConversionError, bad, identities_from_wire, identities_to_wire, identity_from_wire, identity_to_wire,
    missing, port_number,
};
use crate::discovery as wire;
use crate::discovery::dns_endpoint::Transport as WireTransport;

pub(super) fn dns_to_wire(dns: &DnsEndpoints) -> wire::DnsEndpoints {
    let endpoint = |endpoint: &DnsEndpoint| wire::DnsEndpoint {
        name: endpoint.name.as_ref().map(ToString::to_string).unwrap_or_default(),
        port: endpoint.port.into(),
        weight: endpoint.weight,
        transport: match &endpoint.transport {
            Transport::Mesh(identity) => Some(WireTransport::Mesh(identity_to_wire(identity))),
            Transport::MeshOneOf(all) => Some(WireTransport::MeshOneOf(identities_to_wire(all))),
            Transport::Plain | Transport::Tls(_) => None,
        },
    };
    let first_only = dns.answers == DnsAnswers::First;
    wire::DnsEndpoints { names: dns.names.iter().map(endpoint).collect(), first_only }
}

pub(super) fn dns_from_wire(dns: wire::DnsEndpoints) -> Result<DnsEndpoints, ConversionError> {
    if dns.names.is_empty() {
        return Err(missing("dns.names"));
    }
    let endpoint = |(i, endpoint): (usize, wire::DnsEndpoint)| {
        let path = |field: &str| format!("dns.names[{i}].{field}");
        let name = match &*endpoint.name {
            "" => None,
            name => Some(DnsName::parse(name).map_err(|error| bad(&path("name"), error))?),
        };
        let transport = match endpoint.transport {
            None => Transport::Plain,
            Some(WireTransport::Mesh(identity)) => {
                Transport::Mesh(identity_from_wire(&path("mesh"), &identity)?)
            }
            Some(WireTransport::MeshOneOf(all)) => {
                Transport::MeshOneOf(identities_from_wire(&path("mesh_one_of"), &all)?)
            }
        };
        let port = port_number(&path("port"), endpoint.port)?;
        Ok(DnsEndpoint { name, port, transport, weight: endpoint.weight.max(1) })
    };
    let names = dns.names.into_iter().enumerate().map(endpoint).collect::<Result<_, _>>()?;
    let answers = if dns.first_only { DnsAnswers::First } else { DnsAnswers::All };
    Ok(DnsEndpoints { names, answers })
}
