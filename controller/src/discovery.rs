//! The discovery service: each sidecar gets its own workload's listener, and the destinations, routes and backends that it
//! subscribes to. DNS gives the latter to any client, so any workload of the mesh may subscribe; nothing else is available.
//!
//! `session` holds the story of one stream, `subscriptions` the resources in it, `shares` what each identity may take over
//! all of its streams.

mod session;
pub(crate) mod shares;
mod subscriptions;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate_core::{Identity, PeerCertificate, TrustDomain};
use tidegate_proto::discovery::discovery_server::Discovery;
use tidegate_proto::discovery::{DiscoveryRequest, DiscoveryResponse};
use tidegate_runtime::drain;
use tidegate_runtime::grpc::Peer;
use tidegate_runtime::logging::LogThrottle;
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::metrics::ControllerMetrics;
use crate::publish::on_demand::OnDemand;
use crate::publish::policies::PolicyStore;

use session::{Client, NewStream};
use shares::{ShareLimits, Shares};

/// Serves streams.
#[derive(Debug)]
pub(crate) struct DiscoveryService {
    workloads: Arc<PolicyStore>,
    resources: Arc<OnDemand>,
    trust_domain: TrustDomain,
    trust_bundle: watch::Receiver<Arc<TrustBundle>>,
    metrics: ControllerMetrics,
    shares: Shares,
    drain: drain::Watch,
    /// Lines about what sidecars do that they should not.
    pub(crate) complaints: Arc<LogThrottle<Identity>>,
    /// Lines about sidecars that connect.
    pub(crate) arrivals: Arc<LogThrottle<Identity>>,
    /// The number of the next stream.
    streams: AtomicU64,
    /// How long a stream may be silent before it says whose policy it wants.
    hello_timeout: Duration,
}

/// [`DiscoveryService::hello_timeout`], unless there is a reason for another one.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl Discovery for DiscoveryService {
    type StreamStream = ReceiverStream<Result<DiscoveryResponse, Status>>;

    /// Accepts a stream of an authenticated sidecar and serves it in a task of its own, which outlives this call.
    async fn stream(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let client = self.client(&request).inspect_err(|_| {
            self.metrics.refused_streams.inc();
        })?;
        // One message: what is not yet taken by the sidecar is at most what it has not acknowledged.
        let (sender, receiver) = mpsc::channel(1);
        let session = NewStream {
            id: self.streams.fetch_add(1, Ordering::Relaxed),
            client,
            workloads: self.workloads.clone(),
            resources: self.resources.clone(),
            trust_bundle: self.trust_bundle.clone(),
            metrics: self.metrics.clone(),
            shares: self.shares.clone(),
            complaints: self.complaints.clone(),
            arrivals: self.arrivals.clone(),
            responses: sender,
        };
        let run = session.run(request.into_inner(), self.hello_timeout, self.drain.clone());
        tokio::spawn(run);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl DiscoveryService {
    /// A service without streams, with the default limits. Streams end when the drain starts.
    pub(crate) fn new(
        workloads: Arc<PolicyStore>,
        resources: Arc<OnDemand>,
        trust_domain: TrustDomain,
        trust_bundle: watch::Receiver<Arc<TrustBundle>>,
        metrics: ControllerMetrics,
        drain: drain::Watch,
    ) -> Self {
        Self {
            workloads,
            resources,
            trust_domain,
            trust_bundle,
            shares: Shares::new(ShareLimits::default(), metrics.clone()),
            metrics,
            drain,
            complaints: Arc::default(),
            arrivals: Arc::default(),
            streams: AtomicU64::new(1),
            hello_timeout: HELLO_TIMEOUT,
        }
    }

    /// Who calls, by the certificate that TLS has verified.
    fn client(&self, request: &Request<Streaming<DiscoveryRequest>>) -> Result<Client, Status> {
        let peer = request.extensions().get::<Peer>();
        let leaf = peer.and_then(|peer| peer.certificates.first());
        let leaf = leaf.ok_or_else(|| Status::unauthenticated("a client certificate is required"))?;
        let certificate = PeerCertificate::from_der(leaf)
            .map_err(|error| Status::unauthenticated(format!("client certificate: {error}")))?;
        let identity = Identity::of_workload(&certificate.sans, &self.trust_domain).ok_or_else(|| {
            Status::permission_denied("the client certificate is not that of a workload of this mesh")
        })?;
        let unknown = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Ok(Client {
            identity,
            address: peer.map_or(unknown, |peer| peer.address),
            expires: certificate.not_after,
        })
    }
}

#[cfg(test)]
mod tests;
