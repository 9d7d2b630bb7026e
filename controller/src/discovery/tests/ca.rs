//! A CA for tests of the discovery service: the unit tests' and those that run the controller as a process of its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls_pki_types::PrivateKeyDer;
use tidegate_core::{Identity, PeerCertificate, TrustDomain};
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::trust_bundle::TrustBundle;

/// A CA of the tests' own.
pub(crate) struct Ca(pub(crate) CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn bundle(&self) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::from_certificates([self.0.der().clone()]).unwrap())
    }

    pub(crate) fn issue(&self, account: &str, namespace: &str) -> Arc<Credentials> {
        self.issue_until(account, namespace, SystemTime::now() + Duration::from_secs(3600))
    }

    pub(crate) fn issue_until(
        &self,
        account: &str,
        namespace: &str,
        not_after: SystemTime,
    ) -> Arc<Credentials> {
        let identity = Identity::new(TrustDomain::default(), namespace, account).unwrap();
        let mut params = CertificateParams::new(vec![identity.dns_name()]).unwrap();
        params.subject_alt_names.push(SanType::URI(identity.spiffe_uri().try_into().unwrap()));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.not_after = not_after.into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Arc::new(Credentials {
            chain: vec![certificate.der().clone()],
            key: Arc::new(PrivateKeyDer::Pkcs8(key.serialize_der().into())),
            leaf: PeerCertificate::from_der(certificate.der()).unwrap(),
            generation: 1,
        })
    }
}
