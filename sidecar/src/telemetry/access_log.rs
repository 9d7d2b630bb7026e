//! Access log lines: one JSON object with Istio's key names, or Istio's default text line.
//!
//! Lines are built in a buffer of the worker's and handed in blocks to one writing thread through a bounded queue.
//! A sink that cannot keep up, or a disk that is full, costs lines (counted), never traffic. A file is opened anew on
//! request, and when its path no longer leads to it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::SystemTime;

use tidegate_core::policy::{Decision, Terms};

use super::Record;

/// A field from the wire is cut here, so that a client cannot decide how long a line is.
const MAX_FIELD: usize = 1024;
/// A block of lines is handed over when it is this long, and on every tick of the worker.
const BLOCK: usize = 16 * 1024;
/// Blocks that may wait for the writing thread.
const QUEUE: usize = 64;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLogFormat {
    /// No access log.
    Off,
    /// One JSON object a line, with the key names of Istio's JSON log.
    #[default]
    Json,
    /// Istio's default text line, with the presented names and the policy's reason as two more columns.
    Text,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

/// The writing thread's end of the queue; one for a process, cloned for each worker.
#[derive(Clone)]
pub struct AccessLogSink {
    queue: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    /// The target is to be opened anew before the next block.
    rotates: Arc<AtomicBool>,
}

/// What the writing thread writes to.
enum Output {
    Stdout(io::Stdout),
    File { path: PathBuf, file: File },
}

/// The writing thread.
struct Writer {
    output: Output,
    rotates: Arc<AtomicBool>,
    /// Whether the last block could not be written.
    fails: bool,
    /// Whether the last try to open the file anew failed.
    fails_to_open: bool,
}

/// A worker's log.
pub struct AccessLog {
    format: AccessLogFormat,
    sink: AccessLogSink,
    block: RefCell<Block>,
}

#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    lines: u64,
}

impl AccessLogSink {
    /// Opens the target and starts the writing thread, which ends when the last clone of the sink is dropped.
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

    /// Has a file opened anew; what was handed over before goes to whichever file is open by then.
    pub fn rotate(&self) {
        self.rotates.store(true, Ordering::Relaxed);
        // Wakes the thread. Where the queue is full, it is awake.
        let _ = self.queue.try_send(Vec::new());
    }

    /// Lines that were dropped because the target could not keep up.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl AccessLog {
    /// A worker's log to this sink.
    pub fn new(format: AccessLogFormat, sink: AccessLogSink) -> Self {
        Self { format, sink, block: RefCell::default() }
    }

    /// Adds a line.
    pub fn write(&self, record: &Record<'_>) {
        let mut block = self.block.borrow_mut();
        match self.format {
            AccessLogFormat::Off => return,
            AccessLogFormat::Json => json_line(&mut block.bytes, record),
            AccessLogFormat::Text => text_line(&mut block.bytes, record),
        }
        block.lines += 1;
        if block.bytes.len() >= BLOCK {
            self.hand_over(&mut block);
        }
    }

    /// Hands the lines there are to the writing thread.
    pub fn flush(&self) {
        self.hand_over(&mut self.block.borrow_mut());
    }

    fn hand_over(&self, block: &mut Block) {
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
            self.follow();
            self.write(&block);
        }
    }

    /// Opens the file anew if that was asked for, or if its path does not lead to it any more. Where it cannot be
    /// opened, the one that is open stays.
    fn follow(&mut self) {
        let is_asked = self.rotates.swap(false, Ordering::Relaxed);
        let Output::File { path, file } = &self.output else { return };
        if !is_asked && is_at(file, path) {
            return;
        }
        match Output::open(path.clone()) {
            Ok(output) => {
                tracing::info!(file = %path.display(), "the access log was opened anew");
                self.fails_to_open = false;
                self.output = output;
            }
            Err(error) if !self.fails_to_open => {
                tracing::warn!(file = %path.display(), %error,
                    "the access log cannot be opened anew; lines go on to the file that is open");
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

/// Whether a path leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

fn json_line(out: &mut Vec<u8>, record: &Record<'_>) {
    let mut line = JsonObject::open(out);
    line.text("start_time", timestamp(record.start).as_bytes());
    line.optional("method", record.method);
    line.optional("path", record.path);
    line.optional("protocol", record.protocol.as_bytes());
    line.number("response_code", u128::from(record.status));
    line.text("response_flags", record.flag.code().as_bytes());
    line.optional("response_code_details", record.details.as_bytes());
    line.null("connection_termination_details");
    line.null("upstream_transport_failure_reason");
    line.number("bytes_received", u128::from(record.received));
    line.number("bytes_sent", u128::from(record.sent));
    line.number("duration", record.duration.as_millis());
    match record.upstream_time {
        Some(time) => line.number("upstream_service_time", time.as_millis()),
        None => line.null("upstream_service_time"),
    }
    line.optional("x_forwarded_for", record.forwarded_for);
    line.optional("user_agent", record.user_agent);
    line.optional("request_id", record.request_id);
    line.optional("authority", record.authority);
    line.optional("upstream_host", upstream_host(record).as_bytes());
    line.optional("upstream_cluster", upstream_cluster(record).as_bytes());
    line.null("upstream_local_address");
    let (local, remote) = downstream(record);
    line.optional("downstream_local_address", local.as_bytes());
    line.optional("downstream_remote_address", remote.as_bytes());
    line.optional("requested_server_name", server_name(record));
    line.null("route_name");
    line.optional("connection_security_policy", security(record).as_bytes());
    line.optional("presented_names", presented(record));
    line.optional("policy", policy(record).as_bytes());
    line.text("direction", if record.outbound.is_some() { b"outbound" } else { b"inbound" });
    line.close();
}

/// Istio's columns in Istio's order, then the presented names and the policy's word.
fn text_line(out: &mut Vec<u8>, record: &Record<'_>) {
    let (local, remote) = downstream(record);
    let mut line = TextLine { out };
    line.raw("[").raw(&timestamp(record.start)).raw("] \"");
    line.bare(record.method).raw(" ").bare(record.path).raw(" ").bare(record.protocol.as_bytes()).raw("\" ");
    line.number(u128::from(record.status)).raw(" ").raw(record.flag.code()).raw(" ");
    line.bare(record.details.as_bytes()).raw(" - \"-\" ");
    line.number(u128::from(record.received)).raw(" ").number(u128::from(record.sent)).raw(" ");
    line.number(record.duration.as_millis()).raw(" ");
    match record.upstream_time {
        Some(time) => line.number(time.as_millis()),
        None => line.raw("-"),
    };
    line.raw(" ").quoted(record.forwarded_for).raw(" ").quoted(record.user_agent).raw(" ");
    line.quoted(record.request_id).raw(" ").quoted(record.authority).raw(" ");
    line.quoted(upstream_host(record).as_bytes())
        .raw(" ")
        .bare(upstream_cluster(record).as_bytes())
        .raw(" - ");
    line.bare(local.as_bytes()).raw(" ").bare(remote.as_bytes()).raw(" ");
    line.bare(server_name(record)).raw(" - ");
    line.quoted(presented(record)).raw(" ").quoted(policy(record).as_bytes()).raw("\n");
}

fn timestamp(start: Option<SystemTime>) -> String {
    humantime::format_rfc3339_millis(start.unwrap_or_else(SystemTime::now)).to_string()
}

/// What was dialled, and by whom.
fn downstream(record: &Record<'_>) -> (String, String) {
    match (&record.outbound, record.connection) {
        (Some(outbound), _) => (outbound.dialled.to_string(), outbound.peer.to_string()),
        (None, Some(connection)) => (connection.local.to_string(), connection.peer.to_string()),
        (None, None) => Default::default(),
    }
}

fn upstream_host(record: &Record<'_>) -> String {
    if let Some(outbound) = &record.outbound {
        return outbound.endpoint.map(|endpoint| endpoint.to_string()).unwrap_or_default();
    }
    match record.connection {
        Some(connection) if record.upstream_time.is_some() => connection.app.to_string(),
        _ => String::new(),
    }
}

/// In Istio's words.
fn upstream_cluster(record: &Record<'_>) -> String {
    if let Some(outbound) = &record.outbound {
        return match outbound.service {
            Some(service) => format!("outbound|{}||{service}", outbound.dialled.port()),
            None => "PassthroughCluster".to_owned(),
        };
    }
    record.connection.map(|connection| format!("inbound|{}||", connection.port)).unwrap_or_default()
}

fn server_name<'a>(record: &Record<'a>) -> &'a [u8] {
    record.connection.and_then(|c| c.server_name.as_deref()).unwrap_or_default().as_bytes()
}

fn presented<'a>(record: &Record<'a>) -> &'a [u8] {
    record
        .connection
        .and_then(|c| c.client.as_ref())
        .map(|client| client.names.as_bytes())
        .unwrap_or_default()
}

/// How the connection was secured, in Istio's words.
pub(super) fn security(record: &Record<'_>) -> &'static str {
    if let Some(outbound) = &record.outbound {
        return if outbound.is_mutual_tls { "mutual_tls" } else { "none" };
    }
    match record.connection.map(|connection| connection.terms) {
        Some(Terms::MeshTls(_) | Terms::IngressMutualTls) => "mutual_tls",
        Some(Terms::IngressTls) => "tls",
        Some(Terms::IngressPlaintext | Terms::BadRequest | Terms::Opaque) => "none",
        None => "unknown",
    }
}

fn policy(record: &Record<'_>) -> String {
    match record.decision {
        Some(Decision::Allow(grant)) => format!("allowed: {grant}"),
        Some(Decision::Deny(denial)) => format!("refused: {denial}"),
        None => String::new(),
    }
}

struct JsonObject<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> JsonObject<'a> {
    fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    fn key(&mut self, key: &str) {
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn text(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.out.push(b'"');
        let text = String::from_utf8_lossy(value.get(..MAX_FIELD).unwrap_or(value));
        for c in text.chars() {
            match c {
                '"' => self.out.extend_from_slice(b"\\\""),
                '\\' => self.out.extend_from_slice(b"\\\\"),
                c if c.is_control() => {
                    let mut escaped = String::with_capacity(8);
                    let _ = write!(escaped, "\\u{:04x}", u32::from(c));
                    self.out.extend_from_slice(escaped.as_bytes());
                }
                c => self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        self.out.push(b'"');
    }

    fn optional(&mut self, key: &str, value: &[u8]) {
        if value.is_empty() { self.null(key) } else { self.text(key, value) }
    }

    fn number(&mut self, key: &str, value: u128) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    fn null(&mut self, key: &str) {
        self.key(key);
        self.out.extend_from_slice(b"null");
    }

    fn close(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

struct TextLine<'a> {
    out: &'a mut Vec<u8>,
}

impl TextLine<'_> {
    fn raw(&mut self, text: &str) -> &mut Self {
        self.out.extend_from_slice(text.as_bytes());
        self
    }

    fn number(&mut self, value: u128) -> &mut Self {
        let _ = write!(self.out, "{value}");
        self
    }

    /// A value from the wire: what could break the line apart is escaped; `-` if there is none.
    fn bare(&mut self, value: &[u8]) -> &mut Self {
        if value.is_empty() {
            return self.raw("-");
        }
        for byte in value.get(..MAX_FIELD).unwrap_or(value) {
            match byte {
                b'"' | b'\\' => self.out.extend_from_slice(&[b'\\', *byte]),
                b' '..=b'~' => self.out.push(*byte),
                byte => {
                    let _ = write!(self.out, "\\x{byte:02x}");
                }
            }
        }
        self
    }

    fn quoted(&mut self, value: &[u8]) -> &mut Self {
        self.raw("\"").bare(value).raw("\"")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, UNIX_EPOCH};

    use tidegate_core::ObjectRef;
    use tidegate_core::policy::{Denial, Reason};

    use super::*;
    use crate::telemetry::ResponseFlag;

    fn record(denied: &Decision) -> Record<'_> {
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

    fn denied() -> Decision {
        Decision::Deny(Denial {
            reason: Reason::PrincipalNotAllowed,
            origin: Some(ObjectRef::new("IngressBackend", "httpbin", "httpbin")),
        })
    }

    #[test]
    fn hostile_bytes_leave_a_json_line_one_valid_object() {
        let (denied, mut out) = (denied(), Vec::new());
        json_line(&mut out, &record(&denied));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.contains('\x1b'));
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["path"], "/get?x=\"}\n\u{1b}[31m");
        assert_eq!(object["response_flags"], "RBAC");
        assert!(object["policy"].as_str().unwrap().contains("IngressBackend httpbin/httpbin"));
        assert_eq!(object["start_time"], "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn the_text_line_has_istios_columns_and_two_of_ours() {
        let (denied, mut out) = (denied(), Vec::new());
        text_line(&mut out, &record(&denied));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "[2023-11-14T22:13:20.123Z] \"GET /get?x=\\\"}\\x0a\\x1b[31m HTTP/1.1\" 403 RBAC \
             rbac_access_denied_matched_policy[none] - \"-\" 0 19 7 - \"-\" \"curl/8\" \"-\" \"httpbin\\xff\" \"-\" - - \
             - - - - \"-\" \"refused: none of the client certificate's names is an allowed principal (IngressBackend \
             httpbin/httpbin)\"\n"
        );
    }

    #[test]
    fn a_long_field_is_cut() {
        let (denied, mut out) = (denied(), Vec::new());
        let path = vec![b'a'; 100_000];
        json_line(&mut out, &Record { path: &path, ..record(&denied) });
        assert!(out.len() < 3 * MAX_FIELD, "{}", out.len());
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

    /// Lines go where the path leads to when they are written.
    #[test]
    fn a_file_that_was_renamed_or_removed_is_opened_anew_and_on_request_at_once() {
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

        // A name that leads nowhere: what is open is written to.
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
