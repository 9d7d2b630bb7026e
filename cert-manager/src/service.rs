//! The gRPC service `istio.v1.auth.IstioCertificateService`: a request's way from the wire to a certificate.
//!
//! [`TokenFirst`] stands before it: of a caller without a good token nothing but the head of its call is read.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tidegate_core::Identity;
use tidegate_proto::istio_ca::istio_certificate_service_server::IstioCertificateService;
use tidegate_proto::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use tidegate_runtime::grpc::Peer;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::authenticate::Caller;
use crate::authority::AuthorityState;
use crate::csr::check_csr;
use crate::issuer::pem;
use crate::rate_limit::RateLimiter;
use crate::rules::{Issued, IssuingRules, Refusal};
use crate::service_names::{ReservedNames, ServiceNames};
use crate::telemetry::Telemetry;
use crate::x509::WriteError;

mod token_first;

pub(crate) use token_first::TokenFirst;

/// The most bytes that a request message may have: a CSR, and what else its caller says.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 * 1024;
/// The most bytes of a call's head. A token has 16 KiB at most, mostly one.
pub(crate) const MAX_HEAD_BYTES: u32 = 20 * 1024;
/// Calls at a time on one connection. A node's agent asks for several Pods at once.
pub(crate) const MAX_CALLS: u32 = 8;
/// Bytes that a connection may send ahead of what is read of it, in one call or in all: the least that HTTP/2 allows
/// for all (RFC 9113 §6.9.2), and more than a message.
pub(crate) const WINDOW: u32 = 65_535;

/// Answers `CreateCertificate`.
pub(crate) struct CertificateService {
    pub(crate) states: watch::Receiver<Arc<AuthorityState>>,
    pub(crate) rules: IssuingRules,
    /// How long MeshConfig wants workloads' certificates to live, if it says so.
    pub(crate) workload_life: watch::Receiver<Option<Duration>>,
    pub(crate) service_names: ServiceNames,
    pub(crate) reserved_names: ReservedNames,
    pub(crate) limiter: RateLimiter<Identity>,
    pub(crate) telemetry: Arc<Telemetry>,
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>().map(|peer| peer.address);
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            return Err(Status::internal("a call that was not authenticated"));
        };
        if let Err(wait) = self.limiter.take(&caller.identity, Instant::now()) {
            let reason =
                format!("too many requests of this identity; try again in {:.1} s", wait.as_secs_f64());
            self.telemetry.refused(Some(&caller.identity), peer, "rate", &reason);
            return Err(Status::resource_exhausted(reason));
        }
        let state = self.states.borrow().clone();
        match self.issue(&caller, request.get_ref(), &state) {
            Ok(issued) => {
                let pod = caller.pod.as_ref().map(|pod| pod.name.as_str());
                self.telemetry.workload(&caller.identity, pod, peer, &issued);
                let chain = state.full_chain(issued.leaf, issued.not_after);
                let cert_chain = chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refusal) => {
                self.telemetry.refused(Some(&caller.identity), peer, refusal.kind(), &refusal);
                Err(status_of_refusal(&refusal))
            }
        }
    }
}

impl CertificateService {
    fn issue(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
        state: &AuthorityState,
    ) -> Result<Issued, Refusal> {
        self.reserved_names.check(&caller.identity)?;
        let csr = check_csr(request.csr.as_bytes())?;
        let now = SystemTime::now();
        let service_names = self.service_names.of(&caller.identity);
        let rules = self.rules.of_workloads(*self.workload_life.borrow());
        rules.issue(&csr, &caller.identity, service_names, request.validity_duration, &state.issuer, now)
    }
}

fn status_of_refusal(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::Csr(_) | Refusal::NegativeLife(_) | Refusal::Identity(_) => Status::invalid_argument(text),
        Refusal::ReservedName(_) => Status::permission_denied(text),
        Refusal::IssuerEnds(_) | Refusal::IssuerNotYetValid(_) | Refusal::Write(WriteError::Names { .. }) => {
            Status::failed_precondition(text)
        }
        Refusal::Write(_) | Refusal::ReadBack(_) => Status::internal(text),
    }
}
