//! Roots and certificates for tests.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tidegate_core::{Identity, PeerCertificate, TrustDomain};

use crate::credentials::Credentials;
use crate::trust_bundle::TrustBundle;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate authority.
pub(crate) struct TestAuthority {
    pub(crate) certificate: Certificate,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl TestAuthority {
    pub(crate) fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(name);
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = Self::params(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        bundle(&[self])
    }

    /// A workload's certificate, backdated by a minute.
    pub(crate) fn issue(
        &self,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        from: SystemTime,
        life: Duration,
    ) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let from = from.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        params.not_before = epoch + (from - Duration::from_secs(60));
        params.not_after = epoch + (from + life);
        params.signed_by(key, &self.issuer).unwrap()
    }

    /// Credentials for `identity` and, as a server, for `localhost`, valid for a day.
    pub(crate) fn credentials(&self, identity: &Identity) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let mut names = both_names(identity);
        names.push(SanType::DnsName("localhost".try_into().unwrap()));
        let certificate = self.issue(&key, names, SystemTime::now(), DAY);
        Credentials {
            chain: vec![certificate.der().clone()],
            key: Arc::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))),
            leaf: PeerCertificate::from_der(certificate.der()).unwrap(),
            generation: 1,
        }
    }
}

pub(crate) fn bundle(authorities: &[&TestAuthority]) -> TrustBundle {
    TrustBundle::from_certificates(authorities.iter().map(|authority| authority.der())).unwrap()
}

pub(crate) fn identity(account: &str) -> Identity {
    Identity::new(TrustDomain::default(), "shop", account).unwrap()
}

pub(crate) fn both_names(identity: &Identity) -> Vec<SanType> {
    vec![dns_name(identity), uri_name(identity)]
}

pub(crate) fn dns_name(identity: &Identity) -> SanType {
    SanType::DnsName(identity.dns_name().try_into().unwrap())
}

pub(crate) fn uri_name(identity: &Identity) -> SanType {
    SanType::URI(identity.spiffe_uri().try_into().unwrap())
}
