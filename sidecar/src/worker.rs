//! The threads that carry traffic. Each has a runtime of its own and shares nothing with the others but counts of
//! how busy they are; a connection lives and ends on one of them.
//!
//! [`Workers::start`] opens the listeners and starts the threads. A worker gives each connection a task
//! (`inbound::serve`) and watches over all of them: deadlines and certificates on a tick, policy and trust bundle
//! whenever they change, and the drain at the end.

mod dispatch;
mod review;

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener as StdTcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tidegate_runtime::drain::Outcome;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use crate::connection::OpenConnection;
use crate::context::WorkerContext;
use crate::destinations::Destinations;
use crate::http::HttpContext;
use crate::inbound;
use crate::lifeline::{Cause, Lifeline, Phase, Precedence, Registry};
use crate::limits::Limits;
use crate::listener::{self, Direction, FixedOutbound, InboundTarget, Listener};
use crate::outbound::{self, Dialled};
use crate::places::{Eviction, Place, PlaceLimits, Places};
use crate::snapshot::Snapshots;
use crate::turn;

use dispatch::{Dispatch, Handoff, Message};

/// How often deadlines are looked at, and how late one may be.
const TICK: Duration = Duration::from_millis(250);

/// The same while draining, when somebody waits for the end.
const DRAIN_TICK: Duration = Duration::from_millis(20);

/// How long connections may take to notice that they are closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What workers are made of.
pub struct WorkersConfig {
    /// Threads; at least one.
    pub count: usize,
    /// Where connections come in.
    pub listeners: Vec<Listener>,
    /// How much and how long.
    pub limits: Limits,
    /// What the control thread knows.
    pub snapshots: Snapshots,
    /// What is known of the addresses that the app dials.
    pub destinations: Arc<Destinations>,
    /// Makes the HTTP context of one worker; called on each worker's thread.
    pub http_context: Arc<dyn Fn(Rc<Limits>, Snapshots) -> Rc<HttpContext> + Send + Sync>,
}

/// Starts worker threads.
pub struct Workers;

/// Worker threads. Dropped, they end without a drain.
pub struct RunningWorkers {
    addresses: Vec<SocketAddr>,
    command: watch::Sender<Command>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// How busy the workers are, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections that are open.
    pub connections: usize,
    /// Connections that were ended at once because there were too many; since the start.
    pub shed: u64,
    /// Times that no connection could be accepted; since the start.
    pub accept_errors: u64,
}

/// Why workers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A thread or its runtime cannot be made.
    #[error("cannot start a worker: {0}")]
    Thread(#[from] io::Error),
}

/// What the workers are told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// Serve.
    Serve,
    /// Take no more connections, let those that there are finish until then, and end.
    Drain(Instant),
}

/// One thread's connections.
struct Worker {
    context: Rc<WorkerContext>,
    registry: Registry<OpenConnection>,
    draining: Cell<Option<Instant>>,
    /// Whether the app's way out begins here: then this worker ends last.
    is_way_out: bool,
    shared: Arc<Shared>,
    /// The registry has got its first connection.
    arrived: Notify,
}

/// What all threads see.
struct Shared {
    places: Arc<Places>,
    shed: AtomicU64,
    accept_errors: AtomicU64,
    /// Connections that the drain has cut.
    cut: AtomicUsize,
}

/// What a thread needs to begin.
struct WorkerInit {
    index: usize,
    listeners: Vec<(StdTcpListener, Listener)>,
    messages: mpsc::UnboundedReceiver<Message>,
    peers: Vec<mpsc::UnboundedSender<Message>>,
    command: watch::Receiver<Command>,
    shared: Arc<Shared>,
    limits: Limits,
    snapshots: Snapshots,
    destinations: Arc<Destinations>,
    http_context: Arc<dyn Fn(Rc<Limits>, Snapshots) -> Rc<HttpContext> + Send + Sync>,
}

impl Workers {
    /// Opens all listeners, then starts the threads. Listeners are spread over the workers; whoever takes a connection
    /// gives it to the least busy one.
    pub fn start(config: WorkersConfig) -> Result<RunningWorkers, StartError> {
        let count = config.count.max(1);
        let mut addresses = Vec::new();
        let mut sockets: Vec<Vec<_>> = (0..count).map(|_| Vec::new()).collect();
        for (listener, index) in config.listeners.into_iter().zip((0..count).cycle()) {
            let fails = |source| StartError::Listen { address: listener.address(), source };
            let socket = listener::bind(listener.address()).map_err(fails)?;
            let address = socket.local_addr().map_err(fails)?;
            addresses.push(address);
            if let Some(of_worker) = sockets.get_mut(index) {
                of_worker.push((socket, listener.at(address)));
            }
        }
        let mut limits = config.limits;
        let files = file_limit();
        limits.upstream_requests = most_upstream_requests(limits.upstream_requests, count, files);
        let reserved = limits.upstream_requests.saturating_mul(count);
        let shared = Arc::new(Shared {
            places: Arc::new(Places::new(count, place_limits(limits.connections, files, reserved))),
            shed: AtomicU64::new(0),
            accept_errors: AtomicU64::new(0),
            cut: AtomicUsize::new(0),
        });
        let (command, commands) = watch::channel(Command::Serve);
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

impl RunningWorkers {
    /// Addresses that are listened on, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How busy the workers are.
    pub fn load(&self) -> Load {
        Load {
            connections: self.shared.places.connections(),
            shed: self.shared.shed.load(Ordering::Relaxed),
            accept_errors: self.shared.accept_errors.load(Ordering::Relaxed),
        }
    }

    /// Takes no more connections, lets those that there are finish what is in flight, and ends the threads. What is
    /// not done by the deadline is cut.
    pub async fn drain(mut self, deadline: Duration) -> Outcome {
        let now = Instant::now();
        self.command.send_replace(Command::Drain(now.checked_add(deadline).unwrap_or(now)));
        self.command.closed().await;
        let threads = std::mem::take(&mut self.threads);
        let joined =
            tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
        if !joined.await.unwrap_or(false) {
            warn!("a worker has panicked");
        }
        match self.shared.cut.load(Ordering::Relaxed) {
            0 => Outcome::Complete,
            remaining => Outcome::DeadlinePassed { remaining },
        }
    }
}

impl Drop for RunningWorkers {
    fn drop(&mut self) {
        self.command.send_replace(Command::Drain(Instant::now()));
    }
}

impl Worker {
    fn serve(self: &Rc<Self>, io: TcpStream, peer: SocketAddr, direction: Direction, place: Place) {
        if self.registry.is_empty() {
            self.arrived.notify_one();
        }
        let connection = Rc::new(OpenConnection::default());
        let line = self.registry.add_at(place, connection.clone());
        if let Some(deadline) = self.draining.get() {
            self.let_leave(&line, deadline);
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

    async fn run(
        self: &Rc<Self>,
        mut messages: mpsc::UnboundedReceiver<Message>,
        mut command: watch::Receiver<Command>,
    ) {
        let mut snapshots = self.context.snapshots.clone();
        let mut reviewer = review::Reviewer::new(snapshots.current());
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
                _ = command.wait_for(|command| *command != Command::Serve) => break,
            }
        }
        let command = *command.borrow();
        let deadline = match command {
            Command::Drain(deadline) => deadline,
            Command::Serve => Instant::now(),
        };
        self.drain(deadline, &mut messages, &mut reviewer, &mut snapshots).await;
    }

    fn receive(self: &Rc<Self>, message: Message) {
        match message {
            Message::Handoff(Handoff { io, peer, direction, place }) => match TcpStream::from_std(io) {
                Ok(io) => self.serve(io, peer, direction, place),
                Err(error) => warn!(%error, "cannot take a connection over"),
            },
            Message::Evict(eviction) => self.evict(&eviction),
        }
    }

    async fn drain(
        self: &Rc<Self>,
        deadline: Instant,
        messages: &mut mpsc::UnboundedReceiver<Message>,
        reviewer: &mut review::Reviewer,
        snapshots: &mut Snapshots,
    ) {
        self.draining.set(Some(deadline));
        self.registry.for_each(|line, _| self.let_leave(line, deadline));
        loop {
            // Listeners end by the same command, each in a task of its own: what they still take comes in meanwhile.
            tokio::time::sleep(DRAIN_TICK).await;
            while let Ok(message) = messages.try_recv() {
                self.receive(message);
            }
            reviewer.review(self, snapshots.current());
            self.tick();
            let is_done =
                self.registry.is_empty() && (!self.is_way_out || self.shared.places.connections() == 0);
            if is_done || Instant::now() >= deadline {
                return;
            }
        }
    }

    /// Lets a connection end until the drain does. Half of the time is left for what comes in last.
    fn let_leave(&self, line: &Lifeline, deadline: Instant) {
        let limits = &self.context.http.limits;
        let grace = deadline.saturating_duration_since(Instant::now()).min(limits.drain);
        line.leave(Cause::Draining, limits.drain_idle.min(grace / 2), grace);
    }

    /// Ends what has not ended by the end of the drain, and says how much that was.
    async fn cut(&self) -> usize {
        let mut cut = 0;
        self.registry.for_each(|line, _| {
            cut += 1;
            line.close(Cause::Draining);
        });
        let end = Instant::now() + LAST_WORDS;
        while cut > 0 && Instant::now() < end {
            tokio::time::sleep(DRAIN_TICK).await;
            self.registry.for_each(|_, _| {});
            if self.registry.is_empty() {
                break;
            }
        }
        cut
    }

    fn tick(&self) {
        self.registry.expire(Instant::now());
        let now = SystemTime::now();
        self.registry.for_each(|line, connection| {
            if let Some(left) = connection.should_finish(now) {
                line.leave(Cause::CertificateExpired, left / 2, left);
            }
        });
        self.context.tick();
    }
}

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
        is_way_out: listeners.iter().any(|(_, listener)| listener.is_outbound()),
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
                    Listener::Redirected(_) => info!(%address, "listening for what is redirected here"),
                    Listener::FixedOutbound(FixedOutbound { destination, .. }) => {
                        info!(%address, %destination, "listening for the app");
                    }
                    Listener::RedirectedOutbound(_) => {
                        info!(%address, "listening for what is redirected here from the app");
                    }
                }
                let (dispatch, mut command) = (dispatch.clone(), command.clone());
                let stop = async move { drop(command.wait_for(|command| *command != Command::Serve).await) };
                let hand_on = move |accepted| dispatch.take(accepted);
                tokio::task::spawn_local(listener::accept(socket, listener, stop, hand_on));
            }
            Err(error) => warn!(%address, %error, "cannot listen"),
        }
    }
    tokio::task::spawn_local(turn::serve());
    worker.run(messages, command).await;
    shared.cut.fetch_add(worker.cut().await, Ordering::Relaxed);
    worker.context.tick();
}

/// Files that the process may open.
fn file_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Requests of HTTP/2 clients to the app, for each worker: each may take a file, and all of them a quarter of the files
/// there may be.
fn most_upstream_requests(limit: usize, workers: usize, files: u64) -> usize {
    let possible = usize::try_from(files / 4).unwrap_or(usize::MAX) / workers;
    limit.min(possible.max(1))
}

/// Places for connections where `reserved` files are for others.
fn place_limits(limit: usize, files: u64, reserved: usize) -> PlaceLimits {
    let limits = PlaceLimits::of(limit, Some(files.saturating_sub(reserved as u64)));
    if limits.clients < limit {
        let connections = limits.clients;
        warn!(files, connections, "the limit of open files allows fewer connections than configured");
    }
    limits
}

#[cfg(test)]
mod tests;
