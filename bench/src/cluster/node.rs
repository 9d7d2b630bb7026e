//! Connections from the node's own network, like those of kubelets and of ingress controllers with host networking.
//! Each goes through the pod's real interception and sidecar.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tidegate_tests::kubernetes::Cluster;
use tokio::sync::{mpsc, oneshot};

use super::prober::{Prober, Seen};
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

/// Makes one new connection to this endpoint after another, from the node's network.
pub(super) fn probe_connections(
    cluster: &'static Cluster,
    endpoint: LoadEndpoint,
) -> Result<Prober<ConnectionOutcome>> {
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
    Ok(Prober(seen))
}

/// Runs on the node's network, in its own thread and runtime.
pub(super) fn spawn<T: Send + 'static>(
    cluster: &'static Cluster,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<oneshot::Receiver<T>> {
    spawn_in(cluster.node_network(), work)
}

/// Runs in this network namespace, in its own thread and runtime.
pub(super) fn spawn_in<T: Send + 'static>(
    network: File,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<oneshot::Receiver<T>> {
    let (sender, receiver) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("network".to_owned()).spawn(move || {
        if let Err(error) = move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)) {
            eprintln!("cannot enter a network namespace: {error}");
            return;
        }
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
async fn probe(endpoint: &LoadEndpoint, exchange: &LoadExchange) -> Seen<ConnectionOutcome> {
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
    Seen { began, ended: Instant::now(), outcome }
}
