//! Measures how open connections end when the policy that admitted them is deleted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, PostParams};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::changes::PolicyChange;
use super::node;
use super::results::ConnectionEnds;
use super::site::ClusterSite;
use crate::http::HttpConnection;
use crate::load::{LoadEndpoint, LoadExchange};
use crate::tls::ClientStream;

/// Interval between requests on a connection.
const PACE: Duration = Duration::from_millis(100);
/// How long connections are used before the deletion.
const BEFORE: Duration = Duration::from_millis(500);
/// How long connections are watched after the deletion; Open Service Mesh's ended after 8 s.
const WATCHED: Duration = Duration::from_secs(12);
/// Deadline for the last response.
const LATE: Duration = Duration::from_secs(1);

/// What happened on one connection.
struct Life {
    /// When responses with status 200 arrived.
    answers: Vec<Instant>,
    /// When the peer closed it; `None` if it was still open at the end of the watch.
    ended: Option<Instant>,
}

/// Opens the connections, deletes the policy, watches the connections until they end, and restores the policy.
pub(super) fn measure(site: &mut ClusterSite, change: PolicyChange, count: usize) -> Result<ConnectionEnds> {
    let endpoint = site.endpoint(change)?;
    let api = site.policies();
    site.block_on(async {
        let (opened, all_open) = oneshot::channel();
        let (deleted, deletion) = watch::channel(None);
        let lives = node::spawn(site.cluster(), watch_all(endpoint, count, opened, deletion))?;
        all_open.await.context("the connections could not be opened")?;
        tokio::time::sleep(BEFORE).await;
        let start = Instant::now();
        api.delete(change.policy(), &DeleteParams::default()).await.context("cannot delete the policy")?;
        let returned = Instant::now();
        // All of them may have ended before the call has returned.
        deleted.send_replace(Some(returned));
        let lives = lives.await.context("the connections' thread has ended")??;
        api.create(&PostParams::default(), &site.policy(change)?).await.context("cannot put it back")?;
        let early = lives.iter().filter(|life| life.ended.is_some_and(|ended| ended < start)).count();
        ensure!(early == 0, "{early} of {count} connections ended before the policy was deleted");
        Ok(ConnectionEnds {
            change,
            ended: lives
                .iter()
                .map(|life| {
                    let end = life.ended.unwrap_or(returned + WATCHED);
                    end.saturating_duration_since(returned).as_secs_f64()
                })
                .collect(),
            still_open: lives.iter().filter(|life| life.ended.is_none()).count(),
            late_answers: lives
                .iter()
                .flat_map(|life| &life.answers)
                .filter(|answer| **answer > returned + LATE)
                .count(),
        })
    })
}

/// Opens `count` connections, reports that they are open, and watches them until the end of the measurement.
async fn watch_all(
    endpoint: LoadEndpoint,
    count: usize,
    opened: oneshot::Sender<()>,
    deletion: watch::Receiver<Option<Instant>>,
) -> Result<Vec<Life>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = endpoint.connect().await?;
        let answer = LoadExchange::keep_alive("/get", 0).any_answer_on(&mut client).await?;
        ensure!(answer.status == 200, "before the deletion the answer has status {}", answer.status);
        clients.push(client);
    }
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(watch_one(client, deletion.clone()));
    }
    ensure!(opened.send(()).is_ok(), "the measurement no longer waits for the connections");
    Ok(tasks.join_all().await)
}

/// Sends a request at each interval until the peer closes the connection, or the watch ends.
async fn watch_one(
    mut client: HttpConnection<ClientStream>,
    mut deletion: watch::Receiver<Option<Instant>>,
) -> Life {
    let exchange = LoadExchange::keep_alive("/get", 0);
    let mut answers = Vec::new();
    let until_end = async {
        loop {
            tokio::select! {
                biased;
                // Any data here is unsolicited, so the peer has ended the connection.
                _ = client.closed_by_peer() => return,
                () = tokio::time::sleep(PACE) => {}
            }
            match exchange.any_answer_on(&mut client).await {
                Ok(answer) if answer.status == 200 => answers.push(Instant::now()),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    };
    let watched = async {
        // A dropped sender also ends the measurement.
        if deletion.wait_for(Option::is_some).await.is_ok() {
            tokio::time::sleep(WATCHED).await;
        }
    };
    let has_ended = tokio::select! {
        () = until_end => true,
        () = watched => false,
    };
    Life { ended: has_ended.then(Instant::now), answers }
}
