//! Watches: the events of a selection as lines of JSON, from a version on.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::SharedApiState;
use super::response::{ApiResponse, json_response, status, text_response};
use super::store::Selection;

/// Starts a watch after the version in the query: its response goes on until the timeout in the query, or until the
/// client or this server ends it.
pub(super) fn watch(
    shared: Arc<SharedApiState>,
    connection: u64,
    selection: Selection,
    query: &BTreeMap<String, String>,
) -> ApiResponse {
    let version: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    let bookmarks = query.get("allowWatchBookmarks").is_some_and(|value| value == "true");
    let timeout = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(300);
    let (sender, receiver) = mpsc::channel::<io::Result<Frame<Bytes>>>(16);
    let position = {
        let cluster = shared.lock();
        if cluster.faults.break_watches {
            let line = format!("{}\n", json!({"type": "ERROR", "object": status(500, "not well")}));
            return text_response(200, line);
        }
        if cluster.store.is_gone(version) {
            let status = status(410, "too old resource version");
            if cluster.faults.gone_by_status {
                return json_response(410, &status);
            }
            let line = format!("{}\n", json!({"type": "ERROR", "object": status}));
            return text_response(200, line);
        }
        if version == 0 { cluster.store.end_of_log() } else { cluster.store.position_after(version) }
    };
    tokio::spawn(async move {
        tokio::select! {
            // First, so that no event after the silence is sent.
            biased;
            () = shared.silenced(connection) => sender.closed().await,
            () = sender.closed() => {}
            () = follow(&shared, selection, position, bookmarks, &sender) => {}
            () = tokio::time::sleep(Duration::from_secs(timeout)) => {}
        }
    });
    let body = StreamBody::new(ReceiverStream::new(receiver));
    http::Response::new(BodyExt::boxed(body))
}

/// Sends the selected events from a position of the log on, as lines, until the client is gone.
async fn follow(
    shared: &SharedApiState,
    selection: Selection,
    mut position: usize,
    bookmarks: bool,
    sender: &mpsc::Sender<io::Result<Frame<Bytes>>>,
) {
    let mut changes = shared.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let (events, end, truncated) = {
            let mut cluster = shared.lock();
            let events = cluster.store.events(&selection, position, bookmarks);
            let is_mine = cluster.faults.truncate.as_ref() == Some(&selection.resource);
            let truncated = !events.is_empty() && is_mine;
            if truncated {
                cluster.faults.truncate = None;
            }
            (events, cluster.store.end_of_log(), truncated)
        };
        position = end;
        for event in events {
            let line = format!("{event}\n");
            if truncated {
                let half = line.as_bytes().get(..line.len() / 2).unwrap_or_default().to_vec();
                let _ = sender.send(Ok(Frame::data(half.into()))).await;
                let _ = sender.send(Err(io::Error::other("cut"))).await;
                return;
            }
            if sender.send(Ok(Frame::data(line.into()))).await.is_err() {
                return;
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
