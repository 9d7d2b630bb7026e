//! The sidecar's end of the policy stream: keeps one open, takes over what comes, answers for each resource.
//!
//! A policy that cannot be taken over is rejected with a reason and the last good one stays in force; one that is
//! removed leaves the workload without a policy, which refuses everything. While the controller is away nothing
//! changes: the last policy is the policy.
//!
//! The same stream subscribes to what stands behind the addresses that the app dials ([`Destinations`]), and reports which
//! certificate and which roots the data plane uses.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls_pki_types::ServerName;
use tidegate_core::backend::Backend;
use tidegate_core::policy::InboundPolicy;
use tidegate_proto::{ResourceName, discovery as wire};
use tidegate_runtime::backoff::ExponentialBackoff;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::forward_proxy::ControlPlaneProxyOptions;
use tidegate_runtime::grpc;
use tidegate_runtime::readiness::Blocker;
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wire::discovery_client::DiscoveryClient;
use wire::discovery_request::Message;
use wire::resource::Body;

use crate::destinations::{Destinations, ReferencesFull, Resource};
use crate::snapshot::{Publisher, Snapshot};

/// The first delay before a stream is opened again, at the most.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay, of which half is waited on average: a controller that is back serves its sidecars again within a
/// second or so, and thousands of them do not come in the same moment.
const MOST_DELAY: Duration = Duration::from_millis(1500);
/// A stream that stayed open this long was a good one: the next failure starts from the shortest delay again.
const GOOD_STREAM: Duration = Duration::from_secs(10);

/// How often unused destinations are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// The most names in one message.
const MOST_NAMES: usize = 512;

/// The controller to connect to, and the workload to subscribe for.
pub(crate) struct DiscoveryClientConfig {
    /// The controller.
    pub(crate) address: grpc::Address,
    /// The way to it.
    pub(crate) proxy: ControlPlaneProxyOptions,
    /// The name that its certificate must hold.
    pub(crate) server_name: ServerName<'static>,
    /// The workload (pod) that is served, `<namespace>/<name>`.
    pub(crate) workload: String,
    /// Names this process among the restarts of the workload's sidecar.
    pub(crate) instance: String,
}

/// Keeps the snapshot's policy in step with the controller's; never returns.
pub(crate) struct Discovery {
    config: DiscoveryClientConfig,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    publisher: Arc<Publisher>,
    destinations: Arc<Destinations>,
    /// The version of the listener's policy that is in force.
    version: Option<String>,
    /// Keeps the process from being ready; dropped with the first policy.
    waiting: Option<Blocker>,
}

/// Why a resource is not taken over.
#[derive(Debug, thiserror::Error)]
enum ResourceRefusal {
    #[error("{0}")]
    Malformed(#[from] tidegate_proto::ConversionError),
    #[error("this sidecar knows no resources of this name; it may be older than the controller")]
    UnknownName,
    #[error("the resource has no body that this sidecar knows; it may be older than the controller")]
    UnknownBody,
    #[error("{0}")]
    Full(#[from] ReferencesFull),
    #[error("the resource holds another backend: {0}")]
    OtherBackend(String),
    #[error("the listener is not that of workload {0}")]
    OtherListener(String),
    #[error("the policy is for workload {0:?}, not for {1:?}")]
    OtherWorkload(String, String),
    #[error("the policy is for identity {0}, which the sidecar's certificate does not hold")]
    OtherIdentity(String),
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("the controller ended the stream")]
    Closed,
    #[error("a new certificate is there")]
    NewCertificate,
}

impl Discovery {
    /// Prepares the client; `waiting` blocks readiness until the first policy is there.
    pub(crate) fn new(
        config: DiscoveryClientConfig,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        bundle: watch::Receiver<Arc<TrustBundle>>,
        publisher: Arc<Publisher>,
        destinations: Arc<Destinations>,
        waiting: Blocker,
    ) -> Self {
        Self { config, credentials, bundle, publisher, destinations, version: None, waiting: Some(waiting) }
    }

    /// The channel of one stream: a connection ends with the certificate that it was made with, so each stream has one of
    /// its own.
    fn channel(&self) -> Channel {
        let (credentials, bundle) = (self.credentials.clone(), self.bundle.clone());
        let DiscoveryClientConfig { address, proxy, server_name, .. } = &self.config;
        grpc::channel(address, proxy, server_name.clone(), move || {
            let credentials = credentials.borrow().clone()?;
            let bundle = bundle.borrow().clone();
            let tls = grpc::client_config(&bundle, Some(&credentials));
            tls.inspect_err(|error| tracing::error!(%error, "no TLS towards the controller")).ok()
        })
    }

    /// Opens a stream, and another one whenever it ends.
    pub(crate) async fn run(mut self) {
        let mut backoff = ExponentialBackoff::new(FIRST_DELAY, MOST_DELAY);
        loop {
            self.valid_credentials().await;
            let opened = SystemTime::now();
            let Err(end) = self.stream().await;
            self.destinations.disconnect();
            if matches!(end, StreamEnd::NewCertificate) {
                tracing::debug!("opening the policy stream again with the new certificate");
                continue;
            }
            if opened.elapsed().is_ok_and(|time| time > GOOD_STREAM) {
                backoff.reset();
            }
            let delay = backoff.next_delay();
            tracing::warn!(reason = %end, ?delay, controller = %self.config.address,
                "the policy stream ended; the policy in force stays");
            tokio::time::sleep(delay).await;
        }
    }

    /// Waits until there is a certificate that the controller can accept.
    async fn valid_credentials(&mut self) {
        let valid = |credentials: &Option<Arc<Credentials>>| {
            credentials.as_ref().is_some_and(|credentials| !credentials.is_expired(SystemTime::now()))
        };
        if self.credentials.wait_for(valid).await.is_err() {
            // The renewal is gone, and this process with it.
            pending::<()>().await;
        }
    }

    /// One stream, from its hello to its end; each response is taken over and acknowledged in its turn.
    async fn stream(&mut self) -> Result<std::convert::Infallible, StreamEnd> {
        let (requests, outgoing) = mpsc::channel(4);
        let hello = wire::Hello {
            node: Some(wire::Node {
                workload: self.config.workload.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                instance: self.config.instance.clone(),
            }),
            known_versions: self.known_versions(),
        };
        let requests = Requests(requests);
        // The queue is empty and its other end is in this function.
        let _ = requests.send(Message::Hello(hello)).await;
        let mut snapshots = self.publisher.subscribe();
        let mut reported = None;

        let generation = self.credentials.borrow().as_ref().map(|credentials| credentials.generation);
        let mut credentials = self.credentials.clone();
        let renewed = async {
            let is_new = |credentials: &Option<Arc<Credentials>>| {
                credentials.as_ref().map(|credentials| credentials.generation) != generation
            };
            credentials.wait_for(is_new).await.map(drop)
        };
        tokio::pin!(renewed);

        let mut client = DiscoveryClient::new(self.channel());
        let mut responses = client.stream(ReceiverStream::new(outgoing)).await?.into_inner();
        tracing::info!(controller = %self.config.address, "the policy stream is open");
        requests.subscribe(&self.destinations.connect()).await?;
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let report = report(&snapshots.current());
            if report.is_some() && report != reported {
                reported.clone_from(&report);
                requests.send(Message::Report(report.unwrap_or_default())).await?;
            }
            tokio::select! {
                response = responses.message() => {
                    let ack = self.take_over(response?.ok_or(StreamEnd::Closed)?);
                    requests.send(Message::Ack(ack)).await?;
                }
                subscriptions = self.destinations.subscriptions() => {
                    requests.unsubscribe(&subscriptions.unwanted).await?;
                    requests.subscribe(&subscriptions.wanted).await?;
                }
                _ = snapshots.changed() => {}
                _ = sweep.tick() => self.destinations.sweep(Instant::now()),
                _ = &mut renewed => return Err(StreamEnd::NewCertificate),
            }
        }
    }

    /// The versions that are in force, by name, so that a new stream sends only what has changed.
    fn known_versions(&self) -> HashMap<String, String> {
        let listener = self.version.clone().map(|version| (self.listener(), version));
        let resources = self.destinations.versions();
        listener
            .into_iter()
            .chain(resources.into_iter().map(|(name, version)| (name.to_string(), version)))
            .collect()
    }

    /// The name of the workload's listener.
    fn listener(&self) -> String {
        format!("listener/{}", self.config.workload)
    }

    /// Takes over what a response carries. Each resource is accepted or refused on its own, and the acknowledgement
    /// names those that were refused.
    fn take_over(&mut self, response: wire::DiscoveryResponse) -> wire::Ack {
        let mut rejections = Vec::new();
        for resource in response.resources {
            let (name, version) = (resource.name.clone(), resource.version.clone());
            if let Err(refusal) = self.take(resource) {
                let reason = refusal.to_string();
                tracing::error!(%name, %version, %reason, "a resource is refused; an earlier version stays in force");
                if let Some(name) = ResourceName::parse(&name) {
                    self.destinations.refuse(&name, &reason);
                }
                rejections.push(wire::Rejection { name, version, reason });
            }
        }
        for name in response.removed {
            if name == self.listener() {
                if self.version.take().is_some() {
                    tracing::warn!(%name, "the inbound policy is gone; all traffic is refused");
                    self.publisher.update(|snapshot| snapshot.policy = None);
                }
            } else if let Some(name) = ResourceName::parse(&name) {
                self.destinations.remove(&name);
            }
        }
        self.destinations.settle(!response.more);
        wire::Ack { nonce: response.nonce, rejections }
    }

    /// Takes over one resource.
    fn take(&mut self, resource: wire::Resource) -> Result<(), ResourceRefusal> {
        let name = ResourceName::parse(&resource.name).ok_or(ResourceRefusal::UnknownName)?;
        let (bytes, version) = (resource.size(), resource.version);
        let decoded = match (&name, resource.body.ok_or(ResourceRefusal::UnknownBody)?) {
            (ResourceName::Listener { .. }, Body::Listener(policy)) => {
                if resource.name != self.listener() {
                    return Err(ResourceRefusal::OtherListener(self.config.workload.clone()));
                }
                let policy = self.policy(policy)?;
                tracing::info!(%version, ports = policy.ports.len(), "a new inbound policy is in force");
                self.destinations.locate(policy.locality.clone());
                self.destinations.remotes().identify(&policy);
                self.destinations.set_egress(policy.egress.clone(), &policy.egress_proxies);
                self.destinations.set_retries(&policy.retries);
                self.publisher.update(|snapshot| snapshot.policy = Some(Arc::new(policy)));
                self.version = Some(version);
                self.waiting = None;
                return Ok(());
            }
            (ResourceName::Destination(_), Body::Destination(destination)) => {
                Resource::Destination(destination.try_into()?)
            }
            (ResourceName::Backend(name), Body::Backend(backend)) => {
                let backend = Backend::try_from(backend)?;
                if backend.name != *name {
                    return Err(ResourceRefusal::OtherBackend(backend.name.to_string()));
                }
                Resource::Backend(backend)
            }
            (ResourceName::Routes(_), Body::Routes(routes)) => Resource::Routes(routes.try_into()?),
            _ => return Err(ResourceRefusal::UnknownBody),
        };
        Ok(self.destinations.set(&name, version, decoded, bytes)?)
    }

    /// The policy, if it is that of this workload and of the identity in our certificate: a controller that mixes them
    /// up changes nothing.
    fn policy(&self, policy: wire::InboundPolicy) -> Result<InboundPolicy, ResourceRefusal> {
        let policy = InboundPolicy::try_from(policy)?;
        if *policy.workload != *self.config.workload {
            return Err(ResourceRefusal::OtherWorkload(
                policy.workload.to_string(),
                self.config.workload.clone(),
            ));
        }
        let credentials = self.credentials.borrow();
        let names =
            credentials.as_ref().map(|credentials| credentials.leaf.sans.as_slice()).unwrap_or_default();
        let ours = tidegate_core::Identity::of_workload(names, policy.identity.trust_domain());
        if ours.as_ref() != Some(&policy.identity) {
            return Err(ResourceRefusal::OtherIdentity(policy.identity.to_string()));
        }
        Ok(policy)
    }
}

/// The sidecar's side of a stream.
struct Requests(mpsc::Sender<wire::DiscoveryRequest>);

impl Requests {
    /// Queues a message; waits while the controller does not read.
    async fn send(&self, message: Message) -> Result<(), StreamEnd> {
        let request = wire::DiscoveryRequest { message: Some(message) };
        self.0.send(request).await.map_err(|_| StreamEnd::Closed)
    }

    /// Sends at most [`MOST_NAMES`] names per message.
    async fn subscribe(&self, names: &[ResourceName]) -> Result<(), StreamEnd> {
        for names in names.chunks(MOST_NAMES).map(texts) {
            self.send(Message::Subscribe(wire::Subscribe { names })).await?;
        }
        Ok(())
    }

    async fn unsubscribe(&self, names: &[ResourceName]) -> Result<(), StreamEnd> {
        for names in names.chunks(MOST_NAMES).map(texts) {
            self.send(Message::Unsubscribe(wire::Unsubscribe { names })).await?;
        }
        Ok(())
    }
}

fn texts(names: &[ResourceName]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

/// The certificate and roots of the data plane, once it has them.
fn report(snapshot: &Snapshot) -> Option<wire::Report> {
    let tls = snapshot.tls.as_ref()?;
    let end = tls.credentials.leaf.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Some(wire::Report {
        trusted_roots: tls.bundle.fingerprints(),
        certificate_not_after: i64::try_from(end.as_secs()).unwrap_or(i64::MAX),
        certificate_roots: tls.certificate_roots.clone(),
    })
}

#[cfg(test)]
mod tests;
