//! The annotations by which users steer injection, read strictly: what cannot be read refuses the Pod, by name and
//! value, for a slip here would silently take traffic out of the mesh.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use ipnet::IpNet;
use tidegate_core::contract::annotations::{
    INBOUND_PORT_EXCLUSIONS, METRICS, OUTBOUND_PORT_EXCLUSIONS, OUTBOUND_RANGE_EXCLUSIONS,
    OUTBOUND_RANGE_INCLUSIONS, SIDECAR_INJECTION, SIDECAR_LIMITS, SIDECAR_RESOURCE, UDP,
};
use tidegate_crds::quantity::{CONTAINER_RESOURCES, is_quantity};
use tidegate_kubernetes::lean::Wanted;

use crate::limits;
use crate::settings::{Interception, Resources};

/// The annotations of an object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Annotations<'a> {
    /// How the object is called in errors: `pod` or `namespace shop`.
    owner: &'a str,
    values: Option<&'a BTreeMap<String, String>>,
}

/// The annotations that are read of a namespace. Of those about resources there are six, so any of more is wrong, and those
/// that are kept refuse the Pod.
#[derive(Clone, Debug)]
pub(crate) struct NamespaceAnnotations;

impl Wanted for NamespaceAnnotations {
    const NAMES: &'static [&'static str] = &[SIDECAR_INJECTION, METRICS, UDP, SIDECAR_LIMITS];
    const PREFIX: Option<&'static str> = Some(SIDECAR_RESOURCE);
}

/// An annotation that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name} of the {owner}: {problem}, got {value:?}")]
pub struct AnnotationError {
    owner: String,
    name: String,
    value: String,
    problem: Cow<'static, str>,
}

impl<'a> Annotations<'a> {
    /// `values` may be missing, as `metadata.annotations` may.
    pub(crate) fn new(owner: &'a str, values: Option<&'a BTreeMap<String, String>>) -> Self {
        Self { owner, values }
    }

    /// A switch in OSM's spellings, in any letter case.
    pub(crate) fn switch(&self, name: &str) -> Result<Option<bool>, AnnotationError> {
        let Some(value) = self.value(name) else { return Ok(None) };
        match value.trim().to_ascii_lowercase().as_str() {
            "enabled" | "yes" | "true" => Ok(Some(true)),
            "disabled" | "no" | "false" => Ok(Some(false)),
            _ => Err(self.error(name, "expected enabled, yes, true, disabled, no or false")),
        }
    }

    /// Whether UDP to others than DNS servers is refused.
    pub(crate) fn refuses_udp(&self) -> Result<Option<bool>, AnnotationError> {
        match self.value(UDP).map(str::trim) {
            None => Ok(None),
            Some("refuse") => Ok(Some(true)),
            Some("allow") => Ok(Some(false)),
            Some(_) => Err(self.error(UDP, "expected allow or refuse")),
        }
    }

    /// Adds what the lists name.
    pub(crate) fn extend(&self, interception: &mut Interception) -> Result<(), AnnotationError> {
        let ports = "expected ports from 1 to 65535, separated by commas";
        interception.excluded_inbound_ports.extend(self.list(INBOUND_PORT_EXCLUSIONS, ports, port)?);
        interception.excluded_outbound_ports.extend(self.list(OUTBOUND_PORT_EXCLUSIONS, ports, port)?);
        let ranges = "expected ranges in CIDR notation, separated by commas";
        interception.excluded_outbound_ranges.extend(self.list(OUTBOUND_RANGE_EXCLUSIONS, ranges, range)?);
        interception.included_outbound_ranges.extend(self.list(OUTBOUND_RANGE_INCLUSIONS, ranges, range)?);
        Ok(())
    }

    /// Sets the resources that annotations name.
    pub(crate) fn set_resources(&self, resources: &mut Resources) -> Result<(), AnnotationError> {
        for (name, value) in self.values.into_iter().flatten() {
            let Some(rest) = name.strip_prefix(SIDECAR_RESOURCE) else { continue };
            let (bounds, resource) = if let Some(resource) = rest.strip_prefix("limits-") {
                (&mut resources.limits, resource)
            } else if let Some(resource) = rest.strip_prefix("requests-") {
                (&mut resources.requests, resource)
            } else {
                return Err(self.error(name, "the name must go on with limits- or requests-"));
            };
            if !CONTAINER_RESOURCES.contains(&resource) {
                return Err(self.error(name, "the name must end in cpu, memory or ephemeral-storage"));
            }
            if !is_quantity(value.trim()) {
                return Err(self.error(name, "expected a quantity such as 100m or 64Mi"));
            }
            bounds.insert(resource.to_owned(), value.trim().to_owned());
        }
        Ok(())
    }

    /// The sidecar's limits that are set, by flag.
    pub(crate) fn sidecar_limits(&self) -> Result<BTreeMap<&'static str, String>, AnnotationError> {
        let value = self.value(SIDECAR_LIMITS).unwrap_or_default();
        limits::parse(value).map_err(|problem| self.error(SIDECAR_LIMITS, problem))
    }

    /// The text of an annotation.
    fn value(&self, name: &str) -> Option<&'a str> {
        self.values.and_then(|values| values.get(name)).map(String::as_str)
    }

    /// A comma-separated list. An empty text is an empty list; one item that `parse` refuses refuses the whole list.
    fn list<T: Ord>(
        &self,
        name: &str,
        problem: &'static str,
        parse: fn(&str) -> Option<T>,
    ) -> Result<BTreeSet<T>, AnnotationError> {
        let Some(value) = self.value(name).filter(|value| !value.trim().is_empty()) else {
            return Ok(BTreeSet::new());
        };
        let items: Option<_> = value.split(',').map(|item| parse(item.trim())).collect();
        items.ok_or_else(|| self.error(name, problem))
    }

    /// An error that quotes at most 200 characters of the value.
    fn error(&self, name: &str, problem: impl Into<Cow<'static, str>>) -> AnnotationError {
        let value = self.value(name).unwrap_or_default().chars().take(200).collect();
        AnnotationError {
            owner: self.owner.to_owned(),
            name: name.to_owned(),
            value,
            problem: problem.into(),
        }
    }
}

/// Digits only: `+80` is a slip.
fn port(text: &str) -> Option<u16> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten().filter(|port| *port != 0)
}

/// A range in CIDR notation. Bits behind the prefix are cleared, as iptables does.
fn range(text: &str) -> Option<IpNet> {
    IpNet::from_str(text).ok().map(|range| range.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_switch_has_osm_s_spellings_and_no_other() {
        for (text, expected) in [
            ("enabled", true),
            ("Yes", true),
            ("TRUE", true),
            ("disabled", false),
            ("no", false),
            ("false", false),
        ] {
            let values = map(&[("x", text)]);
            assert_eq!(Annotations::new("pod", Some(&values)).switch("x"), Ok(Some(expected)), "{text}");
        }
        for text in ["", "on", "1", "enable"] {
            let values = map(&[("x", text)]);
            let error = Annotations::new("namespace shop", Some(&values)).switch("x").unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "annotation x of the namespace shop: expected enabled, yes, true, disabled, no or false, got {text:?}"
                )
            );
        }
        assert_eq!(Annotations::new("pod", None).switch("x"), Ok(None));
    }

    #[test]
    fn udp_is_allowed_or_refused_and_nothing_else() {
        for (text, expected) in [("allow", false), (" refuse ", true)] {
            let values = map(&[(UDP, text)]);
            assert_eq!(Annotations::new("pod", Some(&values)).refuses_udp(), Ok(Some(expected)), "{text}");
        }
        for text in ["", "Refuse", "deny", "true"] {
            let values = map(&[(UDP, text)]);
            let error = Annotations::new("namespace shop", Some(&values)).refuses_udp().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("annotation {UDP} of the namespace shop: expected allow or refuse, got {text:?}")
            );
        }
        assert_eq!(Annotations::new("pod", None).refuses_udp(), Ok(None));
    }

    #[test]
    fn lists_add_to_what_is_there_and_may_be_long() {
        let many: Vec<_> = (1..=40).map(|port| (port * 100).to_string()).collect();
        let values = map(&[
            (INBOUND_PORT_EXCLUSIONS, &many.join(",")),
            (OUTBOUND_PORT_EXCLUSIONS, " 25 , 465"),
            (OUTBOUND_RANGE_EXCLUSIONS, "10.1.2.3/8,fd00::/8"),
            (OUTBOUND_RANGE_INCLUSIONS, ""),
        ]);
        let mut interception =
            Interception { excluded_outbound_ports: [25, 9].into(), ..Interception::default() };
        Annotations::new("pod", Some(&values)).extend(&mut interception).unwrap();
        assert_eq!(interception.excluded_inbound_ports.len(), 40);
        assert_eq!(interception.excluded_outbound_ports, [9, 25, 465].into());
        let ranges = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap());
        assert_eq!(interception.excluded_outbound_ranges, ranges.into());
        assert_eq!(interception.included_outbound_ranges, [].into());
    }

    #[test]
    fn a_slip_in_a_list_names_annotation_and_value() {
        for (name, value) in [
            (INBOUND_PORT_EXCLUSIONS, "0"),
            (INBOUND_PORT_EXCLUSIONS, "80,,81"),
            (INBOUND_PORT_EXCLUSIONS, "80;81"),
            (OUTBOUND_PORT_EXCLUSIONS, "65536"),
            (OUTBOUND_PORT_EXCLUSIONS, "+80"),
            (OUTBOUND_PORT_EXCLUSIONS, "$(reboot)"),
            (OUTBOUND_RANGE_EXCLUSIONS, "10.0.0.1"),
            (OUTBOUND_RANGE_INCLUSIONS, "10.0.0.0/33"),
        ] {
            let values = map(&[(name, value)]);
            let error = Annotations::new("pod", Some(&values)).extend(&mut Interception::default());
            let text = error.unwrap_err().to_string();
            assert!(text.contains(name) && text.ends_with(&format!("got {value:?}")), "{text}");
        }
    }

    #[test]
    fn resources_are_quantities_of_resources_that_containers_have() {
        let name = |rest: &str| format!("{SIDECAR_RESOURCE}{rest}");
        let mut resources = Resources::default();
        resources.limits.insert("cpu".to_owned(), "1".to_owned());
        let (cpu, memory) = (name("limits-cpu"), name("requests-memory"));
        let values = map(&[(&cpu, "250m"), (&memory, "1.5e3")]);
        Annotations::new("pod", Some(&values)).set_resources(&mut resources).unwrap();
        assert_eq!(resources.limits, map(&[("cpu", "250m")]));
        assert_eq!(resources.requests, map(&[("memory", "1.5e3")]));
        for (rest, value) in [
            ("limits-cpu", "much"),
            ("limits-cpu", "-1"),
            ("limits-cpu", "."),
            ("limits-cpu", "1e"),
            ("limits-gpu", "1"),
            ("limits-storage", "1Gi"),
            ("cpu", "1"),
        ] {
            let name = name(rest);
            let values = map(&[(&name, value)]);
            let error = Annotations::new("pod", Some(&values)).set_resources(&mut Resources::default());
            assert!(error.unwrap_err().to_string().contains(&name), "{name}={value}");
        }
    }
}
