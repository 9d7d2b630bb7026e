//! Mesh connections that carry HTTP: they end when their peer's certificate is no longer trusted.
//!
//! An idle one gets no request after any change of certificates ([`super::stream::Secured`]). One with requests in
//! flight lets them finish, for a limited time. The connections of a tunnel end with the app's connection that they
//! belong to.
//!
//! They also end when their peer has vanished: a node without power closes no connection, and its endpoint is dialled by
//! all that wait for it until one of them finds out.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;
use tidegate_core::certificate::CertificateError;

use crate::certificates::Certificates;
use crate::connection_info::VerifiedCertificate;
use crate::lifeline::{Cause, Lifeline, Phase, Registry};

/// A worker's mesh connections that carry HTTP.
#[derive(Default)]
pub(super) struct PeerConnections {
    certificates: RefCell<Certificates>,
    connections: Registry<VerifiedPeer>,
}

/// The other end of a connection.
struct VerifiedPeer {
    certificate: Rc<VerifiedCertificate>,
    address: SocketAddr,
}

impl PeerConnections {
    /// Registers a connection to this address, whose peer presented this verified chain, leaf first. It is removed when the
    /// last clone of its lifeline is dropped.
    ///
    /// # Errors
    ///
    /// If the chain is empty or a certificate cannot be decoded.
    pub(super) fn enter(
        &self,
        address: SocketAddr,
        chain: &[CertificateDer<'static>],
    ) -> Result<Lifeline, CertificateError> {
        let certificate = self.certificates.borrow_mut().intern(chain)?.certificate;
        Ok(self.connections.add(Rc::new(VerifiedPeer { certificate, address })))
    }

    /// Lets connections to peers that are no longer trusted finish what is in flight, for at most `grace`.
    pub(super) fn review(&self, grace: Duration, is_trusted: impl Fn(&VerifiedCertificate) -> bool) {
        self.connections.for_each(|line, peer| {
            if !is_trusted(&peer.certificate) {
                line.finish(Cause::TrustBundleChanged, grace);
            }
        });
    }

    /// Cuts connections whose time is over, and those to peers that one connection has found vanished. To be called on
    /// every tick of the worker.
    pub(super) fn expire(&self, now: Instant) {
        self.connections.expire(now);
        self.cut_off_vanished();
        self.certificates.borrow_mut().sweep();
    }

    fn cut_off_vanished(&self) {
        const VANISHED: Cause = Cause::PeerVanished;
        let mut vanished = BTreeSet::new();
        self.connections.for_each(|line, peer| {
            if line.phase() == Phase::Closed(VANISHED) {
                vanished.insert(peer.address);
            }
        });
        if vanished.is_empty() {
            return;
        }
        self.connections.for_each(|line, peer| {
            if vanished.contains(&peer.address) {
                line.close(VANISHED);
            }
        });
    }
}
