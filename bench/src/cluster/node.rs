//! Connections from the node's own network, like those of kubelets and of ingress controllers with host networking.
//! Each goes through the pod's real interception and sidecar.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tidegate_tests::kubernetes::Cluster;
use tokio::sync::{mpsc, oneshot};

use crate::load::{LoadEndpoint, LoadExchange};

/// Interval between new connections.
const PACE: Duration = Duration::from_millis(5);
/// Timeout of a response.
const PATIENCE: Duration = Duration::from_secs(2);

/// The outcome of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionOutcome {
    /// An answer with this status.
    Status(u16),
    /// No answer: the connection was closed.
    Refused,
    /// Neither within two seconds.
    Silence,
}

/// One new connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeenConnection {
    /// When the connection was attempted.
    pub(super) began: Instant,
    /// When the outcome was known.
    pub(super) ended: Instant,
    pub(super) outcome: ConnectionOutcome,
}

/// Makes one new connection after another and reports each outcome, until dropped.
#[derive(Debug)]
pub(super) struct NodeProber {
    seen: mpsc::UnboundedReceiver<SeenConnection>,
}

impl NodeProber {
    /// Starts probing this endpoint from the node's network.
    pub(super) fn start(cluster: &'static Cluster, endpoint: LoadEndpoint) -> Result<Self> {
        let (sender, seen) = mpsc::unbounded_channel();
        spawn(cluster, async move {
            let exchange = LoadExchange::keep_alive("/get", 0);
            let mut due = tokio::time::interval(PACE);
            due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                if sender.send(probe(&endpoint, &exchange).await).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { seen })
    }

    /// The next connection that began after `time`.
    pub(super) async fn next_after(&mut self, time: Instant) -> Result<SeenConnection> {
        loop {
            let seen = self.seen.recv().await.context("the prober has ended")?;
            if seen.began > time {
                return Ok(seen);
            }
        }
    }

    /// The first connection with this outcome that began after `time`.
    pub(super) async fn first(
        &mut self,
        wanted: ConnectionOutcome,
        time: Instant,
        limit: Duration,
    ) -> Result<SeenConnection> {
        let mut last = None;
        let search = async {
            loop {
                let seen = self.next_after(time).await?;
                if seen.outcome == wanted {
                    return anyhow::Ok(seen);
                }
                last = Some(seen.outcome);
            }
        };
        match tokio::time::timeout(limit, search).await {
            Ok(found) => found,
            Err(_) => bail!("no {wanted:?} within {limit:?}; the last outcome was {last:?}"),
        }
    }
}

/// Runs on the node's network, in its own thread and runtime.
pub(super) fn spawn<T: Send + 'static>(
    cluster: &'static Cluster,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("node".to_owned()).spawn(move || {
        cluster.move_thread_to_node();
        // The receiver may be gone.
        let _ = sender.send(runtime.block_on(work));
    })?;
    Ok(receiver)
}

/// The address that a pod sees of connections from the node.
pub(super) async fn address_towards(cluster: &'static Cluster, pod: SocketAddr) -> Result<IpAddr> {
    let found = spawn(cluster, async move {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        // Sends nothing: the kernel only chooses a route.
        socket.connect(pod)?;
        socket.local_addr()
    })?;
    Ok(found.await.context("the node's thread has ended")??.ip())
}

/// Sends one request on a new connection.
async fn probe(endpoint: &LoadEndpoint, exchange: &LoadExchange) -> SeenConnection {
    let began = Instant::now();
    let attempt = async {
        let mut client = endpoint.connect().await?;
        exchange.any_answer_on(&mut client).await
    };
    let outcome = match tokio::time::timeout(PATIENCE, attempt).await {
        Ok(Ok(answer)) => ConnectionOutcome::Status(answer.status),
        Ok(Err(_)) => ConnectionOutcome::Refused,
        Err(_) => ConnectionOutcome::Silence,
    };
    SeenConnection { began, ended: Instant::now(), outcome }
}
