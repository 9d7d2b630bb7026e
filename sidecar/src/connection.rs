//! What a worker knows of an open connection, whichever way it goes, to end it when it has to.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::authorizer::Authorizer;
use crate::certificates::CertificateLife;
use crate::connection_info::VerifiedCertificate;

/// What is learnt of a connection while it is opened. Empty when it was accepted.
#[derive(Default)]
pub(crate) struct OpenConnection {
    authorizer: OnceCell<Rc<Authorizer>>,
    /// Who answered, if the connection is the app's own and goes to another sidecar.
    endpoint: OnceCell<Rc<VerifiedCertificate>>,
    /// Life of the client's certificate chain, if the connection ends with it.
    life: Cell<Option<CertificateLife>>,
    is_opaque: Cell<bool>,
}

impl OpenConnection {
    /// What decides about it, once that is known.
    pub(crate) fn authorizer(&self) -> Option<&Rc<Authorizer>> {
        self.authorizer.get()
    }

    /// A client's connection was let in. It ends with `life`, if there is one.
    pub(crate) fn let_in(&self, authorizer: Rc<Authorizer>, life: Option<CertificateLife>) {
        self.life.set(life);
        // Only ever set once.
        let _ = self.authorizer.set(authorizer);
    }

    /// Who answered the app's connection into the mesh.
    pub(crate) fn endpoint(&self) -> Option<&Rc<VerifiedCertificate>> {
        self.endpoint.get()
    }

    /// The app's connection has reached this endpoint.
    pub(crate) fn reached(&self, endpoint: Rc<VerifiedCertificate>) {
        // Only ever set once.
        let _ = self.endpoint.set(endpoint);
    }

    /// Whether it is unknown what is in flight.
    pub(crate) fn is_opaque(&self) -> bool {
        self.is_opaque.get()
    }

    /// It carries bytes that are not looked at.
    pub(crate) fn set_opaque(&self) {
        self.is_opaque.set(true);
    }

    /// If the connection is about to end with the client certificate: the time that is left.
    pub(crate) fn should_finish(&self, now: SystemTime) -> Option<Duration> {
        let life = self.life.get().filter(|life| life.last_call <= now)?;
        Some(life.end.duration_since(now).unwrap_or_default())
    }
}
