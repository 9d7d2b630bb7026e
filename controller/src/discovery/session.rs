//! One sidecar's stream, top to bottom.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tidegate_core::Identity;
use tidegate_proto::ResourceName;
use tidegate_proto::discovery as wire;
use tidegate_proto::discovery::discovery_request::Message;
use tidegate_proto::discovery::{Ack, DiscoveryRequest, DiscoveryResponse, Hello};
use tidegate_runtime::drain;
use tidegate_runtime::logging::LogThrottle;
use tidegate_runtime::trust_bundle::TrustBundle;
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::discovery::shares::Shares;
use crate::discovery::subscriptions::Subscriptions;
use crate::metrics::ControllerMetrics;
use crate::object::ObjectName;
use crate::publish::on_demand::OnDemand;
use crate::publish::policies::{PolicyStore, Rejected, Reported, SidecarStream, listener};

/// The longest text that is kept of what a sidecar says.
const MAX_TEXT_BYTES: usize = 1024;

/// The most rejections of destinations, routes and backends that are kept of a sidecar.
const MAX_REJECTED: usize = 16;

/// The most roots that are kept of a sidecar's report.
const MAX_REPORTED_ROOTS: usize = 64;

/// In seconds since 1970; later times have no text.
const YEAR_10000: u64 = 253_402_300_800;

/// Who is at the other end.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) identity: Identity,
    pub(super) address: SocketAddr,
    /// When its certificate ends, and with it what the stream rests on.
    pub(super) expires: SystemTime,
}

/// A stream before its first message.
pub(super) struct NewStream {
    pub(super) id: u64,
    pub(super) client: Client,
    pub(super) workloads: Arc<PolicyStore>,
    pub(super) resources: Arc<OnDemand>,
    pub(super) trust_bundle: watch::Receiver<Arc<TrustBundle>>,
    pub(super) metrics: ControllerMetrics,
    pub(super) shares: Shares,
    pub(super) complaints: Arc<LogThrottle<Identity>>,
    pub(super) arrivals: Arc<LogThrottle<Identity>>,
    pub(super) responses: mpsc::Sender<Result<DiscoveryResponse, Status>>,
}

/// A stream that follows a workload.
struct Following<'s> {
    session: &'s NewStream,
    workload: ObjectName,
    listener: ResourceName,
    subscriptions: Subscriptions,
    /// The response that is not acknowledged; nothing is sent while there is one.
    in_flight: Option<UnacknowledgedResponse>,
    last_nonce: u64,
    /// Whether the workload's policy shows this stream.
    is_introduced: bool,
    /// The sidecar's certificate and roots, once it has reported them.
    report: Option<Reported>,
}

/// A response that waits for its acknowledgement.
struct UnacknowledgedResponse {
    nonce: u64,
    /// Of its resources.
    names: Vec<String>,
}

impl NewStream {
    /// Logs about the client, unless its identity has had its share of lines; the rest is counted.
    fn complain(&self, say: impl FnOnce()) {
        if self.complaints.admits(&self.client.identity, Instant::now()) {
            say();
        }
    }

    /// Serves the stream until either side ends it.
    pub(super) async fn run(
        self,
        mut requests: Streaming<DiscoveryRequest>,
        hello_timeout: Duration,
        drain: drain::Watch,
    ) {
        self.metrics.streams.inc();
        let ended = self.serve(&mut requests, hello_timeout, drain).await;
        self.metrics.streams.dec();
        if let Err(status) = ended {
            if status.code() == tonic::Code::PermissionDenied {
                self.metrics.refused_streams.inc();
                self.complain(|| {
                    let Client { address, identity, .. } = &self.client;
                    warn!(peer = %address, %identity, "{}", status.message());
                });
            }
            // The sidecar may be gone by now.
            let _ = self.responses.send(Err(status)).await;
        }
    }

    /// The first message, and everything after it.
    async fn serve(
        &self,
        requests: &mut Streaming<DiscoveryRequest>,
        hello_timeout: Duration,
        mut drain: drain::Watch,
    ) -> Result<(), Status> {
        let first = tokio::select! {
            () = drain.started() => return Err(shutting_down()),
            first = tokio::time::timeout(hello_timeout, requests.message()) => first,
        };
        let first = first.map_err(|_| Status::deadline_exceeded("Hello did not come in time"))??;
        let Some(first) = first else { return Ok(()) };
        let Some(Message::Hello(hello)) = first.message else {
            return Err(Status::invalid_argument("the first message must be Hello"));
        };
        let Hello { node, known_versions } = hello;
        let node = node.unwrap_or_default();
        let workload = ObjectName::parse(&node.workload)
            .filter(|_| node.workload.len() < MAX_TEXT_BYTES)
            .ok_or_else(|| Status::invalid_argument("Hello.node.workload must be <namespace>/<name>"))?;
        self.workloads.hold(&workload);
        let result = self.follow(&workload, known_versions, &node, requests, drain).await;
        self.workloads.update(&workload, self.id, |follower| follower.is_connected = false);
        self.workloads.release(&workload);
        result
    }

    /// Sends what changes, and takes what the sidecar sends.
    async fn follow(
        &self,
        workload: &ObjectName,
        known_versions: HashMap<String, String>,
        node: &wire::Node,
        requests: &mut Streaming<DiscoveryRequest>,
        drain: drain::Watch,
    ) -> Result<(), Status> {
        let listener = listener(workload);
        let is_waiting = *self.workloads.synced().borrow() && self.workloads.policy(workload).is_none();
        let share = self.shares.enter(&self.client.identity, self.id, workload, is_waiting)?;
        let subscriber = self.resources.subscriber(self.client.identity.namespace());
        let subscriptions = Subscriptions::new(subscriber, share, &listener, &known_versions);
        // It may be large, and the stream lives long.
        drop(known_versions);
        let mut following = Following {
            session: self,
            workload: workload.clone(),
            listener,
            subscriptions,
            in_flight: None,
            last_nonce: 0,
            is_introduced: false,
            report: None,
        };
        let result = following.run(node, requests, drain).await;
        following.subscriptions.end().await;
        result
    }
}

impl Following<'_> {
    /// Until the stream ends, from either side.
    async fn run(
        &mut self,
        node: &wire::Node,
        requests: &mut Streaming<DiscoveryRequest>,
        mut drain: drain::Watch,
    ) -> Result<(), Status> {
        let session = self.session;
        let mut synced = session.workloads.synced();
        let mut trust_bundle = session.trust_bundle.clone();
        let roots = trust_bundle.borrow_and_update().clone();
        let lifetime = session.client.expires.duration_since(SystemTime::now()).unwrap_or_default();
        let mut expiry = std::pin::pin!(tokio::time::sleep(lifetime));
        loop {
            if *synced.borrow_and_update() {
                self.authorize()?;
                self.introduce_once(node);
                self.send_news().await?;
            }
            tokio::select! {
                () = drain.started() => return Err(shutting_down()),
                () = &mut expiry => return Err(Status::unauthenticated("the client certificate has expired")),
                request = requests.message() => match request? {
                    Some(request) => self.take(request).await?,
                    None => return Ok(()),
                },
                change = self.subscriptions.changed() => change?,
                changed = synced.changed() => changed.map_err(|_| shutting_down())?,
                Ok(()) = trust_bundle.changed() => {
                    let now = trust_bundle.borrow_and_update().clone();
                    if roots.roots().iter().any(|root| !now.roots().contains(root)) {
                        return Err(Status::unauthenticated("a root is no longer trusted; connect again"));
                    }
                }
            }
        }
    }

    /// Takes one message of the sidecar.
    async fn take(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        match request.message {
            Some(Message::Ack(ack)) => self.acknowledge(&ack),
            Some(Message::Report(report)) => self.take_report(report)?,
            Some(Message::Subscribe(names)) => self.subscriptions.subscribe(&names.names).await?,
            Some(Message::Unsubscribe(names)) => self.unsubscribe(&names.names).await,
            Some(Message::Hello(_)) => {
                return Err(Status::invalid_argument("Hello is only the first message"));
            }
            None => return Err(Status::invalid_argument("an empty message")),
        }
        Ok(())
    }

    /// A workload's policy is its own business: only who runs as its service account may have it. In another
    /// namespace than its own, a client does not learn whether a workload exists.
    fn authorize(&self) -> Result<(), Status> {
        let client = &self.session.client.identity;
        let is_elsewhere = &*self.workload.namespace != client.namespace();
        let published = self.session.workloads.policy(&self.workload);
        let policy = published.as_ref().and_then(|published| published.policy());
        if is_elsewhere || policy.is_some_and(|policy| policy.identity != *client) {
            let workload = &self.workload;
            let reason = format!("{client} is not the identity of workload {workload}");
            return Err(Status::permission_denied(reason));
        }
        Ok(())
    }

    /// Once the workload has a policy: shows the stream as one that follows it.
    fn introduce_once(&mut self, node: &wire::Node) {
        if self.is_introduced || self.session.workloads.policy(&self.workload).is_none() {
            return;
        }
        self.is_introduced = true;
        self.subscriptions.share().is_known();
        let client = &self.session.client;
        if self.session.arrivals.admits(&client.identity, Instant::now()) {
            let (workload, instance) = (&self.workload, &node.instance);
            info!(%workload, peer = %client.address, instance, "sidecar connected");
        }
        let follower = SidecarStream {
            stream: self.session.id,
            peer: client.address,
            program: limited(&node.version),
            instance: limited(&node.instance),
            since: SystemTime::now(),
            is_connected: true,
            sent: self.subscriptions.version(&self.listener).cloned(),
            acknowledged: self.subscriptions.version(&self.listener).cloned(),
            rejected: None,
            rejected_resources: BTreeMap::new(),
            report: self.report.clone(),
        };
        self.session.workloads.connected(&self.workload, follower);
    }

    /// Forgets names that the sidecar does not use any more.
    async fn unsubscribe(&mut self, names: &[String]) {
        self.subscriptions.unsubscribe(names).await;
        self.session.workloads.update(&self.workload, self.session.id, |follower| {
            names.iter().for_each(|name| drop(follower.rejected_resources.remove(name)));
        });
    }

    /// Takes what the sidecar reports of its certificate and its roots.
    fn take_report(&mut self, report: wire::Report) -> Result<(), Status> {
        let bad = |field| Status::invalid_argument(format!("Report.{field}"));
        let is_fingerprint = |root: &String| root.len() == 64 && root.bytes().all(|b| b.is_ascii_hexdigit());
        let are_roots =
            |roots: &[String]| roots.len() <= MAX_REPORTED_ROOTS && roots.iter().all(is_fingerprint);
        if !are_roots(&report.trusted_roots) {
            return Err(bad("trusted_roots"));
        }
        if !are_roots(&report.certificate_roots) {
            return Err(bad("certificate_roots"));
        }
        let end = u64::try_from(report.certificate_not_after).ok().filter(|end| *end < YEAR_10000);
        let end = end.ok_or_else(|| bad("certificate_not_after"))?;
        let report = Reported {
            trusted_roots: report.trusted_roots,
            certificate_not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(end),
            certificate_roots: report.certificate_roots,
        };
        self.report = Some(report.clone());
        self.session.workloads.update(&self.workload, self.session.id, |follower| {
            follower.report = Some(report);
        });
        Ok(())
    }

    /// Sends what the sidecar does not hold, unless it still owes an answer: then what comes meanwhile is sent with
    /// the next response, as its newest state.
    async fn send_news(&mut self) -> Result<(), Status> {
        if self.in_flight.is_some() {
            return Ok(());
        }
        let mut response = DiscoveryResponse { nonce: self.last_nonce + 1, ..DiscoveryResponse::default() };
        let before = self.subscriptions.version(&self.listener).cloned();
        let is_sent = self.subscriptions.add_news(&mut response).await?;
        let sent = self.subscriptions.version(&self.listener).cloned();
        if sent != before {
            self.session.workloads.update(&self.workload, self.session.id, |follower| follower.sent = sent);
        }
        if !is_sent {
            return Ok(());
        }
        self.last_nonce += 1;
        let names = response.resources.iter().map(|resource| resource.name.clone()).collect();
        self.in_flight = Some(UnacknowledgedResponse { nonce: self.last_nonce, names });
        self.session.metrics.sent.inc();
        // A sidecar that is gone ends the stream from its side.
        let _ = self.session.responses.send(Ok(response)).await;
        Ok(())
    }

    /// Takes the answer to a response.
    fn acknowledge(&mut self, ack: &Ack) {
        let Some(answered) = self.in_flight.take_if(|in_flight| in_flight.nonce == ack.nonce) else {
            debug!(workload = %self.workload, nonce = ack.nonce, "an answer to no question");
            return;
        };
        let metrics = &self.session.metrics;
        let listener = self.listener.to_string();
        let (policy, others): (Vec<_>, Vec<_>) =
            ack.rejections.iter().partition(|rejection| rejection.name == listener);
        for rejection in &others {
            metrics.rejected.inc();
            let (workload, name, reason) = (&self.workload, &rejection.name, &rejection.reason);
            self.session.complain(|| {
                warn!(%workload, %name, %reason, "sidecar refused a resource and keeps the one before");
            });
        }
        let rejection = policy.first();
        let held = self.subscriptions.version(&self.listener).cloned();
        self.session.workloads.update(&self.workload, self.session.id, |follower| {
            follower.rejected = rejection.map(|rejection| rejected(rejection));
            if rejection.is_none() {
                follower.acknowledged = held;
            }
            answered.names.iter().for_each(|name| drop(follower.rejected_resources.remove(name)));
            let room = MAX_REJECTED.saturating_sub(follower.rejected_resources.len());
            let others = others.iter().take(room);
            let others = others.map(|rejection| (limited(&rejection.name), rejected(rejection)));
            follower.rejected_resources.extend(others);
        });
        match rejection {
            None => drop(metrics.acknowledged.inc()),
            Some(rejection) => {
                metrics.rejected.inc();
                let (workload, reason) = (&self.workload, &rejection.reason);
                self.session.complain(|| {
                    warn!(%workload, %reason, "sidecar refused a policy and keeps the one before");
                });
            }
        }
    }
}

/// The controller ends; another replica may serve.
fn shutting_down() -> Status {
    Status::unavailable("the controller is shutting down")
}

/// A rejection as it is shown.
fn rejected(rejection: &wire::Rejection) -> Rejected {
    Rejected { version: limited(&rejection.version), reason: limited(&rejection.reason) }
}

/// A text of the sidecar's, within a bound.
fn limited(text: &str) -> String {
    text.chars().take(MAX_TEXT_BYTES).collect()
}
