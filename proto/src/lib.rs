//! The wire: what Tidegate's parts say to each other over gRPC.
//!
//! [`istio_ca`] is the certificate API that existing clients of Istio's CA speak; [`discovery`] is our own stream
//! that carries compiled policy and what stands behind the addresses that workloads dial. `convert` turns the wire's
//! values into [`tidegate_core`]'s and back:
//! nothing half-understood passes it.

mod convert;

pub use convert::ConversionError;

/// `istio.v1.auth`: a certificate signing request and a bearer token in, a certificate chain out.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod istio_ca {
    tonic::include_proto!("istio.v1.auth");
}

/// `tidegate.discovery.v1`: the policy stream.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod discovery {
    use std::net::SocketAddr;

    tonic::include_proto!("tidegate.discovery.v1");

    /// The name of a workload's inbound policy as a resource; `workload` is `<namespace>/<pod>`.
    pub fn inbound_policy_name(workload: &str) -> String {
        format!("inbound-policy/{workload}")
    }

    /// The name of what stands behind an address, as a resource: `destination/<ip>:<port>`, IPv6 in brackets.
    pub fn destination_name(address: SocketAddr) -> String {
        format!("{DESTINATION}{}", SocketAddr::new(address.ip(), address.port()))
    }

    /// The address in the name of a destination; `None` unless it is spelled as [`destination_name`] spells it.
    pub fn parse_destination_name(name: &str) -> Option<SocketAddr> {
        let address = name.strip_prefix(DESTINATION)?.parse().ok()?;
        (destination_name(address) == name).then_some(address)
    }

    const DESTINATION: &str = "destination/";
}
