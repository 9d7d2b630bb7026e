//! Requests over HTTP/1.1 at a fixed rate.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::LoadMeasurement;
use super::connection::{LoadEndpoint, LoadExchange};
use super::kinds::{SMALL_PATH, connect_all, reconnect};
use super::window::{ResponseRecorder, UsageMeter};
use crate::app::SMALL_BYTES;

/// Timeout for outstanding responses after the window has closed.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

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
