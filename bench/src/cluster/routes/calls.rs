//! Requests from the client's network namespace: each goes through the Pod's interception and its sidecar.

use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::RouteAnswer;
use super::site::AnsweringBackend;
use crate::cluster::node::spawn_in;
use crate::cluster::prober::{Prober, Seen};
use crate::cluster::results::RouteLoadFigures;
use crate::histogram::Histogram;
use crate::http::HttpConnection;

/// The path of every request: the test app answers with the name of its Pod.
pub(super) const PATH: &str = "/hostname";
/// The field that selects a route of the Service.
pub(super) const ROUTE_HEADER: &str = "x-route";

/// Interval between two probes.
const PACE: Duration = Duration::from_millis(3);
/// Timeout of an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the client tries to use every route: Kubernetes writes some 20 EndpointSlices a second.
const ALL_USED: Duration = Duration::from_secs(300);
/// Pause before a route that is not in force yet is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// Connections that requests of one kind share.
const CONNECTIONS: usize = 16;

/// A Service that the client uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct CalledService {
    pub(super) address: SocketAddr,
    /// Number of its routes.
    pub(super) routes: usize,
}

/// Requests to all Services at a constant rate, until stopped.
pub(super) struct LoadedSidecar {
    stop: watch::Sender<bool>,
    figures: oneshot::Receiver<Result<RouteLoadFigures>>,
}

/// A connection that is opened again after a failure.
struct RouteCaller {
    address: SocketAddr,
    connection: Option<HttpConnection<TcpStream>>,
}

/// Uses each route of each Service until it leads where it says.
pub(super) fn call_all(network: File, services: Vec<CalledService>) -> Result<oneshot::Receiver<Result<()>>> {
    spawn_in(network, async move {
        let deadline = Instant::now() + ALL_USED;
        let mut callers = JoinSet::new();
        for worker in 0..CONNECTIONS {
            let services: Vec<_> = services.iter().skip(worker).step_by(CONNECTIONS).copied().collect();
            callers.spawn(call_each(services, deadline));
        }
        while let Some(called) = callers.join_next().await {
            called??;
        }
        Ok(())
    })
}

/// Uses each route of these Services, one after another.
async fn call_each(services: Vec<CalledService>, deadline: Instant) -> Result<()> {
    for CalledService { address, routes } in services {
        let mut caller = RouteCaller::new(address);
        for route in 0..routes {
            loop {
                let answer = caller.call(route).await;
                if answer == RouteAnswer::From(AnsweringBackend::First) {
                    break;
                }
                if Instant::now() > deadline {
                    bail!("route {route} of {address} is not in force after {ALL_USED:?}: {answer:?}");
                }
                sleep(AGAIN).await;
            }
        }
    }
    Ok(())
}

/// Requests by the first route of this Service, one after another on one connection, until the prober is dropped.
pub(super) fn probe(network: File, service: CalledService) -> Result<Prober<RouteAnswer>> {
    let (sender, seen) = mpsc::unbounded_channel();
    spawn_in(network, async move {
        let mut caller = RouteCaller::new(service.address);
        let mut due = interval(PACE);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            due.tick().await;
            let began = Instant::now();
            let outcome = caller.call(0).await;
            if sender.send(Seen { began, ended: Instant::now(), outcome }).is_err() {
                return;
            }
        }
    })?;
    Ok(Prober(seen))
}

impl LoadedSidecar {
    /// Starts `rate` requests per second, by all routes but the one that is changed.
    pub(super) fn start(network: File, services: Vec<CalledService>, rate: u32) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let figures = spawn_in(network, load(services, rate, stopped))?;
        Ok(Self { stop, figures })
    }

    /// Stops, and returns what was seen.
    pub(super) async fn stop(self) -> Result<RouteLoadFigures> {
        self.stop.send_replace(true);
        self.figures.await.context("the load's thread has ended")?
    }
}

/// Shares the rate among some tasks, until stopped.
async fn load(
    services: Vec<CalledService>,
    rate: u32,
    stopped: watch::Receiver<bool>,
) -> Result<RouteLoadFigures> {
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for worker in 0..CONNECTIONS {
        callers.spawn(load_of_one(services.clone(), worker, rate, stopped.clone()));
    }
    let mut total = Histogram::new();
    let mut wrong = 0;
    while let Some(caller) = callers.join_next().await {
        let (latencies, wrong_of_one) = caller?;
        total.merge(&latencies);
        wrong += wrong_of_one;
    }
    Ok(RouteLoadFigures {
        requests: total.count(),
        wrong,
        seconds: began.elapsed().as_secs_f64(),
        p99: total.quantile(0.99).as_secs_f64(),
    })
}

/// One share of the load: each request to the next Service of this worker's. Returns latencies, and wrong answers.
async fn load_of_one(
    services: Vec<CalledService>,
    worker: usize,
    rate: u32,
    mut stopped: watch::Receiver<bool>,
) -> (Histogram, u64) {
    let (mut latencies, mut wrong) = (Histogram::new(), 0);
    // The last routes of the Services, because the first Service's first one is changed.
    let mut callers: Vec<_> = (worker..worker + CONNECTIONS * CONNECTIONS)
        .step_by(CONNECTIONS)
        .map(|index| services[index % services.len()])
        .map(|service| (RouteCaller::new(service.address), service.routes - 1))
        .filter(|(_, route)| *route > 0)
        .collect();
    let mut due = interval(Duration::from_secs(1) * CONNECTIONS as u32 / rate.max(1));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for next in 0.. {
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => break,
            _ = due.tick() => {}
        }
        let count = callers.len().max(1);
        let Some((caller, route)) = callers.get_mut(next % count) else { break };
        let began = Instant::now();
        let answer = caller.call(*route).await;
        latencies.record(began.elapsed());
        if answer != RouteAnswer::From(AnsweringBackend::First) {
            eprintln!("load: {answer:?} from {} by route {route}", caller.address);
            wrong += 1;
        }
    }
    (latencies, wrong)
}

impl RouteCaller {
    /// Of this Service, still without a connection.
    fn new(address: SocketAddr) -> Self {
        Self { address, connection: None }
    }

    /// Makes a request that belongs to this route of the Service.
    async fn call(&mut self, route: usize) -> RouteAnswer {
        let answer = match timeout(PATIENCE, self.exchange(route)).await {
            Ok(answer) => answer.unwrap_or(RouteAnswer::Closed),
            Err(_) => RouteAnswer::Silence,
        };
        if !matches!(answer, RouteAnswer::From(_)) {
            self.connection = None;
        }
        answer
    }

    async fn exchange(&mut self, route: usize) -> Result<RouteAnswer> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                none.insert(HttpConnection::new(stream))
            }
        };
        let request = format!("GET {PATH} HTTP/1.1\r\nhost: service\r\n{ROUTE_HEADER}: {route}\r\n\r\n");
        let answer = connection.exchange(request.as_bytes()).await?;
        Ok(answer_of(answer.status, connection.body_start()))
    }
}

/// What an answer with this status and body shows.
fn answer_of(status: u16, body: &[u8]) -> RouteAnswer {
    if status != 200 {
        return RouteAnswer::Status(status);
    }
    let body = String::from_utf8_lossy(body);
    let is_from = |backend: &AnsweringBackend| body.contains(&format!("\"{}-", backend.name()));
    let found = [AnsweringBackend::First, AnsweringBackend::Second].into_iter().find(is_from);
    found.map_or(RouteAnswer::Other, RouteAnswer::From)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_shows_the_backend_whose_pod_has_sent_it() {
        let first = RouteAnswer::From(AnsweringBackend::First);
        assert_eq!(answer_of(200, br#"{"hostname":"first-7d4-x2"}"#), first);
        assert_eq!(
            answer_of(200, br#"{"hostname":"second-5f-first"}"#),
            RouteAnswer::From(AnsweringBackend::Second)
        );
        assert_eq!(answer_of(200, b"hello"), RouteAnswer::Other);
        assert_eq!(answer_of(404, br#"{"hostname":"first-7d4-x2"}"#), RouteAnswer::Status(404));
    }

    #[tokio::test]
    async fn a_caller_opens_another_connection_after_a_failure() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut caller = RouteCaller::new(listener.local_addr().unwrap());
        tokio::spawn(async move {
            drop(listener.accept().await.unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].ends_with(b"x-route: 3\r\n\r\n"));
            let body = "{\"hostname\":\"second-1\"}";
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        assert_eq!(caller.call(3).await, RouteAnswer::Closed);
        assert_eq!(caller.call(3).await, RouteAnswer::From(AnsweringBackend::Second));
    }
}
