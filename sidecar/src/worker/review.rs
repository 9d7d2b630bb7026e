//! What a new policy or trust bundle means to the connections that are open.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use rustls_pki_types::UnixTime;

use super::Worker;
use crate::lifeline::{Cause, Lifeline};
use crate::session::{ClientCertificate, Review};
use crate::snapshot::Snapshot;
use crate::tls::ServerTls;

/// Remembers by what the open connections were judged last.
pub(super) struct Reviewer {
    last: Arc<Snapshot>,
}

impl Reviewer {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Self {
        Self { last: snapshot }
    }

    /// Ends what would not be let in any more.
    pub(super) fn review(&mut self, worker: &Worker, snapshot: Arc<Snapshot>) {
        if snapshot.generation == self.last.generation {
            return;
        }
        let judge = bundle_changed(&self.last, &snapshot).map(CertificateJudge::new);
        let grace = worker.env.limits.revocation;
        worker.registry.for_each(|line, connection| {
            let Some(gate) = connection.gate() else { return };
            let end = |line: &Lifeline, cause| {
                if connection.is_opaque() { line.close(cause) } else { line.finish(cause, grace) }
            };
            if let Review::Revoke(denial) = gate.review(&snapshot) {
                worker.refusals.revoked(gate.info(), &denial);
                return end(line, Cause::PolicyChanged);
            }
            if let (Some(judge), Some(client)) = (&judge, &gate.info().client)
                && let Err(error) = judge.verify(client)
            {
                worker.refusals.revoked(gate.info(), &error);
                end(line, Cause::TrustBundleChanged);
            }
        });
        self.last = snapshot;
    }
}

/// Verifies each certificate once, however many connections it has opened.
struct CertificateJudge<'s> {
    tls: &'s ServerTls,
    now: UnixTime,
    verdicts: std::cell::RefCell<HashMap<*const ClientCertificate, Result<(), rustls::Error>>>,
}

impl<'s> CertificateJudge<'s> {
    fn new(tls: &'s ServerTls) -> Self {
        Self { tls, now: UnixTime::now(), verdicts: std::cell::RefCell::default() }
    }

    fn verify(&self, client: &Rc<ClientCertificate>) -> Result<(), rustls::Error> {
        let mut verdicts = self.verdicts.borrow_mut();
        let verdict = verdicts
            .entry(Rc::as_ptr(client))
            .or_insert_with(|| self.tls.verify_again(&client.chain, self.now));
        verdict.clone()
    }
}

/// The new TLS, if it trusts others than the one before.
fn bundle_changed<'s>(before: &Snapshot, now: &'s Snapshot) -> Option<&'s ServerTls> {
    let tls = now.tls.as_deref()?;
    let same = before.tls.as_ref().is_some_and(|before| before.bundle == tls.bundle);
    (!same).then_some(tls)
}
