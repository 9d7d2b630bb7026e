use tidegate_core::TrustDomain;
use tidegate_core::policy::InboundPolicy;

use super::*;
use crate::compile::workload;
use crate::testing::{HTTPBIN, index};

/// A MeshConfig with these fields of the setting.
fn mesh_config(fields: &str) -> String {
    format!(
        "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\n\
         metadata: {{name: osm-mesh-config, namespace: tidegate-system}}\n\
         spec: {{traffic: {{inboundExternalAuthorization: {{{fields}}}}}}}\n"
    )
}

fn policy(fields: &str) -> InboundPolicy {
    let index = index(&[HTTPBIN, &mesh_config(fields)]);
    let pod = index.pod(&ObjectName::new("httpbin", "httpbin-1")).unwrap();
    workload(&index, pod, &TrustDomain::default()).unwrap()
}

fn text(fields: &str) -> Option<String> {
    policy(fields).external_authorization.map(|external| external.to_string())
}

#[test]
fn the_policy_of_a_workload_names_the_server_of_the_mesh_config() {
    assert_eq!(text("address: opa.opa, port: 9191"), None, "it is off by default");
    assert_eq!(
        text("enable: true, address: opa.opa.svc.cluster.local, port: 9191, timeout: 300ms").unwrap(),
        "opa.opa.svc.cluster.local:9191 decides within 300ms; its failure refuses the request"
    );
    assert_eq!(
        text("enable: true, address: 10.1.2.3, port: 9191, failureModeAllow: true").unwrap(),
        "10.1.2.3:9191 decides within 1s; its failure allows the request"
    );
    let origin = policy("enable: true, address: a, port: 1").external_authorization.unwrap().origin.clone();
    assert_eq!(origin.to_string(), "MeshConfig tidegate-system/osm-mesh-config");
}

#[test]
fn a_setting_without_a_server_refuses_every_request() {
    for (fields, field) in [("enable: true, address: a", "port"), ("enable: true, port: 1", "address")] {
        let text = text(fields).unwrap();
        let start = format!("refuses every request: spec.traffic.inboundExternalAuthorization.{field}: ");
        assert!(text.starts_with(&start), "{text}");
    }
}

#[test]
fn audit_mode_is_an_annotation_of_the_mesh_config() {
    let judged = |value: &str| {
        let annotation = format!("metadata: {{annotations: {{tidegate.io/audit: '{value}'}}, ");
        let config =
            mesh_config("enable: true, address: opa, port: 9191").replace("metadata: {", &annotation);
        let index = index(&[HTTPBIN, &config]);
        let pod = index.pod(&ObjectName::new("httpbin", "httpbin-1")).unwrap();
        let policy = workload(&index, pod, &TrustDomain::default()).unwrap();
        let status = crate::status::all(&index).into_iter().find(|status| status.kind == "MeshConfig");
        (policy.external_authorization.unwrap().is_audit, status.unwrap().warnings.join("; "))
    };
    let effect = "audit mode: what the external authorization would refuse is counted and logged";
    assert_eq!(judged("true"), (true, effect.to_owned()));
    assert_eq!(judged("false"), (false, String::new()));
    let (is_audit, warning) = judged("yes");
    assert!(!is_audit && warning.ends_with("got \"yes\"; this is enforced"), "{warning}");
}

#[test]
fn the_server_s_own_workload_is_not_subject_to_it() {
    for address in
        ["httpbin.httpbin", "httpbin.httpbin.svc", "httpbin.httpbin.svc.cluster.local", "127.0.0.11"]
    {
        assert_eq!(text(&format!("enable: true, address: {address}, port: 14001")), None, "{address}");
    }
    for address in ["httpbin.other", "other.httpbin.svc", "httpbin.httpbin.example", "127.0.0.12", "httpbin"]
    {
        assert!(text(&format!("enable: true, address: {address}, port: 14001")).is_some(), "{address}");
    }
}

#[test]
fn a_mesh_config_that_cannot_be_read_refuses_requests_if_it_may_enable_it() {
    let unreadable = |traffic: serde_json::Value| {
        let finding = tidegate_crds::Finding::error("spec.sidecar.logLevel", "unknown");
        let object = serde_json::json!({"spec": {"traffic": traffic}});
        crate::object::unreadable::Unreadable::new(Kind::MeshConfig, Default::default(), &object, finding)
    };
    let setting =
        |enable: serde_json::Value| serde_json::json!({"inboundExternalAuthorization": {"enable": enable}});
    for (traffic, may) in [
        (serde_json::json!({}), false),
        (setting(false.into()), false),
        (setting(serde_json::Value::Null), false),
        (setting(true.into()), true),
        (setting("yes".into()), true),
    ] {
        assert_eq!(unreadable(traffic.clone()).may_authorize_externally(), may, "{traffic}");
    }
}
