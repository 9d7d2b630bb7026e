//! The gRPC service `istio.v1.auth.IstioCertificateService`: a request's way from the wire to a certificate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tidegate_core::Identity;
use tidegate_proto::istio_ca::istio_certificate_service_server::IstioCertificateService;
use tidegate_proto::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use tidegate_runtime::grpc::Peer;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use crate::authenticate::{AuthError, Authenticator, Caller};
use crate::authority::AuthorityState;
use crate::csr::check_csr;
use crate::issuer::pem;
use crate::rate_limit::RateLimiter;
use crate::rules::{Issued, IssuingRules, Refusal};
use crate::service_names::{ReservedNames, ServiceNames};
use crate::telemetry::Telemetry;
use crate::x509::WriteError;

/// The most bytes that a request message may have.
pub(crate) const MAX_MESSAGE_BYTES: usize = 256 * 1024;

/// Answers `CreateCertificate`.
pub(crate) struct CertificateService {
    pub(crate) authenticator: Arc<dyn Authenticator>,
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
        let caller = match self.authenticate(request.metadata(), peer).await {
            Ok(caller) => caller,
            Err(error) => {
                self.telemetry.refused(None, peer, error.kind(), &error);
                return Err(status_of_auth(&error));
            }
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
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer: Option<SocketAddr>,
    ) -> Result<Caller, AuthError> {
        self.authenticator.authenticate(bearer_token(metadata)?, peer).await
    }

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

/// The one token that the caller sent. Two of them would be judged by two readers differently.
fn bearer_token(metadata: &MetadataMap) -> Result<&str, AuthError> {
    let mut values = metadata.get_all("authorization").iter();
    let value = values.next().ok_or(AuthError::Missing)?;
    if values.next().is_some() {
        return Err(AuthError::NotBearer);
    }
    let text = value.to_str().map_err(|_| AuthError::NotBearer)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(token.trim())
        }
        _ => Err(AuthError::NotBearer),
    }
}

fn status_of_auth(error: &AuthError) -> Status {
    match error {
        AuthError::Unavailable(_) => Status::unavailable(error.to_string()),
        AuthError::NotInMesh(_) => Status::permission_denied(error.to_string()),
        _ => Status::unauthenticated(error.to_string()),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(values: &[&str]) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        for value in values {
            metadata.append("authorization", value.parse().unwrap());
        }
        metadata
    }

    #[test]
    fn exactly_one_bearer_token_is_read() {
        assert_eq!(bearer_token(&metadata(&["Bearer abc"])), Ok("abc"));
        assert_eq!(bearer_token(&metadata(&["bearer abc"])), Ok("abc"));
        assert_eq!(bearer_token(&metadata(&[])), Err(AuthError::Missing));
        for values in
            [&["Bearer a", "Bearer b"][..], &["Bearer a", "Basic b"], &["Basic abc"], &["Bearer "], &["abc"]]
        {
            assert_eq!(bearer_token(&metadata(values)), Err(AuthError::NotBearer), "{values:?}");
        }
    }
}
