//! Applies a new policy or trust bundle to open connections.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, UnixTime};
use tidegate_runtime::trust_bundle::TrustBundle;
use tracing::warn;

use super::Worker;
use crate::authorizer::Review;
use crate::connection_info::VerifiedCertificate;
use crate::lifeline::Cause;
use crate::snapshot::Snapshot;
use crate::tls::{PeerTls, ServerTls};

/// Remembers the snapshot by which open connections were last reviewed.
pub(super) struct Reviewer {
    last: Arc<Snapshot>,
}

/// Requests are traced as this snapshot says.
fn trace_by(worker: &Worker, snapshot: &Snapshot) {
    let policy = snapshot.policy.as_deref();
    worker.context.http.telemetry.trace_by(policy.map(|policy| &policy.telemetry));
}

impl Reviewer {
    /// The worker's connections begin with this snapshot.
    pub(super) fn new(worker: &Worker, snapshot: Arc<Snapshot>) -> Self {
        trace_by(worker, &snapshot);
        Self { last: snapshot }
    }

    /// Ends connections that the snapshot no longer allows.
    pub(super) fn review(&mut self, worker: &Worker, snapshot: Arc<Snapshot>) {
        if snapshot.generation == self.last.generation {
            return;
        }
        trace_by(worker, &snapshot);
        let clients = changed_bundle(tls_of(&self.last), tls_of(&snapshot))
            .map(|tls: &ServerTls| CertificateReviewer::new(move |chain, now| tls.verify_again(chain, now)));
        let endpoints = changed_bundle(peer_tls_of(&self.last), peer_tls_of(&snapshot))
            .map(|tls: &PeerTls| CertificateReviewer::new(move |chain, now| tls.verify_again(chain, now)));
        let grace = worker.context.http.limits.revocation;
        if let Some(judge) = &endpoints {
            worker.context.http.upstreams.review(grace, |endpoint| is_trusted(worker, judge, endpoint));
        }
        worker.registry.for_each(|line, connection| {
            if let (Some(judge), Some(endpoint)) = (&endpoints, connection.endpoint())
                && !is_trusted(worker, judge, endpoint)
            {
                return line.close(Cause::TrustBundleChanged);
            }
            let Some(authorizer) = connection.authorizer() else { return };
            let is_opaque = connection.is_opaque();
            if let Review::Revoke(denial) = authorizer.review(&snapshot) {
                worker.context.refusals.revoked(authorizer.info(), &denial);
                return if is_opaque {
                    line.close(Cause::PolicyChanged);
                } else {
                    line.finish(Cause::PolicyChanged, grace);
                };
            }
            if let (Some(judge), Some(client)) = (&clients, &authorizer.info().client)
                && let Err(error) = judge.verify(client)
            {
                worker.context.refusals.revoked(authorizer.info(), &error);
                if is_opaque {
                    line.close(Cause::TrustBundleChanged);
                } else {
                    // Closed gracefully: the client has a certificate of another root by now, and reconnects.
                    line.close_gracefully(Cause::TrustBundleChanged, grace / 2, grace);
                }
            }
        });
        self.last = snapshot;
    }
}

/// Whether an endpoint's certificate is still accepted; logs it if not.
fn is_trusted<F>(worker: &Worker, judge: &CertificateReviewer<F>, endpoint: &VerifiedCertificate) -> bool
where
    F: Fn(&[CertificateDer<'static>], UnixTime) -> Result<(), rustls::Error>,
{
    let verdict = judge.verify(endpoint);
    if let Err(error) = &verdict {
        worker.context.refusals.unless_flooded(|| {
            warn!(endpoint = %endpoint.names, %error, "an endpoint is no longer trusted: its connection ends");
        });
    }
    verdict.is_ok()
}

/// Verifies each certificate once, however many connections use it.
struct CertificateReviewer<F> {
    verify: F,
    now: SystemTime,
    verdicts: RefCell<HashMap<*const VerifiedCertificate, Result<(), rustls::Error>>>,
}

impl<F> CertificateReviewer<F>
where
    F: Fn(&[CertificateDer<'static>], UnixTime) -> Result<(), rustls::Error>,
{
    fn new(verify: F) -> Self {
        Self { verify, now: SystemTime::now(), verdicts: RefCell::default() }
    }

    /// Checks only the roots: a certificate that has expired since is verified as of its last moment, because opaque
    /// connections outlive it.
    fn verify(&self, certificate: &VerifiedCertificate) -> Result<(), rustls::Error> {
        let mut verdicts = self.verdicts.borrow_mut();
        let verdict = verdicts.entry(std::ptr::from_ref(certificate)).or_insert_with(|| {
            let at = self.now.min(certificate.not_after());
            let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            (self.verify)(&certificate.chain, UnixTime::since_unix_epoch(at))
        });
        verdict.clone()
    }
}

/// The new TLS configuration, if its trust bundle accepts other certificates than the one before.
fn changed_bundle<'s, T>(
    before: Option<(&T, &TrustBundle)>,
    now: Option<(&'s T, &TrustBundle)>,
) -> Option<&'s T> {
    let (tls, bundle) = now?;
    before.is_none_or(|(_, before)| !before.judges_like(bundle)).then_some(tls)
}

fn tls_of(snapshot: &Snapshot) -> Option<(&ServerTls, &TrustBundle)> {
    snapshot.tls.as_deref().map(|tls| (tls, &*tls.bundle))
}

fn peer_tls_of(snapshot: &Snapshot) -> Option<(&PeerTls, &TrustBundle)> {
    snapshot.peer_tls.as_deref().map(|tls| (tls, &*tls.bundle))
}

#[cfg(test)]
mod tests;
