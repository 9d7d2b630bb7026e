//! Helpers that tests of several modules share.

use std::process::Command;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::Value;
use tidegate_core::{Identity, TrustDomain};

/// `httpbin.httpbin.cluster.local`.
pub(crate) fn httpbin() -> Identity {
    Identity::new(TrustDomain::default(), "httpbin", "httpbin").unwrap()
}

pub(crate) fn ia5(text: &str) -> Ia5String {
    text.try_into().unwrap()
}

pub(crate) fn dns(text: &str) -> SanType {
    SanType::DnsName(ia5(text))
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(ia5(text))
}

/// Parameters of a request with these names and no subject.
pub(crate) fn params(sans: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = sans;
    params
}

pub(crate) fn common_name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CommonName, name);
}

/// PEM of a request, signed by a new P-256 key.
pub(crate) fn request(params: &CertificateParams) -> String {
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

/// PEM of a request for no names at all.
pub(crate) fn plain_request() -> String {
    request(&params(Vec::new()))
}

/// Runs `openssl` in a folder; its output on stdout.
pub(crate) fn openssl(dir: &std::path::Path, arguments: &str) -> Vec<u8> {
    let output =
        Command::new("openssl").args(arguments.split_whitespace()).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The time, truncated to whole seconds as in certificates.
pub(crate) fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Signs tokens.
pub(crate) struct TokenSigner {
    pub(crate) key: KeyPair,
    algorithm: Algorithm,
}

impl TokenSigner {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::RS256 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
            Algorithm::EdDSA => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            _ => KeyPair::generate(),
        };
        Self { key: key.unwrap(), algorithm }
    }

    fn encoding_key(&self) -> EncodingKey {
        let pem = self.key.serialize_pem();
        match self.algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()).unwrap(),
            _ => EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
        }
    }

    pub(crate) fn sign_with(&self, header: Header, claims: &Value) -> String {
        jsonwebtoken::encode(&header, claims, &self.encoding_key()).unwrap()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_with(Header::new(self.algorithm), claims)
    }
}
