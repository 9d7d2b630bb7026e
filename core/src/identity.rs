//! Workload identity: trust domain, namespace and service account, with a DNS and a URI form.

use std::fmt;

use crate::dns_name::{DnsName, DnsNameError};
use crate::san::San;

/// The trust domain of an identity, such as `cluster.local`. Compared in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(DnsName);

/// The identity of a workload: its Kubernetes service account in a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Box<str>,
    service_account: Box<str>,
}

/// Why a value is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The trust domain is not a DNS name.
    #[error("trust domain {value:?}: {source}")]
    TrustDomain {
        /// The value.
        value: String,
        /// Why it is not a DNS name.
        source: DnsNameError,
    },
    /// A namespace must be a DNS label (RFC 1123): lower-case letters, digits and `-`, at most 63.
    #[error("namespace {0:?} is not a DNS-1123 label")]
    Namespace(String),
    /// A service account's name must be a DNS subdomain (RFC 1123).
    #[error("service account {0:?} is not a DNS-1123 subdomain")]
    ServiceAccount(String),
    /// A URI that is not `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    #[error("{0:?} is not of the form spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>")]
    NotSpiffe(String),
}

impl TrustDomain {
    /// Parses a trust domain, which SPIFFE and OSM both define as a DNS name.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        DnsName::parse(text)
            .map(Self)
            .map_err(|source| IdentityError::TrustDomain { value: text.to_owned(), source })
    }

    /// The normalised text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Default for TrustDomain {
    /// `cluster.local`, the default of OSM and Istio.
    fn default() -> Self {
        match Self::parse("cluster.local") {
            Ok(domain) => domain,
            Err(_) => unreachable!("cluster.local is a DNS name"),
        }
    }
}

impl Identity {
    /// Builds an identity. Each part must follow Kubernetes' naming rules.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        if !is_dns_label(namespace) {
            return Err(IdentityError::Namespace(namespace.to_owned()));
        }
        if !is_dns_subdomain(service_account) {
            return Err(IdentityError::ServiceAccount(service_account.to_owned()));
        }
        Ok(Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    /// Parses `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`.
    pub fn from_spiffe_uri(uri: &str) -> Result<Self, IdentityError> {
        let not_spiffe = || IdentityError::NotSpiffe(uri.to_owned());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(not_spiffe)?;
        let mut parts = rest.split('/');
        let (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(not_spiffe());
        };
        Self::new(TrustDomain::parse(domain)?, namespace, account)
    }

    /// The workload that a certificate with these names belongs to: it has exactly one URI, which names an identity of
    /// `trust_domain`, and the DNS form of the same identity. Two URIs are ambiguous (X509-SVID §2). The client
    /// certificate of an ingress controller comes from the same CA, but contains the names that MeshConfig lists and is
    /// not a workload's.
    pub fn of_workload(sans: &[San], trust_domain: &TrustDomain) -> Option<Self> {
        let mut uris = sans.iter().filter_map(|san| match san {
            San::Uri(uri) => Some(uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
        let identity = Self::from_spiffe_uri(uri).ok()?;
        let dns_name = identity.dns_name();
        let has_both = sans.iter().any(|san| matches!(san, San::Dns(name) if name.matches(&dns_name)));
        (identity.trust_domain == *trust_domain && has_both).then_some(identity)
    }

    /// The identity that a certificate with these names would have in any trust domain: the names include both of its
    /// forms.
    pub fn spelled_out(sans: &[San]) -> Option<Self> {
        sans.iter().find_map(|san| {
            let San::Uri(uri) = san else { return None };
            let identity = Self::from_spiffe_uri(uri).ok()?;
            let dns_name = identity.dns_name();
            let has_both = sans.iter().any(|san| matches!(san, San::Dns(name) if name.matches(&dns_name)));
            has_both.then_some(identity)
        })
    }

    /// Parses `<service-account>.<namespace>.<trust-domain>`. The account may contain dots, the namespace cannot.
    pub fn from_dns_name(name: &DnsName, trust_domain: &TrustDomain) -> Option<Self> {
        let prefix = name.as_str().strip_suffix(trust_domain.as_str())?.strip_suffix('.')?;
        let (account, namespace) = prefix.rsplit_once('.')?;
        Self::new(trust_domain.clone(), namespace, account).ok()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// The DNS form, `<service-account>.<namespace>.<trust-domain>`, as in OSM.
    pub fn dns_name(&self) -> String {
        format!("{}.{}.{}", self.service_account, self.namespace, self.trust_domain)
    }

    /// The URI form, `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`, as in Istio.
    pub fn spiffe_uri(&self) -> String {
        format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Identity {
    /// The DNS form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.service_account, self.namespace, self.trust_domain)
    }
}

impl serde::Serialize for Identity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The error for both forms of an identity among the names of an ingress controller's certificate, with its remedy.
pub fn both_spellings(identity: &Identity) -> String {
    format!(
        "{:?} and {:?} together make the certificate one of a workload, which permissive mode lets in at every port; \
         list one of them",
        identity.dns_name(),
        identity.spiffe_uri()
    )
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(account: &str) -> Identity {
        Identity::new(TrustDomain::default(), "httpbin", account).unwrap()
    }

    #[test]
    fn both_forms_parse_to_the_same_identity() {
        for account in ["httpbin", "with.dots.in-it"] {
            let identity = identity(account);
            assert_eq!(Identity::from_spiffe_uri(&identity.spiffe_uri()).unwrap(), identity);
            let name = DnsName::parse(&identity.dns_name()).unwrap();
            assert_eq!(Identity::from_dns_name(&name, identity.trust_domain()).unwrap(), identity);
        }
    }

    #[test]
    fn names_that_kubernetes_does_not_allow_are_refused() {
        let domain = TrustDomain::default();
        for (namespace, account) in
            [("a.b", "x"), ("", "x"), ("a", ""), ("A", "x"), ("a", "x_y"), ("a", "-x")]
        {
            assert!(Identity::new(domain.clone(), namespace, account).is_err(), "{namespace}/{account}");
        }
    }

    #[test]
    fn only_the_exact_spiffe_form_is_accepted() {
        for uri in [
            "spiffe://cluster.local/httpbin/httpbin",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns/a/sa/",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
        ] {
            assert!(Identity::from_spiffe_uri(uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn a_workload_is_identified_by_both_forms_in_its_trust_domain() {
        let domain = TrustDomain::default();
        let identity = identity("httpbin");
        let uri = San::Uri(identity.spiffe_uri().into());
        let dns = San::Dns(DnsName::parse(&identity.dns_name()).unwrap());
        let both = [dns.clone(), uri.clone()];
        assert_eq!(Identity::of_workload(&both, &domain), Some(identity));
        assert_eq!(Identity::of_workload(&both, &TrustDomain::parse("other.example").unwrap()), None);
        assert_eq!(Identity::of_workload(std::slice::from_ref(&dns), &domain), None);
        assert_eq!(Identity::of_workload(std::slice::from_ref(&uri), &domain), None);
        let service = San::Dns(DnsName::parse("httpbin.httpbin.svc.cluster.local").unwrap());
        let with_service_name = [dns.clone(), uri.clone(), service];
        assert_eq!(
            Identity::of_workload(&with_service_name, &domain),
            Identity::of_workload(&both, &domain),
            "names of Services change nothing"
        );
        let victim = San::Uri("spiffe://cluster.local/ns/httpbin/sa/victim".into());
        assert_eq!(Identity::spelled_out(&with_service_name), Identity::of_workload(&both, &domain));
        let with_another = [victim.clone(), dns.clone(), uri.clone()];
        assert_eq!(Identity::spelled_out(&with_another), Identity::of_workload(&both, &domain));
        assert_eq!(Identity::spelled_out(&[victim.clone(), dns.clone()]), None);
        assert_eq!(Identity::of_workload(&[dns.clone(), victim.clone()], &domain), None);
        assert_eq!(Identity::of_workload(&[dns, uri, victim], &domain), None);
    }
}
