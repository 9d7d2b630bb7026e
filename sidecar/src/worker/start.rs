//! Starts the workers: binds the listeners, creates the threads, and sets limits by the number of open files.

use std::cell::Cell;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use super::dispatch::{Dispatch, WorkerMessage};
use super::{
    RunningWorkers, SharedByWorkers, Worker, WorkerCommand, Workers, WorkersConfig, WorkersStartError,
};
use crate::context::WorkerContext;
use crate::destinations::Destinations;
use crate::http::HttpContext;
use crate::lifeline::Registry;
use crate::limits::Limits;
use crate::listener::{self, FixedOutbound, InboundTarget, Listener};
use crate::places::{ConnectionPlaces, PlaceLimits};
use crate::snapshot::Snapshots;
use crate::turn;

/// Arguments of a worker thread.
struct WorkerInit {
    /// Its number, from zero: workers send each other messages by it.
    index: usize,
    listeners: Vec<(StdTcpListener, Listener)>,
    /// From the other workers.
    messages: mpsc::UnboundedReceiver<WorkerMessage>,
    /// To all workers, itself included.
    peers: Vec<mpsc::UnboundedSender<WorkerMessage>>,
    command: watch::Receiver<WorkerCommand>,
    shared: Arc<SharedByWorkers>,
    limits: Limits,
    snapshots: Snapshots,
    destinations: Arc<Destinations>,
    http_context: Arc<dyn Fn(Rc<Limits>, Snapshots) -> Rc<HttpContext> + Send + Sync>,
}

impl Workers {
    /// Opens all listeners, then starts the threads. Listeners are distributed over the workers; each accepted
    /// connection goes to the least busy worker.
    ///
    /// # Errors
    ///
    /// If an address cannot be bound, or a thread cannot be created.
    pub(crate) fn start(config: WorkersConfig) -> Result<RunningWorkers, WorkersStartError> {
        let count = config.count.max(1);
        let mut addresses = Vec::new();
        let mut sockets: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        for (listener, index) in config.listeners.into_iter().zip((0..count).cycle()) {
            let fails = |source| WorkersStartError::Listen { address: listener.address(), source };
            let socket = listener::bind(listener.address()).map_err(fails)?;
            let address = socket.local_addr().map_err(fails)?;
            addresses.push(address);
            if let Some(of_worker) = sockets.get_mut(index) {
                of_worker.push((socket, listener.at(address)));
            }
        }
        let mut limits = config.limits;
        let files = file_limit();
        limits.upstream_requests = max_upstream_requests(limits.upstream_requests, count, files);
        let reserved = limits.upstream_requests.saturating_mul(count);
        let shared = Arc::new(SharedByWorkers {
            places: Arc::new(ConnectionPlaces::new(count, place_limits(limits.connections, files, reserved))),
            cut: AtomicUsize::new(0),
        });
        let (command, commands) = watch::channel(WorkerCommand::Serve);
        let (peers, messages): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let mut threads = Vec::new();
        for (index, (listeners, messages)) in sockets.into_iter().zip(messages).enumerate() {
            let init = WorkerInit {
                index,
                listeners,
                messages,
                peers: peers.clone(),
                command: commands.clone(),
                shared: shared.clone(),
                limits: limits.clone(),
                snapshots: config.snapshots.clone(),
                destinations: config.destinations.clone(),
                http_context: config.http_context.clone(),
            };
            threads.push(start_thread(init)?);
        }
        Ok(RunningWorkers { addresses, command, shared, threads })
    }
}

/// Starts one thread; returns once its runtime exists, or could not be made.
fn start_thread(init: WorkerInit) -> io::Result<JoinHandle<()>> {
    let (report, reported) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name(format!("worker-{}", init.index)).spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        match runtime {
            Ok(runtime) => {
                let _ = report.send(Ok(()));
                runtime.block_on(begin(init));
            }
            Err(error) => drop(report.send(Err(error))),
        }
    })?;
    reported.recv().unwrap_or_else(|error| Err(io::Error::other(error)))?;
    Ok(thread)
}

/// A worker's thread, from its listeners to the end of its drain.
async fn begin(init: WorkerInit) {
    let WorkerInit {
        index,
        listeners,
        messages,
        peers,
        command,
        shared,
        limits,
        snapshots,
        destinations,
        http_context,
    } = init;
    let worker = Rc::new(Worker {
        context: Rc::new(WorkerContext::new(
            snapshots.clone(),
            destinations,
            http_context(Rc::new(limits), snapshots),
        )),
        registry: Registry::new(),
        draining: Cell::new(None),
        has_outbound_listener: listeners.iter().any(|(_, listener)| listener.is_outbound()),
        shared: shared.clone(),
        arrived: Notify::new(),
    });
    let dispatch = Rc::new(Dispatch { here: worker.clone(), index, peers, shared: shared.clone() });
    for (socket, listener) in listeners {
        let address = listener.address();
        match TcpListener::from_std(socket) {
            Ok(socket) => {
                match &listener {
                    Listener::Fixed(InboundTarget { port, app, .. }) => {
                        info!(%address, port, %app, "listening");
                    }
                    Listener::Redirected(_) => info!(%address, "listening for redirected connections"),
                    Listener::FixedOutbound(FixedOutbound { destination, .. }) => {
                        info!(%address, %destination, "listening for the app");
                    }
                    Listener::RedirectedOutbound(_) => {
                        info!(%address, "listening for the app's redirected connections");
                    }
                }
                let (dispatch, mut command) = (dispatch.clone(), command.clone());
                let stop =
                    async move { drop(command.wait_for(|command| *command != WorkerCommand::Serve).await) };
                let deliver = move |accepted| dispatch.take(accepted);
                tokio::task::spawn_local(listener::accept(socket, listener, stop, deliver));
            }
            Err(error) => warn!(%address, %error, "cannot listen"),
        }
    }
    tokio::task::spawn_local(turn::serve());
    worker.run(messages, command).await;
    shared.cut.fetch_add(worker.cut().await, Ordering::Relaxed);
    worker.context.tick();
}

/// How many files the process may open.
fn file_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Limit of concurrent HTTP/2 requests to apps, per worker. Each may need a file; together they may use a quarter of
/// all files.
pub(super) fn max_upstream_requests(limit: usize, workers: usize, files: u64) -> usize {
    let possible = usize::try_from(files / 4).unwrap_or(usize::MAX) / workers;
    limit.min(possible.max(1))
}

/// Limits of places, with `reserved` files for other uses.
pub(super) fn place_limits(limit: usize, files: u64, reserved: usize) -> PlaceLimits {
    let limits = PlaceLimits::of(limit, Some(files.saturating_sub(reserved as u64)));
    if limits.clients < limit {
        let connections = limits.clients;
        warn!(files, connections, "the limit of open files allows fewer connections than configured");
    }
    limits
}
