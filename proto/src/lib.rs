//! The gRPC messages between Tidegate's parts.
//!
//! [`istio_ca`] is the certificate API that existing clients of Istio's CA use; [`discovery`] is our own stream of
//! compiled policy, destinations, routes and backends, whose resources a [`ResourceName`] names;
//! [`external_authorization`] is Envoy's `ext_authz`, and [`rate_limit`] its protocol for global rate limits; sidecars call both. `convert` translates discovery's messages into
//! [`tidegate_core`]'s values and back; it rejects whatever it does not fully understand.
//!
//! The `.proto` files in `proto/` are the contract. An upgrade does not restart workloads, so a sidecar speaks to
//! controllers of later versions: fields keep their numbers, and a resource that a sidecar does not fully understand
//! is refused alone, without an end of the stream.

mod convert;
mod resource_name;

pub use convert::ConversionError;
pub use prost::Message;
pub use resource_name::ResourceName;

/// `istio.v1.auth`: takes a certificate signing request and a bearer token, returns a certificate chain.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod istio_ca {
    tonic::include_proto!("istio.v1.auth");
}

/// `opentelemetry.proto.collector.trace.v1`: what sidecars send to a collector of spans.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod otlp {
    tonic::include_proto!("opentelemetry.proto.collector.trace.v1");
}

/// `envoy.service.auth.v3`: authorization of requests by a server that users run.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod external_authorization {
    tonic::include_proto!("envoy.service.auth.v3");
}

/// `envoy.service.ratelimit.v3`: global rate limits by a service that users run.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod rate_limit {
    tonic::include_proto!("envoy.service.ratelimit.v3");
}

/// `tidegate.discovery.v1`: the policy stream.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic)]
pub mod discovery {
    tonic::include_proto!("tidegate.discovery.v1");

    impl Resource {
        /// Bytes on the wire.
        pub fn size(&self) -> usize {
            prost::Message::encoded_len(self)
        }
    }
}
