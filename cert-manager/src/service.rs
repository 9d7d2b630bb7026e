//! The gRPC service `istio.v1.auth.IstioCertificateService`: from a request on the wire to a certificate.
//!
//! [`TokenFirst`] wraps it: of a call without a valid token, only the head is read.

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
use crate::rules::{Issued, IssuingRefusal, IssuingRules};
use crate::service_names::{ReservedNames, ServiceNames};
use crate::telemetry::CaTelemetry;
use crate::x509::WriteError;

mod token_first;

pub(crate) use token_first::TokenFirst;

/// Maximum bytes of a request message: a CSR and further fields.
pub(crate) const MAX_MESSAGE_BYTES: usize = 32 * 1024;
/// Maximum bytes of a call's head. A token has at most 16 KiB, usually about one.
pub(crate) const MAX_HEAD_BYTES: u32 = 20 * 1024;
/// Maximum concurrent calls on a connection. A node's agent requests certificates for several Pods at once.
pub(crate) const MAX_CALLS: u32 = 8;
/// Flow-control window of a call and of the connection: the minimum that HTTP/2 allows for a connection (RFC 9113
/// §6.9.2), and larger than a message.
pub(crate) const WINDOW: u32 = 65_535;

/// Answers `CreateCertificate`.
pub(crate) struct CertificateService {
    pub(crate) states: watch::Receiver<Arc<AuthorityState>>,
    pub(crate) rules: IssuingRules,
    /// MeshConfig's lifetime of workloads' certificates, if set.
    pub(crate) workload_life: watch::Receiver<Option<Duration>>,
    pub(crate) service_names: ServiceNames,
    pub(crate) reserved_names: ReservedNames,
    pub(crate) limiter: RateLimiter<Identity>,
    pub(crate) telemetry: Arc<CaTelemetry>,
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
    /// Applies the rules to a request, in the order of their cost: reserved names, the CSR, the certificate.
    fn issue(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
        state: &AuthorityState,
    ) -> Result<Issued, IssuingRefusal> {
        self.reserved_names.check(&caller.identity)?;
        let csr = check_csr(request.csr.as_bytes())?;
        let now = SystemTime::now();
        let service_names = self.service_names.of(&caller.identity);
        let rules = self.rules.of_workloads(*self.workload_life.borrow());
        rules.issue(&csr, &caller.identity, service_names, request.validity_duration, &state.issuer, now)
    }
}

/// The gRPC code of a refusal: INVALID_ARGUMENT and PERMISSION_DENIED for the request, FAILED_PRECONDITION for an
/// authority that cannot issue this certificate, INTERNAL for a fault of the CA.
fn status_of_refusal(refusal: &IssuingRefusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        IssuingRefusal::Csr(_) | IssuingRefusal::NegativeLife(_) | IssuingRefusal::Identity(_) => {
            Status::invalid_argument(text)
        }
        IssuingRefusal::ReservedName(_) => Status::permission_denied(text),
        IssuingRefusal::IssuerEnds(_)
        | IssuingRefusal::IssuerNotYetValid(_)
        | IssuingRefusal::Write(WriteError::Names { .. }) => Status::failed_precondition(text),
        IssuingRefusal::Write(_) | IssuingRefusal::ReadBack(_) => Status::internal(text),
    }
}
