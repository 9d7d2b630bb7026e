//! The clients. Each kind counts what it got; whatever it does not get is a failure.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http::Request;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{self, Connection};
use tidegate_tests::wait::{self, SOON};

use crate::site::Way;

/// Requests on a connection before another one is made.
const PER_CONNECTION: u32 = 500;
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(20);
/// Between two clients that leave. The sidecar keeps each for a while, so that their pace is seen in its open files.
const LEAVING: Duration = Duration::from_millis(100);
/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one tunnel or event stream is kept.
const LONG: Duration = Duration::from_secs(60);
/// What a slow reader reads.
const SLOW_BODY: usize = 300_000;
/// Failures of one kind that are kept word for word.
const KEPT: usize = 20;

/// Every client that runs.
#[derive(Default)]
pub(crate) struct Loads {
    kinds: Vec<Arc<Kind>>,
    threads: Vec<JoinHandle<()>>,
    ends: Arc<AtomicBool>,
}

/// Clients that do the same.
pub(crate) struct Kind {
    /// What they do.
    pub(crate) name: &'static str,
    /// What they got.
    pub(crate) done: AtomicU64,
    /// What they did not get.
    pub(crate) failed: AtomicU64,
    /// The first failures: when, and what.
    pub(crate) failures: Mutex<Vec<String>>,
    started: Instant,
    ends: Arc<AtomicBool>,
}

type Outcome = Result<(), String>;

impl Loads {
    /// Starts so many clients of a kind.
    pub(crate) fn add(&mut self, name: &'static str, clients: usize, way: Way, client: fn(&Kind, &Way)) {
        let kind = Arc::new(Kind {
            name,
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            failures: Mutex::default(),
            started: Instant::now(),
            ends: self.ends.clone(),
        });
        self.kinds.push(kind.clone());
        for _ in 0..clients {
            let (kind, way) = (kind.clone(), way.clone());
            self.threads.push(thread::spawn(move || {
                way.enter();
                while !kind.is_over() {
                    client(&kind, &way);
                }
            }));
        }
    }

    /// Ends them after what is in flight; what they came to.
    pub(crate) fn stop(self) -> Vec<Arc<Kind>> {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.kinds
    }
}

impl Kind {
    fn is_over(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// Counts; whether it went well. After a failure the client rests, so that one outage is not a million failures.
    fn count(&self, outcome: Outcome) -> bool {
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

    fn connect(&self, way: &Way) -> Option<Connection> {
        match way.client().connect() {
            Ok(connection) => Some(connection),
            Err(end) => {
                self.count(Err(format!("no connection: {end:?}")));
                None
            }
        }
    }
}

/// Waits until a way leads to the app.
pub(crate) fn wait_open(way: Way) {
    let waiting = thread::spawn(move || {
        way.enter();
        wait::until_true("the way is open", SOON, || {
            way.client().get("/get") == client::Outcome::Status(200)
        });
    });
    waiting.join().unwrap();
}

/// One request after the other on a connection, until the server says that it closes it or the client's files change.
pub(crate) fn keep_alive(kind: &Kind, way: &Way) {
    requests(kind, way, PER_CONNECTION);
}

/// A connection for each request.
pub(crate) fn fresh(kind: &Kind, way: &Way) {
    requests(kind, way, 1);
}

fn requests(kind: &Kind, way: &Way, per_connection: u32) {
    let version = way.version();
    let Some(mut connection) = kind.connect(way) else { return };
    for _ in 0..per_connection {
        if kind.is_over() || way.version() != version {
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

/// What HTTP/2 clients do on one connection; it ends them when the server has said that it closes it.
fn on_http2(kind: &Kind, way: &Way, request: impl AsyncFn(&H2Connection, u32) -> Result<Outcome, h2::Error>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let version = way.version();
        let connection = match H2Connection::open(&way.client()).await {
            Ok(connection) => connection,
            Err(error) => {
                kind.count(Err(format!("no connection: {error}")));
                return;
            }
        };
        for number in 0..PER_CONNECTION {
            if kind.is_over() || way.version() != version || connection.is_closed() {
                return;
            }
            let outcome = match tokio::time::timeout(PATIENCE, request(&connection, number)).await {
                Ok(Ok(outcome)) => outcome,
                // GOAWAY without an error, or a stream that was not looked at: it may be sent again on another connection.
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

pub(crate) fn http2(kind: &Kind, way: &Way) {
    let body = vec![b'x'; 60_000];
    on_http2(kind, way, async |connection, number| {
        let answer = if number % 4 == 0 {
            let request = Request::post("https://httpbin.test/post").body(()).unwrap();
            connection.exchange(request, &body).await?
        } else {
            connection.get("/get").await?
        };
        Ok(if answer.head.status() == 200 { Ok(()) } else { Err(answer.head.status().to_string()) })
    });
}

pub(crate) fn grpc(kind: &Kind, way: &Way) {
    on_http2(kind, way, async |connection, number| {
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

/// Messages to and fro for a minute. A WebSocket that the mesh ends, it ends with a close frame or at the end of the
/// client's certificate.
pub(crate) fn websocket(kind: &Kind, way: &Way) {
    let version = way.version();
    let Some(mut connection) = kind.connect(way) else { return };
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
        if kind.is_over() || begun.elapsed() > LONG || way.version() != version {
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

/// Reads what comes for a while, and leaves in the middle.
pub(crate) fn event_stream(kind: &Kind, way: &Way) {
    let Some(mut connection) = kind.connect(way) else { return };
    connection.write(b"GET /stream HTTP/1.1\r\nhost: httpbin.test\r\n\r\n");
    let begun = Instant::now();
    while !kind.is_over() && begun.elapsed() < LONG {
        if !kind.count(connection.read_until(b"tick").map(drop).map_err(|end| format!("{end:?}"))) {
            return;
        }
    }
}

/// Asks for what never comes, and leaves: the request must end at the app, too, or files are left open.
pub(crate) fn leave(kind: &Kind, way: &Way) {
    let Some(mut connection) = kind.connect(way) else { return };
    connection.write(b"GET /hold HTTP/1.1\r\nhost: httpbin.test\r\n\r\n");
    thread::park_timeout(LEAVING);
    kind.count(Ok(()));
}

pub(crate) fn slow_reader(kind: &Kind, way: &Way) {
    let Some(mut connection) = kind.connect(way) else { return };
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
