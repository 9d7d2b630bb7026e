//! The issuing rules: which certificate a caller gets, and for how long. Pure functions of their input.
//!
//! [`IssuingRules::issue`] alone decides about a workload's certificate; the service around it only authenticates the
//! caller.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tidegate_core::{DnsName, Identity, San};

use crate::csr::{CheckedCsr, CsrError, KeyKind};
use crate::issuer::Issuer;
use crate::service_names::ReservedName;
use crate::x509::WriteError;

#[cfg(test)]
mod tests;

/// Leaves are back-dated by this much, for peers whose clocks are behind.
pub(crate) const BACKDATE: Duration = Duration::from_secs(60);

/// Lifetimes of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IssuingRules {
    /// Lifetime if the request does not say.
    pub default_life: Duration,
    /// Maximum lifetime.
    pub max_life: Duration,
    /// An issuer with less than this left no longer signs.
    pub min_issuer_life: Duration,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub(crate) struct Issued {
    /// The leaf.
    pub(crate) leaf: CertificateDer<'static>,
    /// Its names.
    pub(crate) sans: Vec<San>,
    /// Its serial number in lower-case hex.
    pub(crate) serial: String,
    /// Its expiry.
    pub(crate) not_after: SystemTime,
}

/// Why a certificate is refused.
#[derive(Debug, thiserror::Error)]
pub enum IssuingRefusal {
    /// The request itself is invalid.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// A negative lifetime.
    #[error("validity_duration {0} is negative")]
    NegativeLife(i64),
    /// The issuer has expired, or will soon; the operator must rotate or replace it.
    #[error("the issuing certificate authority ends at {0}, too soon to sign anything; rotate it")]
    IssuerEnds(String),
    /// The issuer is not valid yet by this machine's clock.
    #[error("the issuing certificate authority is not valid before {0}; look at this machine's clock")]
    IssuerNotYetValid(String),
    /// The caller's identity has no DNS spelling.
    #[error("identity {0} is not a DNS name; shorten the namespace or service account")]
    Identity(String),
    /// The caller's name is reserved for another holder.
    #[error(transparent)]
    ReservedName(#[from] ReservedName),
    /// An internal error, or the user's authority may not sign these names.
    #[error("the certificate could not be written: {0}")]
    Write(#[from] WriteError),
    /// An internal error: the signed certificate cannot be parsed.
    #[error("the certificate written does not read back: {0}")]
    ReadBack(#[from] tidegate_core::certificate::CertificateError),
}

impl Default for IssuingRules {
    /// 24 hours, maximum and default; an issuer with less than a minute left does not sign. The last step of a root rotation
    /// also waits for the maximum lifetime.
    fn default() -> Self {
        Self {
            default_life: Duration::from_secs(24 * 3600),
            max_life: Duration::from_secs(24 * 3600),
            min_issuer_life: Duration::from_secs(60),
        }
    }
}

impl IssuingRules {
    /// The rules for workloads, with MeshConfig's lifetime `life`, if set, which `max_life` limits.
    pub(crate) fn of_workloads(self, life: Option<Duration>) -> Self {
        match life.map(|life| life.min(self.max_life)) {
            Some(life) => Self { default_life: life, max_life: life, ..self },
            None => self,
        }
    }

    /// Decides about a request of an authenticated caller, and signs. `requested_seconds` 0 requests the default lifetime.
    /// `service_names` are added to the caller's own names.
    pub(crate) fn issue(
        &self,
        csr: &CheckedCsr,
        caller: &Identity,
        service_names: &[DnsName],
        requested_seconds: i64,
        issuer: &Issuer,
        now: SystemTime,
    ) -> Result<Issued, IssuingRefusal> {
        csr.check_names(caller)?;
        let requested =
            u64::try_from(requested_seconds).map_err(|_| IssuingRefusal::NegativeLife(requested_seconds))?;
        let wanted = if requested == 0 { self.default_life } else { Duration::from_secs(requested) };
        let not_after = self.end_of_life(wanted.min(self.max_life), issuer, now)?;
        let sans = workload_sans(caller, service_names)?;
        let leaf =
            issuer.sign_leaf(&csr.public_key, &sans, csr.key == KeyKind::Rsa, now - BACKDATE, not_after)?;
        Issued::read_back(leaf, sans)
    }

    /// The expiry of a lifetime that starts now, limited by the issuer's own.
    pub(crate) fn end_of_life(
        &self,
        life: Duration,
        issuer: &Issuer,
        now: SystemTime,
    ) -> Result<SystemTime, IssuingRefusal> {
        if issuer.not_before() > now {
            let start = humantime::format_rfc3339_seconds(issuer.not_before()).to_string();
            return Err(IssuingRefusal::IssuerNotYetValid(start));
        }
        let left = issuer.not_after().duration_since(now).unwrap_or_default();
        if left < self.min_issuer_life || left.is_zero() {
            return Err(IssuingRefusal::IssuerEnds(
                humantime::format_rfc3339_seconds(issuer.not_after()).to_string(),
            ));
        }
        Ok(now + life.min(left))
    }
}

impl IssuingRefusal {
    /// A metric label and the reason in the audit log, one of a fixed set.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Csr(CsrError::ForeignName { .. } | CsrError::RepeatedName(_)) => "name",
            Self::Csr(CsrError::Key(_)) => "key",
            Self::Csr(_) | Self::NegativeLife(_) => "request",
            Self::IssuerEnds(_) | Self::IssuerNotYetValid(_) | Self::Write(WriteError::Names { .. }) => {
                "issuer"
            }
            Self::Identity(_) | Self::ReservedName(_) => "identity",
            Self::Write(_) | Self::ReadBack(_) => "internal",
        }
    }
}

impl Issued {
    /// All names, for logs: `DNS:a.b, URI:spiffe://…`.
    pub(crate) fn names(&self) -> String {
        self.sans.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Parses a certificate that was just signed, so that what is logged and answered is what it says.
    pub(crate) fn read_back(leaf: CertificateDer<'static>, sans: Vec<San>) -> Result<Self, IssuingRefusal> {
        let read = tidegate_core::PeerCertificate::from_der(&leaf)?;
        Ok(Self { leaf, sans, serial: read.serial, not_after: read.not_after })
    }
}

/// The two spellings that every workload's certificate carries, then the names of its Services.
fn workload_sans(identity: &Identity, service_names: &[DnsName]) -> Result<Vec<San>, IssuingRefusal> {
    let name =
        DnsName::parse(&identity.dns_name()).map_err(|_| IssuingRefusal::Identity(identity.to_string()))?;
    let others =
        service_names.iter().filter(|other| **other != name).cloned().map(San::Dns).collect::<Vec<_>>();
    Ok([San::Dns(name), San::Uri(identity.spiffe_uri().into())].into_iter().chain(others).collect())
}
