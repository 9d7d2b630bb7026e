//! The kinds of load over HTTP/1.1, but for requests at a fixed rate ([`super::open`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use super::LoadMeasurement;
use super::connection::{LoadEndpoint, LoadExchange};
use super::window::{ResponseRecorder, UsageMeter};
use crate::app::{LARGE_BYTES, SMALL_BYTES};
use crate::http::{HttpConnection, SIZED_PATH};
use crate::tls::ClientStream;

/// Path of the small response.
pub(super) const SMALL_PATH: &str = "/1k";
/// Connections that are established concurrently.
const CONNECTING: usize = 16;
/// Pause after a failed connection attempt, so that a dead proxy is not hammered.
pub(super) const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// One request at a time on each connection; `body`: bytes of each response's body.
pub(super) async fn closed(
    endpoint: LoadEndpoint,
    watched: &[u32],
    connections: usize,
    warm_up: f64,
    seconds: f64,
    body: u64,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let path = if body == SMALL_BYTES { SMALL_PATH.to_owned() } else { format!("{SIZED_PATH}{body}") };
    let exchange = Arc::new(LoadExchange::keep_alive(&path, body));
    let mut tasks = JoinSet::new();
    for client in connect_all(&endpoint, connections).await? {
        let (endpoint, recorder, exchange) = (endpoint.clone(), recorder.clone(), exchange.clone());
        tasks.spawn(async move {
            let mut client = client;
            loop {
                let sent = Instant::now();
                match exchange.on(&mut client).await {
                    Ok(bytes) => recorder.answered(sent.elapsed(), bytes),
                    Err(error) => {
                        recorder.failed(&error);
                        client = reconnect(&endpoint, &recorder).await;
                    }
                }
            }
        });
    }
    in_window(meter, recorder, warm_up, seconds).await
}

/// A new connection for each request.
pub(super) async fn handshakes(
    endpoint: LoadEndpoint,
    watched: &[u32],
    connections: usize,
    warm_up: f64,
    seconds: f64,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let exchange = Arc::new(LoadExchange::last(SMALL_PATH, SMALL_BYTES));
    let mut tasks = JoinSet::new();
    for worker in 0..connections {
        let (endpoint, recorder, exchange) = (endpoint.clone(), recorder.clone(), exchange.clone());
        tasks.spawn(async move {
            let mut number = worker;
            loop {
                let began = Instant::now();
                let result = async {
                    let mut client = endpoint.connect_from(number).await?;
                    let bytes = exchange.on(&mut client).await?;
                    client.closed_by_peer().await?;
                    anyhow::Ok(bytes)
                };
                match result.await {
                    Ok(bytes) => recorder.answered(began.elapsed(), bytes),
                    Err(error) => {
                        recorder.failed(&error);
                        tokio::time::sleep(RECONNECT_PAUSE).await;
                    }
                }
                number += 1;
            }
        });
    }
    in_window(meter, recorder, warm_up, seconds).await
}

/// One request on each connection, which then stays open.
pub(super) async fn idle(
    endpoint: LoadEndpoint,
    watched: &[u32],
    connections: usize,
) -> Result<LoadMeasurement> {
    let window_meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let window = window_meter.open(&recorder)?;
    let exchange = LoadExchange::keep_alive(SMALL_PATH, SMALL_BYTES);
    let mut clients = connect_all(&endpoint, connections).await?;
    for client in &mut clients {
        let sent = Instant::now();
        let bytes = exchange.on(client).await?;
        recorder.answered(sent.elapsed(), bytes);
    }
    let report = window.close(false)?.report();
    drop(clients);
    Ok(report)
}

/// One large body after another, in the direction of the exchange.
pub(super) async fn transfer(
    endpoint: LoadEndpoint,
    watched: &[u32],
    seconds: f64,
    exchange: LoadExchange,
) -> Result<LoadMeasurement> {
    let meter = UsageMeter::new(watched)?;
    let recorder = ResponseRecorder::new();
    let mut client = endpoint.connect().await?;
    // The first response grows the buffers of proxy and kernel.
    LoadExchange::keep_alive(SMALL_PATH, SMALL_BYTES).on(&mut client).await?;
    let window = meter.open(&recorder)?;
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < seconds {
        let sent = Instant::now();
        exchange.on(&mut client).await?;
        recorder.answered(sent.elapsed(), LARGE_BYTES);
    }
    Ok(window.close(false)?.report())
}

/// Measures for the length of a window, after a warm-up.
pub(super) async fn in_window(
    meter: UsageMeter,
    recorder: ResponseRecorder,
    warm_up: f64,
    seconds: f64,
) -> Result<LoadMeasurement> {
    tokio::time::sleep(Duration::from_secs_f64(warm_up)).await;
    let window = meter.open(&recorder)?;
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    Ok(window.close(false)?.report())
}

/// Opens all connections; returns the first failure.
pub(super) async fn connect_all(
    endpoint: &LoadEndpoint,
    connections: usize,
) -> Result<Vec<HttpConnection<ClientStream>>> {
    let mut clients = Vec::with_capacity(connections);
    let mut connecting = JoinSet::new();
    for _ in 0..connections {
        if connecting.len() == CONNECTING {
            clients.push(connecting.join_next().await.context("no connection")???);
        }
        let endpoint = endpoint.clone();
        connecting.spawn(async move { endpoint.connect().await });
    }
    while let Some(client) = connecting.join_next().await {
        clients.push(client??);
    }
    Ok(clients)
}

/// Opens a connection, however often it takes; each failure counts.
pub(super) async fn reconnect(
    endpoint: &LoadEndpoint,
    recorder: &ResponseRecorder,
) -> HttpConnection<ClientStream> {
    loop {
        match endpoint.connect().await {
            Ok(client) => return client,
            Err(error) => {
                recorder.failed(&error);
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        }
    }
}
