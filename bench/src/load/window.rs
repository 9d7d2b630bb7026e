//! The measured window: what is recorded while it is open, and the CPU time at its start and end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Latency, LoadMeasurement};
use crate::histogram::Histogram;
use crate::process::usage;

/// Shared by the connections of one load. There is only one thread, so the lock is never contended.
#[derive(Clone)]
pub(super) struct ResponseRecorder(Arc<Mutex<Recorded>>);

/// What was recorded.
struct Recorded {
    /// Whether responses count now.
    open: bool,
    /// Latencies of responses.
    latencies: Histogram,
    /// Bytes of responses' bodies.
    body_bytes: u64,
    /// Failed requests.
    errors: u64,
    /// The first failure.
    first_error: Option<String>,
}

/// The processes whose resource usage is reported.
pub(super) struct UsageMeter {
    /// The watched processes and their descendants; `None` without one.
    proxies: Option<Vec<u32>>,
    /// The first watched process and its descendants.
    first: Option<Vec<u32>>,
    /// Resident memory of the first before the first connection.
    kib_before: Option<u64>,
}

/// An open window.
pub(super) struct MeasuredWindow {
    /// The measured processes.
    meter: UsageMeter,
    /// Records responses while the window is open.
    recorder: ResponseRecorder,
    /// When the window was opened.
    opened: Instant,
    /// CPU time of the watched processes at that moment.
    proxy_cpu: Option<f64>,
    /// CPU time of this process at that moment.
    load_cpu: f64,
}

impl ResponseRecorder {
    /// A recorder whose window is not open yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Recorded {
            open: false,
            latencies: Histogram::new(),
            body_bytes: 0,
            errors: 0,
            first_error: None,
        })))
    }

    /// Counts a response if the window is open.
    pub(super) fn answered(&self, latency: Duration, body_bytes: u64) {
        let mut state = self.lock();
        if state.open {
            state.latencies.record(latency);
            state.body_bytes += body_bytes;
        }
    }

    /// Counts a failure at any time, because a failure in the warm-up is a fault of the proxy, too.
    pub(super) fn failed(&self, error: &anyhow::Error) {
        let mut state = self.lock();
        state.errors += 1;
        state.first_error.get_or_insert_with(|| format!("{error:#}"));
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UsageMeter {
    /// Samples the memory before the first connection. CPU time is that of all watched processes, memory that of the
    /// first.
    pub(super) fn new(watched: &[u32]) -> Result<Self> {
        let families: Vec<_> = watched.iter().map(|pid| usage::family(*pid)).collect::<Result<_>>()?;
        let first = families.first().cloned();
        let kib_before = first.as_deref().map(usage::resident_kib).transpose()?;
        Ok(Self { proxies: first.is_some().then(|| families.concat()), first, kib_before })
    }

    /// Opens the window: takes the first sample of CPU time.
    pub(super) fn open(self, recorder: &ResponseRecorder) -> Result<MeasuredWindow> {
        let proxy_cpu = self.proxy_cpu()?;
        let load_cpu = usage::cpu_seconds(&[std::process::id()])?;
        recorder.lock().open = true;
        Ok(MeasuredWindow {
            meter: self,
            recorder: recorder.clone(),
            opened: Instant::now(),
            proxy_cpu,
            load_cpu,
        })
    }

    /// CPU time of the watched processes so far, in seconds.
    fn proxy_cpu(&self) -> Result<Option<f64>> {
        self.proxies.as_deref().map(usage::cpu_seconds).transpose()
    }
}

impl MeasuredWindow {
    /// Takes the second sample of CPU time; later responses are recorded only if `still_recording`.
    pub(super) fn close(self, still_recording: bool) -> Result<Closed> {
        let seconds = self.opened.elapsed().as_secs_f64();
        self.recorder.lock().open = still_recording;
        let proxy_cpu_seconds =
            self.meter.proxy_cpu()?.zip(self.proxy_cpu).map(|(after, before)| after - before);
        let load_cpu_seconds = usage::cpu_seconds(&[std::process::id()])? - self.load_cpu;
        let proxy_kib_after = self.meter.first.as_deref().map(usage::resident_kib).transpose()?;
        let usage = LoadMeasurement {
            seconds,
            proxy_cpu_seconds,
            load_cpu_seconds,
            proxy_kib_before: self.meter.kib_before,
            proxy_kib_after,
            ..LoadMeasurement::default()
        };
        Ok(Closed { recorder: self.recorder, usage })
    }
}

/// A closed window; outstanding responses may still have been recorded afterwards.
pub(super) struct Closed {
    /// The recorded responses.
    recorder: ResponseRecorder,
    /// Length of the window, CPU time and memory.
    usage: LoadMeasurement,
}

impl Closed {
    /// The report, including responses recorded since the window was closed.
    pub(super) fn report(self) -> LoadMeasurement {
        let state = self.recorder.lock();
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        let quantile = |share| micros(state.latencies.quantile(share));
        LoadMeasurement {
            requests: state.latencies.count(),
            errors: state.errors,
            first_error: state.first_error.clone(),
            body_bytes: state.body_bytes,
            latency: Latency {
                p50: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                p999: quantile(0.999),
                max: micros(state.latencies.max()),
            },
            ..self.usage.clone()
        }
    }
}
