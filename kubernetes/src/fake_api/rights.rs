//! What the chart's roles grant, to hold requests against them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::{Request, fail};

/// The rights of one program: everywhere, and in certain namespaces.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct Rights(BTreeMap<String, Vec<Rule>>);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    api_groups: Vec<String>,
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
    verbs: Vec<String>,
}

/// The key of what is granted in every namespace and in none.
const EVERYWHERE: &str = "(everywhere)";

impl Rights {
    /// Those that the chart gives to a program, such as `tidegate-controller`, whose control plane is in the namespace
    /// `tidegate-system`.
    pub fn of_chart(program: &str) -> Self {
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/golden/rbac/{program}.yaml"));
        let text = std::fs::read_to_string(golden).unwrap_or_else(|error| fail(&error));
        serde_saphyr::from_str(&text).unwrap_or_else(|error| fail(&error))
    }

    /// The same, and in `namespace` too what it has in its own: by a Role that the chart makes on request.
    #[must_use]
    pub fn with(mut self, namespace: &str, resource: &str, verbs: &[&str]) -> Self {
        self.0.entry(namespace.to_owned()).or_default().push(Rule {
            api_groups: vec![String::new()],
            resources: vec![resource.to_owned()],
            resource_names: Vec::new(),
            verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        });
        self
    }

    /// The requests that it may not make.
    pub fn beyond(&self, requests: &[Request]) -> Vec<Request> {
        requests.iter().filter(|request| !self.grants(request)).cloned().collect()
    }

    /// What it may do and none of the requests has done: group, resource, verb.
    pub fn needless(&self, requests: &[Request]) -> BTreeSet<(String, String, String)> {
        let used: BTreeSet<_> =
            requests.iter().map(|r| (r.group.clone(), r.resource.clone(), r.verb.to_owned())).collect();
        let rights = self.0.values().flatten().flat_map(Rule::rights);
        rights.filter(|right| !used.contains(right)).collect()
    }

    fn grants(&self, request: &Request) -> bool {
        let places = [EVERYWHERE, request.namespace.as_str()];
        places.iter().filter_map(|place| self.0.get(*place)).flatten().any(|rule| rule.grants(request))
    }
}

impl Rule {
    fn grants(&self, request: &Request) -> bool {
        self.api_groups.contains(&request.group)
            && self.resources.contains(&request.resource)
            && self.verbs.iter().any(|verb| verb == request.verb)
            && (self.resource_names.is_empty() || self.resource_names.contains(&request.name))
    }

    fn rights(&self) -> impl Iterator<Item = (String, String, String)> {
        self.api_groups.iter().flat_map(move |group| {
            self.resources.iter().flat_map(move |resource| {
                self.verbs.iter().map(move |verb| (group.clone(), resource.clone(), verb.clone()))
            })
        })
    }
}
