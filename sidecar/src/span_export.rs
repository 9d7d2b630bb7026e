//! Sends spans to the collector that the MeshConfig names: OTLP over gRPC, or over HTTP with protobuf.
//!
//! Runs on the control thread. Spans come through a bounded queue, in blocks; they are sent in batches, and again after a
//! failure that may pass. While a batch is tried again the queue fills, and what does not fit is counted as dropped.

mod collector;
mod otlp;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate_core::telemetry::{TraceCollector, TracingSettings};
use tidegate_runtime::backoff::ExponentialBackoff;
use tidegate_runtime::forward_proxy::{ProxyEnvironment, ProxyVariableError};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use self::collector::{CollectorClient, ExportError};
use self::otlp::export_request;
use crate::remotes::Remotes;
use crate::snapshot::Snapshots;
use crate::telemetry::trace::{FinishedSpan, SpanCounts};

/// A batch is sent when it has this many spans.
const MOST_SPANS: usize = 512;
/// A batch is sent this long after its first spans came.
const DELAY: Duration = Duration::from_secs(1);
/// How often a batch is sent at the most.
const ATTEMPTS: usize = 4;
/// The longest delay between attempts.
const MOST_BACKOFF: Duration = Duration::from_secs(8);

/// The exporter of all workers' spans.
pub(crate) struct SpanExporter {
    spans: mpsc::Receiver<Vec<FinishedSpan>>,
    counts: Arc<SpanCounts>,
    snapshots: Snapshots,
    remotes: Remotes,
    /// `<namespace>/<name>` of the pod.
    pod: String,
    client: Option<(TraceCollector, CollectorClient)>,
    /// The way out of the cluster.
    proxies: Result<ProxyEnvironment, ProxyVariableError>,
    /// Whether the last batch was lost.
    fails: bool,
}

impl SpanExporter {
    /// Exports the spans of this queue, as the newest policy says.
    pub(crate) fn new(
        spans: mpsc::Receiver<Vec<FinishedSpan>>,
        counts: Arc<SpanCounts>,
        snapshots: Snapshots,
        remotes: Remotes,
        pod: String,
    ) -> Self {
        let proxies = ProxyEnvironment::of_process();
        Self { spans, counts, snapshots, remotes, pod, client: None, proxies, fails: false }
    }

    /// Runs until the workers have ended.
    pub(crate) async fn run(mut self) {
        while let Some(mut batch) = self.spans.recv().await {
            let due = Instant::now() + DELAY;
            while batch.len() < MOST_SPANS
                && let Ok(Some(more)) = timeout_at(due, self.spans.recv()).await
            {
                batch.extend(more);
            }
            self.export(&batch).await;
        }
    }

    /// Sends a batch until it is taken, or lost.
    async fn export(&mut self, batch: &[FinishedSpan]) {
        let request = export_request(batch, &self.pod, &self.remotes);
        let mut backoff = ExponentialBackoff::new(Duration::from_secs(1), MOST_BACKOFF);
        for attempt in 1..=ATTEMPTS {
            let Some(collector) = self.settings().map(|settings| settings.collector) else { break };
            let sent = self.client(&collector).send(request.clone()).await;
            let error = match sent {
                Ok(rejected) => return self.sent(batch.len(), rejected),
                Err(error) => error,
            };
            if attempt == ATTEMPTS || !error.may_pass() {
                self.failed(&collector, &error);
                break;
            }
            sleep(error.retry_after().unwrap_or_default().max(backoff.next_delay())).await;
        }
        self.counts.lose(batch.len());
    }

    /// What the newest policy says about traces.
    fn settings(&self) -> Option<TracingSettings> {
        self.snapshots.current().policy.as_ref().and_then(|policy| policy.telemetry.tracing.clone())
    }

    /// The client of this collector, which is kept for the next batch.
    fn client(&mut self, collector: &TraceCollector) -> &mut CollectorClient {
        let kept = self.client.take().filter(|(of, _)| of == collector);
        let new = || (collector.clone(), CollectorClient::new(collector, &self.proxies));
        let (_, client) = self.client.insert(kept.unwrap_or_else(new));
        client
    }

    fn sent(&mut self, spans: usize, rejected: u64) {
        let taken = (spans as u64).saturating_sub(rejected);
        self.counts.exported.fetch_add(taken, Ordering::Relaxed);
        self.counts.lose(spans - usize::try_from(taken).unwrap_or(spans));
        if std::mem::replace(&mut self.fails, false) {
            tracing::info!("the collector takes spans again");
        }
    }

    fn failed(&mut self, collector: &TraceCollector, error: &ExportError) {
        if !std::mem::replace(&mut self.fails, true) {
            tracing::warn!(%collector, %error, "the collector does not take spans; they are lost, and counted");
        }
    }
}
