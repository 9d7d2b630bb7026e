//! Checks certificate signing requests (RFC 2986) before they are signed.
//!
//! [`check_csr`] checks the request by itself: size, form, key, signature. [`CheckedCsr::check_names`] then compares the
//! requested names with the caller's authenticated identity. Only the public key of a request ever gets into a
//! certificate.

use std::borrow::Cow;

use aws_lc_rs::signature::{self, EcdsaVerificationAlgorithm, UnparsedPublicKey};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use tidegate_core::{DnsName, Identity};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;

pub(crate) use self::key::check as check_key;
pub(crate) use self::key::{KeyError, KeyKind};

mod key;
#[cfg(test)]
mod tests;

/// Maximum bytes of a request, in PEM or DER. An RSA-8192 request has about 3 KiB.
pub(crate) const MAX_CSR_BYTES: usize = 16 * 1024;
/// Begin and end of a request's PEM block by Java's keytool and other older programs (RFC 7468 §7).
const OLD_LABELS: [(&str, &str); 2] = [
    ("-----BEGIN NEW CERTIFICATE REQUEST-----", "-----BEGIN CERTIFICATE REQUEST-----"),
    ("-----END NEW CERTIFICATE REQUEST-----", "-----END CERTIFICATE REQUEST-----"),
];

const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
const ECDSA_SHA384: &str = "1.2.840.10045.4.3.3";
const ECDSA_SHA512: &str = "1.2.840.10045.4.3.4";

/// A request whose form, key and signature are valid. Its names are not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedCsr {
    /// DER of its SubjectPublicKeyInfo.
    pub(crate) public_key: Vec<u8>,
    /// The kind of that key.
    pub key: KeyKind,
    common_names: Vec<String>,
    names: Vec<RequestedName>,
}

/// Why a request is refused. Each text says what the requester has to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// More than [`MAX_CSR_BYTES`].
    #[error("the CSR has {0} bytes, more than {MAX_CSR_BYTES}")]
    TooLong(usize),
    /// No PEM block `CERTIFICATE REQUEST` or `NEW CERTIFICATE REQUEST`.
    #[error("the CSR is not one PEM block CERTIFICATE REQUEST or NEW CERTIFICATE REQUEST")]
    Pem,
    /// Not a DER-encoded PKCS#10 request.
    #[error("the CSR is not a DER-encoded PKCS#10 request")]
    Der,
    /// A part of the request cannot be decoded or occurs twice.
    #[error("the CSR's {0}")]
    Malformed(&'static str),
    /// The key's kind or size is not accepted.
    #[error("the CSR's key: {0}")]
    Key(#[from] KeyError),
    /// Signed with SHA-1, MD5 or an unknown algorithm.
    #[error("the CSR's signature algorithm {0} is not allowed: use SHA-256, SHA-384 or SHA-512")]
    SignatureAlgorithm(String),
    /// The requester does not hold the key.
    #[error("the CSR's signature does not verify with its own key")]
    Signature,
    /// Requests to become a certificate authority.
    #[error("the CSR requests basicConstraints CA:TRUE; certificates of workloads sign nothing")]
    CertificateAuthority,
    /// Requests to sign certificates or revocation lists.
    #[error("the CSR requests key usage {0}; certificates of workloads sign nothing")]
    SigningUsage(&'static str),
    /// Requests a name that is not the caller's.
    #[error("the CSR requests {asked}; this caller is {own}")]
    ForeignName {
        /// `type:value` of the name.
        asked: String,
        /// The caller's identity.
        own: String,
    },
    /// Several names of one type.
    #[error("the CSR requests more than one {0} name")]
    RepeatedName(&'static str),
}

/// Checks a request in PEM (or plain DER) by itself.
pub fn check_csr(input: &[u8]) -> Result<CheckedCsr, CsrError> {
    if input.len() > MAX_CSR_BYTES {
        return Err(CsrError::TooLong(input.len()));
    }
    // No request is shorter than 128 bytes, so the length of a DER one is never ASCII.
    if matches!(input, [0x30, 0x80..=0xff, ..]) {
        return check_der(input);
    }
    let input = with_new_labels(input);
    let mut blocks = CertificateSigningRequestDer::pem_slice_iter(&input);
    let (Some(Ok(der)), None) = (blocks.next(), blocks.next()) else { return Err(CsrError::Pem) };
    check_der(&der)
}

impl CheckedCsr {
    /// Checks that the request has no names, or only the caller's own spellings, each at most once.
    pub(crate) fn check_names(&self, caller: &Identity) -> Result<(), CsrError> {
        let own_dns = DnsName::parse(&caller.dns_name()).ok();
        let own_uri = caller.spiffe_uri();
        let is_own_dns =
            |text: &str| DnsName::parse(text).ok().is_some_and(|name| Some(&name) == own_dns.as_ref());
        let foreign = |asked: String| CsrError::ForeignName { asked, own: caller.to_string() };

        for name in &self.common_names {
            if !name.is_empty() && !is_own_dns(name) && *name != own_uri {
                return Err(foreign(format!("CN:{}", printable(name))));
            }
        }
        let (mut dns, mut uris) = (0, 0);
        for name in &self.names {
            let own = match name {
                RequestedName::Dns(text) => {
                    dns += 1;
                    is_own_dns(text)
                }
                RequestedName::Uri(text) => {
                    uris += 1;
                    *text == own_uri
                }
                RequestedName::Other(_) => false,
            };
            if !own {
                return Err(foreign(name.to_string()));
            }
        }
        match (dns, uris) {
            (2.., _) => Err(CsrError::RepeatedName("DNS")),
            (_, 2..) => Err(CsrError::RepeatedName("URI")),
            _ => Ok(()),
        }
    }
}

/// An entry of the CSR's subjectAltName. It is compared with the caller's names, and never copied into a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
enum RequestedName {
    Dns(String),
    Uri(String),
    /// A type that workloads do not have, as `type:value`.
    Other(String),
}

impl std::fmt::Display for RequestedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(text) => write!(f, "DNS:{}", printable(text)),
            Self::Uri(text) => write!(f, "URI:{}", printable(text)),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Checks a CSR in DER (RFC 2986), its signature included, which proves that the sender has the private key.
fn check_der(der: &[u8]) -> Result<CheckedCsr, CsrError> {
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Der)?;
    let info = &csr.certification_request_info;
    if !rest.is_empty() {
        return Err(CsrError::Der);
    }
    if info.version != X509Version::V1 {
        return Err(CsrError::Malformed("version is not 0"));
    }
    // Cheap checks first: no arithmetic with a key of the wrong size.
    let key = key::check(&info.subject_pki)?;
    check_signature_algorithm(&csr)?;
    let names = check_extensions(&csr)?;
    let common_names = info
        .subject
        .iter_common_name()
        .map(|name| name.as_str().map(ToOwned::to_owned))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| CsrError::Malformed("common name cannot be decoded"))?;
    verify_signature(&csr, key).map_err(|()| CsrError::Signature)?;
    Ok(CheckedCsr { public_key: info.subject_pki.raw.to_vec(), key, common_names, names })
}

/// Accepts SHA-256 and stronger hashes; others are refused before anything is computed.
fn check_signature_algorithm(csr: &X509CertificationRequest<'_>) -> Result<(), CsrError> {
    let oid = csr.signature_algorithm.algorithm.to_id_string();
    let allowed = [
        "1.2.840.113549.1.1.11", // RSA with SHA-256
        "1.2.840.113549.1.1.12", // RSA with SHA-384
        "1.2.840.113549.1.1.13", // RSA with SHA-512
        "1.2.840.113549.1.1.10", // RSA-PSS; its hash is checked when it is verified
        ECDSA_SHA256,
        ECDSA_SHA384,
        ECDSA_SHA512,
    ];
    if allowed.contains(&oid.as_str()) { Ok(()) } else { Err(CsrError::SignatureAlgorithm(oid)) }
}

/// Verifies the signature with the request's own public key, which proves that the sender has the private key.
fn verify_signature(csr: &X509CertificationRequest<'_>, key: KeyKind) -> Result<(), ()> {
    let Some(algorithm) = ecdsa(&csr.signature_algorithm.algorithm.to_id_string(), key) else {
        return csr.verify_signature().map_err(|_| ());
    };
    let info = &csr.certification_request_info;
    UnparsedPublicKey::new(algorithm, &info.subject_pki.subject_public_key.data)
        .verify(info.raw, &csr.signature_value.data)
        .map_err(|_| ())
}

/// Any hash may be combined with either curve; the library that parses requests does not support all combinations.
fn ecdsa(oid: &str, key: KeyKind) -> Option<&'static EcdsaVerificationAlgorithm> {
    match (key, oid) {
        (KeyKind::P256, ECDSA_SHA256) => Some(&signature::ECDSA_P256_SHA256_ASN1),
        (KeyKind::P256, ECDSA_SHA384) => Some(&signature::ECDSA_P256_SHA384_ASN1),
        (KeyKind::P256, ECDSA_SHA512) => Some(&signature::ECDSA_P256_SHA512_ASN1),
        (KeyKind::P384, ECDSA_SHA256) => Some(&signature::ECDSA_P384_SHA256_ASN1),
        (KeyKind::P384, ECDSA_SHA384) => Some(&signature::ECDSA_P384_SHA384_ASN1),
        (KeyKind::P384, ECDSA_SHA512) => Some(&signature::ECDSA_P384_SHA512_ASN1),
        _ => None,
    }
}

/// The same PEM text under the labels of RFC 7468.
fn with_new_labels(input: &[u8]) -> Cow<'_, [u8]> {
    match str::from_utf8(input) {
        Ok(text) if OLD_LABELS.iter().any(|(old, _)| text.contains(old)) => {
            let renamed = OLD_LABELS.iter().fold(text.to_owned(), |text, (old, new)| text.replace(old, new));
            Cow::Owned(renamed.into_bytes())
        }
        _ => Cow::Borrowed(input),
    }
}

/// Refuses requests for a CA or for signing; returns the requested names. Other extensions are ignored.
fn check_extensions(csr: &X509CertificationRequest<'_>) -> Result<Vec<RequestedName>, CsrError> {
    let mut requests =
        csr.certification_request_info.iter_attributes().filter_map(|attribute| {
            match attribute.parsed_attribute() {
                ParsedCriAttribute::ExtensionRequest(request) => Some(request),
                _ => None,
            }
        });
    let Some(request) = requests.next() else { return Ok(Vec::new()) };
    if requests.next().is_some() {
        return Err(CsrError::Malformed("extension request is there twice"));
    }
    let mut names = Vec::new();
    for (index, extension) in request.extensions.iter().enumerate() {
        if request.extensions.iter().take(index).any(|other| other.oid == extension.oid) {
            return Err(CsrError::Malformed("extension request names an extension twice"));
        }
        check_extension(extension, &mut names)?;
    }
    Ok(names)
}

/// Checks one extension of the request; the entries of subjectAltName go to `names`, at most
/// [`tidegate_core::certificate::MAX_SANS`].
fn check_extension(extension: &X509Extension<'_>, names: &mut Vec<RequestedName>) -> Result<(), CsrError> {
    match extension.parsed_extension() {
        ParsedExtension::BasicConstraints(constraints) if constraints.ca => {
            Err(CsrError::CertificateAuthority)
        }
        ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() => {
            Err(CsrError::SigningUsage("keyCertSign"))
        }
        ParsedExtension::KeyUsage(usage) if usage.crl_sign() => Err(CsrError::SigningUsage("cRLSign")),
        ParsedExtension::SubjectAlternativeName(san) => {
            if san.general_names.len() > tidegate_core::certificate::MAX_SANS {
                return Err(CsrError::Malformed("subjectAltName holds more than 100 names"));
            }
            names.extend(san.general_names.iter().map(requested_name));
            Ok(())
        }
        // A known extension that cannot be decoded hides what it requests.
        ParsedExtension::ParseError { .. } => Err(CsrError::Malformed("extension request cannot be decoded")),
        _ => Ok(()),
    }
}

fn requested_name(name: &GeneralName<'_>) -> RequestedName {
    match name {
        GeneralName::DNSName(text) => RequestedName::Dns((*text).to_owned()),
        GeneralName::URI(text) => RequestedName::Uri((*text).to_owned()),
        GeneralName::RFC822Name(text) => RequestedName::Other(format!("email:{}", printable(text))),
        GeneralName::IPAddress(bytes) => RequestedName::Other(format!("IP:{}", ip(bytes))),
        GeneralName::DirectoryName(_) => RequestedName::Other("a directory name".to_owned()),
        _ => RequestedName::Other("a name of a type that no workload has".to_owned()),
    }
}

fn ip(bytes: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    let v6 = || <[u8; 16]>::try_from(bytes).map(|b| std::net::IpAddr::from(b).to_string());
    v4.or_else(|_| v6()).unwrap_or_else(|_| "malformed".to_owned())
}

/// Untrusted text, made safe for one log line.
fn printable(text: &str) -> String {
    text.chars().take(256).flat_map(char::escape_debug).collect()
}
