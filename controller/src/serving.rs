//! The discovery server: gRPC over TLS whose configuration follows the certificate and the trust bundle.
//!
//! Clients must present a certificate of the trust bundle, and connections are bounded in total and for each address
//! before the TLS handshake (`tidegate_runtime::grpc`). Who a client is and what it may subscribe to is decided by
//! [`DiscoveryService`].

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tidegate_core::Identity;
use tidegate_proto::discovery::discovery_server::DiscoveryServer;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::drain;
use tidegate_runtime::grpc::{self, ClientCertificates, ConnectionLimits, RefusedConnections, ServerStream};
use tidegate_runtime::logging::LogThrottle;
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::discovery::DiscoveryService;

/// The most bytes of a message from a sidecar, which contains only its workload's name and versions.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Streams on one connection. A sidecar has one.
const MAX_STREAMS: u32 = 8;
/// Bytes that a connection may send before they are read: the minimum that HTTP/2 allows for all its streams (RFC 9113
/// §6.9.2), and about one message.
const WINDOW: u32 = 65_535;
/// How often an idle connection is pinged, and how soon the peer must answer.
const PING: Duration = Duration::from_secs(20);

/// The server's certificate, and the roots that verify its clients.
#[derive(Clone, Debug)]
pub(crate) struct DiscoveryTls {
    pub(crate) credentials: watch::Receiver<Option<Arc<Credentials>>>,
    pub(crate) trust_bundle: watch::Receiver<Arc<TrustBundle>>,
}

/// Serves until the drain starts. Until there is a certificate, connections wait in the kernel's queue.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: DiscoveryTls,
    service: DiscoveryService,
    max_connections: usize,
    refused: RefusedConnections,
    mut drain: drain::Watch,
) {
    let configs = tokio::select! {
        () = drain.started() => return,
        configs = tls.configs() => configs,
    };
    let Some(configs) = configs else { return };
    info!(address = ?listener.local_addr().ok(), "discovery server is up");
    let limits = ConnectionLimits::of(max_connections);
    let connections =
        ServerStream::new(listener, configs, limits, grpc::HANDSHAKE_TIMEOUT).counted(refused).start();
    tokio::spawn(summarize(service.complaints.clone(), service.arrivals.clone(), drain.clone()));
    let service = DiscoveryServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING))
        .http2_keepalive_timeout(Some(PING))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .add_service(service)
        .serve_with_incoming_shutdown(connections, async move { drain.started().await })
        .await;
    if let Err(error) = served {
        warn!(%error, "discovery server ended");
    }
}

/// Logs periodically how many lines about sidecars were suppressed.
async fn summarize(
    complaints: Arc<LogThrottle<Identity>>,
    arrivals: Arc<LogThrottle<Identity>>,
    drain: drain::Watch,
) {
    tokio::join!(
        complaints.summarize(drain.clone(), |suppressed| {
            warn!(by_source = %suppressed, "suppressed warnings about sidecars");
        }),
        arrivals.summarize(drain, |suppressed| info!(by_source = %suppressed, "more sidecars connected")),
    );
}

impl DiscoveryTls {
    /// The newest configuration, rebuilt whenever the certificate or the bundle changes. `None` if the certificate's
    /// provider ends before the first certificate.
    async fn configs(mut self) -> Option<watch::Receiver<Arc<ServerConfig>>> {
        let first = loop {
            match self.config() {
                Some(config) => break config,
                None => self.changed().await?,
            }
        };
        let (sender, receiver) = watch::channel(first);
        tokio::spawn(async move {
            loop {
                let changed = tokio::select! {
                    changed = self.changed() => changed,
                    () = sender.closed() => None,
                };
                if changed.is_none() {
                    return;
                }
                if let Some(config) = self.config() {
                    sender.send_replace(config);
                }
            }
        });
        Some(receiver)
    }

    /// Waits for another certificate or trust bundle. `None` once a provider has ended, which is the end of the
    /// process.
    async fn changed(&mut self) -> Option<()> {
        tokio::select! {
            changed = self.credentials.changed() => changed.ok(),
            changed = self.trust_bundle.changed() => changed.ok(),
        }
    }

    /// A configuration of the newest certificate and bundle; `None` before the first certificate, or if they cannot
    /// be used together, which is logged. Connections that are open keep the configuration of their handshake.
    fn config(&mut self) -> Option<Arc<ServerConfig>> {
        let credentials = self.credentials.borrow_and_update().clone()?;
        let bundle = self.trust_bundle.borrow_and_update().clone();
        grpc::server_config(&credentials, &bundle, ClientCertificates::Required)
            .inspect_err(|error| warn!(%error, "the discovery server keeps its TLS configuration"))
            .ok()
    }
}
