//! The kinds of load over HTTP/1.1.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::LoadMeasurement;
use super::connection::{LoadEndpoint, LoadExchange};
use super::window::{ResponseRecorder, UsageMeter};
use crate::app::{LARGE_BYTES, SMALL_BYTES};
use crate::http::{HttpConnection, SIZED_PATH};
use crate::tls::ClientStream;

/// Path of the small response.
const SMALL_PATH: &str = "/1k";
/// Connections that are established concurrently.
const CONNECTING: usize = 16;
/// Pause after a failed connection attempt, so that a dead proxy is not hammered.
pub(super) const RECONNECT_PAUSE: Duration = Duration::from_millis(10);
/// Timeout for outstanding responses after the window of an open loop has closed.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// One request at a time on each connection; `body`: bytes of each response's body.
pub(super) async fn closed(
    endpoint: LoadEndpoint,
    watched: &[u32],
    connections: usize,
    warm_up: f64,
    seconds: f64,
    body: u64,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let path = if body == SMALL_BYTES { SMALL_PATH.to_owned() } else { format!("{SIZED_PATH}{body}") };
    let exchange = Arc::new(LoadExchange::keep_alive(&path, body));
    let mut tasks = JoinSet::new();
    for client in connect_all(&endpoint, connections).await? {
        let (endpoint, recorder, exchange) = (endpoint.clone(), recorder.clone(), exchange.clone());
        tasks.spawn(async move {
            let mut client = client;
            loop {
                let sent = Instant::now();
                match exchange.on(&mut client).await {
                    Ok(bytes) => recorder.answered(sent.elapsed(), bytes),
                    Err(error) => {
                        recorder.failed(&error);
                        client = reconnect(&endpoint, &recorder).await;
                    }
                }
            }
        });
    }
    in_window(meter, recorder, warm_up, seconds).await
}

/// A new connection for each request.
pub(super) async fn handshakes(
    endpoint: LoadEndpoint,
    watched: &[u32],
    connections: usize,
    warm_up: f64,
    seconds: f64,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let exchange = Arc::new(LoadExchange::last(SMALL_PATH, SMALL_BYTES));
    let mut tasks = JoinSet::new();
    for worker in 0..connections {
        let (endpoint, recorder, exchange) = (endpoint.clone(), recorder.clone(), exchange.clone());
        tasks.spawn(async move {
            let mut number = worker;
            loop {
                let began = Instant::now();
                let result = async {
                    let mut client = endpoint.connect_from(number).await?;
                    let bytes = exchange.on(&mut client).await?;
                    client.closed_by_peer().await?;
                    anyhow::Ok(bytes)
                };
                match result.await {
                    Ok(bytes) => recorder.answered(began.elapsed(), bytes),
                    Err(error) => {
                        recorder.failed(&error);
                        tokio::time::sleep(RECONNECT_PAUSE).await;
                    }
                }
                number += 1;
            }
        });
    }
    in_window(meter, recorder, warm_up, seconds).await
}

/// Requests are due at equal intervals, regardless of earlier ones, and wait for a free connection.
pub(super) async fn open(
    endpoint: LoadEndpoint,
    watched: &[u32],
    rate: u32,
    connections: usize,
    warm_up: f64,
    seconds: f64,
) -> Result<LoadMeasurement> {
    ensure!(rate > 0, "a rate of 0 requests a second measures nothing");
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let exchange = Arc::new(LoadExchange::keep_alive(SMALL_PATH, SMALL_BYTES));
    let queue = Arc::new(RequestQueue::default());
    let mut tasks = JoinSet::new();
    for client in connect_all(&endpoint, connections).await? {
        let (endpoint, recorder, exchange, queue) =
            (endpoint.clone(), recorder.clone(), exchange.clone(), queue.clone());
        tasks.spawn(async move {
            let mut client = client;
            loop {
                let job = queue.next().await;
                match exchange.on(&mut client).await {
                    Ok(bytes) if job.counts => recorder.answered(job.due.elapsed(), bytes),
                    Ok(_) => {}
                    Err(error) => {
                        recorder.failed(&error);
                        client = reconnect(&endpoint, &recorder).await;
                    }
                }
                queue.finished();
            }
        });
    }
    let mut ticks = Ticks::start(rate)?;
    ticks.fill(&queue, Duration::from_secs_f64(warm_up), false).await?;
    let window = meter.open(&recorder)?;
    ticks.fill(&queue, Duration::from_secs_f64(seconds), true).await?;
    let closed = window.close(true)?;
    if tokio::time::timeout(LAST_ANSWERS, queue.drained()).await.is_err() {
        for _ in 0..queue.pending() {
            recorder.failed(&anyhow::anyhow!("no answer {LAST_ANSWERS:?} after the last request"));
        }
    }
    Ok(closed.report())
}

/// One request on each connection, which then stays open.
pub(super) async fn idle(
    endpoint: LoadEndpoint,
    watched: &[u32],
    connections: usize,
) -> Result<LoadMeasurement> {
    let window_meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let window = window_meter.open(&recorder)?;
    let exchange = LoadExchange::keep_alive(SMALL_PATH, SMALL_BYTES);
    let mut clients = connect_all(&endpoint, connections).await?;
    for client in &mut clients {
        let sent = Instant::now();
        let bytes = exchange.on(client).await?;
        recorder.answered(sent.elapsed(), bytes);
    }
    let report = window.close(false)?.report();
    drop(clients);
    Ok(report)
}

/// One large body after another, in the direction of the exchange.
pub(super) async fn transfer(
    endpoint: LoadEndpoint,
    watched: &[u32],
    seconds: f64,
    exchange: LoadExchange,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let mut client = endpoint.connect().await?;
    // The first response grows the buffers of proxy and kernel.
    LoadExchange::keep_alive(SMALL_PATH, SMALL_BYTES).on(&mut client).await?;
    let window = meter.open(&recorder)?;
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        let sent = Instant::now();
        exchange.on(&mut client).await?;
        recorder.answered(sent.elapsed(), LARGE_BYTES);
    }
    Ok(window.close(false)?.report())
}

/// Measures for the length of a window, after a warm-up.
pub(super) async fn in_window(
    meter: UsageMeter,
    recorder: ResponseRecorder,
    warm_up: f64,
    seconds: f64,
) -> Result<LoadMeasurement> {
    tokio::time::sleep(Duration::from_secs_f64(warm_up)).await;
    let window = meter.open(&recorder)?;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    Ok(window.close(false)?.report())
}

/// Opens all connections; returns the first failure.
async fn connect_all(
    endpoint: &LoadEndpoint,
    connections: usize,
) -> Result<Vec<HttpConnection<ClientStream>>> {
    let mut clients = Vec::with_capacity(connections);
    let mut connecting = JoinSet::new();
    for _ in 0..connections {
        if connecting.len() == CONNECTING {
            clients.push(connecting.join_next().await.context("no connection")???);
        }
        let endpoint = endpoint.clone();
        connecting.spawn(async move { endpoint.connect().await });
    }
    while let Some(client) = connecting.join_next().await {
        clients.push(client??);
    }
    Ok(clients)
}

/// Opens a connection, however often it takes; each failure counts.
async fn reconnect(endpoint: &LoadEndpoint, recorder: &ResponseRecorder) -> HttpConnection<ClientStream> {
    loop {
        match endpoint.connect().await {
            Ok(client) => return client,
            Err(error) => {
                recorder.failed(&error);
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }
}

/// Requests that are due, and those in flight.
#[derive(Default)]
struct RequestQueue {
    state: Mutex<RequestQueueState>,
    /// Wakes connections in FIFO order, so that all are used in turn.
    more: Notify,
    /// Notified when no request is left.
    empty: Notify,
}

/// State of the queue.
#[derive(Default)]
struct RequestQueueState {
    /// Requests that no connection has taken yet.
    due: VecDeque<Job>,
    /// Number of requests in flight.
    running: usize,
}

/// A request.
#[derive(Debug, Clone, Copy)]
struct Job {
    /// When it was due: its latency counts from then.
    due: Instant,
    /// Whether it was due in the window, not in the warm-up.
    counts: bool,
}

impl RequestQueue {
    /// Adds a request.
    fn push(&self, job: Job) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).due.push_back(job);
        self.more.notify_one();
    }

    /// Waits for the next request.
    async fn next(&self) -> Job {
        loop {
            {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(job) = state.due.pop_front() {
                    state.running += 1;
                    return job;
                }
            }
            self.more.notified().await;
        }
    }

    /// Records that a request has its response.
    fn finished(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).running -= 1;
        if self.pending() == 0 {
            self.empty.notify_one();
        }
    }

    /// Number of requests without a response.
    fn pending(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.due.len() + state.running
    }

    /// Waits until every request has its response.
    async fn drained(&self) {
        while self.pending() > 0 {
            self.empty.notified().await;
        }
    }
}

/// A clock with the kernel's resolution: tokio's own timers round to a millisecond.
struct Ticks {
    /// A timerfd is read like a pipe, and tokio can read this type without `unsafe`.
    timer: pipe::Receiver,
    /// Start of the clock.
    start: Instant,
    /// Time between two ticks.
    interval: Duration,
    /// Ticks so far.
    done: u32,
    /// Ticks beyond the previous span that were read with it because this thread was late.
    early: u64,
}

impl Ticks {
    /// A clock with `rate` ticks per second.
    fn start(rate: u32) -> Result<Self> {
        let interval = Duration::from_secs(1) / rate;
        let timer = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let spec = Timespec::try_from(interval)?;
        let start = Instant::now();
        rustix::time::timerfd_settime(
            &timer,
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: spec, it_value: spec },
        )?;
        Ok(Self {
            timer: pipe::Receiver::from_owned_fd_unchecked(timer)?,
            start,
            interval,
            done: 0,
            early: 0,
        })
    }

    /// Queues a request at each tick for `span`.
    async fn fill(&mut self, queue: &RequestQueue, span: Duration, counts: bool) -> Result<()> {
        let mut left = (span.as_secs_f64() / self.interval.as_secs_f64()).round() as u64;
        loop {
            let ticks = self.early.min(left);
            for _ in 0..ticks {
                self.done += 1;
                queue.push(Job { due: self.start + self.interval * self.done, counts });
            }
            self.early -= ticks;
            left -= ticks;
            if left == 0 {
                break;
            }
            // timerfd_create(2): the number of ticks since the last read, in the machine's byte order.
            let mut expirations = [0; 8];
            self.timer.read_exact(&mut expirations).await?;
            self.early += u64::from_ne_bytes(expirations);
        }
        Ok(())
    }
}
