//! A constant load of requests, counted.
//!
//! It runs in a pod and is read over HTTP at any time, so that a suite can compare the counters before and after a
//! change. On SIGTERM it finishes the requests that it has sent, and prints the counters.

use std::net::{Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use tidegate_tests::app::App;
use tidegate_tests::client::Connection;

use crate::client::{self, Url};

/// How many failures are kept as text; all are counted.
const TOLD: usize = 20;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LoadArguments {
    /// What to get: http://host[:port]/path.
    url: Url,
    /// Connections at a time.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Milliseconds between two requests of a connection.
    #[arg(long, default_value_t = 10)]
    pause: u64,
    /// Requests on a connection before it is replaced.
    #[arg(long, default_value_t = u64::MAX)]
    requests_per_connection: u64,
    /// Where `GET /report` is answered, as JSON: requests, failures, and the first failures as text.
    #[arg(long, default_value_t = 8090)]
    port: u16,
}

/// What all connections have done since the start.
#[derive(Debug, Default)]
struct LoadCounters {
    requests: AtomicU64,
    connections: AtomicU64,
    failures: AtomicU64,
    told: Mutex<Vec<String>>,
    /// Set once no further request is to be sent.
    ends: AtomicBool,
}

impl LoadArguments {
    pub(crate) fn run(self) -> ExitCode {
        let counters = Arc::new(LoadCounters::default());
        let started = Instant::now();
        let of_connection = |_| {
            let (load, counters) = (self.clone(), counters.clone());
            thread::spawn(move || load.ask(&counters, started))
        };
        let threads: Vec<_> = (0..self.connections).map(of_connection).collect();
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.port));
        let reported = counters.clone();
        let _app = App::unrecorded(address, move |conversation| {
            while conversation.request()?.is_some() {
                let body = reported.report();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                conversation.write(head.as_bytes())?;
                conversation.write(body.as_bytes())?;
            }
            Ok(())
        });
        crate::wait_for_end();
        counters.ends.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        println!("{}", counters.report());
        ExitCode::SUCCESS
    }

    /// One connection's thread.
    fn ask(&self, counters: &LoadCounters, started: Instant) {
        let mut open: Option<(Connection, u64)> = None;
        while !counters.ends.load(Ordering::Relaxed) {
            match self.next(open.take(), counters) {
                Ok(connection) => {
                    counters.requests.fetch_add(1, Ordering::Relaxed);
                    open = connection;
                }
                Err(error) => {
                    counters.failures.fetch_add(1, Ordering::Relaxed);
                    let mut told = counters.told.lock().unwrap();
                    if told.len() < TOLD {
                        told.push(format!("after {:.3?}: {error}", started.elapsed()));
                    }
                }
            }
            thread::park_timeout(Duration::from_millis(self.pause));
        }
    }

    /// One request; returns the connection if it is still usable.
    fn next(
        &self,
        open: Option<(Connection, u64)>,
        counters: &LoadCounters,
    ) -> Result<Option<(Connection, u64)>, String> {
        let (mut connection, count) = match open {
            Some((connection, count)) if count < self.requests_per_connection => (connection, count),
            _ => {
                counters.connections.fetch_add(1, Ordering::Relaxed);
                (self.url.connect()?, 0)
            }
        };
        let answer =
            connection.request(self.url.request(&[]).as_bytes()).map_err(|end| client::name(&end))?;
        match answer.status() {
            200 if answer.closes() => Ok(None),
            200 => Ok(Some((connection, count + 1))),
            _ => Err(answer.first_line),
        }
    }
}

impl LoadCounters {
    /// The answer to `GET /report`.
    fn report(&self) -> String {
        json!({
            "requests": self.requests.load(Ordering::Relaxed),
            "connections": self.connections.load(Ordering::Relaxed),
            "failures": self.failures.load(Ordering::Relaxed),
            "told": *self.told.lock().unwrap(),
        })
        .to_string()
    }
}
