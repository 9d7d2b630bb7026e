//! The gRPC messages between Tidegate's parts.
//!
//! [`istio_ca`] is the certificate API that existing clients of Istio's CA use; [`discovery`] is our own stream of
//! compiled policy and resolved destinations. `convert` translates messages into [`tidegate_core`]'s values and back;
//! it rejects whatever it does not fully understand.

mod convert;

pub use convert::ConversionError;

/// `istio.v1.auth`: takes a certificate signing request and a bearer token, returns a certificate chain.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod istio_ca {
    tonic::include_proto!("istio.v1.auth");
}

/// `tidegate.discovery.v1`: the policy stream.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod discovery {
    use std::net::SocketAddr;

    tonic::include_proto!("tidegate.discovery.v1");

    /// The resource name of a workload's inbound policy; `workload` is `<namespace>/<pod>`.
    pub fn inbound_policy_name(workload: &str) -> String {
        format!("inbound-policy/{workload}")
    }

    /// The resource name of a destination: `destination/<ip>:<port>`, with IPv6 in brackets.
    pub fn destination_name(address: SocketAddr) -> String {
        format!("{DESTINATION}{}", SocketAddr::new(address.ip(), address.port()))
    }

    /// The address in the name of a destination; `None` unless it is spelled as by [`destination_name`].
    pub fn parse_destination_name(name: &str) -> Option<SocketAddr> {
        let address = name.strip_prefix(DESTINATION)?.parse().ok()?;
        (destination_name(address) == name).then_some(address)
    }

    const DESTINATION: &str = "destination/";
}
