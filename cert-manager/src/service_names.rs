//! Names of Services under which certain workloads serve TLS to clients that know nothing of the mesh, such as the API
//! server that calls a webhook. Whoever runs the certificate authority grants them; a request never does.

use std::collections::BTreeMap;
use std::str::FromStr;

use tidegate_core::{DnsName, Identity, TrustDomain};

/// More names than any workload of ours serves under.
const MAX_NAMES: usize = 20;

/// One grant, as a flag says it: `<namespace>/<service account>=<name>[+<name>…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNameGrant {
    namespace: String,
    service_account: String,
    names: Vec<DnsName>,
}

/// All grants, by namespace and service account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceNames(BTreeMap<(String, String), Vec<DnsName>>);

impl ServiceNames {
    /// Grants to one workload add up.
    pub fn new(grants: impl IntoIterator<Item = ServiceNameGrant>) -> Self {
        let mut all: BTreeMap<_, Vec<DnsName>> = BTreeMap::new();
        for grant in grants {
            let names = all.entry((grant.namespace, grant.service_account)).or_default();
            for name in grant.names {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        Self(all)
    }

    /// The names that this workload's certificate holds besides its own.
    pub fn of(&self, identity: &Identity) -> &[DnsName] {
        let key = (identity.namespace().to_owned(), identity.service_account().to_owned());
        self.0.get(&key).map(Vec::as_slice).unwrap_or_default()
    }
}

impl FromStr for ServiceNameGrant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not of the form <namespace>/<service account>=<name>[+<name>]");
        let (workload, names) = text.split_once('=').ok_or_else(form)?;
        let (namespace, service_account) = workload.split_once('/').ok_or_else(form)?;
        Identity::new(TrustDomain::default(), namespace, service_account)
            .map_err(|error| error.to_string())?;
        let names: Result<Vec<_>, _> = names.split('+').map(DnsName::parse).collect();
        let names = names.map_err(|error| format!("{text:?}: {error}"))?;
        if names.len() > MAX_NAMES {
            return Err(format!("{text:?}: more than {MAX_NAMES} names"));
        }
        Ok(Self { namespace: namespace.to_owned(), service_account: service_account.to_owned(), names })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_a_workload_and_its_names() {
        let grants = ["tidegate-system/tidegate-injector=a.b.svc+a.b.svc.cluster.local", "x/y=c", "x/y=c+d"];
        let names = ServiceNames::new(grants.map(|grant| grant.parse::<ServiceNameGrant>().unwrap()));
        let of = |namespace: &str, account: &str| {
            let identity = Identity::new(TrustDomain::default(), namespace, account).unwrap();
            names.of(&identity).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("tidegate-system", "tidegate-injector"), ["a.b.svc", "a.b.svc.cluster.local"]);
        assert_eq!(of("x", "y"), ["c", "d"]);
        assert!(of("tidegate-system", "other").is_empty());
        assert!(of("other", "tidegate-injector").is_empty());
    }

    #[test]
    fn whatever_else_is_an_error_that_shows_the_value() {
        for text in ["", "a/b", "a=b.svc", "a/b=", "a/b=*.svc", "a/b=c+", "A/b=c", "a.b/c=d", "a/b=1 2"] {
            let error = text.parse::<ServiceNameGrant>().unwrap_err();
            assert!(error.contains(text.split(['/', '=']).next().unwrap()), "{text}: {error}");
        }
    }
}
