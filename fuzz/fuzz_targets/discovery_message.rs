//! A policy or a destination from the wire is either rejected or accepted as a whole; an accepted one is encoded back
//! unchanged.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tidegate_core::Destination;
use tidegate_core::policy::InboundPolicy;
use tidegate_proto::discovery::{self, DiscoveryResponse, resource::Body};

fuzz_target!(|bytes: &[u8]| {
    let Ok(response) = DiscoveryResponse::decode(bytes) else { return };
    for resource in response.resources {
        match resource.body {
            Some(Body::InboundPolicy(message)) => {
                let Ok(policy) = InboundPolicy::try_from(message) else { continue };
                let again = InboundPolicy::try_from(discovery::InboundPolicy::from(&policy));
                assert_eq!(again.as_ref(), Ok(&policy));
            }
            Some(Body::Destination(message)) => {
                let Ok(destination) = Destination::try_from(message) else { continue };
                let again = Destination::try_from(discovery::Destination::from(&destination));
                assert_eq!(again.as_ref(), Ok(&destination));
            }
            None => {}
        }
    }
});
