//! The clients. Each kind counts its answers; every missing or wrong one is a failure.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http::Request;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{self, Connection};
use tidegate_tests::wait::{self, SOON};

use crate::client_factory::ClientFactory;

/// Requests on a connection before another one is made.
const PER_CONNECTION: u32 = 500;
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two clients that leave. The sidecar keeps each for a while, so their rate shows in its open files.
const LEAVING: Duration = Duration::from_millis(100);
/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a tunnel or event stream is kept.
const LONG: Duration = Duration::from_secs(60);
/// The size of a slow reader's answer, in bytes.
const SLOW_BODY: usize = 300_000;
/// Failures of one kind that are kept as text.
const KEPT: usize = 20;

/// All running clients.
#[derive(Default)]
pub(crate) struct Loads {
    kinds: Vec<Arc<SoakLoad>>,
    threads: Vec<JoinHandle<()>>,
    ends: Arc<AtomicBool>,
}

/// Clients that do the same.
pub(crate) struct SoakLoad {
    /// What they do.
    pub(crate) name: &'static str,
    /// Successes.
    pub(crate) done: AtomicU64,
    /// Failures.
    pub(crate) failed: AtomicU64,
    /// The first failures: when, and what.
    pub(crate) failures: Mutex<Vec<String>>,
    started: Instant,
    ends: Arc<AtomicBool>,
}

impl Loads {
    /// Starts this many clients of a kind.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        count: usize,
        clients: ClientFactory,
        run: fn(&SoakLoad, &ClientFactory),
    ) {
        let kind = Arc::new(SoakLoad {
            name,
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failures: Mutex::default(),
            started: Instant::now(),
            ends: self.ends.clone(),
        });
        self.kinds.push(kind.clone());
        for _ in 0..count {
            let (kind, clients) = (kind.clone(), clients.clone());
            self.threads.push(thread::spawn(move || {
                clients.enter_network();
                while !kind.is_over() {
                    run(&kind, &clients);
                }
            }));
        }
    }

    /// Ends them after their requests in flight; returns their results.
    pub(crate) fn stop(self) -> Vec<Arc<SoakLoad>> {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.kinds
    }
}

impl SoakLoad {
    fn is_over(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Counts an outcome; returns whether it was a success. After a failure the client pauses, so that one outage is
    /// not a million failures.
    fn count(&self, outcome: Result<(), String>) -> bool {
        match outcome {
            Ok(()) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                true
            }
            Err(what) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut failures = self.failures.lock().unwrap();
                if failures.len() < KEPT {
                    failures.push(format!("after {:.1?}: {what}", self.started.elapsed()));
                }
                drop(failures);
                thread::park_timeout(Duration::from_millis(200));
                false
            }
        }
    }

    fn connect(&self, clients: &ClientFactory) -> Option<Connection> {
        match clients.client().connect() {
            Ok(connection) => Some(connection),
            Err(end) => {
                self.count(Err(format!("no connection: {end:?}")));
                None
            }
        }
    }
}

/// Waits until the app can be reached.
pub(crate) fn wait_open(clients: ClientFactory) {
    let waiting = thread::spawn(move || {
        clients.enter_network();
        wait::until_true("the app can be reached", SOON, || {
            clients.client().get("/get") == client::RequestOutcome::Status(200)
        });
    });
    waiting.join().unwrap();
}

/// One request after another on a connection, until the server announces its end or the client's files change.
pub(crate) fn keep_alive(kind: &SoakLoad, clients: &ClientFactory) {
    requests(kind, clients, PER_CONNECTION);
}

/// A connection for each request.
pub(crate) fn fresh(kind: &SoakLoad, clients: &ClientFactory) {
    requests(kind, clients, 1);
}

fn requests(kind: &SoakLoad, clients: &ClientFactory, per_connection: u32) {
    let version = clients.version();
    let Some(mut connection) = kind.connect(clients) else { return };
    for _ in 0..per_connection {
        if kind.is_over() || clients.version() != version {
            return;
        }
        let answer = connection.get("/get");
        let closes = answer.as_ref().map_or(true, |answer| answer.closes());
        let outcome = match answer {
            Ok(answer) if answer.status() == 200 => Ok(()),
            Ok(answer) => Err(answer.first_line),
            Err(end) => Err(format!("{end:?}")),
        };
        if !kind.count(outcome) || closes {
            return;
        }
        thread::park_timeout(PAUSE);
    }
}

/// Runs HTTP/2 requests on one connection; ends it after the server's GOAWAY.
fn on_http2(
    kind: &SoakLoad,
    clients: &ClientFactory,
    request: impl AsyncFn(&H2Connection, u32) -> Result<Result<(), String>, h2::Error>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let version = clients.version();
        let connection = match H2Connection::open(&clients.client()).await {
            Ok(connection) => connection,
            Err(error) => {
                kind.count(Err(format!("no connection: {error}")));
                return;
            }
        };
        for number in 0..PER_CONNECTION {
            if kind.is_over() || clients.version() != version || connection.is_closed() {
                return;
            }
            let outcome = match tokio::time::timeout(PATIENCE, request(&connection, number)).await {
                Ok(Ok(outcome)) => outcome,
                // GOAWAY without an error, or a refused stream: the request may be sent again on another connection.
                Ok(Err(error)) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => {
                    return;
                }
                Ok(Err(error)) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => return,
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
            if !kind.count(outcome) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
}

pub(crate) fn http2(kind: &SoakLoad, clients: &ClientFactory) {
    let body = vec![b'x'; 60_000];
    on_http2(kind, clients, async |connection, number| {
        let answer = if number % 4 == 0 {
            let request = Request::post("https://httpbin.test/post").body(()).unwrap();
            connection.exchange(request, &body).await?
        } else {
            connection.get("/get").await?
        };
        Ok(if answer.head.status() == 200 { Ok(()) } else { Err(answer.head.status().to_string()) })
    });
}

pub(crate) fn grpc(kind: &SoakLoad, clients: &ClientFactory) {
    on_http2(kind, clients, async |connection, number| {
        let request = Request::post("https://httpbin.test/soak.Service/Call")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let message = [&[0_u8, 0, 0, 0, 4][..], &number.to_be_bytes()].concat();
        let answer = connection.exchange(request, &message).await?;
        let status = answer.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        Ok(match status {
            Some(status) if status == "0" && answer.body == message => Ok(()),
            _ => Err(format!("{answer:?}")),
        })
    });
}

/// Messages back and forth for a minute. When the mesh ends a WebSocket, it does so with a close frame or at the end of
/// the client's certificate.
pub(crate) fn websocket(kind: &SoakLoad, clients: &ClientFactory) {
    let version = clients.version();
    let Some(mut connection) = kind.connect(clients) else { return };
    connection.write(
        b"GET /socket HTTP/1.1\r\nhost: httpbin.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    );
    match connection.read_until(b"\r\n\r\n") {
        Ok(head) if head.starts_with(b"HTTP/1.1 101 ") => {}
        other => {
            kind.count(Err(format!("no upgrade: {other:?}")));
            return;
        }
    }
    let begun = Instant::now();
    for number in 0_u32.. {
        if kind.is_over() || begun.elapsed() > LONG || clients.version() != version {
            return;
        }
        let message = format!("message {number};");
        connection.write(message.as_bytes());
        let answer = connection.read_until(message.as_bytes());
        if !kind.count(answer.map(drop).map_err(|end| format!("{end:?}"))) {
            return;
        }
        thread::park_timeout(4 * PAUSE);
    }
}

/// Reads events for a while, and leaves in the middle.
pub(crate) fn event_stream(kind: &SoakLoad, clients: &ClientFactory) {
    let Some(mut connection) = kind.connect(clients) else { return };
    connection.write(b"GET /stream HTTP/1.1\r\nhost: httpbin.test\r\n\r\n");
    let begun = Instant::now();
    while !kind.is_over() && begun.elapsed() < LONG {
        if !kind.count(connection.read_until(b"tick").map(drop).map_err(|end| format!("{end:?}"))) {
            return;
        }
    }
}

/// Requests what never arrives, and leaves: the request must end at the app, too, or files stay open.
pub(crate) fn leave(kind: &SoakLoad, clients: &ClientFactory) {
    let Some(mut connection) = kind.connect(clients) else { return };
    connection.write(b"GET /hold HTTP/1.1\r\nhost: httpbin.test\r\n\r\n");
    thread::park_timeout(LEAVING);
    kind.count(Ok(()));
}

pub(crate) fn slow_reader(kind: &SoakLoad, clients: &ClientFactory) {
    let Some(mut connection) = kind.connect(clients) else { return };
    connection.write(
        format!("GET /bytes/{SLOW_BODY} HTTP/1.1\r\nhost: httpbin.test\r\nconnection: close\r\n\r\n")
            .as_bytes(),
    );
    let mut received = 0;
    while received < SLOW_BODY {
        match connection.read(PATIENCE) {
            Ok(bytes) => received += bytes.len(),
            Err(end) => {
                kind.count(Err(format!("{end:?} after {received} bytes")));
                return;
            }
        }
        thread::park_timeout(PAUSE);
    }
    kind.count(Ok(()));
}
