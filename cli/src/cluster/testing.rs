//! An API server for tests: it holds objects, remembers what was asked, and forwards ports to stubs of admin servers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::admin::ADMIN_PORT;
use super::client::Cluster;

/// What the paths of the API call the kinds that tests use.
const KINDS: [(&str, &str); 17] = [
    ("namespaces", "Namespace"),
    ("pods", "Pod"),
    ("services", "Service"),
    ("secrets", "Secret"),
    ("configmaps", "ConfigMap"),
    ("events", "Event"),
    ("nodes", "Node"),
    ("serviceaccounts", "ServiceAccount"),
    ("endpointslices", "EndpointSlice"),
    ("deployments", "Deployment"),
    ("leases", "Lease"),
    ("ingressbackends", "IngressBackend"),
    ("meshconfigs", "MeshConfig"),
    ("customresourcedefinitions", "CustomResourceDefinition"),
    ("mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
    ("validatingwebhookconfigurations", "ValidatingWebhookConfiguration"),
    ("selfsubjectaccessreviews", "SelfSubjectAccessReview"),
];

/// A running API server. Clones are the same one.
#[derive(Clone)]
pub(crate) struct FakeCluster {
    address: SocketAddr,
    state: Arc<Mutex<Objects>>,
}

#[derive(Default)]
struct Objects {
    objects: Vec<Value>,
    requests: Vec<Asked>,
    /// `<verb> <plural>` that the user may not do.
    forbidden: BTreeSet<String>,
    /// Plurals that no definition makes known.
    unknown: BTreeSet<String>,
    admin: BTreeMap<String, SocketAddr>,
    logs: BTreeMap<String, String>,
    version: (u32, u32),
}

/// A request that changed something.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// The parts of a path of the API.
#[derive(Debug)]
struct Target {
    kind: &'static str,
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

impl FakeCluster {
    /// Starts with these objects, each with `kind` and `metadata`.
    pub(crate) async fn start(objects: Vec<Value>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(Objects { objects, version: (1, 33), ..Objects::default() }));
        let app = Router::new().fallback(handle).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, state }
    }

    /// A client of it, for mesh `osm` with its control plane in `tidegate-system`.
    pub(crate) fn cluster(&self) -> Cluster {
        let server = format!("http://{}", self.address);
        let config = Config::new(server.parse().unwrap());
        Cluster {
            client: Client::try_from(config).unwrap(),
            server,
            control_plane: "tidegate-system".to_owned(),
            mesh_name: "osm".to_owned(),
        }
    }

    /// Answers port-forwards to a Pod's admin port by these routes.
    pub(crate) async fn admin(&self, pod: &str, routes: Router) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        self.lock().admin.insert(pod.to_owned(), listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
    }

    /// The log of a Pod's container, by `<namespace>/<pod>/<container>`.
    pub(crate) fn log(&self, container: &str, text: &str) {
        self.lock().logs.insert(container.to_owned(), text.to_owned());
    }

    /// Refuses a verb of a resource, such as `list pods`.
    pub(crate) fn forbid(&self, what: &str) {
        self.lock().forbidden.insert(what.to_owned());
    }

    /// Has no definition of a resource.
    pub(crate) fn forget_kind(&self, plural: &str) {
        self.lock().unknown.insert(plural.to_owned());
    }

    /// Says that it is this version.
    pub(crate) fn version(&self, major: u32, minor: u32) {
        self.lock().version = (major, minor);
    }

    /// Adds an object, or replaces it.
    pub(crate) fn put(&self, object: Value) {
        let mut state = self.lock();
        state.objects.retain(|other| {
            other["kind"] != object["kind"]
                || other["metadata"]["name"] != object["metadata"]["name"]
                || other["metadata"]["namespace"] != object["metadata"]["namespace"]
        });
        state.objects.push(object);
    }

    /// Removes an object.
    pub(crate) fn delete(&self, kind: &str, name: &str) {
        self.lock().objects.retain(|other| other["kind"] != kind || other["metadata"]["name"] != name);
    }

    /// An object as it is now.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Value {
        let state = self.lock();
        let found =
            state.objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.cloned().unwrap_or(Value::Null)
    }

    /// Every request that was no plain reading.
    pub(crate) fn changes(&self) -> Vec<Asked> {
        self.lock().requests.iter().filter(|asked| asked.method != Method::GET).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Objects> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A namespace with labels.
pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A running Pod of the control plane.
pub(crate) fn control_plane_pod(part: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "tidegate-system", "labels": {
            "app.kubernetes.io/name": part,
            "app.kubernetes.io/instance": "osm",
            "app.kubernetes.io/part-of": "tidegate",
        }},
        "spec": {"containers": [{"name": part, "image": format!("tidegate/{part}:0.1.0")}]},
        "status": {"phase": "Running"},
    })
}

/// A running Pod with a sidecar.
pub(crate) fn meshed_pod(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"tidegate.io/sidecar": "injected"}},
        "spec": {
            "containers": [{"name": "app", "image": "app:1"}],
            "initContainers": [
                {"name": "tidegate-sidecar", "image": "tidegate/sidecar:0.1.0", "restartPolicy": "Always"},
            ],
        },
        "status": {"phase": "Running", "podIP": "10.0.0.1"},
    })
}

/// A running Pod without one.
pub(crate) fn plain_pod(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        "status": {"phase": "Running", "podIP": "10.0.0.2"},
    })
}

/// An IngressBackend of namespace `namespace` that opens `port` of each of `services`.
pub(crate) fn ingress_backend(
    namespace: &str,
    name: &str,
    services: &[&str],
    port: u16,
    sources: Value,
) -> Value {
    let backends: Vec<Value> = services
        .iter()
        .map(|service| json!({"name": service, "port": {"number": port, "protocol": "http"}}))
        .collect();
    json!({
        "apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "IngressBackend",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"backends": backends, "sources": sources},
    })
}

async fn handle(State(state): State<Arc<Mutex<Objects>>>, request: Request) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let query = uri.query().unwrap_or_default().to_owned();
    if uri.path() == "/version" {
        let (major, minor) = lock(&state).version;
        return axum::Json(json!({
            "major": major.to_string(), "minor": minor.to_string(), "gitVersion": format!("v{major}.{minor}.0"),
            "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": "",
        }))
        .into_response();
    }
    let Some(target) = Target::of(uri.path()) else { return refused(404, "404 page not found") };
    if let Some(refusal) = lock(&state).refusal(&method, &target) {
        return refusal;
    }
    if target.subresource.as_deref() == Some("portforward") {
        let key = format!("{}/{}", target.namespace.unwrap_or_default(), target.name.unwrap_or_default());
        let admin = lock(&state).admin.get(&key).copied();
        return forward(request, admin);
    }
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let mut state = lock(&state);
    state.requests.push(Asked { method: method.clone(), path: uri.path().to_owned(), body: body.clone() });
    state.answer(&method, &target, &query, body)
}

impl Target {
    fn of(path: &str) -> Option<Self> {
        let mut segments = path.trim_start_matches('/').split('/').map(str::to_owned);
        match segments.next()?.as_str() {
            "api" => drop(segments.next()),
            "apis" => drop((segments.next(), segments.next())),
            _ => return None,
        }
        let mut rest: Vec<String> = segments.collect();
        let namespace = (rest.first()? == "namespaces" && rest.len() > 2).then(|| {
            rest.remove(0);
            rest.remove(0)
        });
        let mut rest = rest.into_iter();
        let plural = rest.next()?;
        let (_, kind) = KINDS.iter().find(|(known, _)| *known == plural)?;
        Some(Self { kind, plural, namespace, name: rest.next(), subresource: rest.next() })
    }

    fn selects(&self, object: &Value) -> bool {
        object["kind"] == self.kind
            && self.namespace.as_ref().is_none_or(|name| object["metadata"]["namespace"] == *name)
            && self.name.as_ref().is_none_or(|name| object["metadata"]["name"] == *name)
    }
}

impl Objects {
    fn refusal(&self, method: &Method, target: &Target) -> Option<Response> {
        let verb = match (method, &target.name) {
            (&Method::GET, None) => "list",
            (&Method::GET, Some(_)) => "get",
            (&Method::PATCH, _) => "patch",
            _ => "create",
        };
        let resource = match &target.subresource {
            Some(sub) => format!("{}/{sub}", target.plural),
            None => target.plural.clone(),
        };
        if self.forbidden.contains(&format!("{verb} {resource}")) {
            let message =
                format!("{resource} is forbidden: User \"someone\" cannot {verb} resource \"{resource}\"");
            return Some(refused(403, &message));
        }
        self.unknown.contains(&target.plural).then(|| refused(404, "404 page not found"))
    }

    fn answer(&mut self, method: &Method, target: &Target, query: &str, body: Value) -> Response {
        match *method {
            Method::GET if target.subresource.as_deref() == Some("log") => self.log(target, query),
            Method::GET if target.name.is_none() => self.list(target, query),
            Method::GET => match self.objects.iter().find(|object| target.selects(object)) {
                Some(object) => axum::Json(object).into_response(),
                None => not_found(target),
            },
            Method::PATCH => match self.objects.iter_mut().find(|object| target.selects(object)) {
                Some(object) => {
                    merge(object, &body);
                    axum::Json(&*object).into_response()
                }
                None => not_found(target),
            },
            Method::POST if target.kind == "SelfSubjectAccessReview" => self.review(body),
            _ => refused(405, "not in this stub"),
        }
    }

    fn list(&self, target: &Target, query: &str) -> Response {
        let decoded = query.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/");
        let selector = decoded.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
        let wanted: Vec<(&str, &str)> = selector
            .into_iter()
            .flat_map(|selector| selector.split(','))
            .map(|term| term.split_once('=').unwrap())
            .collect();
        let matches =
            |object: &&Value| wanted.iter().all(|(name, value)| object["metadata"]["labels"][name] == *value);
        let items: Vec<&Value> =
            self.objects.iter().filter(|object| target.selects(object)).filter(matches).collect();
        axum::Json(json!({
            "apiVersion": "v1", "kind": format!("{}List", target.kind), "metadata": {}, "items": items,
        }))
        .into_response()
    }

    fn log(&self, target: &Target, query: &str) -> Response {
        let container = query.split('&').find_map(|pair| pair.strip_prefix("container=")).unwrap_or_default();
        let (namespace, name) = (target.namespace.as_deref(), target.name.as_deref());
        let key = format!("{}/{}/{container}", namespace.unwrap_or_default(), name.unwrap_or_default());
        self.logs.get(&key).cloned().unwrap_or_default().into_response()
    }

    fn review(&self, mut body: Value) -> Response {
        let attributes = &body["spec"]["resourceAttributes"];
        let word = |name: &str| attributes[name].as_str().unwrap_or_default().to_owned();
        let denied = self.forbidden.contains(&format!("{} {}", word("verb"), word("resource")));
        body["status"] = json!({"allowed": !denied});
        axum::Json(body).into_response()
    }
}

fn lock(state: &Mutex<Objects>) -> MutexGuard<'_, Objects> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(code: u16, message: &str) -> Response {
    let reason = if code == 403 { "Forbidden" } else { "NotFound" };
    let status = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason,
    });
    (StatusCode::from_u16(code).unwrap(), axum::Json(status)).into_response()
}

fn not_found(target: &Target) -> Response {
    let name = target.name.as_deref().unwrap_or_default();
    refused(404, &format!("{} \"{name}\" not found", target.plural))
}

/// RFC 7396.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut object[name.as_str()], value);
        }
    }
}

/// Speaks as the kubelet does: channel 0 carries data, channel 1 errors, each opened by the port's number.
fn forward(mut request: Request, admin: Option<SocketAddr>) -> Response {
    let key = request.headers()[header::SEC_WEBSOCKET_KEY].as_bytes().to_vec();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let upgraded = upgrade.await.unwrap();
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        pump(socket, admin).await;
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, derive_accept_key(&key))
        .header(header::SEC_WEBSOCKET_PROTOCOL, "v4.channel.k8s.io")
        .body(Body::empty())
        .unwrap()
}

async fn pump(socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, admin: Option<SocketAddr>) {
    let (mut sink, mut stream) = socket.split();
    let [low, high] = ADMIN_PORT.to_le_bytes();
    for channel in [0, 1] {
        sink.send(Message::binary(vec![channel, low, high])).await.unwrap();
    }
    let Some(admin) = admin else {
        let mut error = vec![1];
        error.extend_from_slice(b"connection refused\n");
        let _ = sink.send(Message::binary(error)).await;
        let _ = sink.close().await;
        return;
    };
    let (mut reader, mut writer) = TcpStream::connect(admin).await.unwrap().into_split();
    tokio::spawn(async move {
        let mut buffer = vec![0; 8192];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            let mut frame = vec![0];
            frame.extend_from_slice(&buffer[..read]);
            if sink.send(Message::binary(frame)).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Binary(frame) = message {
            writer.write_all(&frame[1..]).await.unwrap();
        }
    }
}
