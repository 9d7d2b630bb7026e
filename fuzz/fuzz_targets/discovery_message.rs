//! A resource from the wire is either rejected or accepted as a whole; an accepted one is encoded back
//! unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tidegate_core::Destination;
use tidegate_core::backend::Backend;
use tidegate_core::policy::InboundPolicy;
use tidegate_core::route::RouteTable;
use tidegate_proto::discovery::{self, DiscoveryResponse, resource::Body};

fuzz_target!(|bytes: &[u8]| {
    let Ok(response) = DiscoveryResponse::decode(bytes) else { return };
    for resource in response.resources {
        match resource.body {
            Some(Body::Listener(message)) => {
                let Ok(policy) = InboundPolicy::try_from(message) else { continue };
                let again = InboundPolicy::try_from(discovery::InboundPolicy::from(&policy));
                assert_eq!(again.as_ref(), Ok(&policy));
            }
            Some(Body::Destination(message)) => {
                let Ok(destination) = Destination::try_from(message) else { continue };
                let again = Destination::try_from(discovery::Destination::from(&destination));
                assert_eq!(again.as_ref(), Ok(&destination));
            }
            Some(Body::Routes(message)) => {
                let Ok(table) = RouteTable::try_from(message) else { continue };
                let again = RouteTable::try_from(discovery::Routes::from(table.routes()));
                assert_eq!(again.as_ref(), Ok(&table));
            }
            Some(Body::Backend(message)) => {
                let Ok(backend) = Backend::try_from(message) else { continue };
                let again = Backend::try_from(discovery::Backend::from(&backend));
                assert_eq!(again.as_ref(), Ok(&backend));
            }
            None => {}
        }
    }
});
