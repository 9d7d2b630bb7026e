//! Destinations.
//!
//! On the wire a destination is one of passed through, unknown, blocked with a reason, told apart by host, or routed. A routed one has the app's
//! protocol and the name of a backend or of routes, never their content: these are resources of their own, and change
//! without the destination.
//!
//! Refused: an absent kind, which must not mean "passed through", an unknown protocol, and a name that no resource
//! can have.

use tidegate_core::destination::{Destination, DestinationTarget};
use tidegate_core::route::RoutesName;

use super::backend::{backend_ref_from_wire, backend_ref_to_wire};
use super::protocol::{app_protocol_from_wire, app_protocol_to_wire};
use super::{ConversionError, bad, missing};
use crate::discovery as wire;

impl From<&Destination> for wire::Destination {
    fn from(destination: &Destination) -> Self {
        let kind = match destination {
            Destination::Passthrough => wire::destination::Kind::Passthrough(wire::Passthrough {}),
            Destination::Unknown => wire::destination::Kind::Unknown(wire::Unknown {}),
            Destination::InCluster => wire::destination::Kind::InCluster(wire::InCluster {}),
            Destination::Blocked(reason) => {
                wire::destination::Kind::Blocked(wire::Blocked { reason: reason.to_string() })
            }
            Destination::ByHost(otherwise) => {
                let otherwise = Some(Box::new(Self::from(&**otherwise)));
                wire::destination::Kind::ByHost(Box::new(wire::ByHost { otherwise }))
            }
            Destination::Routed { protocol, target } => {
                let target = match target {
                    DestinationTarget::Backend(backend) => {
                        wire::routed::Target::Backend(backend_ref_to_wire(backend))
                    }
                    DestinationTarget::Routes(name) => wire::routed::Target::Routes(name.to_string()),
                };
                let protocol = app_protocol_to_wire(*protocol).into();
                wire::destination::Kind::Routed(wire::Routed { protocol, target: Some(target) })
            }
        };
        Self { kind: Some(kind) }
    }
}

/// Whether the backend or the routes exist is not checked: they are other resources, which may arrive later.
impl TryFrom<wire::Destination> for Destination {
    type Error = ConversionError;

    fn try_from(destination: wire::Destination) -> Result<Self, ConversionError> {
        let routed = match destination.kind.ok_or_else(|| missing("kind"))? {
            wire::destination::Kind::Passthrough(wire::Passthrough {}) => return Ok(Self::Passthrough),
            wire::destination::Kind::Unknown(wire::Unknown {}) => return Ok(Self::Unknown),
            wire::destination::Kind::InCluster(wire::InCluster {}) => return Ok(Self::InCluster),
            wire::destination::Kind::Blocked(wire::Blocked { reason }) => {
                return Ok(Self::Blocked(reason.into()));
            }
            wire::destination::Kind::ByHost(by_host) => {
                let otherwise = *by_host.otherwise.ok_or_else(|| missing("by_host.otherwise"))?;
                if let Some(wire::destination::Kind::ByHost(_)) = otherwise.kind {
                    return Err(bad("by_host.otherwise", "must not be by_host"));
                }
                return Ok(Self::ByHost(Box::new(Self::try_from(otherwise)?)));
            }
            wire::destination::Kind::Routed(routed) => routed,
        };
        let target = match routed.target.ok_or_else(|| missing("routed.target"))? {
            wire::routed::Target::Backend(backend) => {
                DestinationTarget::Backend(backend_ref_from_wire("routed.backend", Some(backend))?)
            }
            wire::routed::Target::Routes(name) => {
                let name = RoutesName::parse(&name).map_err(|error| bad("routed.routes", error))?;
                DestinationTarget::Routes(name)
            }
        };
        Ok(Self::Routed { protocol: app_protocol_from_wire("routed.protocol", routed.protocol)?, target })
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tidegate_core::ObjectRef;
    use tidegate_core::backend::BackendRef;
    use tidegate_core::policy::AppProtocol;

    use super::*;

    fn cart() -> Destination {
        Destination::opaque(BackendRef { object: ObjectRef::new("Service", "shop", "cart"), port: 80 })
    }

    #[test]
    fn a_destination_comes_back_from_the_wire_as_it_was() {
        let routes = DestinationTarget::Routes(RoutesName::parse("Service/shop/cart:80").unwrap());
        let http = Destination::Routed { protocol: AppProtocol::Undeclared, target: routes };
        let blocked = Destination::Blocked("no policy allows it".into());
        let by_host = Destination::ByHost(Box::new(cart()));
        let outside = [Destination::Passthrough, Destination::Unknown, Destination::InCluster];
        for destination in outside.into_iter().chain([blocked, cart(), http, by_host]) {
            let bytes = wire::Destination::from(&destination).encode_to_vec();
            let decoded = wire::Destination::decode(bytes.as_slice()).unwrap();
            assert_eq!(Destination::try_from(decoded).unwrap(), destination);
        }
    }

    #[test]
    fn what_is_not_understood_refuses_the_whole_destination_and_names_the_field() {
        let spoil = |change: fn(&mut wire::Routed)| {
            let mut destination = wire::Destination::from(&cart());
            let Some(wire::destination::Kind::Routed(routed)) = &mut destination.kind else { panic!() };
            change(routed);
            Destination::try_from(destination).unwrap_err().to_string()
        };
        assert_eq!(spoil(|routed| routed.protocol = 0), "routed.protocol: unknown value 0");
        assert_eq!(spoil(|routed| routed.target = None), "routed.target: missing");
        let nameless = spoil(|routed| {
            routed.target = Some(wire::routed::Target::Backend(wire::BackendRef::default()));
        });
        assert_eq!(nameless, "routed.backend.object: missing");
        let blank = spoil(|routed| routed.target = Some(wire::routed::Target::Routes("a b".into())));
        assert!(blank.starts_with("routed.routes: "), "{blank}");
        let twice = Destination::ByHost(Box::new(Destination::ByHost(Box::new(cart()))));
        let twice = Destination::try_from(wire::Destination::from(&twice)).unwrap_err().to_string();
        assert!(twice.starts_with("by_host.otherwise: "), "{twice}");
        let nothing = Destination::try_from(wire::Destination { kind: None });
        assert_eq!(nothing.unwrap_err().to_string(), "kind: missing");
    }
}
