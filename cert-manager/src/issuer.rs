//! A certificate authority's ability to sign: a key, its certificate and the chain up to a root.
//!
//! [`Issuer::create_root`] generates a self-signed one; [`Issuer::from_pem`] parses one that the user provides and reports
//! everything that is wrong with it. [`crate::rules`] decides what an issuer signs for a workload.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tidegate_core::{DnsName, Identity, San, TrustDomain, hex};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::service_names::ServiceNames;
use crate::x509::{self, Signer, Template, Usage, WriteError};

#[cfg(test)]
mod tests;

/// Prefix of the common name of generated roots; eight hex digits of the key follow, so that people, and verifiers that
/// select by name, can distinguish the two roots of a rotation.
pub(crate) const ROOT_COMMON_NAME: &str = "Tidegate Root CA";
/// Lifetime of generated roots: 10 years.
pub(crate) const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Roots are back-dated by this much, for peers whose clocks are behind.
const ROOT_BACKDATE: Duration = Duration::from_secs(3600);
/// Maximum certificates from an issuer to its root, both counted.
const MAX_CHAIN: usize = 6;

/// A signing key with its certificate and the chain above it. Cheap to clone; never prints its key.
#[derive(Clone)]
pub(crate) struct Issuer(Arc<Inner>);

/// Everything that signing needs, read from the certificates once.
struct Inner {
    key: KeyPair,
    /// The issuer's own certificate first, its root last; one entry when the issuer is the root.
    chain: Vec<CertificateDer<'static>>,
    subject: Vec<u8>,
    key_id: Vec<u8>,
    path_length: Option<u32>,
    /// Whether a certificate of the chain restricts the names that may be signed (RFC 5280 §4.2.1.10).
    is_constrained: bool,
    not_before: SystemTime,
    not_after: SystemTime,
    root_not_after: SystemTime,
}

/// Names that a given authority must be able to sign, and whose they are. One of each kind stands for all.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequiredNames(Vec<(String, Vec<San>)>);

/// Everything that is wrong with a given certificate authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerProblems(pub Vec<String>);

impl fmt::Display for IssuerProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the certificate authority cannot be used: {}", self.0.join("; "))
    }
}

impl std::error::Error for IssuerProblems {}

impl RequiredNames {
    /// A workload's in both spellings, the authority's own, and those of each workload with additional names.
    pub(crate) fn new(trust_domain: &TrustDomain, serving_names: &[San], granted: &ServiceNames) -> Self {
        // Every namespace has this service account.
        let workload = Identity::new(trust_domain.clone(), "default", "default").ok();
        let workload = workload.map(|identity| {
            let dns = DnsName::parse(&identity.dns_name()).map(San::Dns);
            let sans = dns.into_iter().chain([San::Uri(identity.spiffe_uri().into())]).collect();
            ("a workload".to_owned(), sans)
        });
        let own = ("its own service".to_owned(), serving_names.to_vec());
        let granted = granted.all().map(|((namespace, account), names)| {
            (format!("{namespace}/{account}"), names.iter().cloned().map(San::Dns).collect())
        });
        Self(workload.into_iter().chain([own]).chain(granted).collect())
    }
}

impl Issuer {
    /// Generates a self-signed root: ECDSA P-256, 10 years.
    pub(crate) fn create_root(now: SystemTime) -> Result<Self, WriteError> {
        let key = KeyPair::generate()?;
        let key_id = x509::key_id(key.der_bytes());
        let digits = hex(&key_id[..4]);
        let subject = x509::name(Some(&format!("{ROOT_COMMON_NAME} {digits}")));
        let certificate = x509::sign(
            &Template {
                subject: &subject,
                public_key: &key.subject_public_key_info(),
                not_before: now - ROOT_BACKDATE,
                not_after: now + ROOT_LIFE,
                usage: Usage::Ca { path_length: None },
            },
            &Signer { name: &subject, key_id: &key_id, key: &key },
        )?;
        let facts = Facts::read(&certificate).map_err(|_| WriteError::Date)?;
        Ok(Self::assemble(key, vec![certificate], vec![facts]))
    }

    /// Parses a certificate authority from PEM: `chain` starts with the issuer's certificate and may end with the root;
    /// `roots` contains the root if `chain` does not (unneeded certificates are ignored).
    /// The chain must verify at `now`, and a leaf that the key signs must verify through it.
    pub(crate) fn from_pem(
        chain: &[u8],
        key: &[u8],
        roots: &[u8],
        now: SystemTime,
    ) -> Result<Self, IssuerProblems> {
        let mut problems = Vec::new();
        let chain = certificates(chain, "the certificate file", &mut problems);
        let roots = certificates(roots, "the root file", &mut problems);
        let key = signing_key(key, &mut problems);
        if chain.is_empty() && problems.is_empty() {
            problems.push("the certificate file holds no certificate".to_owned());
        }
        let (Some(key), true) = (key, problems.is_empty()) else { return Err(IssuerProblems(problems)) };
        let issuer = Self::build(key, chain, roots, now, &mut problems);
        match issuer {
            Some(issuer) if problems.is_empty() => Ok(issuer),
            _ => Err(IssuerProblems(problems)),
        }
    }

    /// The certificates that are sent after a leaf: all but the root.
    pub(crate) fn intermediates(&self) -> &[CertificateDer<'static>] {
        self.0.chain.split_last().map(|(_, rest)| rest).unwrap_or_default()
    }

    /// The root at the chain's end.
    pub(crate) fn root(&self) -> &CertificateDer<'static> {
        match self.0.chain.last() {
            Some(root) => root,
            None => unreachable!("an issuer has a chain of at least one"),
        }
    }

    /// The earliest expiry in the chain, which limits everything that this issuer signs.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.0.not_after
    }

    /// The latest start of validity in the chain.
    pub(crate) fn not_before(&self) -> SystemTime {
        self.0.not_before
    }

    /// The root's expiry.
    pub(crate) fn root_not_after(&self) -> SystemTime {
        self.0.root_not_after
    }

    /// PEM of the chain.
    pub(crate) fn chain_pem(&self) -> String {
        self.0.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }

    /// PEM (PKCS#8, or the form in which it was given) of the private key. Only for the root store.
    pub(crate) fn key_pem(&self) -> String {
        let der = self.0.key.serialized_der();
        let label = match PrivateKeyDer::try_from(der) {
            Ok(PrivateKeyDer::Pkcs1(_)) => "RSA PRIVATE KEY",
            Ok(PrivateKeyDer::Sec1(_)) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        pem(label, der)
    }

    /// Whether both sign with the same key under the same certificates.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.0.chain == other.0.chain && self.0.key.der_bytes() == other.0.key.der_bytes()
    }

    /// Signs a leaf for a public key (DER of its SubjectPublicKeyInfo). [`WriteError::Names`] if verifiers would refuse it
    /// because of its names.
    pub(crate) fn sign_leaf(
        &self,
        public_key: &[u8],
        sans: &[San],
        key_encipherment: bool,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<CertificateDer<'static>, WriteError> {
        let leaf = x509::sign(
            &Template {
                subject: &x509::name(None),
                public_key,
                not_before,
                not_after,
                usage: Usage::Leaf { sans, key_encipherment },
            },
            &self.signer(),
        )?;
        if self.0.is_constrained {
            let at = not_before.max(self.0.not_before).duration_since(SystemTime::UNIX_EPOCH);
            let at = UnixTime::since_unix_epoch(at.map_err(|_| WriteError::Date)?);
            verify(&leaf, self.intermediates(), self.root(), at).map_err(|error| WriteError::Names {
                names: sans.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                reason: error.to_string(),
            })?;
        }
        Ok(leaf)
    }

    /// Checks that it may sign a leaf for each of these sets of names; reports every problem.
    pub(crate) fn check_names(&self, names: &RequiredNames, now: SystemTime) -> Result<(), IssuerProblems> {
        if !self.0.is_constrained {
            return Ok(());
        }
        let key = KeyPair::generate().map_err(|error| IssuerProblems(vec![error.to_string()]))?;
        let try_one =
            |sans: &[San]| self.sign_leaf(&key.subject_public_key_info(), sans, false, now, self.0.not_after);
        let failed = names
            .0
            .iter()
            .filter_map(|(whose, sans)| try_one(sans).err().map(|error| format!("for {whose}: {error}")));
        let problems: Vec<_> = failed.collect();
        if problems.is_empty() { Ok(()) } else { Err(IssuerProblems(problems)) }
    }

    /// A certificate of `other`'s name and key, signed by this issuer, through which a client that trusts only this
    /// issuer's root can verify what `other` signed. `None` if this issuer may not sign another authority.
    pub(crate) fn cross_sign(&self, other: &Self, now: SystemTime) -> Option<CertificateDer<'static>> {
        let path_length = match self.0.path_length {
            Some(0) => return None,
            Some(length) => Some(length - 1),
            None => other.0.path_length,
        };
        let template = Template {
            subject: &other.0.subject,
            public_key: &other.0.key.subject_public_key_info(),
            not_before: self.0.not_before.max(now - ROOT_BACKDATE),
            not_after: self.0.not_after.min(other.0.not_after),
            usage: Usage::Ca { path_length },
        };
        x509::sign(&template, &self.signer()).ok()
    }

    /// What certificates of this issuer carry of it.
    fn signer(&self) -> Signer<'_> {
        Signer { name: &self.0.subject, key_id: &self.0.key_id, key: &self.0.key }
    }

    /// Completes and checks the chain. Adds every problem that it finds to `problems`; `None` if one of them keeps it
    /// from going on.
    fn build(
        key: KeyPair,
        given: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
        now: SystemTime,
        problems: &mut Vec<String>,
    ) -> Option<Self> {
        let chain = complete_chain(given, roots, problems)?;
        let mut facts = Vec::new();
        for (index, certificate) in chain.iter().enumerate() {
            let facts_of = Facts::read(certificate).map_err(|problem| problems.push(problem)).ok()?;
            facts_of.check(index, now, problems);
            facts.push(facts_of);
        }
        if facts.first().is_some_and(|first| first.public_key != key.der_bytes()) {
            problems.push("the private key does not belong to the first certificate".to_owned());
        }
        if !problems.is_empty() {
            return None;
        }
        let issuer = Self::assemble(key, chain, facts);
        if let Err(problem) = issuer.probe(now) {
            problems.push(problem);
        }
        Some(issuer)
    }

    /// Puts an issuer together. `facts` are those of `chain`, in the same order.
    fn assemble(key: KeyPair, chain: Vec<CertificateDer<'static>>, facts: Vec<Facts>) -> Self {
        let epoch = SystemTime::UNIX_EPOCH;
        let not_before = facts.iter().map(|facts| facts.not_before).max().unwrap_or(epoch);
        let not_after = facts.iter().map(|facts| facts.not_after).min().unwrap_or(epoch);
        let is_constrained = facts.iter().any(|facts| facts.is_constrained);
        let root_not_after = facts.last().map_or(epoch, |root| root.not_after);
        let (subject, key_id, path_length) = match facts.into_iter().next() {
            Some(first) => (first.subject, first.key_id, first.path_length),
            None => (Vec::new(), Vec::new(), None),
        };
        Self(Arc::new(Inner {
            key,
            chain,
            subject,
            key_id,
            path_length,
            is_constrained,
            not_before,
            not_after,
            root_not_after,
        }))
    }

    /// Signs a test leaf and verifies it as peers do: path length, usages and signatures of the whole chain. Names are checked
    /// by [`Issuer::check_names`].
    fn probe(&self, now: SystemTime) -> Result<(), String> {
        let failed =
            |error: &dyn fmt::Display| format!("a certificate that it signs does not verify: {error}");
        let key = KeyPair::generate().map_err(|e| failed(&e))?;
        let end = (now + Duration::from_secs(60)).min(self.0.not_after);
        let leaf = self
            .sign_leaf(&key.subject_public_key_info(), &[], false, now - Duration::from_secs(1), end)
            .map_err(|e| failed(&e))?;
        let unix = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|e| failed(&e))?;
        verify(&leaf, self.intermediates(), self.root(), UnixTime::since_unix_epoch(unix))
            .map_err(|e| failed(&e))
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer").field("certificates", &self.0.chain.len()).finish_non_exhaustive()
    }
}

/// Parsed fields of a certificate of a chain.
struct Facts {
    subject: Vec<u8>,
    subject_text: String,
    public_key: Vec<u8>,
    key_id: Vec<u8>,
    is_ca: bool,
    path_length: Option<u32>,
    is_constrained: bool,
    signs_certificates: bool,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Facts {
    fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let peer = tidegate_core::PeerCertificate::from_der(der).map_err(|e| e.to_string())?;
        let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
        let public_key = certificate.public_key().subject_public_key.data.to_vec();
        let constraints = certificate.basic_constraints().map_err(|e| e.to_string())?;
        let name_constraints = certificate.name_constraints().map_err(|e| e.to_string())?;
        let usage = certificate.key_usage().map_err(|e| e.to_string())?;
        let key_id = certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            subject: certificate.subject().as_raw().to_vec(),
            subject_text: certificate.subject().to_string(),
            key_id: key_id.unwrap_or_else(|| x509::key_id(&public_key)),
            public_key,
            is_ca: constraints.as_ref().is_some_and(|constraints| constraints.value.ca),
            path_length: constraints.and_then(|constraints| constraints.value.path_len_constraint),
            is_constrained: name_constraints.is_some(),
            signs_certificates: usage.is_none_or(|usage| usage.value.key_cert_sign()),
            not_before: peer.not_before,
            not_after: peer.not_after,
        })
    }

    fn check(&self, index: usize, now: SystemTime, problems: &mut Vec<String>) {
        let which = format!("certificate {} ({})", index + 1, self.subject_text);
        if !self.is_ca {
            problems.push(format!(
                "{which} is not a certificate authority (basicConstraints CA:TRUE is missing)"
            ));
        }
        if !self.signs_certificates {
            problems.push(format!("{which} may not sign certificates (key usage keyCertSign is missing)"));
        }
        // Verifiers ignore a root's own constraints (RFC 5280 §6.1); they still apply here.
        if self.path_length.is_some_and(|length| (length as usize) < index) {
            problems.push(format!(
                "{which} allows fewer certificate authorities below it than there are ({index})"
            ));
        }
        if self.not_after <= now {
            let end = humantime::format_rfc3339_seconds(self.not_after);
            problems.push(format!("{which} expired at {end}"));
        }
        if self.not_before > now {
            let start = humantime::format_rfc3339_seconds(self.not_before);
            problems.push(format!("{which} is not valid before {start}"));
        }
    }
}

/// Whether a leaf verifies as a client's certificate under a root.
pub(crate) fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    root: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone().into_owned())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    verifier.verify_client_cert(leaf, intermediates, now).map(|_| ())
}

/// One PEM block.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let encoded = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, symbol) in encoded.chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(symbol);
    }
    text.push_str(&format!("\n-----END {label}-----\n"));
    text
}

fn certificates(input: &[u8], what: &str, problems: &mut Vec<String>) -> Vec<CertificateDer<'static>> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(input).collect();
    parsed.unwrap_or_else(|error| {
        problems.push(format!("{what} is not valid PEM: {error}"));
        Vec::new()
    })
}

fn signing_key(input: &[u8], problems: &mut Vec<String>) -> Option<KeyPair> {
    let Ok(der) = PrivateKeyDer::from_pem_slice(input) else {
        problems.push("the key file holds no unencrypted PEM private key".to_owned());
        return None;
    };
    let key = KeyPair::try_from(&der).ok().filter(|key| x509::signature_algorithm(key).is_some());
    if key.is_none() {
        problems.push(
            "the private key is of a kind that cannot sign here: use ECDSA P-256, P-384 or RSA".to_owned(),
        );
    }
    key
}

/// Follows issuer names from the first certificate to a self-issued one.
fn complete_chain(
    given: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    problems: &mut Vec<String>,
) -> Option<Vec<CertificateDer<'static>>> {
    let first = given.first()?.clone();
    let candidates: Vec<_> = given.into_iter().skip(1).chain(roots).collect();
    let mut chain = vec![first];
    loop {
        let last = chain.last()?;
        let Ok((_, certificate)) = X509Certificate::from_der(last) else {
            problems.push(format!("certificate {} is not X.509", chain.len()));
            return None;
        };
        if certificate.subject().as_raw() == certificate.issuer().as_raw() {
            return Some(chain);
        }
        let parent = candidates.iter().find(|candidate| {
            X509Certificate::from_der(candidate).is_ok_and(|(_, parent)| {
                parent.subject().as_raw() == certificate.issuer().as_raw()
                    && certificate.verify_signature(Some(parent.public_key())).is_ok()
            })
        });
        let Some(parent) = parent else {
            problems.push(format!(
                "the issuer of certificate {} ({}) is missing",
                chain.len(),
                certificate.issuer()
            ));
            return None;
        };
        if chain.len() == MAX_CHAIN {
            problems.push(format!("the chain is longer than {MAX_CHAIN} certificates"));
            return None;
        }
        chain.push(parent.clone());
    }
}
