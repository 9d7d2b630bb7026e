//! The ports that kubelet dials. They run on the control thread: probes are small and rare, and must not wait for
//! traffic.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use http::header::USER_AGENT;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tidegate_runtime::connections::{AdmittedConnection, Connections};
use tidegate_runtime::{drain, listen};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::run::{self, AppResponse, ProbeError};
use super::{Probe, Probes};
use crate::listener;

/// Maximum concurrent connections per port.
const MAX_CONNECTIONS: usize = 64;
/// Maximum bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a client may take to send a request's head; kubelet sends it at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One port with its probes.
pub(crate) struct ProbeServer {
    listener: TcpListener,
    port_probes: Arc<PortProbes>,
}

/// The probes of a port, and those that are running.
#[derive(Default)]
struct PortProbes {
    /// By the path that kubelet requests.
    probes: HashMap<Box<str>, Arc<Probe>>,
    in_flight: Mutex<HashMap<ProbeRequest, WeakShared<Pending>>>,
}

/// Identifies a probe request: concurrent equal requests share one response of the app.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ProbeRequest {
    path: Box<str>,
    /// The address that kubelet dialled.
    pod: IpAddr,
    user_agent: Option<HeaderValue>,
}

/// The app's response, shared by all requests that wait for it.
type Pending = Pin<Box<dyn Future<Output = Result<AppResponse, Arc<ProbeError>>> + Send>>;

/// A port for probes cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for probes: {source}")]
pub struct ProbeBindError {
    address: SocketAddr,
    source: io::Error,
}

/// Makes hyper close the connection, so that kubelet sees no response.
#[derive(Debug, thiserror::Error)]
#[error("the app did not answer")]
struct SuppressedResponse;

impl ProbeServer {
    /// A server on all addresses for each port that a probe uses.
    pub(crate) fn bind_all(probes: &Probes) -> Result<Vec<Self>, ProbeBindError> {
        let mut by_port: BTreeMap<u16, Vec<Probe>> = BTreeMap::new();
        for probe in probes.0.iter() {
            by_port.entry(probe.port).or_default().push(probe.clone());
        }
        let all = Ipv6Addr::UNSPECIFIED;
        by_port.into_iter().map(|(port, probes)| Self::bind((all, port).into(), probes)).collect()
    }

    /// Requires a tokio runtime.
    fn bind(address: SocketAddr, probes: Vec<Probe>) -> Result<Self, ProbeBindError> {
        let address = listen::possible(address);
        let listener = listener::bind(address).and_then(TcpListener::from_std);
        let listener = listener.map_err(|source| ProbeBindError { address, source })?;
        let probes = probes.into_iter().map(|probe| (probe.path.clone(), Arc::new(probe))).collect();
        Ok(Self { listener, port_probes: Arc::new(PortProbes { probes, ..PortProbes::default() }) })
    }

    /// Serves until the drain starts.
    pub(crate) async fn serve(self, mut drain: drain::Watch) {
        let Self { listener, port_probes } = self;
        if let Ok(address) = listener.local_addr() {
            info!(%address, probes = port_probes.probes.len(), "probes are answered");
        }
        let connections = Connections::new(MAX_CONNECTIONS);
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = drain.started() => return,
                accepted = connections.accept(&listener) => accepted,
            };
            match accepted {
                Ok((stream, connection)) => {
                    tasks.spawn(serve_connection(stream, connection, port_probes.clone()));
                }
                Err(error) => {
                    warn!(%error, "a probe's connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl PortProbes {
    /// Runs a probe; concurrent equal requests share one run. A lifecycle hook is a command: each call runs it.
    async fn ask(&self, probe: &Arc<Probe>, key: ProbeRequest) -> Result<AppResponse, Arc<ProbeError>> {
        if probe.is_hook {
            return ask(probe.clone(), key).await;
        }
        self.join(probe, key).await
    }

    /// The running probe for this request; starts it if there is none.
    fn join(&self, probe: &Arc<Probe>, key: ProbeRequest) -> Shared<Pending> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = in_flight.get(&key).and_then(WeakShared::upgrade)
            && pending.peek().is_none()
        {
            return pending;
        }
        // Every running probe has a connection that waits for it, so the map is small.
        in_flight.retain(|_, pending| pending.upgrade().is_some());
        let pending: Pending = Box::pin(ask(probe.clone(), key.clone()));
        let pending = pending.shared();
        if let Some(weak) = pending.downgrade() {
            in_flight.insert(key, weak);
        }
        pending
    }
}

/// Runs a probe within its time limit.
async fn ask(probe: Arc<Probe>, key: ProbeRequest) -> Result<AppResponse, Arc<ProbeError>> {
    let asking = run::run(&probe.target, key.pod, key.user_agent.as_ref());
    let asked = match probe.timeout {
        Some(limit) => tokio::time::timeout(limit, asking)
            .await
            .unwrap_or_else(|_| Err(ProbeError::Late { seconds: limit.as_secs() })),
        None => asking.await,
    };
    asked.map_err(Arc::new)
}

/// Serves one request of kubelet.
async fn serve_connection(stream: TcpStream, connection: AdmittedConnection, port_probes: Arc<PortProbes>) {
    // kubelet dials the pod's address in the family in which the app is reached.
    let Ok(pod) = stream.local_addr().map(|address| address.ip().to_canonical()) else { return };
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let (port_probes, busy) = (port_probes.clone(), connection.busy());
        async move {
            let answered = answer(&port_probes, pod, &request).await;
            drop(busy);
            answered
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    let serving = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                debug!(%error, "a probe's connection ended");
            }
        }
        () = connection.pushed_out() => debug!("a connection made room for others"),
    }
}

/// The response to kubelet.
async fn answer(
    port_probes: &PortProbes,
    pod: IpAddr,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, SuppressedResponse> {
    let Some(probe) = port_probes.probes.get(request.uri().path()) else {
        return Ok(plain(StatusCode::NOT_FOUND, "no probe has this path\n".into()));
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "probes are requested by GET\n".into()));
    }
    let user_agent = request.headers().get(USER_AGENT).cloned();
    let key = ProbeRequest { path: probe.path.clone(), pod, user_agent };
    match port_probes.ask(probe, key).await {
        Ok(AppResponse { status, body }) => Ok(plain(status, body)),
        Err(error) if probe.is_hook => {
            // The last segment of a hook's path is secret.
            let hook = probe.path.rsplit_once('/').map_or("", |(hook, _)| hook);
            warn!(hook, %error, "a lifecycle hook failed");
            Err(SuppressedResponse)
        }
        Err(error) => {
            debug!(path = %probe.path, %error, "a probe failed");
            Ok(plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n").into()))
        }
    }
}

fn plain(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, text);
    response
}

#[cfg(test)]
mod tests;
