//! Settings that have an effect in Open Service Mesh and none in Tidegate: a value other than the default produces a
//! warning that says what happens instead.

use tidegate_core::go_duration;

use super::Finding;
use crate::mesh_config::{
    CertificateSpec, FeatureFlags, MeshConfigSpec, ObservabilitySpec, SidecarSpec, TrafficSpec,
};

/// A setting of a MeshConfig.
struct Setting {
    path: &'static str,
    /// Its value, unless that is the default.
    value: Option<String>,
    /// What happens instead.
    instead: &'static str,
}

/// A warning for each setting without effect.
pub(super) fn findings(spec: &MeshConfigSpec) -> impl Iterator<Item = Finding> {
    settings(spec).into_iter().filter_map(|Setting { path, value, instead }| {
        value.map(|value| Finding::warning(path, format!("{value} is accepted but has no effect: {instead}")))
    })
}

fn settings(spec: &MeshConfigSpec) -> Vec<Setting> {
    let mut settings = Vec::new();
    sidecar(&spec.sidecar.clone().unwrap_or_default(), &mut settings);
    traffic(&spec.traffic.clone().unwrap_or_default(), &mut settings);
    observability(&spec.observability.clone().unwrap_or_default(), &mut settings);
    certificate(spec.certificate.as_ref(), &mut settings);
    feature_flags(&spec.feature_flags.clone().unwrap_or_default(), &mut settings);
    settings
}

fn sidecar(sidecar: &SidecarSpec, settings: &mut Vec<Setting>) {
    const IMAGES: &str = "the chart's value image selects the images";
    const VERSIONS: &str = "sidecars use TLS 1.3 with each other, and 1.2 or 1.3 with an ingress controller, whichever it supports";
    const CRYPTOGRAPHY: &str = "the TLS library chooses; all its suites are secure";
    let never = |text: &str| go_duration::parse(text).is_ok_and(|interval| interval.is_zero());
    let resync = sidecar.config_resync_interval.as_deref();
    settings.extend([
        Setting {
            path: "spec.sidecar.maxDataPlaneConnections",
            value: sidecar.max_data_plane_connections.filter(|most| *most != 0).map(|most| most.to_string()),
            instead: "the controller's flag --max-connections limits its sidecars",
        },
        Setting {
            path: "spec.sidecar.envoyImage",
            value: text(sidecar.envoy_image.as_deref(), ""),
            instead: IMAGES,
        },
        Setting {
            path: "spec.sidecar.envoyWindowsImage",
            value: text(sidecar.envoy_windows_image.as_deref(), ""),
            instead: "pods on Windows get no sidecar",
        },
        Setting {
            path: "spec.sidecar.initContainerImage",
            value: text(sidecar.init_container_image.as_deref(), ""),
            instead: IMAGES,
        },
        Setting {
            path: "spec.sidecar.configResyncInterval",
            value: text(resync.filter(|resync| !never(resync)), ""),
            instead: "changes are sent at once",
        },
        Setting {
            path: "spec.sidecar.tlsMinProtocolVersion",
            value: text(sidecar.tls_min_protocol_version.as_deref(), "TLSv1_2"),
            instead: VERSIONS,
        },
        Setting {
            path: "spec.sidecar.tlsMaxProtocolVersion",
            value: text(sidecar.tls_max_protocol_version.as_deref(), "TLSv1_3"),
            instead: VERSIONS,
        },
        Setting {
            path: "spec.sidecar.cipherSuites",
            value: list(sidecar.cipher_suites.as_ref()),
            instead: CRYPTOGRAPHY,
        },
        Setting {
            path: "spec.sidecar.ecdhCurves",
            value: list(sidecar.ecdh_curves.as_ref()),
            instead: CRYPTOGRAPHY,
        },
    ]);
}

fn traffic(traffic: &TrafficSpec, settings: &mut Vec<Setting>) {
    let authorization = traffic.inbound_external_authorization.as_ref();
    let prefix = authorization.and_then(|authorization| authorization.stat_prefix.as_deref());
    settings.extend([
        Setting {
            path: "spec.traffic.useHTTPSIngress",
            value: flag(traffic.use_https_ingress, false),
            instead: "set port.protocol: https on each backend of an IngressBackend",
        },
        Setting {
            path: "spec.traffic.inboundExternalAuthorization.statPrefix",
            value: text(prefix, "inboundExtAuthz"),
            instead: "the metric is tidegate_external_authorizations_total",
        },
    ]);
}

fn observability(observability: &ObservabilitySpec, settings: &mut Vec<Setting>) {
    settings.extend([
        Setting {
            path: "spec.observability.osmLogLevel",
            value: text(observability.osm_log_level.as_deref(), "info"),
            instead: "set the control plane's log level with the chart's value log.level or each daemon's admin page /log",
        },
        Setting {
            path: "spec.observability.enableDebugServer",
            value: flag(observability.enable_debug_server, false),
            instead: "the admin pages are always on, on loopback",
        },
        Setting {
            path: "spec.observability.prometheusScraping",
            value: flag(observability.prometheus_scraping, true),
            instead: "sidecars always serve metrics; the annotation openservicemesh.io/metrics selects the Pods to scrape",
        },
    ]);
}

fn certificate(certificate: Option<&CertificateSpec>, settings: &mut Vec<Setting>) {
    let bits = certificate.map(|certificate| certificate.cert_key_bit_size);
    settings.push(Setting {
        path: "spec.certificate.certKeyBitSize",
        value: bits.filter(|bits| *bits != 2048).map(|bits| bits.to_string()),
        instead: "keys are ECDSA P-256",
    });
}

fn feature_flags(flags: &FeatureFlags, settings: &mut Vec<Setting>) {
    for (path, value, default, instead) in [
        ("spec.featureFlags.enableWASMStats", flags.enable_wasm_stats, true, "sidecars always serve metrics"),
        (
            "spec.featureFlags.enableEgressPolicy",
            flags.enable_egress_policy,
            true,
            "Egress policies are in force whenever enableEgress is off",
        ),
        (
            "spec.featureFlags.enableMulticlusterMode",
            flags.enable_multicluster_mode,
            false,
            "a mesh is limited to one cluster",
        ),
        (
            "spec.featureFlags.enableSnapshotCacheMode",
            flags.enable_snapshot_cache_mode,
            false,
            "policy is always sent the same way",
        ),
        (
            "spec.featureFlags.enableAsyncProxyServiceMapping",
            flags.enable_async_proxy_service_mapping,
            false,
            "Services are always mapped the same way",
        ),
        (
            "spec.featureFlags.enableIngressBackendPolicy",
            flags.enable_ingress_backend_policy,
            true,
            "IngressBackends are always enforced; delete those that should not be",
        ),
        (
            "spec.featureFlags.enableEnvoyActiveHealthChecks",
            flags.enable_envoy_active_health_checks,
            false,
            "the readiness of pods decides which ones get traffic",
        ),
        (
            "spec.featureFlags.enableMeshRootCertificate",
            flags.enable_mesh_root_certificate,
            false,
            "MeshRootCertificates are not read; the Secret tidegate-ca-bundle holds the root",
        ),
    ] {
        settings.push(Setting { path, value: flag(value, default), instead });
    }
}

fn flag(value: Option<bool>, default: bool) -> Option<String> {
    value.filter(|value| *value != default).map(|value| value.to_string())
}

fn text(value: Option<&str>, default: &str) -> Option<String> {
    value.filter(|value| !value.is_empty() && *value != default).map(|value| format!("{value:?}"))
}

fn list(value: Option<&Vec<String>>) -> Option<String> {
    value.filter(|value| !value.is_empty()).map(|value| format!("{value:?}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kube::CustomResourceExt;
    use serde_json::{Value, json};

    use super::*;
    use crate::MeshConfig;

    fn warnings(spec: Value) -> Vec<String> {
        let spec: MeshConfigSpec = serde_json::from_value(spec).unwrap();
        findings(&spec).map(|finding| finding.to_string()).collect()
    }

    /// The fields below a schema, with their descriptions.
    fn leaves(path: &str, schema: &Value, found: &mut Vec<(String, String)>) {
        match schema["properties"].as_object() {
            Some(properties) => {
                for (name, schema) in properties {
                    leaves(&format!("{path}.{name}"), schema, found);
                }
            }
            None => {
                found.push((path.to_owned(), schema["description"].as_str().unwrap_or_default().to_owned()));
            }
        }
    }

    #[test]
    fn every_field_that_says_so_is_warned_about_and_no_other() {
        let crd = serde_json::to_value(MeshConfig::crd()).unwrap();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let mut fields = Vec::new();
        leaves("spec", spec, &mut fields);
        let said: BTreeSet<_> = fields
            .iter()
            .filter(|(_, description)| description.contains("Accepted, but has no effect yet"))
            .map(|(path, _)| path.as_str())
            .collect();
        let settings = settings(&MeshConfigSpec::default());
        let known: BTreeSet<_> = settings.iter().map(|setting| setting.path).collect();
        assert_eq!(said, known);
    }

    #[test]
    fn osm_s_defaults_bring_no_warning_and_what_else_they_say_brings_one_with_its_value() {
        let defaults = include_str!("../../../testdata/mesh_config.yaml").replace("[X25519]", "[]");
        let defaults: Value = serde_saphyr::from_str(&defaults).unwrap();
        assert_eq!(warnings(defaults["spec"].clone()), Vec::<String>::new());
        assert_eq!(warnings(json!({})), Vec::<String>::new());
        let found = warnings(json!({
            "sidecar": {
                "maxDataPlaneConnections": 5, "envoyImage": "envoy", "envoyWindowsImage": "w",
                "initContainerImage": "i", "configResyncInterval": "30s", "tlsMinProtocolVersion": "TLSv1_3",
                "tlsMaxProtocolVersion": "TLSv1_2", "cipherSuites": ["A", "B"], "ecdhCurves": ["P-256"],
            },
            "traffic": {
                "useHTTPSIngress": true, "inboundExternalAuthorization": {"statPrefix": "opa"},
            },
            "observability": {
                "osmLogLevel": "debug", "enableDebugServer": true, "prometheusScraping": false,
            },
            "certificate": {"serviceCertValidityDuration": "24h", "certKeyBitSize": 4096},
            "featureFlags": {
                "enableWASMStats": false, "enableEgressPolicy": false, "enableMulticlusterMode": true,
                "enableSnapshotCacheMode": true, "enableAsyncProxyServiceMapping": true,
                "enableIngressBackendPolicy": false, "enableEnvoyActiveHealthChecks": true,
                "enableMeshRootCertificate": true,
            },
        }));
        assert_eq!(found.len(), settings(&MeshConfigSpec::default()).len(), "{found:#?}");
        for expected in [
            "spec.traffic.inboundExternalAuthorization.statPrefix: \"opa\" is accepted but has no effect: the metric is",
            "spec.traffic.useHTTPSIngress: true is accepted but has no effect: set port.protocol",
            "spec.sidecar.tlsMinProtocolVersion: \"TLSv1_3\" is accepted but has no effect: ",
            "spec.sidecar.cipherSuites: [\"A\", \"B\"] is accepted but has no effect: ",
            "spec.certificate.certKeyBitSize: 4096 is accepted but has no effect: keys are ECDSA P-256",
        ] {
            assert!(found.iter().any(|found| found.starts_with(expected)), "{expected}: {found:#?}");
        }
    }
}
