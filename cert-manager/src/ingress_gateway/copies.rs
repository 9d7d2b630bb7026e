//! Further namespaces for the certificate and the roots, from annotations of the MeshConfig.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_core::contract::annotations::{
    GATEWAY_CA_SECRET, GATEWAY_NAMESPACE_SELECTOR, GATEWAY_NAMESPACES,
};

use super::selector::Selector;
use super::settings::{IngressGatewaySettings, SettingsProblem};
use crate::store::secret_folder::is_object_name;

/// All annotations that are read.
pub(crate) const ANNOTATIONS: [&str; 3] = [GATEWAY_NAMESPACES, GATEWAY_NAMESPACE_SELECTOR, GATEWAY_CA_SECRET];

/// Maximum namespaces besides that of `ingressGateway.secret`. Each costs a certificate and a check every few seconds.
pub(crate) const MOST_NAMESPACES: usize = 64;

/// The content of the annotations, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Copies {
    namespaces: BTreeSet<String>,
    selector: Option<Selector>,
    ca_secret: Option<String>,
}

impl Copies {
    /// Checks all of [`ANNOTATIONS`]; reports every problem.
    pub(crate) fn parse(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<SettingsProblem>> {
        let mut problems = Vec::new();
        let mut copies = Self::default();
        let mut report = |annotation: &str, problem: String| {
            problems.push(SettingsProblem { path: format!("metadata.annotations[{annotation}]"), problem });
        };
        let is_name = |name: &str| is_object_name(name) && name.len() <= 63 && !name.contains('.');
        for name in
            annotations.get(GATEWAY_NAMESPACES).into_iter().flat_map(|text| text.split(',')).map(str::trim)
        {
            match name {
                "" => {}
                name if is_name(name) => drop(copies.namespaces.insert(name.to_owned())),
                name => {
                    report(GATEWAY_NAMESPACES, format!("{name:?} is not a name that a namespace can have"));
                }
            }
        }
        if copies.namespaces.len() > MOST_NAMESPACES {
            let count = copies.namespaces.len();
            report(GATEWAY_NAMESPACES, format!("{count} namespaces are more than {MOST_NAMESPACES}"));
        }
        match annotations.get(GATEWAY_NAMESPACE_SELECTOR).map(|text| Selector::parse(text)) {
            None => {}
            Some(Ok(selector)) => copies.selector = Some(selector),
            Some(Err(problem)) => report(GATEWAY_NAMESPACE_SELECTOR, problem),
        }
        match annotations.get(GATEWAY_CA_SECRET) {
            None => {}
            Some(name) if is_object_name(name) => copies.ca_secret = Some(name.clone()),
            Some(name) => report(GATEWAY_CA_SECRET, format!("{name:?} is not a name that Kubernetes allows")),
        }
        if problems.is_empty() { Ok(copies) } else { Err(problems) }
    }

    /// Whether namespaces are selected by their labels.
    pub(crate) fn selects(&self) -> bool {
        self.selector.is_some()
    }

    /// Settings with these copies, for the existing namespaces.
    pub(crate) fn add_to<'n>(
        &self,
        mut settings: IngressGatewaySettings,
        there: impl IntoIterator<Item = (&'n str, &'n BTreeMap<String, String>)>,
    ) -> Result<IngressGatewaySettings, Vec<SettingsProblem>> {
        if self.ca_secret.as_ref() == Some(&settings.secret.name) {
            let path = format!("metadata.annotations[{GATEWAY_CA_SECRET}]");
            let problem =
                format!("{:?} is the Secret of the certificate; name another", settings.secret.name);
            return Err(vec![SettingsProblem { path, problem }]);
        }
        let mut selected: BTreeSet<_> = match &self.selector {
            Some(selector) => {
                let there = there.into_iter().filter(|(_, labels)| selector.matches(labels));
                there.map(|(name, _)| name.to_owned()).collect()
            }
            None => BTreeSet::new(),
        };
        settings.more_namespaces = self.namespaces.clone();
        settings.more_namespaces.remove(&settings.secret.namespace);
        selected.remove(&settings.secret.namespace);
        selected.retain(|name| !settings.more_namespaces.contains(name));
        // Named namespaces take precedence over selected ones.
        let room = MOST_NAMESPACES.saturating_sub(settings.more_namespaces.len());
        settings.left_out = selected.len().saturating_sub(room);
        settings.more_namespaces.extend(selected.into_iter().take(room));
        settings.ca_secret.clone_from(&self.ca_secret);
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress_gateway::SettingsInput;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn settings() -> IngressGatewaySettings {
        IngressGatewaySettings::parse(SettingsInput {
            subject_alt_names: &["nginx.ingress.cluster.local".to_owned()],
            validity_duration: "24h",
            secret_namespace: "ingress",
            secret_name: "client",
        })
        .unwrap()
    }

    #[test]
    fn named_and_selected_namespaces_get_one_each() {
        let said = [
            (GATEWAY_NAMESPACES, " b, a,,ingress"),
            (GATEWAY_NAMESPACE_SELECTOR, "tls=yes"),
            (GATEWAY_CA_SECRET, "roots"),
        ];
        let copies = Copies::parse(&annotations(&said)).unwrap();
        let (yes, no) = (annotations(&[("tls", "yes")]), annotations(&[]));
        let there = [("a", &yes), ("c", &yes), ("d", &no), ("ingress", &yes)];
        let settings = copies.add_to(settings(), there).unwrap();
        let all: Vec<_> = settings.secrets().iter().map(ToString::to_string).collect();
        assert_eq!(all, ["ingress/client", "a/client", "b/client", "c/client"]);
        let roots: Vec<_> = settings.ca_secrets().iter().map(ToString::to_string).collect();
        assert_eq!(roots, ["ingress/roots", "a/roots", "b/roots", "c/roots"]);
        assert_eq!(settings.left_out, 0);
    }

    #[test]
    fn more_namespaces_than_there_is_room_for_are_left_out_and_counted() {
        let copies =
            Copies::parse(&annotations(&[(GATEWAY_NAMESPACES, "z"), (GATEWAY_NAMESPACE_SELECTOR, "!no")]))
                .unwrap();
        let (names, labels): (Vec<_>, _) = ((0..70).map(|i| format!("n{i:02}")).collect(), annotations(&[]));
        let settings = copies.add_to(settings(), names.iter().map(|name| (name.as_str(), &labels))).unwrap();
        assert_eq!((settings.more_namespaces.len(), settings.left_out), (MOST_NAMESPACES, 7));
        assert!(settings.more_namespaces.contains("z") && settings.more_namespaces.contains("n62"));
    }

    #[test]
    fn every_problem_is_reported_with_its_annotation() {
        let said = [
            (GATEWAY_NAMESPACES, "a,B,c.d"),
            (GATEWAY_NAMESPACE_SELECTOR, "a in (b)"),
            (GATEWAY_CA_SECRET, "Bad"),
        ];
        let problems = Copies::parse(&annotations(&said)).unwrap_err();
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let expected = [
            "metadata.annotations[tidegate.io/ingress-gateway-namespaces]: \"B\" is not a name",
            "metadata.annotations[tidegate.io/ingress-gateway-namespaces]: \"c.d\" is not a name",
            "metadata.annotations[tidegate.io/ingress-gateway-namespace-selector]: \"a in (b)\" is not",
            "metadata.annotations[tidegate.io/ingress-gateway-ca-secret]: \"Bad\" is not a name",
        ];
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        assert!(
            problems.iter().zip(expected).all(|(problem, start)| problem.starts_with(start)),
            "{problems:?}"
        );
        let same = Copies::parse(&annotations(&[(GATEWAY_CA_SECRET, "client")])).unwrap();
        assert!(same.add_to(settings(), []).unwrap_err()[0].problem.contains("name another"));
    }
}
