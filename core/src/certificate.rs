//! The names and the validity of a peer's X.509 certificate. Trust is verified elsewhere.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use crate::dns_name::DnsName;
use crate::hex::hex;
use crate::san::San;

/// Maximum number of subject alternative names in a certificate. More would make every comparison expensive.
pub const MAX_SANS: usize = 100;

/// The part of a certificate that policy, logs and headers use. The subject's common name is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Subject alternative names, in the certificate's order.
    pub sans: Vec<San>,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity, inclusive.
    pub not_after: SystemTime,
    /// Serial number in lower-case hex.
    pub serial: String,
}

/// Why a certificate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not one DER-encoded X.509 certificate.
    #[error("not a DER-encoded X.509 certificate")]
    Der,
    /// The subjectAltName extension occurs twice or cannot be decoded.
    #[error("the subjectAltName extension cannot be decoded")]
    SubjectAltName,
    /// More than [`MAX_SANS`] names.
    #[error("{0} subject alternative names, more than {MAX_SANS}")]
    TooManySans(usize),
    /// A name contains a NUL, a control character or bytes that its type does not allow.
    #[error("subject alternative name {0:?} is malformed")]
    MalformedSan(String),
    /// The validity does not fit into the system's time type.
    #[error("validity out of range")]
    Validity,
}

impl PeerCertificate {
    /// Parses a DER-encoded certificate. A malformed name refuses the whole certificate: only forgeries have one, and a
    /// truncated name must never be compared (CVE-2025-66220 and similar).
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| CertificateError::Der)?;
        if !rest.is_empty() {
            return Err(CertificateError::Der);
        }
        let extension =
            certificate.subject_alternative_name().map_err(|_| CertificateError::SubjectAltName)?;
        let names = extension.map(|san| san.value.general_names.as_slice()).unwrap_or_default();
        if names.len() > MAX_SANS {
            return Err(CertificateError::TooManySans(names.len()));
        }
        Ok(Self {
            sans: names.iter().map(san).collect::<Result<_, _>>()?,
            not_before: system_time(certificate.validity().not_before)?,
            not_after: system_time(certificate.validity().not_after)?,
            serial: serial(certificate.raw_serial()),
        })
    }

    /// All names, for logs: `DNS:a.b, URI:spiffe://…`.
    pub fn display_names(&self) -> String {
        self.sans.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

/// A number in lower-case hex, without leading zeros. Written by hand: the conversion of the big-integer type would add
/// its arithmetic code to the memory of every sidecar.
fn serial(number: &[u8]) -> String {
    match hex(number).trim_start_matches('0') {
        "" => "0".to_owned(),
        digits => digits.to_owned(),
    }
}

fn san(name: &GeneralName<'_>) -> Result<San, CertificateError> {
    let malformed = |text: &str| CertificateError::MalformedSan(text.chars().take(256).collect());
    match name {
        GeneralName::DNSName(text) if text.starts_with("*.") => Ok(San::DnsWildcard((*text).into())),
        GeneralName::DNSName(text) => DnsName::parse(text).map(San::Dns).map_err(|_| malformed(text)),
        GeneralName::URI(text) => clean(text).map(San::Uri).ok_or_else(|| malformed(text)),
        GeneralName::RFC822Name(text) => clean(text).map(San::Email).ok_or_else(|| malformed(text)),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| v6()).map(San::Ip).map_err(|_| malformed("iPAddress"))
        }
        GeneralName::Invalid(..) => Err(malformed("undecodable")),
        _ => Ok(San::Other),
    }
}

/// Accepts printable ASCII without spaces, the only characters of a URI (RFC 3986 §2) or a mailbox in a certificate.
fn clean(text: &str) -> Option<Box<str>> {
    (!text.is_empty() && text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic()))
        .then(|| text.into())
}

fn system_time(time: ASN1Time) -> Result<SystemTime, CertificateError> {
    let seconds = time.timestamp();
    let offset = Duration::from_secs(seconds.unsigned_abs());
    let moment = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(offset)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(offset)
    };
    moment.ok_or(CertificateError::Validity)
}

#[cfg(test)]
mod tests;
