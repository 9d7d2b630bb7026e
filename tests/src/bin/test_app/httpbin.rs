//! Answers like httpbin's.
//!
//! Only paths that the suites use are answered in their own way; every other path gets the description of the
//! request, with httpbin's field names, so that the same assertions hold for the real httpbin.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tidegate_tests::app::{Conversation, lasting};
use tidegate_tests::http1::Message;

use crate::client::{self, Url};

/// Whether `/healthz` and gRPC's health service report healthy. `POST /unhealthy` and `/healthy` change it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    is_bad: Arc<AtomicBool>,
    drains: Arc<AtomicBool>,
    answers: Option<PathBuf>,
}

impl Health {
    /// What `/healthz` reports.
    pub(crate) fn is_good(&self) -> bool {
        !self.is_bad.load(Ordering::Relaxed)
    }

    /// Answers from a JSON file, by path; every other path is not found.
    pub(crate) fn with_answers(answers: Option<PathBuf>) -> Self {
        Self { answers, ..Self::default() }
    }

    /// From now on each answer is its connection's last.
    pub(crate) fn drain(&self) {
        self.drains.store(true, Ordering::Relaxed);
    }
}

/// Answers the requests of one connection, including those that [`lasting`] handles.
pub(crate) fn serve(conversation: &mut Conversation, health: &Health) -> io::Result<()> {
    while let Some(request) = conversation.request()? {
        if lasting(conversation, &request)? {
            return Ok(());
        }
        if let Some(time) = request.target().strip_prefix("/delay/") {
            let time = Duration::from_millis(time.parse().unwrap_or_default());
            if !conversation.pause(time) {
                return Ok(());
            }
        }
        let peer = conversation.peer()?.ip().to_canonical().to_string();
        let drains = health.drains.load(Ordering::Relaxed);
        let mut answer = answer(&request, &peer, health);
        if drains && let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
            answer.splice(end + 1..end + 1, *b"Connection: close\r\n");
        }
        conversation.write(&answer)?;
        if drains || request.closes() {
            return Ok(());
        }
    }
    Ok(())
}

/// `/get` and every other path: a description of the request. `/status/<n>`, `/bytes/<n>`, `/hostname`, `/healthz`;
/// `/tell/<host>` sends that host a request for `/unhealthy` first, and answers with its status.
pub(crate) fn answer(request: &Message, peer: &str, health: &Health) -> Vec<u8> {
    let path = request.target().split('?').next().unwrap_or_default();
    match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["status", code] => return respond(request, code.parse().unwrap_or(400), ""),
        ["bytes", count] => return respond(request, 200, &"x".repeat(count.parse().unwrap_or_default())),
        ["hostname"] => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            return respond(request, 200, &json!({"hostname": name.trim()}).to_string());
        }
        ["tell", host] => {
            let url = Url { host: host.to_owned(), port: 80, path: "/unhealthy".to_owned() };
            let status = client::get(&url, &[]).map_or(503, |answer| answer.status());
            return respond(request, status, "");
        }
        ["healthz"] => return respond(request, if health.is_good() { 200 } else { 500 }, ""),
        _ if let Some(answers) = &health.answers => {
            let answers = std::fs::read_to_string(answers).unwrap_or_default();
            let answers: Value = serde_json::from_str(&answers).unwrap_or_default();
            return match answers.get(path) {
                Some(answer) => respond(request, 200, &answer.to_string()),
                None => respond(request, 404, ""),
            };
        }
        ["unhealthy"] => health.is_bad.store(true, Ordering::Relaxed),
        ["healthy"] => health.is_bad.store(false, Ordering::Relaxed),
        _ => {}
    }
    respond(request, 200, &format!("{:#}\n", describe(request, peer)))
}

/// The JSON of httpbin's `/get`, with the peer's address as well.
fn describe(request: &Message, peer: &str) -> Value {
    let host = request.value("host").unwrap_or_default();
    let query = request.target().split_once('?').map_or("", |(_, query)| query);
    let arguments = query.split('&').filter(|pair| !pair.is_empty());
    let arguments: BTreeMap<_, _> =
        arguments.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    let headers: BTreeMap<_, _> =
        request.fields.iter().map(|(name, value)| (title(name), value.clone())).collect();
    json!({
        "args": arguments,
        "headers": headers,
        "origin": request.value("x-forwarded-for").unwrap_or(peer),
        "peer": peer,
        "url": format!("http://{host}{}", request.target()),
    })
}

/// httpbin writes `x-request-id` as `X-Request-Id`.
fn title(name: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters.map(|letter| letter.to_ascii_lowercase())).collect::<String>()
    };
    name.split('-').map(word).collect::<Vec<_>>().join("-")
}

/// A complete response, without its body for HEAD.
fn respond(request: &Message, status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    let body = if request.method() == "HEAD" { "" } else { body };
    format!(
        "HTTP/1.1 {status} {}\r\nServer: test-app\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\naccess-control-allow-origin: *\r\naccess-control-allow-credentials: true\r\n\r\n\
         {body}",
        reason(status)
    )
    .into_bytes()
}

fn reason(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}
