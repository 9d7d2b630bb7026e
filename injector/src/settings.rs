//! The injector's settings, from its flags and from the MeshConfig.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tidegate_core::contract::names::{self, DEFAULT_MESH_NAME};
use tidegate_crds::{Finding, MeshConfigSpec};

use crate::hook_key::HookKey;
use crate::sidecar_proxies::SidecarProxies;

/// Settings that all sidecars of a mesh share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The mesh's name, as on the namespaces' labels.
    pub mesh_name: String,
    /// The control plane's namespace.
    pub namespace: String,
    /// The image of the sidecar and of the interception step.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// The controller: `https://host:port`.
    pub discovery_address: String,
    /// The name to verify in the controller's certificate.
    pub discovery_server_name: String,
    /// The CA: `https://host:port`.
    pub ca_address: String,
    /// The name to verify in the CA's certificate.
    pub ca_server_name: String,
    /// The sidecars' way out of the cluster.
    pub proxies: SidecarProxies,
    /// Makes the paths of lifecycle hooks unguessable.
    pub(crate) hook_key: HookKey,
}

/// The MeshConfig's settings for sidecars, parsed once per change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshSettings {
    /// Whether the interception step runs privileged.
    pub privileged_interception: bool,
    /// The filter of the sidecar's log; `None` for OSM's default, `error`.
    pub log_level: Option<&'static str>,
    /// The sidecar's resource limits and requests.
    pub resources: Resources,
    /// What interception excludes and includes.
    pub interception: Interception,
    /// Whether a sidecar reaches its app at the pod's address instead of localhost.
    pub(crate) reaches_app_at_pod_ip: bool,
}

/// A container's resource limits and requests, by resource, as Kubernetes quantities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The limits.
    pub limits: BTreeMap<String, String>,
    /// The requests.
    pub requests: BTreeMap<String, String>,
}

/// What interception excludes and includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interception {
    /// Inbound ports that bypass the sidecar.
    pub excluded_inbound_ports: BTreeSet<u16>,
    /// Outbound ports that bypass the sidecar.
    pub excluded_outbound_ports: BTreeSet<u16>,
    /// Outbound ranges that bypass the sidecar.
    pub(crate) excluded_outbound_ranges: BTreeSet<IpNet>,
    /// The only outbound ranges that go through the sidecar; all if empty.
    pub(crate) included_outbound_ranges: BTreeSet<IpNet>,
    /// Interfaces whose traffic bypasses the sidecar.
    pub excluded_interfaces: BTreeSet<String>,
}

/// A field of the MeshConfig from which no sidecar can be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MeshConfig: {field}: {problem}")]
pub struct MeshConfigError {
    field: String,
    problem: String,
}

impl Settings {
    /// Settings with the default names in a mesh installed into `namespace`.
    pub fn of_mesh(namespace: &str, trust_domain: &str, image: &str) -> Self {
        Self {
            mesh_name: DEFAULT_MESH_NAME.to_owned(),
            namespace: namespace.to_owned(),
            image: image.to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            discovery_address: names::discovery_address(namespace),
            discovery_server_name: format!("{}.{namespace}.{trust_domain}", names::CONTROLLER),
            ca_address: names::ca_address(namespace),
            ca_server_name: names::service_host(names::CERT_MANAGER, namespace),
            proxies: SidecarProxies::default(),
            hook_key: HookKey::of_process(),
        }
    }
}

impl MeshSettings {
    /// Parses a MeshConfig. `None` means that it does not exist, which selects OSM's defaults.
    pub fn parse(spec: Option<&MeshConfigSpec>) -> Result<Self, MeshConfigError> {
        let sidecar = spec.and_then(|spec| spec.sidecar.clone()).unwrap_or_default();
        let traffic = spec.and_then(|spec| spec.traffic.clone()).unwrap_or_default();
        let resources = sidecar.resources.unwrap_or_default();
        let ports = |list: Option<Vec<u16>>| list.into_iter().flatten().collect();
        let settings = Self {
            privileged_interception: sidecar.enable_privileged_init_container.unwrap_or(false),
            log_level: sidecar.log_level.as_deref().map(log_filter).transpose()?,
            resources: Resources { limits: texts(resources.limits), requests: texts(resources.requests) },
            interception: Interception {
                excluded_inbound_ports: ports(traffic.inbound_port_exclusion_list),
                excluded_outbound_ports: ports(traffic.outbound_port_exclusion_list),
                excluded_outbound_ranges: ranges(
                    "spec.traffic.outboundIPRangeExclusionList",
                    traffic.outbound_ip_range_exclusion_list,
                )?,
                included_outbound_ranges: ranges(
                    "spec.traffic.outboundIPRangeInclusionList",
                    traffic.outbound_ip_range_inclusion_list,
                )?,
                excluded_interfaces: traffic.network_interface_exclusion_list.into_iter().flatten().collect(),
            },
            reaches_app_at_pod_ip: sidecar.local_proxy_mode.as_deref() == Some("PodIP"),
        };
        // The webhook refuses this; if it was bypassed, every Pod would fail.
        let findings = spec.map(tidegate_crds::validate::mesh_config).unwrap_or_default();
        let is_about_sidecars = |finding: &Finding| {
            ["spec.sidecar.", "spec.traffic."].iter().any(|part| finding.path.starts_with(part))
        };
        match findings.into_iter().find(|finding| finding.is_error() && is_about_sidecars(finding)) {
            Some(Finding { path, message, .. }) => Err(MeshConfigError { field: path, problem: message }),
            None => Ok(settings),
        }
    }
}

impl From<Finding> for MeshConfigError {
    /// An invalid MeshConfig.
    fn from(finding: Finding) -> Self {
        Self { field: finding.path, problem: finding.message }
    }
}

/// The sidecar's log filter for an Envoy log level.
fn log_filter(level: &str) -> Result<&'static str, MeshConfigError> {
    Ok(match level {
        "trace" => "trace",
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "critical" | "" => "error",
        "off" => "off",
        _ => {
            let problem = format!("{level:?} is not a level");
            return Err(MeshConfigError { field: "spec.sidecar.logLevel".to_owned(), problem });
        }
    })
}

/// The ranges of a list, with the bits behind each prefix cleared. An error names the item.
fn ranges(field: &str, list: Option<Vec<String>>) -> Result<BTreeSet<IpNet>, MeshConfigError> {
    let parse = |(index, text): (usize, String)| {
        text.parse::<IpNet>().map(|range| range.trunc()).map_err(|_| MeshConfigError {
            field: format!("{field}[{index}]"),
            problem: format!("expected CIDR notation 'a.b.c.d/x', got '{text}'"),
        })
    };
    list.into_iter().flatten().enumerate().map(parse).collect()
}

/// Quantities as texts; manifests may give whole numbers without quotes.
fn texts(quantities: Option<BTreeMap<String, IntOrString>>) -> BTreeMap<String, String> {
    let text = |(name, quantity)| match quantity {
        IntOrString::Int(number) => (name, i32::to_string(&number)),
        IntOrString::String(text) => (name, text),
    };
    quantities.into_iter().flatten().map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(spec: serde_json::Value) -> Result<MeshSettings, String> {
        let spec: MeshConfigSpec = serde_json::from_value(spec).unwrap();
        MeshSettings::parse(Some(&spec)).map_err(|error| error.to_string())
    }

    #[test]
    fn every_field_about_sidecars_counts() {
        let settings = parse(json!({
            "sidecar": {
                "enablePrivilegedInitContainer": true,
                "logLevel": "warning",
                "resources": {"limits": {"cpu": 2, "memory": "64Mi"}},
                "localProxyMode": "PodIP",
            },
            "traffic": {
                "inboundPortExclusionList": [22, 21],
                "outboundPortExclusionList": [25],
                "outboundIPRangeExclusionList": ["10.1.2.3/16"],
                "outboundIPRangeInclusionList": ["10.0.0.0/8"],
                "networkInterfaceExclusionList": ["net1"],
            },
        }))
        .unwrap();
        let limits = [("cpu", "2"), ("memory", "64Mi")];
        assert_eq!(
            settings,
            MeshSettings {
                privileged_interception: true,
                log_level: Some("warn"),
                resources: Resources {
                    limits: limits.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
                    requests: BTreeMap::new(),
                },
                interception: Interception {
                    excluded_inbound_ports: [21, 22].into(),
                    excluded_outbound_ports: [25].into(),
                    excluded_outbound_ranges: ["10.1.0.0/16".parse().unwrap()].into(),
                    included_outbound_ranges: ["10.0.0.0/8".parse().unwrap()].into(),
                    excluded_interfaces: ["net1".to_owned()].into(),
                },
                reaches_app_at_pod_ip: true,
            }
        );
        assert_eq!(MeshSettings::parse(None), Ok(MeshSettings::default()));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert_eq!(
            parse(json!({"traffic": {"outboundIPRangeExclusionList": ["10.0.0.0/8", "10.0.0.1"]}}))
                .unwrap_err(),
            "MeshConfig: spec.traffic.outboundIPRangeExclusionList[1]: expected CIDR notation 'a.b.c.d/x', got '10.0.0.1'"
        );
        assert_eq!(
            parse(json!({"sidecar": {"logLevel": "loud"}})).unwrap_err(),
            "MeshConfig: spec.sidecar.logLevel: \"loud\" is not a level"
        );
        assert_eq!(
            parse(json!({"sidecar": {"resources": {"limits": {"cpu": "much"}}}})).unwrap_err(),
            "MeshConfig: spec.sidecar.resources.limits.cpu: Expected a quantity such as 100m or 64Mi, got 'much'"
        );
        let error = parse(json!({"traffic": {"networkInterfaceExclusionList": ["a b"]}})).unwrap_err();
        assert!(
            error.contains("spec.traffic.networkInterfaceExclusionList[0]: ") && error.ends_with("got 'a b'")
        );
    }
}
