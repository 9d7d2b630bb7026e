//! The ports that kubelet comes to. In the control thread: a probe is small and rare, and never to wait for traffic.

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
use tidegate_runtime::connections::{Connection, Connections};
use tidegate_runtime::{drain, listen};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use super::ask::{self, AskError, Asked};
use super::{Probe, Probes};
use crate::listener;

/// The most connections at a time for each port.
const MAX_CONNECTIONS: usize = 64;
/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a client may take to send a request's head; kubelet sends it at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One port with the probes that are asked for there.
pub(crate) struct ProbeServer {
    listener: TcpListener,
    questions: Arc<Questions>,
}

/// What may be asked at a port, and what the app is being asked.
#[derive(Default)]
struct Questions {
    /// By the path that kubelet asks for.
    probes: HashMap<Box<str>, Arc<Probe>>,
    in_flight: Mutex<HashMap<Question, WeakShared<Pending>>>,
}

/// Requests that are equal in all of this get one answer of the app's.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    path: Box<str>,
    /// The address that kubelet dialled.
    pod: IpAddr,
    user_agent: Option<HeaderValue>,
}

/// The app's answer, to all who wait for it.
type Pending = Pin<Box<dyn Future<Output = Result<Asked, Arc<AskError>>> + Send>>;

/// A port of probes that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for probes: {source}")]
pub struct ProbeBindError {
    address: SocketAddr,
    source: io::Error,
}

/// kubelet is to see that there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("the app did not answer")]
struct NoAnswer;

impl ProbeServer {
    /// A server for each port that probes name, on all addresses.
    pub(crate) fn bind_all(probes: &Probes) -> Result<Vec<Self>, ProbeBindError> {
        let mut by_port: BTreeMap<u16, Vec<Probe>> = BTreeMap::new();
        for probe in probes.0.iter() {
            by_port.entry(probe.port).or_default().push(probe.clone());
        }
        let all = Ipv6Addr::UNSPECIFIED;
        by_port.into_iter().map(|(port, probes)| Self::bind((all, port).into(), probes)).collect()
    }

    /// Needs a tokio runtime.
    fn bind(address: SocketAddr, probes: Vec<Probe>) -> Result<Self, ProbeBindError> {
        let address = listen::possible(address);
        let listener = listener::bind(address).and_then(TcpListener::from_std);
        let listener = listener.map_err(|source| ProbeBindError { address, source })?;
        let probes = probes.into_iter().map(|probe| (probe.path.clone(), Arc::new(probe))).collect();
        Ok(Self { listener, questions: Arc::new(Questions { probes, ..Questions::default() }) })
    }

    /// Serves until the drain starts.
    pub(crate) async fn serve(self, mut drain: drain::Watch) {
        let Self { listener, questions } = self;
        if let Ok(address) = listener.local_addr() {
            info!(%address, probes = questions.probes.len(), "probes are answered");
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
                    tasks.spawn(serve_connection(stream, connection, questions.clone()));
                }
                Err(error) => {
                    warn!(%error, "a probe's connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Questions {
    /// Asks the app, together with all who ask the same at the same time. A lifecycle hook is an order and no question:
    /// each of its calls is one of the app's.
    async fn ask(&self, probe: &Arc<Probe>, question: Question) -> Result<Asked, Arc<AskError>> {
        if probe.is_hook {
            return ask(probe.clone(), question).await;
        }
        self.join(probe, question).await
    }

    fn join(&self, probe: &Arc<Probe>, question: Question) -> Shared<Pending> {
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = in_flight.get(&question).and_then(WeakShared::upgrade)
            && pending.peek().is_none()
        {
            return pending;
        }
        // Each of the others is awaited by a connection, so this is a short list.
        in_flight.retain(|_, pending| pending.upgrade().is_some());
        let pending: Pending = Box::pin(ask(probe.clone(), question.clone()));
        let pending = pending.shared();
        if let Some(weak) = pending.downgrade() {
            in_flight.insert(question, weak);
        }
        pending
    }
}

async fn ask(probe: Arc<Probe>, question: Question) -> Result<Asked, Arc<AskError>> {
    let asking = ask::ask(&probe.target, question.pod, question.user_agent.as_ref());
    let asked = match probe.timeout {
        Some(limit) => tokio::time::timeout(limit, asking)
            .await
            .unwrap_or_else(|_| Err(AskError::Late { seconds: limit.as_secs() })),
        None => asking.await,
    };
    asked.map_err(Arc::new)
}

async fn serve_connection(stream: TcpStream, connection: Connection, questions: Arc<Questions>) {
    // kubelet dials the pod's address of the family that the pod's app is to be reached by.
    let Ok(pod) = stream.local_addr().map(|address| address.ip().to_canonical()) else { return };
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let (questions, busy) = (questions.clone(), connection.busy());
        async move {
            let answered = answer(&questions, pod, &request).await;
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

async fn answer(
    questions: &Questions,
    pod: IpAddr,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, NoAnswer> {
    let Some(probe) = questions.probes.get(request.uri().path()) else {
        return Ok(plain(StatusCode::NOT_FOUND, "no probe has this path\n".into()));
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(plain(StatusCode::METHOD_NOT_ALLOWED, "probes are asked for by GET\n".into()));
    }
    let user_agent = request.headers().get(USER_AGENT).cloned();
    let question = Question { path: probe.path.clone(), pod, user_agent };
    match questions.ask(probe, question).await {
        Ok(Asked { status, body }) => Ok(plain(status, body)),
        Err(error) if probe.is_hook => {
            // The last part of its path is a secret.
            let hook = probe.path.rsplit_once('/').map_or("", |(hook, _)| hook);
            warn!(hook, %error, "a lifecycle hook failed");
            Err(NoAnswer)
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
