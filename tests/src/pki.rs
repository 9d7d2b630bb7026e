//! Certificates of every odd kind, signed by the mesh's root or by another one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// The client that the seed's policies name.
pub const INGRESS_CLIENT: &str = "ingress-nginx.ingress-nginx.cluster.local";

/// A certificate authority whose key the test holds.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with the chain that a client sends, and its key.
#[derive(Debug)]
pub struct Credentials {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    key: PrivatePkcs8KeyDer<'static>,
}

/// The content of a leaf.
#[derive(Clone, Debug)]
pub struct Leaf {
    names: Vec<SanType>,
    subject: Vec<(DnType, String)>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    from: SystemTime,
    until: SystemTime,
    rsa: bool,
}

impl Authority {
    /// A self-signed root.
    pub fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, key_pem: key.serialize_pem(), issuer: Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { certificate, key_pem: key.serialize_pem(), issuer: Issuer::new(params, key) }
    }

    /// PEM of its certificate.
    pub fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    /// PEM (PKCS#8) of its key.
    pub fn key_pem(&self) -> String {
        self.key_pem.clone()
    }

    /// Its certificate.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    /// Signs a leaf.
    pub fn issue(&self, leaf: &Leaf) -> Credentials {
        Self::issue_as(&self.issuer, leaf)
    }

    /// Signs a leaf as any issuer.
    pub fn issue_as(issuer: &Issuer<'_, KeyPair>, leaf: &Leaf) -> Credentials {
        let key = if leaf.rsa {
            KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap()
        } else {
            KeyPair::generate().unwrap()
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, text) in &leaf.subject {
            params.distinguished_name.push(kind.clone(), text.as_str());
        }
        params.subject_alt_names = leaf.names.clone();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = leaf.usages.clone();
        set_validity(&mut params, leaf.from, leaf.until);
        let certificate = params.signed_by(&key, issuer).unwrap().der().clone();
        Credentials { chain: vec![certificate], key: key.serialize_der().into() }
    }

    /// Signs these parameters, for an authority of the test's own.
    pub fn sign_authority(&self, params: &CertificateParams, key: &KeyPair) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    /// A leaf below `depth` further authorities, sent with all of them.
    pub fn issue_deep(&self, leaf: &Leaf, depth: usize) -> Credentials {
        let mut path: Vec<Self> = Vec::new();
        for level in 0..depth {
            let above = path.last().unwrap_or(self);
            path.push(above.intermediate(&format!("Intermediate {level}")));
        }
        let mut credentials = path.last().unwrap_or(self).issue(leaf);
        credentials.chain.extend(path.iter().rev().map(Self::certificate));
        credentials
    }
}

impl Credentials {
    /// The leaf's key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone_key())
    }

    /// From the PEM of a chain and of a PKCS#8 key.
    pub fn from_pem(chain: &str, key: &str) -> Self {
        let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Self { chain: certificates(chain), key }
    }

    /// PEM of the chain.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }

    /// PEM of the key.
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_pkcs8_der())
    }
}

impl Leaf {
    /// A valid client certificate with one DNS name.
    pub fn dns(name: &str) -> Self {
        Self::bare().with_dns(name)
    }

    /// A valid one without any name.
    pub fn bare() -> Self {
        let now = SystemTime::now();
        Self {
            names: Vec::new(),
            subject: Vec::new(),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            from: now - Duration::from_secs(60),
            until: now + Duration::from_secs(3600),
            rsa: false,
        }
    }

    /// A workload's: both forms of an identity.
    pub fn workload(namespace: &str, account: &str) -> Self {
        Self::dns(&format!("{account}.{namespace}.cluster.local"))
            .with_uri(&format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"))
    }

    /// Another DNS name.
    #[must_use]
    pub fn with_dns(self, name: &str) -> Self {
        self.with(SanType::DnsName(name.try_into().unwrap()))
    }

    /// A URI.
    #[must_use]
    pub fn with_uri(self, uri: &str) -> Self {
        self.with(SanType::URI(uri.try_into().unwrap()))
    }

    /// An e-mail address.
    #[must_use]
    pub fn with_email(self, address: &str) -> Self {
        self.with(SanType::Rfc822Name(address.try_into().unwrap()))
    }

    /// Any name.
    #[must_use]
    pub fn with(mut self, name: SanType) -> Self {
        self.names.push(name);
        self
    }

    /// A common name.
    #[must_use]
    pub fn with_common_name(self, name: &str) -> Self {
        self.with_subject(DnType::CommonName, name)
    }

    /// A part of the subject.
    #[must_use]
    pub fn with_subject(mut self, kind: DnType, text: &str) -> Self {
        self.subject.push((kind, text.to_owned()));
        self
    }

    /// These extended key usages; with none, without the extension.
    #[must_use]
    pub fn with_usages(mut self, usages: &[ExtendedKeyUsagePurpose]) -> Self {
        self.usages = usages.to_vec();
        self
    }

    /// Valid between these times.
    #[must_use]
    pub fn valid(mut self, from: SystemTime, until: SystemTime) -> Self {
        (self.from, self.until) = (from, until);
        self
    }

    /// Valid for this long from now.
    #[must_use]
    pub fn for_another(self, life: Duration) -> Self {
        let now = SystemTime::now();
        self.valid(now - Duration::from_secs(60), now + life)
    }

    /// Expired a second ago.
    #[must_use]
    pub fn expired(self) -> Self {
        let now = SystemTime::now();
        self.valid(now - Duration::from_secs(3600), now - Duration::from_secs(1))
    }

    /// Valid from ten minutes from now.
    #[must_use]
    pub fn not_yet_valid(self) -> Self {
        let now = SystemTime::now();
        self.valid(now + Duration::from_secs(600), now + Duration::from_secs(3600))
    }

    /// With an RSA key of 2048 bits.
    #[must_use]
    pub fn rsa(mut self) -> Self {
        self.rsa = true;
        self
    }
}

/// The certificates in a PEM text.
pub fn certificates(text: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(text.as_bytes()).map(Result::unwrap).collect()
}

/// PEM of something.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    set_validity(
        &mut params,
        now - Duration::from_secs(3600),
        now + Duration::from_secs(10 * 365 * 24 * 3600),
    );
    params
}

/// Sets the validity; certificates count in whole seconds.
fn set_validity(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since_epoch(from);
    params.not_after = epoch + since_epoch(until);
}
