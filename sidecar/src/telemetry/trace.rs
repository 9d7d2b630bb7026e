//! Traces: the span of each request in a trace that is recorded, for the exporter.
//!
//! A worker collects the spans of requests that have ended and passes them on in blocks through a bounded queue, as it does
//! with lines of the access log. A collector that is slow or away costs spans (counted), never traffic.

mod b3;
mod context;
mod ids;
mod received;
mod span;
mod w3c;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;

pub(crate) use self::context::{ReceivedTrace, RequestTrace, Sampling};
pub(crate) use self::span::FinishedSpan;
use super::Record;

/// Spans that are passed on together, at the most; fewer on every tick of the worker.
const BLOCK: usize = 64;
/// The most blocks that wait for the exporter.
const QUEUE: usize = 32;

/// The workers' end of the queue to the exporter.
#[derive(Clone, Debug)]
pub(crate) struct SpanSink {
    queue: mpsc::Sender<Vec<FinishedSpan>>,
    counts: Arc<SpanCounts>,
}

/// How many spans were exported, and how many lost.
#[derive(Debug, Default)]
pub(crate) struct SpanCounts {
    pub(crate) exported: AtomicU64,
    /// The queue was full, or the collector did not take them.
    pub(crate) dropped: AtomicU64,
}

/// A worker's part.
pub(super) struct Tracer {
    sink: Option<SpanSink>,
    /// `None`: nothing is traced.
    sampling: Cell<Option<Sampling>>,
    block: RefCell<Vec<FinishedSpan>>,
}

/// A queue for the spans of all workers.
pub(crate) fn span_queue() -> (SpanSink, mpsc::Receiver<Vec<FinishedSpan>>) {
    let (queue, spans) = mpsc::channel(QUEUE);
    (SpanSink { queue, counts: Arc::default() }, spans)
}

impl SpanSink {
    /// How many were exported, and how many lost.
    pub(crate) fn counts(&self) -> &Arc<SpanCounts> {
        &self.counts
    }
}

impl SpanCounts {
    /// Counts spans that are lost.
    pub(crate) fn lose(&self, spans: usize) {
        self.dropped.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

impl Tracer {
    /// Traces nothing before the settings are there; never without a sink.
    pub(super) fn new(sink: Option<SpanSink>) -> Self {
        Self { sink, sampling: Cell::new(None), block: RefCell::default() }
    }

    /// Traces requests from now on, or none.
    pub(super) fn sample(&self, sampling: Option<Sampling>) {
        self.sampling.set(sampling.filter(|_| self.sink.is_some()));
    }

    /// How requests are traced; `None`: not at all.
    #[inline]
    pub(super) fn sampling(&self) -> Option<Sampling> {
        self.sampling.get()
    }

    /// Takes the span of a request that has ended.
    pub(super) fn record(&self, trace: &RequestTrace, record: &Record<'_>) {
        if !trace.is_recorded() {
            return;
        }
        let mut block = self.block.borrow_mut();
        block.push(FinishedSpan::new(trace, record));
        if block.len() >= BLOCK {
            self.pass_on(&mut block);
        }
    }

    /// Passes what was collected on to the exporter.
    pub(super) fn flush(&self) {
        self.pass_on(&mut self.block.borrow_mut());
    }

    fn pass_on(&self, block: &mut Vec<FinishedSpan>) {
        let Some(sink) = self.sink.as_ref().filter(|_| !block.is_empty()) else { return };
        if let Err(error) = sink.queue.try_send(std::mem::take(block)) {
            sink.counts.lose(error.into_inner().len());
        }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.flush();
    }
}
