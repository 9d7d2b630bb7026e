//! Names of Services under which certain workloads serve TLS to clients outside the mesh, such as the API server that
//! calls a webhook. The operator of the certificate authority grants them, never a request.

use std::collections::BTreeMap;
use std::str::FromStr;

use tidegate_core::{DnsName, Identity, San, TrustDomain};

/// Maximum names of a grant, more than any of our daemons has.
const MAX_NAMES: usize = 20;

/// A grant in the form of the flag: `<namespace>/<service account>=<name>[+<name>…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceNameGrant {
    namespace: String,
    service_account: String,
    names: Vec<DnsName>,
}

/// All grants, by namespace and service account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceNames(BTreeMap<(String, String), Vec<DnsName>>);

/// DNS names that belong to a holder: the certificate authority's own, and granted ones. Other workloads must not have
/// them as their own name. A service account's name may contain dots, so `tidegate-cert-manager.tidegate-system` in a
/// namespace `svc` would have the name of the authority's Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ReservedNames(BTreeMap<DnsName, NameHolder>);

/// The holder of a reserved name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NameHolder {
    Authority,
    /// Namespace and service account.
    Workload(String, String),
}

/// A workload's own name belongs to another holder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{identity} has the name {name}, under which {holder} serves: rename the service account or its namespace"
)]
pub struct ReservedName {
    /// The identity of the requested certificate.
    identity: String,
    /// Its DNS spelling.
    name: String,
    /// Its holder.
    holder: String,
}

impl ReservedNames {
    /// The names in the authority's own certificate, and all granted ones.
    pub(crate) fn new(serving_names: &[San], granted: &ServiceNames) -> Self {
        let mut all = BTreeMap::new();
        for ((namespace, account), names) in &granted.0 {
            let holder = NameHolder::Workload(namespace.clone(), account.clone());
            all.extend(names.iter().map(|name| (name.clone(), holder.clone())));
        }
        let own = serving_names.iter().filter_map(|name| match name {
            San::Dns(name) => Some((name.clone(), NameHolder::Authority)),
            _ => None,
        });
        all.extend(own);
        Self(all)
    }

    /// An error if a workload's own name is reserved for another holder.
    pub(crate) fn check(&self, identity: &Identity) -> Result<(), ReservedName> {
        let name = identity.dns_name();
        // A client that resolves a name within the cluster's domain may verify the full name.
        let short = name.strip_suffix(&format!(".{}", identity.trust_domain()));
        let find = |text: &str| DnsName::parse(text).ok().and_then(|name| self.0.get(&name));
        let holder = match find(&name).or_else(|| short.and_then(find)) {
            None => return Ok(()),
            Some(NameHolder::Workload(namespace, account))
                if (namespace.as_str(), account.as_str())
                    == (identity.namespace(), identity.service_account()) =>
            {
                return Ok(());
            }
            Some(NameHolder::Workload(namespace, account)) => format!("{namespace}/{account}"),
            Some(NameHolder::Authority) => "the certificate authority".to_owned(),
        };
        Err(ReservedName { identity: identity.to_string(), name, holder })
    }
}

impl ServiceNames {
    /// Several grants to one workload are combined.
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

    /// Every workload with additional names, and those names.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&(String, String), &[DnsName])> {
        self.0.iter().map(|(workload, names)| (workload, names.as_slice()))
    }

    /// The additional names in this workload's certificate.
    pub(crate) fn of(&self, identity: &Identity) -> &[DnsName] {
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
    fn a_workload_must_not_have_a_name_that_another_one_serves_under() {
        let granted = ServiceNames::new([
            "tidegate-system/tidegate-injector=tidegate-injector.tidegate-system.svc".parse().unwrap(),
            "shop/cart.shop=cart.shop.shop.cluster.local".parse().unwrap(),
        ]);
        let own = ["tidegate-cert-manager.tidegate-system.svc", "ca.example.cluster.local", "localhost"];
        let own = own.map(|name| San::Dns(DnsName::parse(name).unwrap()));
        let reserved = ReservedNames::new(&own, &granted);
        let check = |namespace: &str, account: &str| {
            let identity = Identity::new(TrustDomain::default(), namespace, account).unwrap();
            reserved.check(&identity).map_err(|refused| refused.to_string())
        };
        let refused = [
            ("svc", "tidegate-cert-manager.tidegate-system", "the certificate authority"),
            ("example", "ca", "the certificate authority"),
            ("svc", "tidegate-injector.tidegate-system", "tidegate-system/tidegate-injector"),
        ];
        for (namespace, account, holder) in refused {
            let reason = check(namespace, account).unwrap_err();
            let name =
                format!("has the name {account}.{namespace}.cluster.local, under which {holder} serves:");
            assert!(reason.contains(&name), "{reason}");
        }
        for (namespace, account) in [
            // The holder itself, whose own name was granted to it.
            ("shop", "cart.shop"),
            ("tidegate-system", "tidegate-cert-manager"),
            ("tidegate-system", "tidegate-injector"),
            ("svc", "other"),
            ("svc", "tidegate-cert-manager.tidegate-system.x"),
        ] {
            assert_eq!(check(namespace, account), Ok(()));
        }
    }

    #[test]
    fn whatever_else_is_an_error_that_shows_the_value() {
        for text in ["", "a/b", "a=b.svc", "a/b=", "a/b=*.svc", "a/b=c+", "A/b=c", "a.b/c=d", "a/b=1 2"] {
            let error = text.parse::<ServiceNameGrant>().unwrap_err();
            assert!(error.contains(text.split(['/', '=']).next().unwrap()), "{text}: {error}");
        }
    }
}
