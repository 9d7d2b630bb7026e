//! The HTTP side: paths, verbs, watches.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::store::Selection;
use super::{Request, Shared, port_forward};

type Body = http_body_util::combinators::BoxBody<Bytes, io::Error>;
pub(super) type Response = http::Response<Body>;

/// A path of a resource, or of one of its objects.
#[derive(Debug)]
struct Target {
    group: String,
    /// `v1/pods` or `<group>/<version>/<plural>`.
    resource: String,
    plural: String,
    namespace: String,
    name: Option<String>,
    subresource: Option<String>,
}

pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, which closes every connection.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let number = {
            let mut state = shared.lock();
            state.faults.next_connection += 1;
            state.faults.next_connection - 1
        };
        let shared = shared.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(shared, number, request).await) }
            });
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        });
    }
}

async fn answer(shared: Arc<Shared>, connection: u64, request: http::Request<Incoming>) -> Response {
    if request.uri().path() == "/version" {
        return version(shared.lock().version.unwrap_or((1, 33)));
    }
    let Some(target) = Target::parse(request.uri().path()) else { return failure(404, "no such path") };
    let query: BTreeMap<String, String> = request.uri().query().map(decode).unwrap_or_default();
    if let (Some(name), Some("portforward" | "log")) = (&target.name, target.subresource.as_deref()) {
        return of_pod(&shared, request, &target, name, &query);
    }
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return failure(400, "body") };
    let body = body.to_bytes();
    if connection < shared.lock().faults.silent_below {
        pending::<()>().await;
    }
    let is_watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let selection = target.selection(&query);
    let verb = match (&head.method, &target.name) {
        (&Method::GET, Some(_)) => "get",
        (&Method::GET, None) if is_watch => "watch",
        (&Method::GET, None) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ => return failure(405, "method"),
    };
    let response = {
        let mut state = shared.lock();
        let request = target.request(verb, &selection);
        state.requests.push(request.clone());
        if let Some(refusal) = refusal(&state, &request) {
            refusal
        } else if target.plural == "selfsubjectaccessreviews" {
            access_review(&state, &body)
        } else if state.faults.absent.contains(&target.resource) {
            failure(404, "the server could not find the requested resource")
        } else if verb == "watch" {
            drop(state);
            watch(shared.clone(), connection, selection, &query)
        } else if verb == "list" {
            list(&state, &selection, &query)
        } else if let Some((code, body)) = state.answers.to(&request, &body) {
            json_response(code, &body)
        } else {
            write_or_get(&mut state, verb, &target, head.headers.get("content-type"), &body)
        }
    };
    shared.changed();
    response
}

fn version((major, minor): (u32, u32)) -> Response {
    json_response(
        200,
        &json!({
            "major": major.to_string(), "minor": minor.to_string(), "gitVersion": format!("v{major}.{minor}.0"),
            "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        }),
    )
}

/// Requests to the Pod itself: its log, or one of its ports.
fn of_pod(
    shared: &Shared,
    request: http::Request<Incoming>,
    target: &Target,
    pod: &str,
    query: &BTreeMap<String, String>,
) -> Response {
    let mut state = shared.lock();
    let asked = target.request("get", &target.selection(query));
    state.requests.push(asked.clone());
    if let Some(refusal) = refusal(&state, &asked) {
        return refusal;
    }
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let pod = format!("{}/{pod}", target.namespace);
    if target.subresource.as_deref() == Some("log") {
        let log = state.pods.logs.get(&format!("{pod}/{}", text("container")));
        return stream(200, log.cloned().unwrap_or_default());
    }
    let Ok(port) = text("ports").parse::<u16>() else { return failure(400, "ports") };
    let to = state.pods.ports.get(&format!("{pod}:{port}")).copied();
    port_forward::forward(request, port, to)
}

fn refusal(state: &super::State, request: &Request) -> Option<Response> {
    let Request { verb, resource, .. } = request;
    state.forbidden.contains(&format!("{verb} {resource}")).then(|| {
        failure(
            403,
            &format!("{resource} is forbidden: User \"someone\" cannot {verb} resource \"{resource}\""),
        )
    })
}

/// Answers `kubectl auth can-i`.
fn access_review(state: &super::State, body: &[u8]) -> Response {
    let mut review: Value = serde_json::from_slice(body).unwrap_or_default();
    let attributes = &review["spec"]["resourceAttributes"];
    let word = |name: &str| attributes[name].as_str().unwrap_or_default();
    let is_forbidden = state.forbidden.contains(&format!("{} {}", word("verb"), word("resource")));
    review["status"] = json!({"allowed": !is_forbidden});
    json_response(201, &review)
}

fn list(state: &super::State, selection: &Selection, query: &BTreeMap<String, String>) -> Response {
    let number = |name: &str| query.get(name).and_then(|value| value.parse::<usize>().ok());
    // `<version>.<position>`: as with a real server, a compaction invalidates older tokens.
    let token = query.get("continue").and_then(|token| token.split_once('.'));
    let (version, from) = match token {
        Some((version, from)) => (version.parse().unwrap_or(0), from.parse().unwrap_or(0)),
        None => (state.store.version(), 0),
    };
    if state.store.is_gone(version) {
        return failure(410, "The provided continue parameter is too old");
    }
    let (items, next) = state.store.page(selection, from, number("limit").unwrap_or(usize::MAX));
    let token = next.map(|next| format!("{version}.{next}"));
    let metadata = json!({"resourceVersion": version.to_string(), "continue": token.unwrap_or_default()});
    json_response(200, &json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items}))
}

fn write_or_get(
    state: &mut super::State,
    verb: &str,
    target: &Target,
    content_type: Option<&http::HeaderValue>,
    body: &[u8],
) -> Response {
    if verb != "get"
        && let Some((code, count)) = &mut state.faults.refuse_writes
        && *count > 0
    {
        *count -= 1;
        return failure(*code, "writes are refused");
    }
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    let resource = target.resource.as_str();
    let name = target.name.as_deref().or(sent["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
    let name = name.as_str();
    let before = state.store.get(resource, &target.namespace, name).cloned();
    let mut object = match (verb, before) {
        ("get", Some(object)) => return json_response(200, &object),
        ("create", Some(_)) => return failure(409, "already exists"),
        ("create", None) => sent,
        ("delete", Some(mut object))
            if object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty()) =>
        {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            object
        }
        ("delete", Some(object)) => {
            state.store.delete(resource, &target.namespace, name);
            return json_response(200, &object);
        }
        ("update", Some(before)) => {
            let version = &sent["metadata"]["resourceVersion"];
            if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
                return failure(409, "the object has been modified");
            }
            if is_frozen(&before, &sent) {
                return failure(422, IMMUTABLE);
            }
            target.merged(before, sent)
        }
        ("patch", before) => {
            let kind = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
            let is_apply = kind.starts_with("application/apply-patch");
            // Applying to a subresource does not create the object.
            let may_create = is_apply && target.subresource.is_none();
            let Some(before) = before.or_else(|| may_create.then(|| json!({}))) else {
                return failure(404, "not found");
            };
            let version = &sent["metadata"]["resourceVersion"];
            if version.is_string() && *version != before["metadata"]["resourceVersion"] {
                return failure(409, "the object has been modified");
            }
            let mut after = before.clone();
            if kind.starts_with("application/json-patch") {
                let patch = serde_json::from_value::<json_patch::Patch>(sent);
                let Ok(Ok(())) = patch.map(|patch| json_patch::patch(&mut after, &patch)) else {
                    return failure(422, "the patch does not apply");
                };
            } else {
                let conditions = is_apply.then(|| applied_conditions(&before, &sent)).flatten();
                json_patch::merge(&mut after, &sent);
                if let Some(conditions) = conditions {
                    after["status"]["conditions"] = conditions;
                }
            }
            if is_frozen(&before, &after) {
                return failure(422, IMMUTABLE);
            }
            target.merged(before, after)
        }
        _ => return failure(404, "not found"),
    };
    object["metadata"]["name"] = name.into();
    if !target.namespace.is_empty() {
        object["metadata"]["namespace"] = target.namespace.as_str().into();
    }
    state.store.put(resource, object);
    match state.store.get(resource, &target.namespace, name) {
        Some(object) => json_response(if verb == "create" { 201 } else { 200 }, object),
        None => failure(500, "lost"),
    }
}

const IMMUTABLE: &str = "data: Forbidden: field is immutable when `immutable` is set";

/// Whether an immutable ConfigMap or Secret refuses a change.
fn is_frozen(before: &Value, after: &Value) -> bool {
    before["immutable"] == true && (before["data"] != after["data"] || after["immutable"] != true)
}

/// Conditions are a list keyed by type: applied ones replace those of the same type, the others stay.
fn applied_conditions(before: &Value, sent: &Value) -> Option<Value> {
    let sent = sent["status"]["conditions"].as_array()?;
    let mut merged = before["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for condition in sent {
        match merged.iter_mut().find(|found| found["type"] == condition["type"]) {
            Some(found) => *found = condition.clone(),
            None => merged.push(condition.clone()),
        }
    }
    Some(merged.into())
}

fn watch(
    shared: Arc<Shared>,
    connection: u64,
    selection: Selection,
    query: &BTreeMap<String, String>,
) -> Response {
    let version: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    let bookmarks = query.get("allowWatchBookmarks").is_some_and(|value| value == "true");
    let timeout = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(300);
    let (sender, receiver) = mpsc::channel::<io::Result<Frame<Bytes>>>(16);
    let position = {
        let state = shared.lock();
        if state.faults.break_watches {
            let line = format!("{}\n", json!({"type": "ERROR", "object": status(500, "not well")}));
            return stream(200, line);
        }
        if state.store.is_gone(version) {
            let status = status(410, "too old resource version");
            if state.faults.gone_by_status {
                return json_response(410, &status);
            }
            let line = format!("{}\n", json!({"type": "ERROR", "object": status}));
            return stream(200, line);
        }
        if version == 0 { state.store.end_of_log() } else { state.store.position_after(version) }
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

async fn follow(
    shared: &Shared,
    selection: Selection,
    mut position: usize,
    bookmarks: bool,
    sender: &mpsc::Sender<io::Result<Frame<Bytes>>>,
) {
    let mut changes = shared.changes.subscribe();
    loop {
        changes.borrow_and_update();
        let (events, end, truncated) = {
            let mut state = shared.lock();
            let events = state.store.events(&selection, position, bookmarks);
            let is_mine = state.faults.truncate.as_ref() == Some(&selection.resource);
            let truncated = !events.is_empty() && is_mine;
            if truncated {
                state.faults.truncate = None;
            }
            (events, state.store.end_of_log(), truncated)
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

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_matches('/').split('/').filter(|part| !part.is_empty());
        let (group, version) = match parts.next()? {
            "api" => (String::new(), parts.next()?),
            "apis" => (parts.next()?.to_owned(), parts.next()?),
            _ => return None,
        };
        let mut rest: Vec<&str> = parts.collect();
        let mut namespace = String::new();
        if rest.len() >= 3 && rest.first() == Some(&"namespaces") {
            namespace = rest.get(1)?.to_string();
            rest.drain(..2);
        }
        let plural = rest.first()?.to_string();
        let prefix = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        Some(Self {
            resource: format!("{prefix}/{plural}"),
            plural,
            group,
            namespace,
            name: rest.get(1).map(ToString::to_string),
            subresource: rest.get(2).map(ToString::to_string),
        })
    }

    fn selection(&self, query: &BTreeMap<String, String>) -> Selection {
        let fields = query.get("fieldSelector").map(String::as_str).unwrap_or_default();
        let name = fields.split(',').find_map(|field| field.strip_prefix("metadata.name="));
        let labels = query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let labels = labels.split(',').filter_map(|label| label.split_once('='));
        Selection {
            resource: self.resource.clone(),
            namespace: self.namespace.clone(),
            name: name.map(str::to_owned),
            labels: labels.map(|(key, value)| (key.to_owned(), value.trim_matches('=').to_owned())).collect(),
        }
    }

    fn request(&self, verb: &'static str, selection: &Selection) -> Request {
        let resource = match &self.subresource {
            Some(subresource) => format!("{}/{subresource}", self.plural),
            None => self.plural.clone(),
        };
        Request {
            verb,
            group: self.group.clone(),
            resource,
            namespace: self.namespace.clone(),
            name: self.name.clone().or_else(|| selection.name.clone()).unwrap_or_default(),
        }
    }

    /// The result of a write: `/status` changes only the status, and the object itself everything else.
    fn merged(&self, before: Value, after: Value) -> Value {
        match self.subresource.as_deref() {
            Some("status") => {
                let mut object = before;
                object["status"] = after["status"].clone();
                object
            }
            _ => after,
        }
    }
}

pub(super) fn status(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        _ => "Unknown",
    };
    json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code})
}

pub(super) fn failure(code: u16, message: &str) -> Response {
    json_response(code, &status(code, message))
}

fn json_response(code: u16, value: &Value) -> Response {
    stream(code, value.to_string())
}

pub(super) fn stream(code: u16, text: String) -> Response {
    let body = Full::new(Bytes::from(text)).map_err(|never| match never {});
    let mut response = http::Response::new(BodyExt::boxed(body));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or_default();
    response
}

/// The parameters of a query, percent-decoded.
fn decode(query: &str) -> BTreeMap<String, String> {
    let unescape = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, tail)) = rest.split_first() {
            let escaped = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
            match (byte, escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
                (b'%', Some(value)) => {
                    bytes.push(value);
                    rest = tail.get(2..).unwrap_or_default();
                }
                (b'+', _) => {
                    bytes.push(b' ');
                    rest = tail;
                }
                _ => {
                    bytes.push(byte);
                    rest = tail;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (unescape(k), unescape(v)))
        .collect()
}
