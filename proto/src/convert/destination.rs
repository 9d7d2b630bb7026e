//! Converts between the wire's destinations and [`Destination`], as strictly as policy.

use std::net::{IpAddr, SocketAddr};

use tidegate_core::destination::{Destination, Endpoint, MeshService};

use super::{ConversionError, bad, identity_from_wire, identity_to_wire, missing, port_number};
use crate::discovery as wire;

impl From<&Destination> for wire::Destination {
    fn from(destination: &Destination) -> Self {
        let kind = match destination {
            Destination::Passthrough => wire::destination::Kind::Passthrough(wire::Passthrough {}),
            Destination::Service(service) => wire::destination::Kind::Service(wire::MeshService {
                name: service.name.to_string(),
                endpoints: service.endpoints.iter().map(endpoint_to_wire).collect(),
            }),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<wire::Destination> for Destination {
    type Error = ConversionError;

    fn try_from(destination: wire::Destination) -> Result<Self, ConversionError> {
        let service = match destination.kind.ok_or_else(|| missing("kind"))? {
            wire::destination::Kind::Passthrough(wire::Passthrough {}) => return Ok(Self::Passthrough),
            wire::destination::Kind::Service(service) => service,
        };
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(service.endpoints.len());
        for (i, endpoint) in service.endpoints.into_iter().enumerate() {
            endpoints.push(endpoint_from_wire(&format!("service.endpoints[{i}]"), &endpoint)?);
        }
        let mut addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
        addresses.sort_unstable();
        if let Some(twice) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(bad("service.endpoints", format!("duplicate {}", twice[0])));
        }
        Ok(Self::Service(MeshService { name: service.name.into(), endpoints }))
    }
}

fn endpoint_to_wire(endpoint: &Endpoint) -> wire::Endpoint {
    wire::Endpoint {
        address: endpoint.address.ip().to_string(),
        port: endpoint.address.port().into(),
        identity: endpoint.identity.as_ref().map(identity_to_wire),
    }
}

fn endpoint_from_wire(path: &str, endpoint: &wire::Endpoint) -> Result<Endpoint, ConversionError> {
    let ip: IpAddr = endpoint.address.parse().map_err(|_| {
        bad(&format!("{path}.address"), format!("{:?} is not an IP address", endpoint.address))
    })?;
    let port = port_number(&format!("{path}.port"), endpoint.port)?;
    let identity = endpoint.identity.as_ref();
    let identity =
        identity.map(|identity| identity_from_wire(&format!("{path}.identity"), identity)).transpose()?;
    Ok(Endpoint { address: SocketAddr::new(ip, port), identity })
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tidegate_core::{Identity, TrustDomain};

    use super::*;

    fn service() -> Destination {
        let identity = Identity::new(TrustDomain::default(), "a", "b").unwrap();
        Destination::Service(MeshService {
            name: "a/c".into(),
            endpoints: vec![
                Endpoint { address: "10.0.0.1:80".parse().unwrap(), identity: Some(identity) },
                Endpoint { address: "[fd00::1]:8080".parse().unwrap(), identity: None },
            ],
        })
    }

    #[test]
    fn a_destination_comes_back_from_the_wire_as_it_was() {
        let empty = Destination::Service(MeshService { name: "a/none".into(), endpoints: vec![] });
        for destination in [service(), Destination::Passthrough, empty] {
            let bytes = wire::Destination::from(&destination).encode_to_vec();
            let decoded = wire::Destination::decode(bytes.as_slice()).unwrap();
            assert_eq!(Destination::try_from(decoded).unwrap(), destination);
        }
    }

    #[test]
    fn what_is_not_understood_refuses_the_whole_destination_and_names_the_field() {
        let spoil = |change: fn(&mut Vec<wire::Endpoint>)| {
            let mut destination = wire::Destination::from(&service());
            let Some(wire::destination::Kind::Service(service)) = &mut destination.kind else { panic!() };
            change(&mut service.endpoints);
            Destination::try_from(destination).unwrap_err().to_string()
        };
        assert_eq!(spoil(|e| e[0].port = 0), "service.endpoints[0].port: 0 is not a port");
        assert_eq!(spoil(|e| e[1].port = 65536), "service.endpoints[1].port: 65536 is not a port");
        let no_address = spoil(|e| e[1].address = "[::1]".into());
        assert_eq!(no_address, "service.endpoints[1].address: \"[::1]\" is not an IP address");
        let twice = spoil(|e| e[1] = wire::Endpoint { identity: None, ..e[0].clone() });
        assert_eq!(twice, "service.endpoints: duplicate 10.0.0.1:80");
        let nameless = spoil(|e| e[0].identity = Some(wire::Identity::default()));
        assert!(nameless.starts_with("service.endpoints[0].identity.trust_domain: "), "{nameless}");
        let nothing = Destination::try_from(wire::Destination { kind: None });
        assert_eq!(nothing.unwrap_err().to_string(), "kind: missing");
    }

    #[test]
    fn the_name_of_a_destination_has_one_spelling() {
        for name in ["destination/10.0.0.1:80", "destination/[fd00::1]:443"] {
            let address = wire::parse_destination_name(name).unwrap();
            assert_eq!(wire::destination_name(address), name);
        }
        for name in [
            "destination/10.0.0.1",
            "destination/010.0.0.1:80",
            "destination/10.0.0.1:080",
            "destination/[FD00::1]:443",
            "destination/[fd00::1%1]:443",
            "inbound-policy/a/b",
            "10.0.0.1:80",
        ] {
            assert_eq!(wire::parse_destination_name(name), None, "{name}");
        }
    }
}
