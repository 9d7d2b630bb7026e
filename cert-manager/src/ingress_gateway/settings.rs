//! The user's settings, all checked at once.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use tidegate_core::identity::both_spellings;
use tidegate_core::{DnsName, Identity, San, go_duration};

use crate::store::SecretName;
use crate::store::secret_folder::is_object_name;

/// Path of the fields in a MeshConfig.
const PATH: &str = "spec.certificate.ingressGateway";
/// A shorter-lived certificate would expire before an ingress controller has loaded it.
const MIN_VALIDITY: Duration = Duration::from_secs(10);
/// More names than any ingress controller has.
const MAX_NAMES: usize = 20;

/// Checked settings of the ingress gateway's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressGatewaySettings {
    /// Names of the certificate, each a DNS name or a `spiffe://` URI; at least one.
    pub subject_alt_names: Vec<San>,
    /// Lifetime of a certificate.
    pub validity: Duration,
    /// The Secret for the certificate.
    pub secret: SecretName,
    /// Namespaces that also get a Secret of that name, each with its own key and certificate.
    pub(crate) more_namespaces: BTreeSet<String>,
    /// Namespaces beyond the limit, which do not get a Secret.
    pub left_out: usize,
    /// Name of a Secret beside each of those that contains only the roots.
    pub(crate) ca_secret: Option<String>,
}

/// The fields as the user wrote them.
#[derive(Debug, Clone, Copy)]
pub struct SettingsInput<'a> {
    /// `subjectAltNames`.
    pub subject_alt_names: &'a [String],
    /// `validityDuration`, a Go duration.
    pub validity_duration: &'a str,
    /// `secret.namespace`.
    pub secret_namespace: &'a str,
    /// `secret.name`.
    pub secret_name: &'a str,
}

/// A problem, with the path of its field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsProblem {
    /// Such as `spec.certificate.ingressGateway.validityDuration`.
    pub path: String,
    /// The problem.
    pub problem: String,
}

impl fmt::Display for SettingsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

impl IngressGatewaySettings {
    /// Checks all fields; reports every problem.
    pub fn parse(input: SettingsInput<'_>) -> Result<Self, Vec<SettingsProblem>> {
        let mut problems = Vec::new();
        let mut report = |field: &str, problem: String| {
            problems.push(SettingsProblem { path: format!("{PATH}.{field}"), problem });
        };

        if input.subject_alt_names.is_empty() {
            report("subjectAltNames", "at least one name is needed".to_owned());
        }
        if input.subject_alt_names.len() > MAX_NAMES {
            report("subjectAltNames", format!("at most {MAX_NAMES} names are allowed"));
        }
        let mut names = Vec::new();
        for (index, text) in input.subject_alt_names.iter().enumerate() {
            match subject_alt_name(text) {
                Ok(name) if names.contains(&name) => {}
                Ok(name) => names.push(name),
                Err(problem) => report(&format!("subjectAltNames[{index}]"), problem),
            }
        }
        if let Some(identity) = Identity::spelled_out(&names) {
            report("subjectAltNames", both_spellings(&identity));
        }
        let validity = go_duration::parse(input.validity_duration);
        match &validity {
            Err(error) => report("validityDuration", error.to_string()),
            Ok(validity) if *validity < MIN_VALIDITY => {
                report("validityDuration", format!("{:?} is less than 10s", input.validity_duration));
            }
            Ok(_) => {}
        }
        for (field, text) in
            [("secret.namespace", input.secret_namespace), ("secret.name", input.secret_name)]
        {
            let label_only = field == "secret.namespace";
            if text.is_empty() {
                report(field, "is needed".to_owned());
            } else if !is_object_name(text) || (label_only && text.contains('.')) {
                report(field, format!("{text:?} is not a name that Kubernetes allows"));
            }
        }
        match validity {
            Ok(validity) if problems.is_empty() => Ok(Self {
                subject_alt_names: names,
                validity,
                secret: SecretName {
                    namespace: input.secret_namespace.to_owned(),
                    name: input.secret_name.to_owned(),
                },
                more_namespaces: BTreeSet::new(),
                left_out: 0,
                ca_secret: None,
            }),
            _ => Err(problems),
        }
    }

    /// Every Secret with a certificate: `secret`, then those of other namespaces.
    pub fn secrets(&self) -> Vec<SecretName> {
        self.in_each_namespace(&self.secret.name)
    }

    /// Every Secret that contains only the roots.
    pub(crate) fn ca_secrets(&self) -> Vec<SecretName> {
        self.ca_secret.as_ref().map(|name| self.in_each_namespace(name)).unwrap_or_default()
    }

    fn in_each_namespace(&self, name: &str) -> Vec<SecretName> {
        let namespaces = std::iter::once(&self.secret.namespace).chain(&self.more_namespaces);
        namespaces
            .map(|namespace| SecretName { namespace: namespace.clone(), name: name.to_owned() })
            .collect()
    }
}

/// A DNS name, or a SPIFFE ID of at most 2048 bytes without empty, `.` or `..` segments.
fn subject_alt_name(text: &str) -> Result<San, String> {
    if text.contains("://") {
        let rest = text.strip_prefix("spiffe://").unwrap_or_default();
        let path_is_clean =
            rest.split('/').all(|segment| !segment.is_empty() && segment != "." && segment != "..");
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._/".contains(&b);
        let (domain, _) = rest.split_once('/').unwrap_or((rest, ""));
        if !path_is_clean
            || !rest.bytes().all(allowed)
            || text.len() > 2048
            || DnsName::parse(domain).is_err()
        {
            return Err(format!("{text:?} is not a SPIFFE ID, spiffe://<trust domain>/<path>"));
        }
        return Ok(San::Uri(text.into()));
    }
    DnsName::parse(text)
        .map(San::Dns)
        .map_err(|error| format!("{text:?} is neither a DNS name nor a SPIFFE ID: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        names: &[&str],
        validity: &str,
        secret: (&str, &str),
    ) -> Result<IngressGatewaySettings, Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        IngressGatewaySettings::parse(SettingsInput {
            subject_alt_names: &names,
            validity_duration: validity,
            secret_namespace: secret.0,
            secret_name: secret.1,
        })
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_name_counts() {
        let settings = parse(
            &[
                "ingress-nginx.ingress-nginx.cluster.local",
                "spiffe://cluster.local/ns/ingress/sa/nginx",
                "A.b",
                "a.b",
            ],
            "24h",
            ("osm-system", "osm-nginx-client-cert"),
        )
        .unwrap();
        let names: Vec<_> = settings.subject_alt_names.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "DNS:ingress-nginx.ingress-nginx.cluster.local",
                "URI:spiffe://cluster.local/ns/ingress/sa/nginx",
                "DNS:a.b"
            ]
        );
        assert_eq!(settings.secret.to_string(), "osm-system/osm-nginx-client-cert");
    }

    #[test]
    fn the_two_names_that_would_make_it_a_workload_s_are_refused_together() {
        let (dns, uri) = ("nginx.ingress.cluster.local", "spiffe://cluster.local/ns/ingress/sa/nginx");
        let secret = ("osm-system", "a");
        for alone in [dns, uri] {
            assert!(parse(&[alone, "spiffe://cluster.local/ns/ingress/sa/other"], "24h", secret).is_ok());
        }
        for names in [&[dns, uri][..], &[uri, "x.example", "NGINX.ingress.cluster.local"]] {
            let problems = parse(names, "24h", secret).unwrap_err();
            let expected = format!(
                "spec.certificate.ingressGateway.subjectAltNames: {dns:?} and {uri:?} together make the certificate one \
                 of a workload, which permissive mode lets in at every port; list one of them"
            );
            assert_eq!(problems, [expected]);
        }
    }

    #[test]
    fn every_problem_is_reported_with_its_field() {
        let problems =
            parse(&["ok", "*.a", "https://x", "spiffe://td/../x"], "soon", ("", "Bad")).unwrap_err();
        let expected = [
            "subjectAltNames[1]: \"*.a\" is neither",
            "subjectAltNames[2]: \"https://x\" is not a SPIFFE ID",
            "subjectAltNames[3]: \"spiffe://td/../x\" is not a SPIFFE ID",
            "validityDuration: \"soon\" is not a duration",
            "secret.namespace: is needed",
            "secret.name: \"Bad\" is not a name",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, expected) in problems.iter().zip(expected) {
            assert!(problem.starts_with(&format!("spec.certificate.ingressGateway.{expected}")), "{problem}");
        }
        assert_eq!(parse(&[], "9s", ("a.b", "c")).unwrap_err().len(), 3);
    }
}
