//! Interned certificates of verified peers: each is held once, however many connections use it.

mod forwarded;

use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use rustls_pki_types::CertificateDer;
use tidegate_core::PeerCertificate;
use tidegate_core::certificate::CertificateError;

use crate::connection_info::VerifiedCertificate;

/// The verified certificates of a worker's peers, by digest of their chain.
#[derive(Default)]
pub(crate) struct Certificates {
    by_digest: HashMap<[u8; 32], HeldCertificate>,
}

/// An interned certificate and when its chain expires.
pub(crate) struct Verified {
    pub(crate) certificate: Rc<VerifiedCertificate>,
    pub(crate) life: CertificateLife,
}

/// An entry; does not keep the certificate alive.
struct HeldCertificate {
    certificate: Weak<VerifiedCertificate>,
    life: CertificateLife,
}

/// When a certificate chain expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CertificateLife {
    /// When connections that the certificate has opened stop taking new requests.
    pub(crate) last_call: SystemTime,
    /// When the chain expires.
    pub(crate) end: SystemTime,
}

/// Connections end this long before their client certificate expires, or a tenth of its lifetime before if that is
/// less, so that the client can reconnect with its next certificate.
const LAST_CALL: Duration = Duration::from_secs(30);
/// How far certificates are back-dated at issue, for clocks that are behind. Not counted as part of the lifetime.
pub(crate) const BACK_DATING: Duration = Duration::from_secs(60);

impl Certificates {
    /// Interns the certificate of a verified chain, leaf first.
    ///
    /// # Errors
    ///
    /// If the chain is empty or a certificate cannot be decoded.
    pub(crate) fn intern(&mut self, chain: &[CertificateDer<'static>]) -> Result<Verified, CertificateError> {
        let digest = digest(chain);
        if let Some(held) = self.by_digest.get(&digest)
            && let Some(certificate) = held.certificate.upgrade()
        {
            return Ok(Verified { certificate, life: held.life });
        }
        let (leaf_der, issuers) = chain.split_first().ok_or(CertificateError::Der)?;
        let leaf = PeerCertificate::from_der(leaf_der)?;
        let life = CertificateLife::new(leaf.not_before, end_of_chain(&leaf, issuers));
        let certificate = Rc::new(VerifiedCertificate {
            forwarded: forwarded::value(&leaf, leaf_der),
            names: leaf.display_names().into(),
            chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            leaf,
        });
        self.by_digest.insert(digest, HeldCertificate { certificate: Rc::downgrade(&certificate), life });
        Ok(Verified { certificate, life })
    }

    /// Drops entries that no connection uses.
    pub(crate) fn sweep(&mut self) {
        if self.by_digest.values().any(|held| held.certificate.strong_count() == 0) {
            self.by_digest.retain(|_, held| held.certificate.strong_count() > 0);
        }
    }
}

impl CertificateLife {
    /// `start` and `end`: the validity of the chain.
    fn new(start: SystemTime, end: SystemTime) -> Self {
        let length = end.duration_since(start).unwrap_or_default().saturating_sub(BACK_DATING);
        let last_call = end.checked_sub((length / 10).min(LAST_CALL)).unwrap_or(end);
        Self { last_call, end }
    }
}

impl VerifiedCertificate {
    /// When the first certificate of the chain expires.
    pub(crate) fn not_after(&self) -> SystemTime {
        end_of_chain(&self.leaf, self.chain.get(1..).unwrap_or_default())
    }
}

/// A chain expires with the first of its certificates.
fn end_of_chain(leaf: &PeerCertificate, issuers: &[CertificateDer<'_>]) -> SystemTime {
    let of_issuers = issuers.iter().filter_map(|issuer| PeerCertificate::from_der(issuer).ok());
    of_issuers.map(|issuer| issuer.not_after).fold(leaf.not_after, SystemTime::min)
}

/// SHA-256 of the chain.
fn digest(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for certificate in chain {
        // Lengths are hashed, too, so that different chains never hash the same bytes.
        context.update(&certificate.len().to_be_bytes());
        context.update(certificate);
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn certificate(name: &str) -> CertificateDer<'static> {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_is_held_once_for_as_long_as_a_connection_uses_it() {
        let mut certificates = Certificates::default();
        let (one, other) = (certificate("a.example"), certificate("b.example"));
        let first = certificates.intern(std::slice::from_ref(&one)).unwrap().certificate;
        let second = certificates.intern(std::slice::from_ref(&one)).unwrap().certificate;
        let longer = certificates.intern(&[one.clone(), other.clone()]).unwrap().certificate;
        assert!(Rc::ptr_eq(&first, &second) && !Rc::ptr_eq(&first, &longer));
        assert_eq!(&*first.names, "DNS:a.example");
        drop((first, second));
        certificates.sweep();
        assert_eq!(certificates.by_digest.len(), 1);
        drop(longer);
        certificates.sweep();
        assert!(certificates.by_digest.is_empty());
    }

    #[test]
    fn the_last_call_comes_a_tenth_of_the_certificates_life_before_its_end() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let left_at_last_call = |life: u64| {
            let life = CertificateLife::new(end - BACK_DATING - Duration::from_secs(life), end);
            life.end.duration_since(life.last_call).unwrap().as_secs()
        };
        assert_eq!([20, 100, 86_400].map(left_at_last_call), [2, 10, 30]);
    }
}
