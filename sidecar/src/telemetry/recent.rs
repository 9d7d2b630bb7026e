//! Requests that have ended lately, by their `x-request-id`: for `/requests` on the admin server.
//!
//! A worker formats a line of the access log for requests that failed or whose trace is recorded, and for the first of each
//! tick, up to bounds that make the cost independent of the load: one comparison for each of the others. Lines go in
//! blocks through a bounded queue to the control thread, which keeps the newest of them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::access_log::json_line_with_remote;
use super::{Record, ResponseFlag};
use crate::remotes::{RemoteId, Remotes};

/// Requests of a worker that are recorded in each of its ticks (250 ms), whatever they are.
const ORDINARY: usize = 16;
/// Those that failed or are traced, beside them.
const NOTABLE: usize = 256;
/// Lines are passed on when they have this many bytes, and on every tick of the worker.
const BLOCK: usize = 16 * 1024;
/// The most blocks that wait for the control thread.
const QUEUE: usize = 32;
/// Bytes that are kept of either sort.
const KEPT: usize = 256 * 1024;

/// The workers' end of the queue.
#[derive(Clone, Debug)]
pub(crate) struct RecentSink(mpsc::Sender<RecentLines>);

/// Lines of JSON of either sort.
#[derive(Debug, Default)]
pub(crate) struct RecentLines {
    notable: Vec<u8>,
    ordinary: Vec<u8>,
}

/// A worker's part.
pub(super) struct RecentRecorder {
    sink: Option<RecentSink>,
    tick: RefCell<RecentTick>,
}

/// What a worker has recorded since its last tick.
#[derive(Default)]
struct RecentTick {
    lines: RecentLines,
    notable: usize,
    ordinary: usize,
}

/// The requests that are kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecentRequests {
    kept: Arc<Mutex<KeptLines>>,
    /// What the numbers in lines stand for.
    remotes: Remotes,
}

#[derive(Debug, Default)]
struct KeptLines {
    notable: LineRing,
    ordinary: LineRing,
}

/// The newest blocks of lines, at most [`KEPT`] bytes of them beside the newest block.
#[derive(Debug, Default)]
struct LineRing {
    blocks: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// A queue for the recorded requests of all workers.
pub(crate) fn recent_queue() -> (RecentSink, mpsc::Receiver<RecentLines>) {
    let (queue, lines) = mpsc::channel(QUEUE);
    (RecentSink(queue), lines)
}

impl RecentRecorder {
    /// Records nothing without a sink.
    pub(super) fn new(sink: Option<RecentSink>) -> Self {
        Self { sink, tick: RefCell::default() }
    }

    /// Takes a request that has ended.
    pub(super) fn record(&self, record: &Record<'_>) {
        if self.sink.is_none() || record.request_id.is_empty() {
            return;
        }
        let mut tick = self.tick.borrow_mut();
        let RecentTick { lines, notable, ordinary } = &mut *tick;
        let (count, most, out) = if is_notable(record) {
            (notable, NOTABLE, &mut lines.notable)
        } else {
            (ordinary, ORDINARY, &mut lines.ordinary)
        };
        if *count >= most {
            return;
        }
        *count += 1;
        json_line_with_remote(out, record);
        if out.len() >= BLOCK {
            self.pass_on(lines);
        }
    }

    /// Passes what was recorded on; called on every tick of the worker.
    pub(super) fn flush(&self) {
        let mut tick = self.tick.borrow_mut();
        self.pass_on(&mut tick.lines);
        (tick.notable, tick.ordinary) = (0, 0);
    }

    /// If the queue is full, the lines are lost.
    fn pass_on(&self, lines: &mut RecentLines) {
        let Some(RecentSink(queue)) = &self.sink else { return };
        if !lines.notable.is_empty() || !lines.ordinary.is_empty() {
            let _ = queue.try_send(std::mem::take(lines));
        }
    }
}

/// Whether the request failed, or its trace is recorded.
fn is_notable(record: &Record<'_>) -> bool {
    record.flag != ResponseFlag::None
        || record.status >= 500
        || record.trace.is_some_and(super::RequestTrace::is_recorded)
}

impl RecentRequests {
    /// None yet. `remotes` are those of the workers' records.
    pub(crate) fn new(remotes: Remotes) -> Self {
        Self { kept: Arc::default(), remotes }
    }

    /// Keeps what workers record, until the last of them has ended.
    pub(crate) async fn collect(self, mut queue: mpsc::Receiver<RecentLines>) {
        while let Some(RecentLines { notable, ordinary }) = queue.recv().await {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.notable.push(notable);
            kept.ordinary.push(ordinary);
        }
    }

    /// The requests with this `x-request-id`, each as in the access log, the oldest first; with `remote`, what is known about the
    /// other end: of an outbound request the Service that the endpoint belongs to, and the workload there.
    pub(crate) fn find(&self, id: &str) -> Vec<Value> {
        let spelled = json!(id).to_string();
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let blocks = kept.notable.blocks.iter().chain(&kept.ordinary.blocks);
        let lines = blocks.flat_map(|block| std::str::from_utf8(block).unwrap_or_default().lines());
        let parsed = lines
            .filter(|line| line.contains(&spelled))
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut found: Vec<_> = parsed.filter(|request| request["request_id"] == id).collect();
        found.iter_mut().for_each(|request| request["remote"] = self.remote(&request["remote"]));
        found.sort_by(|a, b| a["start_time"].as_str().cmp(&b["start_time"].as_str()));
        found
    }
}

impl RecentRequests {
    /// The workload with this number.
    fn remote(&self, number: &Value) -> Value {
        let id = number.as_u64().and_then(RemoteId::of_index).unwrap_or_default();
        let labels = self.remotes.labels(id);
        json!({
            "service": labels.service, "workload": labels.workload.name, "namespace": labels.workload.namespace,
            "principal": labels.workload.principal,
        })
    }
}

impl LineRing {
    fn push(&mut self, block: Vec<u8>) {
        if block.is_empty() {
            return;
        }
        while self.bytes > KEPT {
            let Some(oldest) = self.blocks.pop_front() else { break };
            self.bytes -= oldest.len();
        }
        self.bytes += block.len();
        self.blocks.push_back(block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(record_all: impl FnOnce(&RecentRecorder)) -> RecentRequests {
        let (sink, mut queue) = recent_queue();
        let recorder = RecentRecorder::new(Some(sink));
        record_all(&recorder);
        recorder.flush();
        let kept = RecentRequests::default();
        while let Ok(RecentLines { notable, ordinary }) = queue.try_recv() {
            let mut lines = kept.kept.lock().unwrap();
            lines.notable.push(notable);
            lines.ordinary.push(ordinary);
        }
        kept
    }

    fn request(id: &str, status: u16) -> Record<'_> {
        Record { request_id: id.as_bytes(), status, method: b"GET", path: b"/a", ..Record::default() }
    }

    #[test]
    fn a_request_is_found_by_its_id_as_the_access_log_has_it() {
        let kept = kept(|recorder| {
            recorder.record(&Record { route: Some("HTTPRoute/shop/r/0"), ..request("one", 200) });
            recorder.record(&request("one\"two", 503));
            recorder.record(&request("", 200));
        });
        let found = kept.find("one");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0]["remote"]["workload"], Value::Null, "nothing is known about it");
        assert_eq!(
            (&found[0]["route_name"], &found[0]["response_code"]),
            (&json!("HTTPRoute/shop/r/0"), &json!(200))
        );
        assert_eq!(kept.find("one\"two").len(), 1);
        assert!(kept.find("").is_empty());
    }

    #[test]
    fn many_requests_displace_none_that_failed_and_neither_exceeds_its_bound() {
        let ids: Vec<_> = (0..NOTABLE + 1).map(|id| format!("id-{id}")).collect();
        let recorded = kept(|recorder| {
            recorder.record(&request("failed", 503));
            for id in &ids {
                recorder.record(&request(id, 200));
            }
            recorder.flush();
            recorder.record(&request("next tick", 200));
            for id in &ids {
                recorder.record(&request(id, 500));
            }
        });
        assert_eq!((recorded.find("failed").len(), recorded.find("next tick").len()), (1, 1));
        // Of the first, ordinary and notable; of the last, neither.
        assert_eq!((recorded.find("id-0").len(), recorded.find(ids.last().unwrap()).len()), (2, 0));
        let mut ring = LineRing::default();
        for _ in 0..100 {
            ring.push(vec![b' '; BLOCK]);
        }
        assert!(ring.bytes <= KEPT + BLOCK && ring.blocks.len() == ring.bytes / BLOCK, "{}", ring.bytes);
    }
}
