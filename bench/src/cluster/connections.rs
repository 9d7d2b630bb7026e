//! What becomes of connections that are open when the policy that let them in is deleted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, PostParams};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use super::changes::Change;
use super::node;
use super::results::Connections;
use super::site::Site;
use crate::http::Client;
use crate::load::{Endpoint, Exchange};
use crate::tls::Stream;

/// From one request on a connection to the next.
const PACE: Duration = Duration::from_millis(100);
/// How long they are used before the deletion.
const BEFORE: Duration = Duration::from_millis(500);
/// How long connections are watched after the deletion; Open Service Mesh's ended after 8 s.
const WATCHED: Duration = Duration::from_secs(12);
/// When the last answer must have been given.
const LATE: Duration = Duration::from_secs(1);

/// What one connection saw.
struct Life {
    /// When answers with status 200 came.
    answers: Vec<Instant>,
    /// When the peer ended it; none if it was still open at the end of the watch.
    ended: Option<Instant>,
}

/// Opens the connections, deletes the policy, watches them to their end, and puts the policy back.
pub(super) fn measure(site: &mut Site, change: Change, count: usize) -> Result<Connections> {
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
        Ok(Connections {
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

async fn watch_all(
    endpoint: Endpoint,
    count: usize,
    opened: oneshot::Sender<()>,
    deletion: watch::Receiver<Option<Instant>>,
) -> Result<Vec<Life>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let mut client = endpoint.connect().await?;
        let answer = Exchange::keep_alive("/get", 0).any_answer_on(&mut client).await?;
        ensure!(answer.status == 200, "before the deletion the answer has status {}", answer.status);
        clients.push(client);
    }
    let mut tasks = JoinSet::new();
    for client in clients {
        tasks.spawn(watch_one(client, deletion.clone()));
    }
    ensure!(opened.send(()).is_ok(), "nobody waits for the connections");
    Ok(tasks.join_all().await)
}

/// A request now and then until the peer ends the connection, or the watch does.
async fn watch_one(mut client: Client<Stream>, mut deletion: watch::Receiver<Option<Instant>>) -> Life {
    let exchange = Exchange::keep_alive("/get", 0);
    let mut answers = Vec::new();
    let until_end = async {
        loop {
            tokio::select! {
                biased;
                // Whatever it says, nothing was asked: the peer has ended it.
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
        // A sender that is gone is the end of the measurement too.
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
