//! State of an open connection, inbound or outbound, by which its worker decides when to end it.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use crate::authorizer::Authorizer;
use crate::certificates::CertificateLife;
use crate::connection_info::VerifiedCertificate;

/// State that is filled in while a connection is opened. Empty when it is accepted.
#[derive(Default)]
pub(crate) struct OpenConnection {
    authorizer: OnceCell<Rc<Authorizer>>,
    /// The peer's certificate, for outbound connections to another sidecar.
    endpoint: OnceCell<Rc<VerifiedCertificate>>,
    /// When the client's certificate chain expires, if the connection ends with it.
    life: Cell<Option<CertificateLife>>,
    is_opaque: Cell<bool>,
}

impl OpenConnection {
    /// The connection's authorizer, once the handshake is done.
    pub(crate) fn authorizer(&self) -> Option<&Rc<Authorizer>> {
        self.authorizer.get()
    }

    /// Marks a client's connection as admitted. It ends with `life`, if given.
    pub(crate) fn admit(&self, authorizer: Rc<Authorizer>, life: Option<CertificateLife>) {
        self.life.set(life);
        // Only ever set once.
        let _ = self.authorizer.set(authorizer);
    }

    /// The peer's certificate, for outbound connections into the mesh.
    pub(crate) fn endpoint(&self) -> Option<&Rc<VerifiedCertificate>> {
        self.endpoint.get()
    }

    /// Marks an outbound connection as connected to this endpoint.
    pub(crate) fn reached(&self, endpoint: Rc<VerifiedCertificate>) {
        // Only ever set once.
        let _ = self.endpoint.set(endpoint);
    }

    /// Whether the sidecar cannot see what is in flight, because it does not parse the bytes.
    pub(crate) fn is_opaque(&self) -> bool {
        self.is_opaque.get()
    }

    /// Marks the connection as passing bytes on without parsing them.
    pub(crate) fn set_opaque(&self) {
        self.is_opaque.set(true);
    }

    /// The time until the client certificate expires, if the connection should close gracefully now.
    pub(crate) fn should_finish(&self, now: SystemTime) -> Option<Duration> {
        let life = self.life.get().filter(|life| life.last_call <= now)?;
        Some(life.end.duration_since(now).unwrap_or_default())
    }
}
