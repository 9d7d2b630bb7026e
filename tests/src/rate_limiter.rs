//! A rate limit service, as users run one: `envoy.service.ratelimit.v3.RateLimitService`.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tidegate_proto::rate_limit::rate_limit_response::Code;
use tidegate_proto::rate_limit::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use tidegate_proto::rate_limit::{RateLimitRequest, RateLimitResponse};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;

/// What a service does about a call.
#[derive(Clone, Debug)]
pub enum LimitOutcome {
    /// Answers.
    Answer(RateLimitResponse),
    /// Fails with this status of gRPC.
    Fail(i32),
    /// Does not answer.
    Wait,
}

/// Decides about a call. The descriptors are as [`described`] has them.
type Decide = dyn Fn(&[String]) -> LimitOutcome + Send + Sync;

/// A running service. Ends when dropped.
pub struct RateLimiter {
    runtime: Option<Runtime>,
    address: SocketAddr,
    calls: Arc<Mutex<Vec<RateLimitRequest>>>,
}

/// The service.
struct Service {
    decide: Box<Decide>,
    calls: Arc<Mutex<Vec<RateLimitRequest>>>,
}

impl RateLimiter {
    /// Listens at a port of its own.
    pub fn start(decide: impl Fn(&[String]) -> LimitOutcome + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), decide)
    }

    /// Listens at this address.
    pub fn at(
        address: SocketAddr,
        decide: impl Fn(&[String]) -> LimitOutcome + Send + Sync + 'static,
    ) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let calls = Arc::default();
        let service = Service { decide: Box::new(decide), calls: Arc::clone(&calls) };
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let server =
                tonic::transport::Server::builder().add_service(RateLimitServiceServer::new(service));
            server.serve_with_incoming(listener).await.unwrap();
        });
        Self { runtime: Some(runtime), address, calls }
    }

    /// Counts each descriptor by itself, and lets each have this much.
    pub fn counting(most: usize) -> Self {
        let counts = Mutex::new(std::collections::HashMap::<String, usize>::new());
        Self::start(move |descriptors| {
            let mut counts = counts.lock().unwrap();
            let exceeds = |descriptor: &String| {
                let count = counts.entry(descriptor.clone()).or_default();
                *count += 1;
                *count > most
            };
            let exceeded = descriptors.iter().map(exceeds).filter(|exceeds| *exceeds).count();
            if exceeded > 0 { over_limit() } else { within_limit() }
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The calls so far: domain and descriptors.
    pub fn calls(&self) -> Vec<(String, Vec<String>)> {
        let calls = self.calls.lock().unwrap();
        calls.iter().map(|call| (call.domain.clone(), described(call))).collect()
    }
}

impl Drop for RateLimiter {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter").field("address", &self.address).finish_non_exhaustive()
    }
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<tonic::Response<RateLimitResponse>, tonic::Status> {
        let request = request.into_inner();
        let outcome = (self.decide)(&described(&request));
        self.calls.lock().unwrap().push(request);
        match outcome {
            LimitOutcome::Answer(response) => Ok(tonic::Response::new(response)),
            LimitOutcome::Fail(code) => Err(tonic::Status::new(code.into(), "as the test wants")),
            LimitOutcome::Wait => std::future::pending().await,
        }
    }
}

/// The descriptors of a call, each as `key=value,key=value`.
fn described(request: &RateLimitRequest) -> Vec<String> {
    let descriptors = request.descriptors.iter().map(|descriptor| {
        let pairs = descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value));
        pairs.collect::<Vec<_>>().join(",")
    });
    descriptors.collect()
}

/// Allows what the call is for.
pub fn within_limit() -> LimitOutcome {
    LimitOutcome::Answer(RateLimitResponse { overall_code: Code::Ok.into(), ..Default::default() })
}

/// Refuses what the call is for.
pub fn over_limit() -> LimitOutcome {
    LimitOutcome::Answer(RateLimitResponse { overall_code: Code::OverLimit.into(), ..Default::default() })
}
