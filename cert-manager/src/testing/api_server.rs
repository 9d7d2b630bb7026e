//! A Kubernetes API server in memory, on loopback: enough of it for what the certificate authority does there.
//!
//! Objects have resource versions and UIDs; writes with an old version conflict; a Secret's type is fixed; what lies in
//! a namespace needs that namespace. Lists and watches know `metadata.name` as field selector.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::watch;

/// A running server. It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
}

type Judge = Box<dyn Fn(&Value) -> Value + Send>;
/// Sees method, path and body before they are acted on; `Some` answers in their place.
type Interceptor = Box<dyn FnMut(&Method, &str, &Value) -> Option<(u16, &'static str)> + Send>;

struct Shared {
    inner: Mutex<Inner>,
    version: watch::Sender<u64>,
}

struct Inner {
    version: u64,
    objects: BTreeMap<Key, Value>,
    events: Vec<(u64, Key, &'static str, Value)>,
    requests: Vec<String>,
    judge: Option<Judge>,
    interceptor: Option<Interceptor>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Such as `/api/v1`.
    group: String,
    plural: String,
    namespace: Option<String>,
    name: String,
}

/// A path of the API: an object, or a collection where `name` is empty.
struct Target {
    key: Key,
    is_status: bool,
}

impl ApiServer {
    /// Starts one that holds these namespaces.
    pub(crate) async fn start(namespaces: &[&str]) -> Self {
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                version: 1,
                objects: BTreeMap::new(),
                events: Vec::new(),
                requests: Vec::new(),
                judge: None,
                interceptor: None,
            }),
            version: watch::channel(1).0,
        });
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let this = Self { shared, address };
        for name in namespaces {
            this.put(&format!("/api/v1/namespaces/{name}"), json!({"kind": "Namespace", "apiVersion": "v1"}));
        }
        this
    }

    pub(crate) fn client(&self) -> kube::Client {
        let config = kube::Config::new(format!("http://{}", self.address).parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    /// Creates or replaces an object as somebody else would.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let mut inner = self.lock();
        let key = target(path).unwrap().key;
        let _ = inner.write(key, object);
        self.publish(&inner);
    }

    /// Changes an object as somebody else would.
    pub(crate) fn edit(&self, path: &str, edit: impl FnOnce(&mut Value)) {
        let mut inner = self.lock();
        let key = target(path).unwrap().key;
        let mut object = inner.objects[&key].clone();
        edit(&mut object);
        let _ = inner.write(key, object);
        self.publish(&inner);
    }

    /// Deletes an object as somebody else would.
    pub(crate) fn remove(&self, path: &str) {
        let mut inner = self.lock();
        inner.delete(&target(path).unwrap().key);
        self.publish(&inner);
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(&target(path).unwrap().key).cloned()
    }

    /// `METHOD path` of every request so far, queries left out.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// Decides about TokenReviews: `spec` in, `status` out.
    pub(crate) fn judge_tokens(&self, judge: impl Fn(&Value) -> Value + Send + 'static) {
        self.lock().judge = Some(Box::new(judge));
    }

    pub(crate) fn intercept(
        &self,
        interceptor: impl FnMut(&Method, &str, &Value) -> Option<(u16, &'static str)> + Send + 'static,
    ) {
        self.lock().interceptor = Some(Box::new(interceptor));
    }

    /// Returns once `condition` holds for the object at `path`, looked at after each change.
    pub(crate) async fn until(&self, path: &str, condition: impl Fn(Option<&Value>) -> bool) {
        let mut version = self.shared.version.subscribe();
        let waiting = async {
            loop {
                version.borrow_and_update();
                if condition(self.get(path).as_ref()) {
                    return;
                }
                version.changed().await.unwrap();
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(20), waiting).await;
        assert!(waited.is_ok(), "{path} stays {:#?}", self.get(path));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap()
    }

    fn publish(&self, inner: &Inner) {
        self.shared.version.send_replace(inner.version);
    }
}

impl Inner {
    fn write(&mut self, key: Key, mut object: Value) -> Result<Value, Response> {
        let before = self.objects.get(&key);
        let asked = object["metadata"]["resourceVersion"].as_str().map(ToOwned::to_owned);
        match (before, &asked) {
            (Some(before), Some(asked)) if before["metadata"]["resourceVersion"] != asked.as_str() => {
                return Err(failure(StatusCode::CONFLICT, "Conflict", "the object has been modified"));
            }
            (Some(before), _) if key.plural == "secrets" && before["type"] != object["type"] => {
                let text = "type: Invalid value: field is immutable";
                return Err(failure(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", text));
            }
            (None, Some(_)) => return Err(failure(StatusCode::NOT_FOUND, "NotFound", "not found")),
            _ => {}
        }
        if let Some(namespace) = &key.namespace {
            let of_namespace = Key {
                group: "/api/v1".to_owned(),
                plural: "namespaces".to_owned(),
                namespace: None,
                name: namespace.clone(),
            };
            if !self.objects.contains_key(&of_namespace) {
                let text = format!("namespaces {namespace:?} not found");
                return Err(failure(StatusCode::NOT_FOUND, "NotFound", &text));
            }
        }
        let uid = before.map_or_else(|| json!(format!("uid-{}", self.version)), |b| b["metadata"]["uid"].clone());
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(key.name);
        if let Some(namespace) = &key.namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata["uid"] = uid;
        if let Some(before) = before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if *before == object {
                return Ok(object);
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.events.push((self.version, key.clone(), kind, object.clone()));
        self.objects.insert(key, object.clone());
        Ok(object)
    }

    fn delete(&mut self, key: &Key) {
        let mut object = self.objects.remove(key).unwrap();
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.events.push((self.version, key.clone(), "DELETED", object));
    }
}

impl Key {
    /// Whether it lies in the collection and has the selected name.
    fn is_in(&self, collection: &Key, selected: Option<&str>) -> bool {
        self.group == collection.group
            && self.plural == collection.plural
            && (collection.namespace.is_none() || self.namespace == collection.namespace)
            && selected.is_none_or(|selected| selected == self.name)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = uri.path().to_owned();
    let mut inner = shared.inner.lock().unwrap();
    inner.requests.push(format!("{method} {path}"));
    if let Some(mut interceptor) = inner.interceptor.take() {
        let answer = interceptor(&method, &path, &body);
        inner.interceptor = Some(interceptor);
        if let Some((code, text)) = answer {
            return failure(StatusCode::from_u16(code).unwrap(), "Intercepted", text);
        }
    }
    if path.ends_with("/tokenreviews") {
        let status = inner.judge.as_ref().map_or(Value::Null, |judge| judge(&body["spec"]));
        let mut review = body;
        review["status"] = status;
        return (StatusCode::CREATED, axum::Json(review)).into_response();
    }
    let Some(Target { mut key, is_status }) = target(&path) else {
        return failure(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource");
    };
    let selected = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
    let before = inner.objects.get(&key).cloned();
    let not_found =
        || failure(StatusCode::NOT_FOUND, "NotFound", &format!("{} {:?} not found", key.plural, key.name));
    let written = match method.as_str() {
        "GET" if key.name.is_empty() && query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") => {
            let from = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
            drop(inner);
            return watch_stream(shared, key, selected.map(ToOwned::to_owned), from);
        }
        "GET" if key.name.is_empty() => {
            let items: Vec<_> =
                inner.objects.iter().filter(|(k, _)| k.is_in(&key, selected)).map(|(_, object)| object).collect();
            let version = inner.version.to_string();
            let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
            return axum::Json(list).into_response();
        }
        "GET" => return before.map_or_else(not_found, |object| axum::Json(object).into_response()),
        "POST" => {
            key.name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if inner.objects.contains_key(&key) {
                return failure(StatusCode::CONFLICT, "AlreadyExists", "already exists");
            }
            inner.write(key, body).map(|object| (StatusCode::CREATED, object))
        }
        "PUT" => {
            if before.is_none() {
                return not_found();
            }
            inner.write(key, body).map(|object| (StatusCode::OK, object))
        }
        "PATCH" => {
            let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let (mut object, code) = match before {
                Some(before) => (before, StatusCode::OK),
                None if kind.starts_with("application/apply-patch") => (json!({}), StatusCode::CREATED),
                None => return not_found(),
            };
            let mut patch = body;
            if is_status {
                patch = json!({"status": patch["status"]});
            }
            let asked = patch["metadata"]["resourceVersion"].clone();
            json_patch::merge(&mut object, &patch);
            if asked.is_null()
                && let Some(metadata) = object["metadata"].as_object_mut()
            {
                metadata.remove("resourceVersion");
            }
            inner.write(key, object).map(|object| (code, object))
        }
        "DELETE" => {
            let Some(before) = before else { return not_found() };
            for field in ["uid", "resourceVersion"] {
                let wanted = &body["preconditions"][field];
                if !wanted.is_null() && *wanted != before["metadata"][field] {
                    return failure(StatusCode::CONFLICT, "Conflict", "the precondition failed");
                }
            }
            inner.delete(&key);
            Ok((StatusCode::OK, json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})))
        }
        _ => Err(failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "no")),
    };
    shared.version.send_replace(inner.version);
    match written {
        Ok((code, object)) => (code, axum::Json(object)).into_response(),
        Err(failure) => failure,
    }
}

fn watch_stream(shared: Arc<Shared>, collection: Key, selected: Option<String>, from: u64) -> Response {
    let version = shared.version.subscribe();
    let events = futures_util::stream::unfold((shared, version, from), move |(shared, mut version, from)| {
        let (collection, selected) = (collection.clone(), selected.clone());
        async move {
            loop {
                let newest = *version.borrow_and_update();
                let text: String = {
                    let inner = shared.inner.lock().unwrap();
                    let events = inner.events.iter().filter(|(version, key, ..)| {
                        (from + 1..=newest).contains(version) && key.is_in(&collection, selected.as_deref())
                    });
                    events.map(|(_, _, kind, object)| format!("{}\n", json!({"type": kind, "object": object}))).collect()
                };
                if !text.is_empty() {
                    return Some((Ok::<_, Infallible>(text), (shared, version, newest)));
                }
                version.changed().await.ok()?;
            }
        }
    });
    Body::from_stream(events).into_response()
}

fn target(path: &str) -> Option<Target> {
    let segments: Vec<_> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] => (format!("/api/{version}"), rest),
        ["apis", group, version, rest @ ..] => (format!("/apis/{group}/{version}"), rest),
        _ => return None,
    };
    let (is_status, rest) = match rest {
        [rest @ .., "status"] if rest.len() >= 2 => (true, rest),
        rest => (false, rest),
    };
    let (namespace, plural, name) = match rest {
        ["namespaces", namespace, plural] => (Some(*namespace), *plural, ""),
        ["namespaces", namespace, plural, name] => (Some(*namespace), *plural, *name),
        [plural] => (None, *plural, ""),
        [plural, name] => (None, *plural, *name),
        _ => return None,
    };
    let key = Key {
        group,
        plural: plural.to_owned(),
        namespace: namespace.map(ToOwned::to_owned),
        name: name.to_owned(),
    };
    Some(Target { key, is_status })
}

fn failure(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "reason": reason, "message": message, "code": code.as_u16(),
    });
    (code, axum::Json(status)).into_response()
}
