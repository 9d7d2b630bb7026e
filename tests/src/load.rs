//! A constant load of requests, each of which must succeed.
//!
//! It shows that a change (a rotation, a restart, a policy) costs no request. Failures are collected, not raised, so
//! that the report has all of them with their time since the start.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::client::{Client, Connection, End};
use crate::pki::{self, Credentials};
use crate::wait;

/// Keep-alive connections with one request after the other on each, until stopped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<LoadState>,
    threads: Vec<JoinHandle<()>>,
}

/// The counters of all threads; requests count only if they were answered with 200.
#[derive(Debug, Default)]
struct LoadState {
    ends: AtomicBool,
    requests: AtomicU64,
    connections: AtomicU64,
    failures: Mutex<Vec<String>>,
    started: Mutex<Option<Instant>>,
}

/// The results of a load.
#[derive(Debug)]
pub struct LoadReport {
    /// Requests that were answered with 200.
    pub requests: u64,
    /// Connections that were made.
    pub connections: u64,
    /// Each failure: when, and what.
    pub failures: Vec<String>,
}

/// How a load behaves.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Connections at a time.
    pub connections: usize,
    /// Pause between two requests of a connection.
    pub pause: Duration,
    /// Requests on a connection before a new one is made.
    pub requests_per_connection: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self { connections: 4, pause: Duration::from_millis(5), requests_per_connection: u64::MAX }
    }
}

impl Load {
    /// Starts; returns after the first answers. `version` changes when `client` would create a different client: then
    /// connections are replaced.
    #[track_caller]
    pub fn start(
        shape: Shape,
        version: impl Fn() -> u64 + Send + Sync + 'static,
        client: impl Fn() -> Client + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(LoadState::default());
        *shared.started.lock().unwrap() = Some(Instant::now());
        let (version, client) = (Arc::new(version), Arc::new(client));
        let threads = (0..shape.connections).map(|_| {
            let (shared, version, client) = (shared.clone(), version.clone(), client.clone());
            thread::spawn(move || run(shape, &shared, &*version, &*client))
        });
        let load = Self { threads: threads.collect(), shared };
        load.wait_for(shape.connections as u64);
        load
    }

    /// Waits until this many more requests were answered, or one failed.
    #[track_caller]
    pub fn wait_for(&self, requests: u64) {
        let goal = self.shared.requests.load(Ordering::Relaxed) + requests;
        wait::until_true("the load makes progress", wait::SOON, || {
            self.shared.requests.load(Ordering::Relaxed) >= goal
                || !self.shared.failures.lock().unwrap().is_empty()
        });
    }

    /// Ends after the requests in flight.
    pub fn stop(mut self) -> LoadReport {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        LoadReport {
            requests: self.shared.requests.load(Ordering::Relaxed),
            connections: self.shared.connections.load(Ordering::Relaxed),
            failures: std::mem::take(&mut self.shared.failures.lock().unwrap()),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
    }
}

impl LoadReport {
    /// Fails unless every request succeeded, and there were some.
    #[track_caller]
    pub fn assert_flawless(&self) {
        assert!(
            self.failures.is_empty(),
            "{} of {} requests failed: {:#?}",
            self.failures.len(),
            self.requests,
            &self.failures[..self.failures.len().min(10)]
        );
        assert!(self.requests > 0, "no request was made");
    }
}

/// One connection's thread: a request, a pause, and a new connection when the old one may no longer be used.
fn run(shape: Shape, shared: &LoadState, version: &dyn Fn() -> u64, client: &dyn Fn() -> Client) {
    let mut open: Option<(Connection, u64, u64)> = None;
    while !shared.ends.load(Ordering::Relaxed) {
        // A client that follows its files leaves the old connection once it has seen new ones.
        let newest = version();
        let current = open
            .take()
            .filter(|(_, requests, version)| *requests < shape.requests_per_connection && *version == newest);
        let current = current.map_or_else(
            || {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                client().connect().map(|connection| (connection, 0, newest))
            },
            Ok,
        );
        let result = current.and_then(|(mut connection, requests, version)| {
            let answer = connection.get("/get")?;
            Ok((connection, requests + 1, version, answer))
        });
        match result {
            Ok((connection, requests, version, answer)) if answer.status() == 200 => {
                shared.requests.fetch_add(1, Ordering::Relaxed);
                open = (!answer.closes()).then_some((connection, requests, version));
            }
            Ok((.., answer)) => fail(shared, &answer.first_line),
            Err(end) => fail(shared, &format!("{end:?}")),
        }
        thread::park_timeout(shape.pause);
    }
}

/// Records a failure with its time.
fn fail(shared: &LoadState, what: &str) {
    let at = shared.started.lock().unwrap().map(|start| start.elapsed()).unwrap_or_default();
    shared.failures.lock().unwrap().push(format!("after {at:.3?}: {what}"));
}

/// A client certificate's files, read again when they change, as ingress controllers do.
#[derive(Clone, Debug)]
pub struct SecretFiles(pub PathBuf);

impl SecretFiles {
    /// A number that changes with the files.
    pub fn version(&self) -> u64 {
        let target = fs::read_link(self.0.join("..data")).unwrap_or_default();
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for byte in target.to_string_lossy().bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        hash
    }

    /// The certificate with its key, both of the same version.
    pub fn credentials(&self) -> Credentials {
        let folder = self.version_folder();
        let read =
            |name| fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Credentials::from_pem(&read("tls.crt"), &read("tls.key"))
    }

    /// The roots.
    pub fn roots(&self) -> Vec<rustls_pki_types::CertificateDer<'static>> {
        pki::certificates(&fs::read_to_string(self.version_folder().join("ca.crt")).unwrap())
    }

    /// The folder that `..data` points to, as kubelet lays out a mounted Secret: a reload swaps the link, so files
    /// read through it are of one version.
    fn version_folder(&self) -> PathBuf {
        fs::canonicalize(self.0.join("..data")).unwrap_or_else(|_| self.0.clone())
    }
}

/// A response that continues until it is ended.
#[derive(Debug)]
pub struct LongStream {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, End>>,
}

impl LongStream {
    /// GET `/stream`; returns after the first bytes.
    pub fn start(client: &Client) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let mut connection = client.connect().unwrap_or_else(|end| panic!("stream: {end:?}"));
        connection.write(b"GET /stream HTTP/1.1\r\nhost: httpbin.test\r\n\r\n");
        let head = connection.read_until(b"tick").unwrap_or_else(|end| panic!("stream: {end:?}"));
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        let stop = ends.clone();
        let thread = thread::spawn(move || {
            let mut count = 1;
            while !stop.load(Ordering::Relaxed) {
                connection.read_until(b"tick")?;
                count += 1;
            }
            Ok(count)
        });
        Self { ends, thread }
    }

    /// Ends it; returns how many pieces arrived. Fails if it had ended before.
    #[track_caller]
    pub fn stop(self) -> u64 {
        self.ends.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap_or_else(|end| panic!("the stream was cut: {end:?}"))
    }
}
