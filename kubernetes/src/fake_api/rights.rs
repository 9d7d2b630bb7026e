//! The permissions that the chart's roles grant, to check requests against them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::{RecordedRequest, fail};

/// The permissions of one program: everywhere, and in certain namespaces.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Rights(BTreeMap<String, Vec<GrantedRule>>);

/// A rule of a Role or ClusterRole (`rbac.authorization.k8s.io/v1` PolicyRule). Wildcards do not occur in the chart.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GrantedRule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

/// The key of permissions in every namespace and on cluster-scoped resources.
const EVERYWHERE: &str = "(everywhere)";

impl Rights {
    /// The permissions that the chart grants to a program, such as `tidegate-controller`, whose control plane is in the
    /// namespace `tidegate-system`.
    pub fn of_chart(program: &str) -> Self {
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/rbac/{program}.yaml"));
        let text = std::fs::read_to_string(golden).unwrap_or_else(|error| fail(&error));
        serde_saphyr::from_str(&text).unwrap_or_else(|error| fail(&error))
    }

    /// Additionally grants in `namespace` what the program has in its own, through a Role that the chart creates on
    /// request.
    #[must_use]
    pub fn with(mut self, namespace: &str, resource: &str, verbs: &[&str]) -> Self {
        self.0.entry(namespace.to_owned()).or_default().push(GrantedRule {
            api_groups: vec![String::new()],
            resources: vec![resource.to_owned()],
            resource_names: Vec::new(),
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        });
        self
    }

    /// The requests that exceed the permissions.
    pub fn beyond(&self, requests: &[RecordedRequest]) -> Vec<RecordedRequest> {
        requests.iter().filter(|request| !self.grants(request)).cloned().collect()
    }

    /// Permissions that none of the requests has used: group, resource, verb.
    pub fn needless(&self, requests: &[RecordedRequest]) -> BTreeSet<(String, String, String)> {
        let used: BTreeSet<_> =
            requests.iter().map(|r| (r.group.clone(), r.resource.clone(), r.verb.to_owned())).collect();
        let rights = self.0.values().flatten().flat_map(GrantedRule::rights);
        rights.filter(|right| !used.contains(right)).collect()
    }

    fn grants(&self, request: &RecordedRequest) -> bool {
        let places = [EVERYWHERE, request.namespace.as_str()];
        places.iter().filter_map(|place| self.0.get(*place)).flatten().any(|rule| rule.grants(request))
    }
}

impl GrantedRule {
    fn grants(&self, request: &RecordedRequest) -> bool {
        self.api_groups.contains(&request.group)
            && self.resources.contains(&request.resource)
            && self.verbs.iter().any(|verb| verb == request.verb)
            && (self.resource_names.is_empty() || self.resource_names.contains(&request.name))
    }

    /// Every combination of group, resource and verb that the rule names.
    fn rights(&self) -> impl Iterator<Item = (String, String, String)> {
        self.api_groups.iter().flat_map(move |group| {
            self.resources.iter().flat_map(move |resource| {
                self.verbs.iter().map(move |verb| (group.clone(), resource.clone(), verb.clone()))
            })
        })
    }
}
