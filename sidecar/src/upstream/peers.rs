//! Mesh connections that carry HTTP: they end when their peer's certificate is no longer trusted.
//!
//! An idle one gets no request after any change of certificates ([`super::stream::Secured`]). One with requests in
//! flight lets them finish, for a limited time. The connections of a tunnel end with the app's connection that they
//! belong to.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use tidegate_core::certificate::CertificateError;

use crate::certificates::Certificates;
use crate::connection_info::VerifiedCertificate;
use crate::lifeline::{Cause, Lifeline, Registry};

/// A worker's mesh connections that carry HTTP, by the certificate of their peer.
#[derive(Default)]
pub(super) struct PeerConnections {
    certificates: RefCell<Certificates>,
    connections: Registry<VerifiedCertificate>,
}

impl PeerConnections {
    /// Registers a connection whose peer presented this verified chain, leaf first. It is removed when the last clone
    /// of its lifeline is dropped.
    ///
    /// # Errors
    ///
    /// If the chain is empty or a certificate cannot be decoded.
    pub(super) fn enter(&self, chain: &[CertificateDer<'static>]) -> Result<Lifeline, CertificateError> {
        let verified = self.certificates.borrow_mut().intern(chain)?;
        Ok(self.connections.add(verified.certificate))
    }

    /// Lets connections to peers that are no longer trusted finish what is in flight, for at most `grace`.
    pub(super) fn review(&self, grace: Duration, is_trusted: impl Fn(&VerifiedCertificate) -> bool) {
        self.connections.for_each(|line, certificate| {
            if !is_trusted(certificate) {
                line.finish(Cause::TrustBundleChanged, grace);
            }
        });
    }

    /// Cuts connections whose time is over. To be called on every tick of the worker.
    pub(super) fn expire(&self, now: Instant) {
        self.connections.expire(now);
        self.certificates.borrow_mut().sweep();
    }
}
