//! The wire: what Tidegate's parts say to each other over gRPC.
//!
//! [`istio_ca`] is the certificate API that existing clients of Istio's CA speak; [`discovery`] is our own stream
//! that carries compiled policy. `convert` turns the wire's policy into [`tidegate_core::policy`]'s and back:
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
    tonic::include_proto!("tidegate.discovery.v1");

    /// The name of a workload's inbound policy as a resource; `workload` is `<namespace>/<pod>`.
    pub fn inbound_policy_name(workload: &str) -> String {
        format!("inbound-policy/{workload}")
    }
}
