//! The HTTP side: connections, and which part answers a request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use http::{Method, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::path::{ResourcePath, query_parameters};
use super::response::{ApiResponse, failure, json_response, text_response};
use super::store::Selection;
use super::watches::watch;
use super::writes::write_or_get;
use super::{ApiState, RecordedRequest, SharedApiState, port_forward};

/// Accepts connections until it is dropped, and numbers them, so that a test can silence those of a moment.
pub(super) async fn serve(listener: TcpListener, shared: Arc<SharedApiState>) {
    // Dropped with this task, which closes every connection.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let number = {
            let mut cluster = shared.lock();
            cluster.faults.next_connection += 1;
            cluster.faults.next_connection - 1
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

/// Records a request and answers it; a silenced connection waits without an end.
async fn answer(
    shared: Arc<SharedApiState>,
    connection: u64,
    request: http::Request<Incoming>,
) -> ApiResponse {
    if request.uri().path() == "/version" {
        return version(shared.lock().version.unwrap_or((1, 33)));
    }
    let Some(path) = ResourcePath::parse(request.uri().path()) else { return failure(404, "no such path") };
    let query: BTreeMap<String, String> = request.uri().query().map(query_parameters).unwrap_or_default();
    if let (Some(name), Some("portforward" | "log")) = (&path.name, path.subresource.as_deref()) {
        return of_pod(&shared, request, &path, name, &query);
    }
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else { return failure(400, "body") };
    let body = body.to_bytes();
    if connection < shared.lock().faults.silent_below {
        pending::<()>().await;
    }
    let is_watch = query.get("watch").is_some_and(|value| value == "true" || value == "1");
    let selection = path.selection(&query);
    let verb = match (&head.method, &path.name) {
        (&Method::GET, Some(_)) => "get",
        (&Method::GET, None) if is_watch => "watch",
        (&Method::GET, None) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, _) => "delete",
        _ => return failure(405, "method"),
    };
    let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default();
    let response = {
        let mut cluster = shared.lock();
        let request = path.request(verb, &selection);
        cluster.requests.push(request.clone());
        if let Some(refusal) = refusal(&cluster, &request) {
            refusal
        } else if path.plural == "selfsubjectaccessreviews" {
            access_review(&cluster, &body)
        } else if cluster.faults.absent.contains(&path.resource) {
            failure(404, "the server could not find the requested resource")
        } else if verb == "watch" {
            drop(cluster);
            watch(shared.clone(), connection, selection, &query)
        } else if verb == "list" {
            list(&cluster, &selection, &query)
        } else if let Some((code, body)) = cluster.responders.to(&request, &body) {
            json_response(code, &body)
        } else {
            write_or_get(&mut cluster, verb, &path, content_type, &body)
        }
    };
    shared.changed();
    response
}

/// `GET /version`, by which clients find out what the server can do.
fn version((major, minor): (u32, u32)) -> ApiResponse {
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
    shared: &SharedApiState,
    request: http::Request<Incoming>,
    path: &ResourcePath,
    pod: &str,
    query: &BTreeMap<String, String>,
) -> ApiResponse {
    let mut cluster = shared.lock();
    let asked = path.request("get", &path.selection(query));
    cluster.requests.push(asked.clone());
    if let Some(refusal) = refusal(&cluster, &asked) {
        return refusal;
    }
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    let pod = format!("{}/{pod}", path.namespace);
    if path.subresource.as_deref() == Some("log") {
        let log = cluster.pods.logs.get(&format!("{pod}/{}", text("container")));
        return text_response(200, log.cloned().unwrap_or_default());
    }
    let Ok(port) = text("ports").parse::<u16>() else { return failure(400, "ports") };
    let to = cluster.pods.ports.get(&format!("{pod}:{port}")).copied();
    port_forward::forward(request, port, to)
}

/// The response to what the test [forbids](super::FakeApi::forbid), in the words of RBAC.
fn refusal(cluster: &ApiState, request: &RecordedRequest) -> Option<ApiResponse> {
    let RecordedRequest { verb, resource, .. } = request;
    cluster.forbidden.contains(&format!("{verb} {resource}")).then(|| {
        failure(
            403,
            &format!("{resource} is forbidden: User \"someone\" cannot {verb} resource \"{resource}\""),
        )
    })
}

/// Answers `kubectl auth can-i`.
fn access_review(cluster: &ApiState, body: &[u8]) -> ApiResponse {
    let mut review: Value = serde_json::from_slice(body).unwrap_or_default();
    let attributes = &review["spec"]["resourceAttributes"];
    let word = |name: &str| attributes[name].as_str().unwrap_or_default();
    let is_forbidden = cluster.forbidden.contains(&format!("{} {}", word("verb"), word("resource")));
    review["status"] = json!({"allowed": !is_forbidden});
    json_response(201, &review)
}

/// One page of a list. The version stays that of the first page, as with a real server.
fn list(cluster: &ApiState, selection: &Selection, query: &BTreeMap<String, String>) -> ApiResponse {
    let number = |name: &str| query.get(name).and_then(|value| value.parse::<usize>().ok());
    // `<version>.<position>`: as with a real server, a compaction invalidates older tokens.
    let token = query.get("continue").and_then(|token| token.split_once('.'));
    let (version, from) = match token {
        Some((version, from)) => (version.parse().unwrap_or(0), from.parse().unwrap_or(0)),
        None => (cluster.store.version(), 0),
    };
    if cluster.store.is_gone(version) {
        return failure(410, "The provided continue parameter is too old");
    }
    let (items, next) = cluster.store.page(selection, from, number("limit").unwrap_or(usize::MAX));
    let token = next.map(|next| format!("{version}.{next}"));
    let metadata = json!({"resourceVersion": version.to_string(), "continue": token.unwrap_or_default()});
    json_response(200, &json!({"apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items}))
}
