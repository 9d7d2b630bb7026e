//! Access log lines: one JSON object with Istio's key names, or Istio's default text format.
//!
//! Lines are formatted into a buffer of the worker and passed in blocks to a writing thread through a bounded queue. A
//! slow or full target costs log lines (counted), never traffic. A log file is reopened on request, and when its path
//! no longer refers to it.

mod line;

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

pub(super) use self::line::json_line_with_remote;
use self::line::{json_line, text_line};
use super::Record;

/// A block is passed on when it has this many bytes, and on every tick of the worker.
const BLOCK: usize = 16 * 1024;
/// Maximum number of blocks that wait for the writing thread.
const QUEUE: usize = 64;

/// Format of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLogFormat {
    /// No access log.
    Off,
    /// One JSON object per line, with the key names of Istio's JSON log.
    #[default]
    Json,
    /// Istio's default text format, with two more columns: the presented names and the policy's reason.
    Text,
}

/// Destination of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    Stdout,
    /// A file; lines are appended.
    File(PathBuf),
}

/// Sends blocks to the writing thread; one per process, cloned for each worker.
#[derive(Clone)]
pub struct AccessLogSink {
    queue: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    /// Whether the target must be reopened before the next block.
    rotates: Arc<AtomicBool>,
}

/// The open target.
enum Output {
    Stdout(io::Stdout),
    File { path: PathBuf, file: File },
}

/// State of the writing thread.
struct Writer {
    output: Output,
    rotates: Arc<AtomicBool>,
    /// Whether the last block could not be written.
    fails: bool,
    /// Whether the last attempt to reopen the file failed.
    fails_to_open: bool,
}

/// A worker's access log.
pub struct AccessLog {
    format: AccessLogFormat,
    sink: AccessLogSink,
    block: RefCell<Block>,
}

/// Lines that were not passed on yet.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    lines: u64,
}

impl AccessLogSink {
    /// Opens the target and starts the writing thread, which ends when the last clone of the sink is dropped.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened, or the thread cannot be created.
    pub fn open(target: &AccessLogTarget) -> io::Result<Self> {
        let output = match target {
            AccessLogTarget::Stdout => Output::Stdout(io::stdout()),
            AccessLogTarget::File(path) => Output::open(path.clone())?,
        };
        let (queue, blocks) = sync_channel(QUEUE);
        let rotates = Arc::new(AtomicBool::new(false));
        let mut writer = Writer { output, rotates: rotates.clone(), fails: false, fails_to_open: false };
        std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&blocks))?;
        Ok(Self { queue, dropped: Arc::default(), rotates })
    }

    /// Reopens the file. Lines passed on before may be written to the old or the new file.
    pub fn rotate(&self) {
        self.rotates.store(true, Ordering::Relaxed);
        // Wakes the thread. If the queue is full, the thread is awake.
        let _ = self.queue.try_send(Vec::new());
    }

    /// Number of lines that were dropped because the target was too slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl AccessLog {
    /// An access log that writes to this sink.
    pub fn new(format: AccessLogFormat, sink: AccessLogSink) -> Self {
        Self { format, sink, block: RefCell::default() }
    }

    /// Adds a line for this record.
    pub fn write(&self, record: &Record<'_>) {
        let mut block = self.block.borrow_mut();
        match self.format {
            AccessLogFormat::Off => return,
            AccessLogFormat::Json => json_line(&mut block.bytes, record),
            AccessLogFormat::Text => text_line(&mut block.bytes, record),
        }
        block.lines += 1;
        if block.bytes.len() >= BLOCK {
            self.pass_on(&mut block);
        }
    }

    /// Passes buffered lines to the writing thread.
    pub fn flush(&self) {
        self.pass_on(&mut self.block.borrow_mut());
    }

    fn pass_on(&self, block: &mut Block) {
        if block.bytes.is_empty() {
            return;
        }
        let Block { bytes, lines } = std::mem::take(block);
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.sink.queue.try_send(bytes) {
            self.sink.dropped.fetch_add(lines, Ordering::Relaxed);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Writer {
    fn run(&mut self, blocks: &Receiver<Vec<u8>>) {
        for block in blocks {
            self.reopen_if_needed();
            self.write(&block);
        }
    }

    /// Reopens the file if requested, or if its path no longer refers to it. If it cannot be opened, the old one stays
    /// in use.
    fn reopen_if_needed(&mut self) {
        let is_requested = self.rotates.swap(false, Ordering::Relaxed);
        let Output::File { path, file } = &self.output else { return };
        if !is_requested && is_at(file, path) {
            return;
        }
        match Output::open(path.clone()) {
            Ok(output) => {
                tracing::info!(file = %path.display(), "the access log was reopened");
                self.fails_to_open = false;
                self.output = output;
            }
            Err(error) if !self.fails_to_open => {
                tracing::warn!(file = %path.display(), %error,
                    "the access log cannot be reopened; the old file stays in use");
                self.fails_to_open = true;
            }
            Err(_) => {}
        }
    }

    fn write(&mut self, block: &[u8]) {
        let result = self.output.write(block);
        match result {
            Err(ref error) if !self.fails => {
                tracing::warn!(%error, "the access log cannot be written; lines are lost");
            }
            Ok(()) if self.fails => tracing::info!("the access log can be written again"),
            _ => {}
        }
        self.fails = result.is_err();
    }
}

impl Output {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        Ok(Self::File { path, file })
    }

    fn write(&mut self, block: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.write_all(block).and_then(|()| stdout.flush()),
            Self::File { file, .. } => file.write_all(block),
        }
    }
}

/// Whether a path refers to this file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, UNIX_EPOCH};

    use tidegate_core::ObjectRef;
    use tidegate_core::policy::{Decision, Denial, Reason};

    use super::*;
    use crate::telemetry::ResponseFlag;

    pub(super) fn record(denied: &Decision) -> Record<'_> {
        Record {
            decision: Some(denied),
            start: Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
            duration: Duration::from_millis(7),
            method: b"GET",
            path: b"/get?x=\"}\n\x1b[31m",
            protocol: "HTTP/1.1",
            status: 403,
            flag: ResponseFlag::Refused,
            details: "rbac_access_denied_matched_policy[none]",
            sent: 19,
            authority: b"httpbin\xff",
            user_agent: b"curl/8",
            ..Record::default()
        }
    }

    pub(super) fn denied() -> Decision {
        Decision::Deny(Denial {
            reason: Reason::PrincipalNotAllowed,
            origin: Some(ObjectRef::new("IngressBackend", "httpbin", "httpbin")),
        })
    }

    #[test]
    fn lines_reach_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let sink = AccessLogSink::open(&AccessLogTarget::File(path.clone())).unwrap();
        let denied = denied();
        let log = AccessLog::new(AccessLogFormat::Json, sink);
        log.write(&record(&denied));
        drop(log);
        let mut text = String::new();
        while !text.ends_with('\n') {
            text.clear();
            File::open(&path).unwrap().read_to_string(&mut text).unwrap();
            std::thread::yield_now();
        }
        assert!(text.starts_with("{\"start_time\""));
    }

    /// Lines go to the file that the path refers to when they are written.
    #[test]
    fn a_file_that_was_renamed_or_removed_is_reopened_and_on_request_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let sink = AccessLogSink::open(&AccessLogTarget::File(path.clone())).unwrap();
        let denied = denied();
        let log = AccessLog::new(AccessLogFormat::Json, sink.clone());
        let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
        let write_until = |path: &Path, count: usize| {
            log.write(&record(&denied));
            log.flush();
            while lines(path) < count {
                std::thread::yield_now();
            }
        };
        write_until(&path, 1);
        let renamed = directory.path().join("access.log.1");
        fs::rename(&path, &renamed).unwrap();
        write_until(&path, 1);
        assert_eq!(lines(&renamed), 1);

        fs::remove_file(&path).unwrap();
        write_until(&path, 1);

        fs::rename(&path, &renamed).unwrap();
        sink.rotate();
        while !path.exists() {
            std::thread::yield_now();
        }
        write_until(&path, 1);
        assert_eq!(lines(&renamed), 1);

        // A path that cannot be opened: the old file stays in use.
        fs::rename(&path, &renamed).unwrap();
        fs::create_dir(&path).unwrap();
        write_until(&renamed, 2);
    }

    #[test]
    fn a_full_device_only_costs_lines() {
        let denied = denied();
        let full = AccessLogSink::open(&AccessLogTarget::File("/dev/full".into())).unwrap();
        let log = AccessLog::new(AccessLogFormat::Text, full);
        for _ in 0..1000 {
            log.write(&record(&denied));
            log.flush();
        }
    }
}
