use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::*;
use crate::schema;

const INGRESS_BACKENDS: [&str; 4] = [
    include_str!("../../testdata/ingress_backend_http.yaml"),
    include_str!("../../testdata/ingress_backend_https.yaml"),
    include_str!("../../testdata/ingress_backend_untrusted.yaml"),
    include_str!("../../testdata/ingress_backend_skip.yaml"),
];
const TRAFFIC_TARGET: &str = include_str!("../../testdata/traffic_target.yaml");
const HTTP_ROUTE_GROUP: &str = include_str!("../../testdata/http_route_group.yaml");
const TRAFFIC_SPLIT: &str = include_str!("../../testdata/traffic_split.yaml");
const TCP_ROUTE: &str = include_str!("../../testdata/tcp_route.yaml");
const UPSTREAM_TRAFFIC_SETTING: &str = include_str!("../../testdata/upstream_traffic_setting.yaml");
const RETRY: &str = include_str!("../../testdata/retry.yaml");
const SERVICE_ENTRY: &str = include_str!("../../testdata/service_entry.yaml");
const MESH_CONFIG: &str = include_str!("../../testdata/mesh_config.yaml");

#[test]
fn the_manifests_in_the_yaml_folder_are_the_generated_ones() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("yaml");
    for (file, crd) in all() {
        let golden = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
        assert!(
            golden == to_yaml(&crd).unwrap(),
            "{file} is not what the types say; run `cargo run -p tidegate-crds --example crdgen crds/yaml`"
        );
    }
}

#[test]
fn names_are_osm_s() {
    let names = |crd: CustomResourceDefinition| {
        let spec = crd.spec;
        let names = spec.names;
        format!(
            "{} {} {} {:?} {:?} {}",
            spec.group, names.kind, names.plural, names.singular, names.short_names, spec.scope
        )
    };
    for (crd, expected) in [
        (
            IngressBackend::crd(),
            r#"policy.openservicemesh.io IngressBackend ingressbackends Some("ingressbackend") Some(["ingressbackend"]) Namespaced"#,
        ),
        (
            MeshConfig::crd(),
            r#"config.openservicemesh.io MeshConfig meshconfigs Some("meshconfig") Some(["meshconfig"]) Namespaced"#,
        ),
        (
            TrafficTarget::crd(),
            r#"access.smi-spec.io TrafficTarget traffictargets Some("traffictarget") Some(["tt"]) Namespaced"#,
        ),
        (
            TrafficSplit::crd(),
            r#"split.smi-spec.io TrafficSplit trafficsplits Some("trafficsplit") Some(["ts"]) Namespaced"#,
        ),
        (
            HTTPRouteGroup::crd(),
            r#"specs.smi-spec.io HTTPRouteGroup httproutegroups Some("httproutegroup") Some(["htr"]) Namespaced"#,
        ),
        (TCPRoute::crd(), r#"specs.smi-spec.io TCPRoute tcproutes Some("tcproute") Some(["tr"]) Namespaced"#),
        (
            UpstreamTrafficSetting::crd(),
            r#"policy.openservicemesh.io UpstreamTrafficSetting upstreamtrafficsettings Some("upstreamtrafficsetting") Some(["upstreamtrafficsetting"]) Namespaced"#,
        ),
        (Retry::crd(), r#"policy.openservicemesh.io Retry retries Some("retry") Some(["retry"]) Namespaced"#),
    ] {
        assert_eq!(names(crd), expected);
    }
}

#[test]
fn a_service_entry_has_istio_s_names_and_versions_and_a_cluster_keeps_istio_s_definition() {
    let (_, mut crd) = all().into_iter().find(|(_, crd)| crd.spec.names.kind == "ServiceEntry").unwrap();
    let names = &crd.spec.names;
    assert_eq!(
        (names.plural.as_str(), names.short_names.as_deref()),
        ("serviceentries", Some(&["se".to_owned()][..]))
    );
    assert_eq!(names.categories.as_ref().unwrap(), &["istio-io", "networking-istio-io"]);
    let versions: Vec<_> = crd.spec.versions.iter().map(|v| (v.name.as_str(), v.served, v.storage)).collect();
    assert_eq!(versions, [("v1", true, true), ("v1beta1", true, false), ("v1alpha3", true, false)]);
    assert!(is_istio_s(&crd) && is_shared(&crd), "without our chart's label");
    crd.labels_mut().insert(PART_OF.to_owned(), "tidegate".to_owned());
    assert!(!is_istio_s(&crd));
    assert!(!is_istio_s(&IngressBackend::crd()));
}

#[test]
fn no_schema_uses_a_number_format_that_kubernetes_does_not_know() {
    for (file, crd) in all() {
        let yaml = to_yaml(&crd).unwrap();
        for line in yaml.lines().filter(|line| line.trim_start().starts_with("format:")) {
            assert!(matches!(line.trim(), "format: int32" | "format: int64"), "{file}: {line}");
        }
    }
}

#[test]
fn a_manifest_of_an_osm_user_fits_the_schema_and_comes_back_whole() {
    for text in INGRESS_BACKENDS {
        assert_round_trip::<IngressBackend>(text);
    }
    assert_round_trip::<MeshConfig>(MESH_CONFIG);
    assert_round_trip::<TrafficTarget>(TRAFFIC_TARGET);
    assert_round_trip::<TrafficSplit>(TRAFFIC_SPLIT);
    assert_round_trip::<HTTPRouteGroup>(HTTP_ROUTE_GROUP);
    assert_round_trip::<TCPRoute>(TCP_ROUTE);
    assert_round_trip::<UpstreamTrafficSetting>(UPSTREAM_TRAFFIC_SETTING);
    assert_round_trip::<Retry>(RETRY);
    assert_round_trip::<ServiceEntry>(SERVICE_ENTRY);
}

#[test]
fn headers_of_a_route_group_are_a_map_or_a_list_of_maps_and_bounded() {
    let headers = |headers: Value| {
        let group = serde_json::json!({"metadata": {"name": "a"}, "spec": {"matches": [{"name": "a", "headers": headers}]}});
        crate::stored::read::<HTTPRouteGroup>(&group).map_err(|finding| finding.to_string())
    };
    let pairs = |value| headers(value).unwrap().spec.matches[0].headers.clone().unwrap().0;
    let expected = [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())];
    assert_eq!(pairs(serde_json::json!({"a": "1", "b": "2"})), expected);
    assert_eq!(pairs(serde_json::json!([{"a": "1"}, {"b": "2"}])), expected);
    let many: Value = (0..17).map(|i| (format!("x-{i}"), Value::from("a"))).collect();
    for value in [many.clone(), serde_json::json!([many])] {
        let error = headers(value).unwrap_err();
        assert!(error.starts_with("spec.matches[].headers: Too many: must have at most 16 items"), "{error}");
    }
    for value in [serde_json::json!("a"), serde_json::json!([1]), serde_json::json!({"a": 1})] {
        assert!(headers(value).is_err());
    }
}

#[test]
fn the_mesh_config_of_the_test_sets_every_field_but_those_that_osm_only_later_or_only_earlier_had() {
    const OTHERS: [&str; 3] = ["enableMeshRootCertificate", "useHTTPSIngress", "prometheusScraping"];
    let value: Value = serde_saphyr::from_str(MESH_CONFIG).unwrap();
    let schema = serde_json::to_value(MeshConfig::crd()).unwrap();
    let spec = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for (section, schema) in spec["properties"].as_object().unwrap() {
        for field in
            schema["properties"].as_object().unwrap().keys().filter(|f| !OTHERS.contains(&f.as_str()))
        {
            assert!(
                value["spec"][section].get(field).is_some(),
                "{section}.{field} is not in the test's manifest"
            );
        }
    }
}

fn assert_round_trip<T: CustomResourceExt + DeserializeOwned + Serialize>(text: &str) {
    let value: Value = serde_saphyr::from_str(text).unwrap();
    assert_eq!(schema::check(&T::crd(), &value), []);
    let object: T = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(&object).unwrap(), value);
}

#[test]
fn a_mesh_config_of_the_older_version_is_served_as_it_is_and_stored_in_the_newer_one() {
    let (_, crd) = all().into_iter().find(|(_, crd)| crd.spec.names.kind == "MeshConfig").unwrap();
    let versions: Vec<_> = crd.spec.versions.iter().map(|v| (v.name.as_str(), v.served, v.storage)).collect();
    assert_eq!(versions, [("v1alpha2", true, true), ("v1alpha1", true, false)]);
    assert_eq!(crd.spec.versions[0].schema, crd.spec.versions[1].schema);
    assert_eq!(
        crd.spec.versions[1].deprecation_warning.as_deref(),
        Some(
            "config.openservicemesh.io/v1alpha1 MeshConfig is deprecated; use config.openservicemesh.io/v1alpha2 MeshConfig"
        )
    );
    assert!(crd.spec.conversion.is_none(), "nothing but the version's name differs");
    // As Open Service Mesh v0.9 created it.
    let early = serde_json::json!({
        "apiVersion": OLDER_MESH_CONFIG, "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "osm-system"},
        "spec": {
            "certificate": {"serviceCertValidityDuration": "24h"},
            "observability": {"enableDebugServer": true, "prometheusScraping": true, "tracing": {"enable": false}},
            "sidecar": {"envoyImage": "", "logLevel": "error", "maxDataPlaneConnections": 0, "resources": {}},
            "traffic": {
                "enableEgress": true, "enablePermissiveTrafficPolicyMode": true, "useHTTPSIngress": false,
                "inboundExternalAuthorization": {"enable": false, "statPrefix": "inboundExtAuthz", "timeout": "1s"},
            },
        },
    });
    assert_eq!(schema::check(&crd, &early), []);
    let config: MeshConfig = serde_json::from_value(early).unwrap();
    assert_eq!(config.spec.certificate.unwrap().cert_key_bit_size, 2048);
}
