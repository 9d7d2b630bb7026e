//! A server of `envoy.service.auth.v3.Authorization`, as users run one.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tidegate_proto::external_authorization::attribute_context::HttpRequest;
use tidegate_proto::external_authorization::authorization_server::{Authorization, AuthorizationServer};
use tidegate_proto::external_authorization::check_response::HttpResponse;
use tidegate_proto::external_authorization::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption,
    HttpStatus, OkHttpResponse, Status,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;

/// What a server does about a check.
#[derive(Clone, Debug)]
pub enum CheckOutcome {
    /// Answers.
    Answer(CheckResponse),
    /// Fails with this status of gRPC.
    Fail(i32),
    /// Does not answer.
    Wait,
}

/// Decides about a request.
type Decide = dyn Fn(&HttpRequest) -> CheckOutcome + Send + Sync;

/// A running server. Ends when dropped.
pub struct Authorizer {
    runtime: Option<Runtime>,
    address: SocketAddr,
    log: Arc<CheckLog>,
}

/// What a server has seen.
#[derive(Default)]
struct CheckLog {
    checks: Mutex<Vec<AttributeContext>>,
    cancelled: AtomicUsize,
}

/// The service.
struct Service {
    decide: Box<Decide>,
    log: Arc<CheckLog>,
}

/// Counts a check that ends before its answer.
struct Unanswered<'l>(Option<&'l CheckLog>);

impl Authorizer {
    /// Listens at a port of its own.
    pub fn start(decide: impl Fn(&HttpRequest) -> CheckOutcome + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), decide)
    }

    /// Listens at this address.
    pub fn at(
        address: SocketAddr,
        decide: impl Fn(&HttpRequest) -> CheckOutcome + Send + Sync + 'static,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let log = Arc::new(CheckLog::default());
        let service = Service { decide: Box::new(decide), log: log.clone() };
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(service));
            server.serve_with_incoming(listener).await.unwrap();
        });
        Self { runtime: Some(runtime), address, log }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The checks so far.
    pub fn checks(&self) -> Vec<AttributeContext> {
        self.log.checks.lock().unwrap().clone()
    }

    /// How many checks were cancelled.
    pub fn cancelled(&self) -> usize {
        self.log.cancelled.load(Ordering::SeqCst)
    }
}

impl Drop for Authorizer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(log) = self.0 {
            log.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[tonic::async_trait]
impl Authorization for Service {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        let attributes = request.into_inner().attributes.unwrap();
        let http = attributes.request.clone().unwrap().http.unwrap();
        self.log.checks.lock().unwrap().push(attributes);
        let mut unanswered = Unanswered(Some(&self.log));
        let outcome = match (self.decide)(&http) {
            CheckOutcome::Answer(response) => Ok(tonic::Response::new(response)),
            CheckOutcome::Fail(code) => Err(tonic::Status::new(code.into(), "as the test wants")),
            CheckOutcome::Wait => std::future::pending().await,
        };
        unanswered.0 = None;
        outcome
    }
}

/// Allows a request, with changes.
pub fn allow_with(ok: OkHttpResponse) -> CheckOutcome {
    let status = Some(Status { code: 0, message: String::new() });
    CheckOutcome::Answer(CheckResponse { status, http_response: Some(HttpResponse::OkResponse(ok)) })
}

/// Allows a request.
pub fn allow() -> CheckOutcome {
    allow_with(OkHttpResponse::default())
}

/// Denies a request with this response.
pub fn deny(status: i32, headers: &[(&str, &str)], body: &str) -> CheckOutcome {
    let denied = DeniedHttpResponse {
        status: Some(HttpStatus { code: status }),
        headers: headers.iter().map(|(name, value)| header(name, value)).collect(),
        body: body.to_owned(),
    };
    let status = Some(Status { code: 7, message: String::new() });
    CheckOutcome::Answer(CheckResponse { status, http_response: Some(HttpResponse::DeniedResponse(denied)) })
}

/// Sets a header.
pub fn header(key: &str, value: &str) -> HeaderValueOption {
    let header = HeaderValue { key: key.to_owned(), value: value.to_owned(), raw_value: Vec::new() };
    HeaderValueOption { header: Some(header), append: None, append_action: 0 }
}
