//! The threads that carry traffic. Each has its own runtime and shares only load counts with the others; a connection
//! stays on one of them.
//!
//! [`Workers::start`] opens the listeners and starts the threads. A worker runs each connection in a task
//! (`inbound::serve`) and supervises all of them: deadlines and certificates on a tick, policy and trust bundle on
//! every change, and the drain at the end.

mod dispatch;
mod review;
mod start;

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tidegate_runtime::drain::DrainOutcome;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use crate::connection::OpenConnection;
use crate::context::WorkerContext;
use crate::destinations::Destinations;
use crate::http::HttpContext;
use crate::inbound;
use crate::lifeline::{Cause, Lifeline, Phase, Precedence, Registry};
use crate::limits::Limits;
use crate::listener::{Direction, Listener};
use crate::outbound::{self, Dialled};
use crate::places::{ConnectionPlace, ConnectionPlaces, Eviction};
use crate::snapshot::Snapshots;

use dispatch::{Handoff, WorkerMessage};

/// Interval at which deadlines are checked, and how late one may fire.
const TICK: Duration = Duration::from_millis(250);

/// The same while draining, when a shutdown waits for the end.
const DRAIN_TICK: Duration = Duration::from_millis(20);

/// How long connections may take to end after they were closed.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Configuration of the workers.
pub(crate) struct WorkersConfig {
    /// Number of threads; at least one.
    pub(crate) count: usize,
    /// Addresses to listen on.
    pub(crate) listeners: Vec<Listener>,
    /// Sizes, counts and times.
    pub(crate) limits: Limits,
    /// Configuration that the control thread publishes.
    pub(crate) snapshots: Snapshots,
    /// Destinations that the app has dialled.
    pub(crate) destinations: Arc<Destinations>,
    /// Makes the HTTP context of one worker; called on each worker's thread.
    pub(crate) http_context: Arc<dyn Fn(Rc<Limits>, Snapshots) -> Rc<HttpContext> + Send + Sync>,
}

/// Entry point: starts worker threads.
pub(crate) struct Workers;

/// Running worker threads. If dropped, they end without a drain.
pub(crate) struct RunningWorkers {
    addresses: Vec<SocketAddr>,
    command: watch::Sender<WorkerCommand>,
    shared: Arc<SharedByWorkers>,
    threads: Vec<JoinHandle<()>>,
}

/// Why workers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum WorkersStartError {
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// A thread or its runtime cannot be created.
    #[error("cannot start a worker: {0}")]
    Thread(#[from] io::Error),
}

/// Desired state of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WorkerCommand {
    /// Accept and serve connections.
    Serve,
    /// Accept no more connections, let open ones finish until this time, and end.
    Drain(Instant),
}

/// One thread with its connections.
struct Worker {
    context: Rc<WorkerContext>,
    registry: Registry<OpenConnection>,
    draining: Cell<Option<Instant>>,
    /// Whether an outbound listener is on this worker: then it ends last.
    has_outbound_listener: bool,
    shared: Arc<SharedByWorkers>,
    /// Notified when a connection is added to an empty registry.
    arrived: Notify,
}

/// State shared by all workers.
struct SharedByWorkers {
    places: Arc<ConnectionPlaces>,
    /// Number of connections that were cut at the end of the drain.
    cut: AtomicUsize,
}

impl RunningWorkers {
    /// Addresses that were bound, in the order of the configuration.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Number of open connections.
    #[cfg(test)]
    pub(crate) fn connections(&self) -> usize {
        self.shared.places.connections()
    }

    /// Stops accepting connections, lets open ones finish their requests, and ends the threads. Connections that are
    /// still open at the deadline are cut.
    pub(crate) async fn drain(mut self, deadline: Duration) -> DrainOutcome {
        let now = Instant::now();
        self.command.send_replace(WorkerCommand::Drain(now.checked_add(deadline).unwrap_or(now)));
        self.command.closed().await;
        let threads = std::mem::take(&mut self.threads);
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
        if !joined.await.unwrap_or(false) {
            warn!("a worker has panicked");
        }
        match self.shared.cut.load(Ordering::Relaxed) {
            0 => DrainOutcome::Complete,
            remaining => DrainOutcome::DeadlinePassed { remaining },
        }
    }
}

impl Drop for RunningWorkers {
    fn drop(&mut self) {
        self.command.send_replace(WorkerCommand::Drain(Instant::now()));
    }
}

impl Worker {
    /// Runs a connection in a task of its own, which ends with it.
    fn serve(self: &Rc<Self>, io: TcpStream, peer: SocketAddr, direction: Direction, place: ConnectionPlace) {
        if self.registry.is_empty() {
            self.arrived.notify_one();
        }
        let connection = Rc::new(OpenConnection::default());
        let line = self.registry.add_at(place, connection.clone());
        if let Some(deadline) = self.draining.get() {
            self.drain_connection(&line, deadline);
        }
        let context = self.context.clone();
        tokio::task::spawn_local(async move {
            let totals = context.http.telemetry.totals();
            match direction {
                Direction::Inbound(target) => {
                    totals.opened.add(1);
                    inbound::serve(&context, io, inbound::Downstream { peer, target }, &connection, &line)
                        .await;
                    totals.closed.add(1);
                    if line.phase() == Phase::Closed(Cause::NoRoom) {
                        totals.unfinished.add(1);
                        if let Some(authorizer) = connection.authorizer() {
                            context.refusals.no_room_for_record(authorizer.info());
                        }
                    }
                }
                Direction::Outbound(address) => {
                    totals.outbound_opened.add(1);
                    outbound::serve(&context, io, Dialled { peer, address }, &connection, &line).await;
                    totals.outbound_closed.add(1);
                }
            }
        });
    }

    /// Ends connections of a source, idle ones first, so that another source gets their places.
    fn evict(&self, eviction: &Eviction) {
        let mut found: Vec<(Precedence, Lifeline)> = Vec::new();
        self.registry.for_each(|line, _| match line.precedence(eviction) {
            Some(precedence @ Precedence::Idle(_)) => found.push((precedence, line.clone())),
            Some(precedence) if eviction.also_busy => found.push((precedence, line.clone())),
            _ => {}
        });
        if found.len() > eviction.count {
            found.select_nth_unstable_by_key(eviction.count, |(precedence, _)| *precedence);
            found.truncate(eviction.count);
        }
        self.context.http.telemetry.totals().made_room.add(found.len() as u64);
        self.context.refusals.unless_flooded(|| {
            info!(source = %eviction, connections = found.len(), "the source with the most connections makes room");
        });
        for (_, line) in found {
            line.close(Cause::MadeRoom);
        }
    }

    /// Supervises the connections until the drain has ended. The tick runs only while there are connections.
    async fn run(
        self: &Rc<Self>,
        mut messages: mpsc::UnboundedReceiver<WorkerMessage>,
        mut command: watch::Receiver<WorkerCommand>,
    ) {
        let mut snapshots = self.context.snapshots.clone();
        let mut reviewer = review::Reviewer::new(self, snapshots.current());
        let mut next_tick = Instant::now();
        let mut published = true;
        loop {
            tokio::select! {
                snapshot = snapshots.changed(), if published => match snapshot {
                    Some(snapshot) => reviewer.review(self, snapshot),
                    None => published = false,
                },
                Some(message) = messages.recv() => self.receive(message),
                () = tokio::time::sleep_until(next_tick.into()), if !self.registry.is_empty() => {
                    next_tick = Instant::now() + TICK;
                    self.tick();
                }
                () = self.arrived.notified() => next_tick = Instant::now() + TICK,
                _ = command.wait_for(|command| *command != WorkerCommand::Serve) => break,
            }
        }
        let command = *command.borrow();
        let deadline = match command {
            WorkerCommand::Drain(deadline) => deadline,
            WorkerCommand::Serve => Instant::now(),
        };
        self.drain(deadline, &mut messages, &mut reviewer, &mut snapshots).await;
    }

    /// A message of another worker.
    fn receive(self: &Rc<Self>, message: WorkerMessage) {
        match message {
            WorkerMessage::Handoff(Handoff { io, peer, direction, place }) => match TcpStream::from_std(io) {
                Ok(io) => self.serve(io, peer, direction, place),
                Err(error) => warn!(%error, "cannot take a connection over"),
            },
            WorkerMessage::Evict(eviction) => self.evict(&eviction),
        }
    }

    /// Waits until all connections have ended, or the deadline. The worker with the outbound listener waits for the
    /// others' too: a request in flight may need another service.
    async fn drain(
        self: &Rc<Self>,
        deadline: Instant,
        messages: &mut mpsc::UnboundedReceiver<WorkerMessage>,
        reviewer: &mut review::Reviewer,
        snapshots: &mut Snapshots,
    ) {
        self.draining.set(Some(deadline));
        self.registry.for_each(|line, _| self.drain_connection(line, deadline));
        loop {
            // Listeners stop on the same command, each in its own task, and may accept connections until then.
            tokio::time::sleep(DRAIN_TICK).await;
            while let Ok(message) = messages.try_recv() {
                self.receive(message);
            }
            reviewer.review(self, snapshots.current());
            self.tick();
            let is_done = self.registry.is_empty()
                && (!self.has_outbound_listener || self.shared.places.connections() == 0);
            if is_done || Instant::now() >= deadline {
                return;
            }
        }
    }

    /// Lets a connection end gracefully until the drain does. Half of the time is reserved for late requests.
    fn drain_connection(&self, line: &Lifeline, deadline: Instant) {
        let limits = &self.context.http.limits;
        let grace = deadline.saturating_duration_since(Instant::now()).min(limits.drain);
        line.close_gracefully(Cause::Draining, limits.drain_idle.min(grace / 2), grace);
    }

    /// Ends the connections that are still open after the drain; returns their number.
    async fn cut(&self) -> usize {
        let mut cut = 0;
        self.registry.for_each(|line, _| {
            cut += 1;
            line.close(Cause::Draining);
        });
        let end = Instant::now() + CUT_TIMEOUT;
        while cut > 0 && Instant::now() < end {
            tokio::time::sleep(DRAIN_TICK).await;
            self.registry.for_each(|_, _| {});
            if self.registry.is_empty() {
                break;
            }
        }
        cut
    }

    /// Applies deadlines, closes connections gracefully whose client certificate is about to expire, and does the
    /// periodic work of pools and logs.
    fn tick(&self) {
        self.registry.expire(Instant::now());
        let now = SystemTime::now();
        self.registry.for_each(|line, connection| {
            if let Some(left) = connection.should_finish(now) {
                line.close_gracefully(Cause::CertificateExpired, left / 2, left);
            }
        });
        self.context.tick();
    }
}

#[cfg(test)]
mod tests;
