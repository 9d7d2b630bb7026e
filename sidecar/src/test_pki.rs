//! Certificates for tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tidegate_core::PeerCertificate;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::trust_bundle::TrustBundle;

/// The principal that test policies allow.
pub(crate) const GATEWAY: &str = "ingress-nginx.ingress-nginx.cluster.local";

/// The name in the certificate of the workload under test.
pub(crate) const SERVER: &str = "httpbin.httpbin.cluster.local";

/// A certificate authority.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Intermediates in the chain of a leaf.
    above: Vec<CertificateDer<'static>>,
}

/// A certificate with its chain and key.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Authority {
    /// A self-signed root with a key of its own; two of the same name are different roots.
    pub(crate) fn root(name: &str) -> Self {
        let issuer =
            CertifiedIssuer::self_signed(authority_params(name), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, above: Vec::new() }
    }

    /// An issuer below this one; its leaves come with the chain up to the root, without it.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(authority_params(name), key, &self.issuer).unwrap();
        let above = [issuer.der().clone()].into_iter().chain(self.above.iter().cloned()).collect();
        Self { issuer, above }
    }

    /// A certificate for clients and servers, valid from a minute ago for an hour; `change` may alter it.
    pub(crate) fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.issue_for(KeyPair::generate().unwrap(), change)
    }

    pub(crate) fn issue_rsa(&self, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.issue_for(KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap(), change)
    }

    /// A certificate with this DNS name alone.
    pub(crate) fn named(&self, dns_name: &str) -> Leaf {
        self.issue(|params| params.subject_alt_names = vec![dns(dns_name)])
    }

    /// A workload's certificate: contains both forms of its identity.
    pub(crate) fn workload(&self, namespace: &str, account: &str) -> Leaf {
        self.workload_until(namespace, account, SystemTime::now() + Duration::from_secs(3600))
    }

    /// A workload's certificate that expires at `end`.
    pub(crate) fn workload_until(&self, namespace: &str, account: &str, end: SystemTime) -> Leaf {
        let uri = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        self.issue(|params| {
            params.subject_alt_names = vec![
                dns(&format!("{account}.{namespace}.cluster.local")),
                SanType::URI(uri.try_into().unwrap()),
            ];
            params.not_after = end.into();
        })
    }

    /// The certificate of an intermediate.
    pub(crate) fn chain_above(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn bundle(&self) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::from_certificates([self.issuer.der().clone()]).unwrap())
    }

    /// The trust bundle after a rotation that retired another root, for a process that trusted it.
    pub(crate) fn bundle_after(&self, retired: &Self) -> Arc<TrustBundle> {
        let before = retired.bundle();
        let after = TrustBundle::clone(&self.bundle()).with_retired(before.fingerprints());
        Arc::new(after.in_place_of(&before))
    }

    fn issue_for(&self, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Leaf { chain: [leaf].into_iter().chain(self.above.iter().cloned()).collect(), key }
    }
}

impl Leaf {
    pub(crate) fn credentials(&self) -> Arc<Credentials> {
        Arc::new(Credentials {
            chain: self.chain.clone(),
            key: Arc::new(self.private_key()),
            leaf: PeerCertificate::from_der(&self.chain[0]).unwrap(),
            generation: 1,
        })
    }

    /// Writes leaf, intermediates (if any) and key as PEM files.
    pub(crate) fn write(&self, folder: &Path) -> (PathBuf, Option<PathBuf>, PathBuf) {
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (leaf, above) = self.chain.split_at(1);
        let above = (!above.is_empty()).then(|| write("above.crt", tidegate_runtime::tls::pem_encode(above)));
        (
            write("leaf.crt", tidegate_runtime::tls::pem_encode(leaf)),
            above,
            write("tls.key", self.key.serialize_pem()),
        )
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// A client configuration that trusts `roots` and presents `leaf`.
pub(crate) fn client_config(
    roots: &TrustBundle,
    leaf: Option<&Leaf>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&str],
) -> Arc<ClientConfig> {
    let mut store = RootCertStore::empty();
    for root in roots.roots() {
        store.add(root.clone()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(tidegate_runtime::tls::provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(store);
    let mut config = match leaf {
        Some(leaf) => builder.with_client_auth_cert(leaf.chain.clone(), leaf.private_key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
