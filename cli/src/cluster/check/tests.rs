use axum::Router;
use axum::routing::get;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::cluster::testing::{
    TestCluster, control_plane_pod, ingress_backend, meshed_pod, namespace, plain_pod,
};

fn root() -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn base64(text: &str) -> Value {
    serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).unwrap()
}

fn bundle(namespace: &str, pem: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tidegate-trust-bundle", "namespace": namespace},
           "data": {"ca.crt": pem}})
}

fn deployment(part: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": part, "namespace": "tidegate-system", "labels": {
            "app.kubernetes.io/name": part, "app.kubernetes.io/instance": "osm", "app.kubernetes.io/version": "0.1.0",
        }},
        "spec": {"replicas": 1, "selector": {}, "template": {}},
        "status": {"readyReplicas": 1},
    })
}

fn crd(plural: &str, group: &str, version: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {"group": group, "names": {"kind": "x", "plural": plural}, "scope": "Namespaced",
                 "versions": [{"name": version, "served": true, "storage": true}]},
    })
}

fn webhooks(kind: &str, name: &str, resource: &str, pem: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name},
        "webhooks": [{
            "name": "monitored-by.tidegate.io", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "clientConfig": {"caBundle": base64(pem), "service": {"name": name, "namespace": "tidegate-system"}},
            "rules": [{"resources": [resource]}],
            "namespaceSelector": {"matchExpressions": [
                {"key": "openservicemesh.io/monitored-by", "operator": "In", "values": ["osm"]},
                {"key": "openservicemesh.io/ignore", "operator": "DoesNotExist"},
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["kube-system", "tidegate-system"]},
            ]},
        }],
    })
}

/// A mesh in which nothing is wrong.
async fn healthy() -> (TestCluster, String) {
    let pem = root();
    let mut member = namespace("httpbin", json!({"openservicemesh.io/monitored-by": "osm"}));
    member["metadata"]["annotations"] = json!({"openservicemesh.io/sidecar-injection": "enabled"});
    let source = json!([{"kind": "Service", "name": "ingress", "namespace": "ingress-nginx"}]);
    let mut objects = vec![
        crd("ingressbackends", "policy.openservicemesh.io", "v1alpha1"),
        crd("meshconfigs", "config.openservicemesh.io", "v1alpha2"),
        crd("traffictargets", "access.smi-spec.io", "v1alpha3"),
        crd("trafficsplits", "split.smi-spec.io", "v1alpha4"),
        crd("httproutegroups", "specs.smi-spec.io", "v1alpha4"),
        crd("tcproutes", "specs.smi-spec.io", "v1alpha4"),
        crd("upstreamtrafficsettings", "policy.openservicemesh.io", "v1alpha1"),
        crd("retries", "policy.openservicemesh.io", "v1alpha1"),
        crd("egresses", "policy.openservicemesh.io", "v1alpha1"),
        crd("egressproxies", "tidegate.io", "v1alpha1"),
        webhooks("MutatingWebhookConfiguration", "tidegate-injector", "pods", &pem),
        webhooks("ValidatingWebhookConfiguration", "tidegate-controller", "ingressbackends", &pem),
        bundle("tidegate-system", &pem),
        bundle("httpbin", &pem),
        json!({"apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
               "metadata": {"name": "osm-mesh-config", "namespace": "tidegate-system"}, "spec": {}}),
        control_plane_pod("tidegate-controller", "c"),
        member,
        meshed_pod("httpbin", "a"),
        ingress_backend("httpbin", "policy", &["httpbin"], 14001, source),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "httpbin", "namespace": "httpbin"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ingress", "namespace": "ingress-nginx"}}),
        endpoints(&["10.0.0.9"]),
    ];
    objects.extend(["tidegate-controller", "tidegate-cert-manager", "tidegate-injector"].map(deployment));
    let fake = TestCluster::start(objects).await;
    workloads(&fake, json!([workload(&json!(null))])).await;
    (fake, pem)
}

fn endpoints(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": "ingress-1", "namespace": "ingress-nginx", "labels": {"kubernetes.io/service-name": "ingress"}},
    })
}

fn workload(rejected: &Value) -> Value {
    json!({
        "workload": "httpbin/a", "version": "v", "error": null,
        "sidecar": {"connected": true, "connectedSince": "2026-01-01T00:00:00Z", "program": "0.1.0", "sentVersion": "v",
                    "ackedVersion": "v", "rejected": rejected, "trustedRoots": [], "certificateNotAfter": "2999-01-01T00:00:00Z"},
    })
}

async fn workloads(fake: &TestCluster, workloads: Value) {
    let route = get(move || async move { axum::Json(workloads) });
    fake.admin("tidegate-system/c", Router::new().route("/workloads", route)).await;
}

async fn checked(fake: &TestCluster) -> CheckReport {
    CheckReport::of(&fake.cluster(), false, false).await
}

/// Findings that did not pass, as `<status> <id>: <message>`.
fn faults(report: &CheckReport) -> Vec<String> {
    let bad = report.checks.iter().filter(|finding| finding.status != CheckSeverity::Ok);
    bad.map(|finding| {
        format!("{:?} {}: {}", finding.status, finding.id, finding.message.as_deref().unwrap_or(""))
    })
    .collect()
}

#[tokio::test]
async fn nothing_is_wrong_with_a_mesh_that_is_well() {
    let (fake, _) = healthy().await;
    let report = checked(&fake).await;
    assert_eq!(faults(&report), Vec::<String>::new());
    let shown = text(&report, false).replace(&fake.cluster().server, "URL");
    let days = shown.split_once("1 trusted, ").unwrap().1.split_once(' ').unwrap().0;
    assert_eq!(
        shown.replace(days, "N"),
        "Kubernetes\n\
         ----------\n\
         ✓ the API server answers: URL\n\
         ✓ the Kubernetes version has native sidecars: v1.33.0\n\
         \n\
         Control plane\n\
         -------------\n\
         ✓ the custom resources are defined\n\
         ✓ every daemon is ready\n\
         ✓ this command and the control plane have the same version: 0.1.0\n\
         ✓ the MeshConfig exists and is valid\n\
         ✓ the root certificates are valid: 1 trusted, N days left\n\
         \n\
         Webhooks\n\
         --------\n\
         ✓ pods of the mesh's namespaces get their sidecar\n\
         ✓ policies are checked when they are applied\n\
         \n\
         Workloads\n\
         ---------\n\
         ✓ each namespace is in an existing mesh\n\
         ✓ each namespace of the mesh has the trust bundle\n\
         ✓ each pod in namespaces with injection has its sidecar\n\
         ✓ the API server accepts the pods of namespaces with injection\n\
         ✓ each appProtocol of the mesh's Services is known\n\
         ✓ no init container waits for a server only by connecting\n\
         ✓ each sidecar is connected to a controller: 1 sidecar\n\
         ✓ each sidecar enforces its newest policy\n\
         ✓ each sidecar's certificate is valid\n\
         ✓ sidecars have this command's version\n\
         \n\
         Policies\n\
         --------\n\
         ✓ each IngressBackend is in a namespace of the mesh\n\
         ✓ each IngressBackend is committed\n\
         ✓ each backend is a Service in its policy's namespace\n\
         ✓ each source Service has ready endpoints\n\
         ✓ no two IngressBackends open the same backend\n\
         \n\
         ✓ all checks passed\n"
    );
}

#[tokio::test]
async fn each_fault_of_the_control_plane_is_found() {
    let (fake, pem) = healthy().await;
    fake.delete("CustomResourceDefinition", "", "meshconfigs.config.openservicemesh.io");
    fake.delete("Deployment", "tidegate-system", "tidegate-injector");
    let mut old = deployment("tidegate-controller");
    old["metadata"]["labels"]["app.kubernetes.io/version"] = json!("0.0.9");
    old["status"] = json!({});
    fake.put(old);
    let mut injector = webhooks("MutatingWebhookConfiguration", "tidegate-injector", "pods", &root());
    injector["webhooks"][0]["namespaceSelector"]["matchExpressions"][2]["values"] = json!(["kube-system"]);
    fake.put(injector);
    let mut validator =
        webhooks("ValidatingWebhookConfiguration", "tidegate-controller", "ingressbackends", &pem);
    validator["webhooks"][0]["namespaceSelector"]["matchExpressions"][0]["values"] = json!(["other"]);
    fake.put(validator);
    assert_eq!(
        faults(&checked(&fake).await),
        [
            "Failed crds-installed: meshconfigs.config.openservicemesh.io is missing",
            "Failed deployments-ready: tidegate-controller: 0 of 1 ready; Deployment tidegate-injector does not exist in namespace tidegate-system",
            "Warning control-plane-version: this command is 0.1.0; tidegate-controller is 0.0.9",
            "Failed injector-webhook: monitored-by.tidegate.io: its caBundle lacks 1 of the mesh's roots; a webhook for pods selects namespace tidegate-system, which it could block",
            "Failed validating-webhook: no webhook for ingressbackends selects namespaces with label openservicemesh.io/monitored-by=osm",
        ]
    );
}

#[tokio::test]
async fn each_fault_of_workloads_is_found() {
    let (fake, _) = healthy().await;
    fake.put(bundle("httpbin", &root()));
    fake.put(plain_pod("httpbin", "plain"));
    let mut opted_out = plain_pod("httpbin", "opted-out");
    opted_out["metadata"]["annotations"] = json!({"openservicemesh.io/sidecar-injection": "disabled"});
    fake.put(opted_out);
    let mut waiting = meshed_pod("httpbin", "b");
    let wait = json!({"name": "wait", "image": "busybox", "command": ["sh", "-c", "until nc -z db 5432; do sleep 1; done"]});
    waiting["spec"]["initContainers"].as_array_mut().unwrap().push(wait);
    fake.put(waiting);
    let ports = json!([{"port": 80, "appProtocol": "http"}, {"port": 81, "appProtocol": "example.com/mine"}]);
    let metadata = json!({"name": "httpbin", "namespace": "httpbin"});
    fake.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}}));
    let mut sick = workload(&json!({"version": "v", "reason": "unknown field"}));
    sick["sidecar"]["certificateNotAfter"] = json!("2000-01-01T00:00:00Z");
    sick["sidecar"]["program"] = json!("0.0.9");
    workloads(&fake, json!([sick])).await;
    assert_eq!(
        faults(&checked(&fake).await),
        [
            "Failed trust-bundles: the trust bundle of namespace httpbin holds other roots",
            "Warning pods-injected: httpbin/plain",
            "Warning port-protocols: httpbin/httpbin:81: example.com/mine",
            "Warning waits-by-connecting: httpbin/b: wait",
            "Failed sidecars-connected: httpbin/b is not known to any controller",
            "Failed sidecar-policies: httpbin/a: unknown field",
            "Failed sidecar-certificates: httpbin/a: expired at 2000-01-01T00:00:00Z",
            "Warning sidecar-versions: httpbin/a has 0.0.9",
        ]
    );
}

#[tokio::test]
async fn hints_name_the_namespaces_that_they_are_about() {
    let (fake, _) = healthy().await;
    fake.put(plain_pod("httpbin", "plain"));
    fake.delete("Deployment", "tidegate-system", "tidegate-injector");
    let report = checked(&fake).await;
    let hints: Vec<_> = report.checks.iter().filter_map(|finding| finding.hint.as_deref()).collect();
    assert_eq!(
        hints,
        [
            "`kubectl -n tidegate-system describe pods` and the pods' logs say why; --wait waits for them",
            "restart them: kubectl rollout restart deployment,statefulset,daemonset -n httpbin",
        ]
    );
}

#[tokio::test]
async fn pods_that_a_quota_refuses_are_found_with_what_cures_it() {
    let (fake, _) = healthy().await;
    let message = "pods \"a\" is forbidden: failed quota: q: must specify limits.cpu for: tidegate-intercept";
    fake.put(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "a-1", "namespace": "httpbin"},
        "spec": {"selector": {}},
        "status": {"replicas": 0, "conditions": [
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]},
    }));
    let report = checked(&fake).await;
    assert_eq!(faults(&report), [format!("Failed pods-made: httpbin/a-1: {message}")]);
    let finding = report.checks.iter().find(|finding| finding.id == "pods-made").unwrap();
    let hint = finding.hint.as_deref().unwrap();
    assert!(hint.contains("openservicemesh.io/sidecar-resource-limits-cpu"), "{hint}");
}

#[tokio::test]
async fn without_an_installation_one_line_says_what_to_do() {
    let fake = TestCluster::start(Vec::new()).await;
    let report = checked(&fake).await;
    assert_eq!(
        faults(&report),
        [
            "Failed control-plane-there: namespace tidegate-system has no control plane, nor has any other namespace"
        ]
    );
    let hint = report.checks.last().unwrap().hint.as_deref().unwrap();
    assert!(hint.contains("install with `tidegate install --apply --wait`"), "{hint}");
}

#[tokio::test]
async fn a_mesh_in_another_namespace_is_named_with_the_flags_to_give() {
    let mut elsewhere = deployment("tidegate-controller");
    elsewhere["metadata"]["namespace"] = json!("osm-system");
    let fake = TestCluster::start(vec![elsewhere]).await;
    let report = checked(&fake).await;
    assert_eq!(
        faults(&report),
        [
            "Failed control-plane-there: namespace tidegate-system has no control plane; mesh osm has its control plane in osm-system"
        ]
    );
    let hint = report.checks.last().unwrap().hint.as_deref().unwrap();
    assert!(hint.starts_with("give --tidegate-namespace osm-system --mesh-name osm"), "{hint}");
}

#[tokio::test]
async fn each_fault_of_policies_is_found() {
    let (fake, _) = healthy().await;
    fake.put(endpoints(&[]));
    fake.delete("Service", "httpbin", "httpbin");
    let mut wrong = ingress_backend("httpbin", "wrong", &["httpbin"], 14001, json!([]));
    wrong["status"] = json!({"currentStatus": "error", "reason": "endpoints not found"});
    fake.put(wrong);
    fake.put(ingress_backend("elsewhere", "lost", &[], 1, json!([])));
    assert_eq!(
        faults(&checked(&fake).await),
        [
            "Warning policies-in-mesh: elsewhere/lost",
            "Failed policies-committed: httpbin/wrong: endpoints not found",
            "Warning backends-exist: httpbin/policy: Service httpbin/httpbin does not exist; httpbin/wrong: Service httpbin/httpbin does not exist",
            "Warning sources-have-endpoints: httpbin/policy: Service ingress-nginx/ingress has no ready endpoints",
            "Warning policies-conflict: httpbin/policy and httpbin/wrong both open httpbin:14001",
        ]
    );
}

#[tokio::test]
async fn endpoints_that_are_not_ready_are_not_a_source() {
    let (fake, _) = healthy().await;
    let warned = async |ready: Value| {
        let mut slice = endpoints(&["10.0.0.9"]);
        slice["endpoints"][0]["conditions"] = json!({"ready": ready});
        fake.put(slice);
        faults(&checked(&fake).await).iter().any(|problem| problem.contains("sources-have-endpoints"))
    };
    assert!(warned(json!(false)).await);
    assert!(!warned(json!(true)).await);
    assert!(!warned(Value::Null).await, "a missing ready condition counts as ready");
}

#[tokio::test]
async fn the_ingress_controllers_certificate_is_looked_at_where_one_is_asked_for() {
    let (fake, _) = healthy().await;
    let gateway = json!({"subjectAltNames": ["a.b.cluster.local"], "validityDuration": "24h",
                         "secret": {"name": "client", "namespace": "ingress-nginx"}});
    let certificate =
        json!({"serviceCertValidityDuration": "24h", "certKeyBitSize": 2048, "ingressGateway": gateway});
    fake.put(json!({"apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
        "metadata": {"name": "osm-mesh-config", "namespace": "tidegate-system"}, "spec": {"certificate": certificate}}));
    let faults = faults(&checked(&fake).await);
    assert!(
        faults.contains(&"Failed gateway-certificate: Secret ingress-nginx/client does not exist".to_owned()),
        "{faults:?}"
    );
}

#[tokio::test]
async fn before_an_installation_the_cluster_and_the_users_rights_are_looked_at() {
    let fake = TestCluster::start(Vec::new()).await;
    fake.api.serve_version(1, 28);
    fake.api.forbid("create clusterroles");
    let report = CheckReport::of(&fake.cluster(), true, false).await;
    assert_eq!(
        faults(&report),
        [
            "Failed api-version: the version is v1.28.0",
            "Failed install-permissions: you lack the permission to create clusterroles"
        ]
    );
    let shown = text(&report, false);
    let block = "× you have the permissions to install\n    install-permissions: you lack the permission to create clusterroles\n    hint: ask an administrator";
    assert!(shown.contains(block), "{shown}");
    assert!(shown.ends_with("\n× some checks failed\n"), "{shown}");

    fake.put(deployment("tidegate-controller"));
    let faults = faults(&CheckReport::of(&fake.cluster(), true, false).await);
    let expected =
        "Failed no-control-plane: mesh osm has its control plane in namespace tidegate-system, version 0.1.0";
    assert!(faults.contains(&expected.to_owned()), "{faults:?}");
}

#[tokio::test]
async fn an_installation_needs_a_helm() {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        helm: HelmOptions,
    }
    let fake = TestCluster::start(Vec::new()).await;
    let mut report = CheckReport::of(&fake.cluster(), true, false).await;
    let flags = <Flags as clap::Parser>::parse_from(["check", "--helm", "/nonexistent/helm"]);
    before::helm(&flags.helm, &mut report);
    let faults = faults(&report);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].starts_with("Failed helm-there: cannot run /nonexistent/helm: Helm, "), "{faults:?}");
}

#[tokio::test]
async fn a_cluster_that_does_not_answer_fails_once() {
    let mut cluster = TestCluster::start(Vec::new()).await.cluster();
    cluster.client =
        kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let report = CheckReport::of(&cluster, false, false).await;
    assert_eq!(report.checks.len(), 1);
    assert_eq!(report.checks[0].id, "api-reachable");
    assert_eq!(report.status, CheckSeverity::Failed);
}

#[tokio::test]
async fn programs_get_ids_and_states() {
    let fake = TestCluster::start(Vec::new()).await;
    let report = serde_json::to_value(CheckReport::of(&fake.cluster(), true, false).await).unwrap();
    assert_eq!(report["status"], "ok");
    assert_eq!(report["checks"][1]["id"], "api-version");
    assert_eq!(report["checks"][1]["status"], "ok");
}

#[tokio::test]
async fn the_rate_limit_services_of_settings_in_force_must_be_reachable() {
    let (fake, _) = healthy().await;
    let setting = |current: &str, host: &str| {
        let service = json!({"host": host, "port": 8081});
        let descriptors = json!([{"entries": [{"remoteAddress": {}}]}]);
        let http = json!({"rateLimitService": service, "domain": "shop", "descriptors": descriptors});
        json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1",
            "kind": "UpstreamTrafficSetting",
            "metadata": {"name": "limits", "namespace": "httpbin"},
            "spec": {"host": "httpbin.httpbin.svc.cluster.local", "rateLimit": {"global": {"http": http}}},
            "status": {"currentStatus": current},
        })
    };
    let finding = async |fake: &TestCluster| {
        let faults = faults(&checked(fake).await);
        faults.into_iter().find(|fault| fault.contains("rate-limit-services")).unwrap_or_default()
    };
    for (current, host, expected) in [
        ("committed", "limits.shop.svc", "Warning rate-limit-services: Service shop/limits does not exist"),
        (
            "committed",
            "ingress.ingress-nginx",
            "Warning rate-limit-services: Service ingress-nginx/ingress has no port 8081",
        ),
        ("committed", "limits.example.com", ""),
        ("error", "limits.shop.svc", ""),
    ] {
        fake.put(setting(current, host));
        assert_eq!(finding(&fake).await, expected, "{current} {host}");
    }
}

#[tokio::test]
async fn the_server_of_the_external_authorization_must_be_reachable() {
    let (fake, _) = healthy().await;
    let mut config = fake.object("MeshConfig", "osm-mesh-config");
    let external = |address: &str| json!({"enable": true, "address": address, "port": 9191});
    let finding = async |fake: &TestCluster| {
        let faults = faults(&checked(fake).await);
        faults.into_iter().find(|fault| fault.contains("external-authorization")).unwrap_or_default()
    };
    for (address, expected) in [
        ("opa.opa.svc", "Warning external-authorization: Service opa/opa does not exist"),
        (
            "ingress.ingress-nginx",
            "Warning external-authorization: Service ingress-nginx/ingress has no port 9191",
        ),
        ("opa.example.com", ""),
        ("10.0.0.1", ""),
    ] {
        config["spec"] = json!({"traffic": {"inboundExternalAuthorization": external(address)}});
        fake.put(config.clone());
        assert_eq!(finding(&fake).await, expected, "{address}");
    }
    config["spec"] = json!({"traffic": {"inboundExternalAuthorization": external("ingress.ingress-nginx")}});
    fake.put(config);
    fake.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "ingress", "namespace": "ingress-nginx"},
                    "spec": {"ports": [{"port": 9191}]}}));
    let slice = |addresses: &[&str]| {
        let mut slice = endpoints(addresses);
        slice["ports"] = json!([{"port": 9292}]);
        slice
    };
    fake.put(slice(&[]));
    let expected = "Warning external-authorization: Service ingress-nginx/ingress has no ready endpoints";
    assert_eq!(finding(&fake).await, expected);
    fake.put(slice(&["10.0.0.9"]));
    assert_eq!(finding(&fake).await, "", "an endpoint without a Pod is not called");

    let mut of_pod = slice(&["10.0.0.9"]);
    of_pod["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "name": "opa"});
    fake.put(of_pod);
    fake.put(plain_pod("ingress-nginx", "opa"));
    let expected = "Warning external-authorization: Service ingress-nginx/ingress: pod ingress-nginx/opa: port 9292: connection refused";
    assert_eq!(finding(&fake).await, expected);
    let answering = async |answer: &'static [u8]| {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        fake.api.forward("ingress-nginx/opa", 9292, listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(answer).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
    };
    answering(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert!(finding(&fake).await.ends_with("port 9292: it does not speak HTTP/2 in plaintext"));
    answering(b"\0\0\0\x04\0\0\0\0\0").await;
    assert_eq!(finding(&fake).await, "");
    fake.put(meshed_pod("ingress-nginx", "opa"));
    let expected = "pod ingress-nginx/opa has a sidecar, which refuses plaintext at port 9292";
    assert!(finding(&fake).await.ends_with(expected));
}

#[tokio::test]
async fn what_the_cert_manager_says_of_the_mesh_config_is_looked_at() {
    let (fake, _) = healthy().await;
    let mut config = fake.object("MeshConfig", "osm-mesh-config");
    config["status"] = json!({"currentStatus": "committed", "conditions": [
        {"type": "IngressGatewayReady", "status": "False", "reason": "NotWritten", "message": "Secret a/b: no"}]});
    fake.put(config);
    assert_eq!(faults(&checked(&fake).await), ["Failed mesh-config: Secret a/b: no"]);
}

#[tokio::test]
async fn objects_that_cannot_be_read_are_named_with_field_and_value_and_hide_no_others() {
    let (fake, _) = healthy().await;
    let mut policy = ingress_backend("httpbin", "broken", &["httpbin"], 14001, json!([]));
    policy["spec"]["backends"][0]["port"]["number"] = "web".into();
    fake.put(policy);
    let mut config = fake.object("MeshConfig", "osm-mesh-config");
    config["spec"] = json!({"traffic": {"enableEgress": "yes"}});
    fake.put(config);
    assert_eq!(
        faults(&checked(&fake).await),
        [
            "Failed mesh-config: spec.traffic.enableEgress: must be of type boolean, got string: \"yes\"; mesh peers \
             are refused until it is corrected",
            "Failed policies-committed: httpbin/broken: spec.backends[0].port.number: must be of type integer, got \
             string: \"web\"",
        ]
    );
}

#[tokio::test]
async fn what_belongs_to_another_mesh_is_not_looked_at_and_a_mesh_that_is_not_there_is_said() {
    let (fake, _) = healthy().await;
    let mut blue = deployment("tidegate-controller");
    blue["metadata"]["namespace"] = json!("blue-system");
    blue["metadata"]["labels"]["app.kubernetes.io/instance"] = json!("blue");
    fake.put(blue);
    let mut theirs = namespace("theirs", json!({"openservicemesh.io/monitored-by": "blue"}));
    theirs["metadata"]["annotations"] = json!({"openservicemesh.io/sidecar-injection": "enabled"});
    fake.put(theirs);
    fake.put(plain_pod("theirs", "plain"));
    fake.put(ingress_backend("theirs", "policy", &["missing"], 80, json!([])));
    let mut broken = ingress_backend("theirs", "broken", &["missing"], 80, json!([]));
    broken["spec"]["backends"] = json!("none");
    fake.put(broken);
    let mut pod = meshed_pod("theirs", "meshed");
    let flag = "--discovery-server-name=tidegate-controller.blue-system.cluster.local";
    pod["spec"]["initContainers"][0]["args"] = json!([flag]);
    fake.put(pod.clone());
    assert_eq!(faults(&checked(&fake).await), Vec::<String>::new());

    // In a namespace of the mesh it lacks its sidecar.
    pod["metadata"]["namespace"] = json!("httpbin");
    fake.put(pod);
    fake.put(namespace("lost", json!({"openservicemesh.io/monitored-by": "bleu"})));
    let found = faults(&checked(&fake).await);
    assert_eq!(
        found,
        ["Warning meshes-there: lost names mesh \"bleu\"", "Warning pods-injected: httpbin/meshed",]
    );
}

#[tokio::test]
async fn policies_of_kinds_that_are_not_enforced_are_named_where_they_are_in_the_mesh() {
    let (fake, _) = healthy().await;
    let mut definition = crd("egressgateways", "policy.openservicemesh.io", "v1alpha1");
    definition["spec"]["names"]["kind"] = "EgressGateway".into();
    fake.put(definition);
    let egress = |namespace: &str| {
        json!({"apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "EgressGateway",
               "metadata": {"name": "out", "namespace": namespace}, "spec": {}})
    };
    fake.put(namespace("elsewhere", json!({})));
    fake.put(egress("elsewhere"));
    let report = checked(&fake).await;
    assert_eq!(faults(&report), Vec::<String>::new());
    assert!(
        text(&report, false).contains(
            "all policies in the mesh are of kinds that are enforced: the cluster defines EgressGateway (policy.openservicemesh.io)"
        )
    );
    fake.put(egress("httpbin"));
    assert_eq!(
        faults(&checked(&fake).await),
        [
            "Warning policies-not-enforced: EgressGateway httpbin/out: traffic leaves the mesh from each Pod itself"
        ]
    );
}

#[tokio::test]
async fn a_traffic_target_that_is_not_committed_is_named_with_its_reason() {
    let (fake, _) = healthy().await;
    let target = |namespace: &str, name: &str, status: Value| {
        json!({"apiVersion": "access.smi-spec.io/v1alpha3", "kind": "TrafficTarget",
               "metadata": {"name": name, "namespace": namespace}, "spec": {}, "status": status})
    };
    fake.put(namespace("elsewhere", json!({})));
    let error = json!({"currentStatus": "error", "reason": "TCPRoute httpbin/x does not exist"});
    fake.put(target("elsewhere", "theirs", error.clone()));
    fake.put(target("httpbin", "good", json!({"currentStatus": "committed", "reason": "fine"})));
    assert_eq!(faults(&checked(&fake).await), Vec::<String>::new());
    fake.put(target("httpbin", "bad", error));
    assert_eq!(
        faults(&checked(&fake).await),
        ["Failed traffic-targets-committed: TrafficTarget httpbin/bad: TCPRoute httpbin/x does not exist"]
    );
}

#[tokio::test]
async fn a_retry_that_is_not_committed_is_named_with_its_reason() {
    let (fake, _) = healthy().await;
    let reason = "spec.destinations: Service shop/cart does not exist";
    fake.put(json!({"apiVersion": "policy.openservicemesh.io/v1alpha1", "kind": "Retry",
                    "metadata": {"name": "cart", "namespace": "httpbin"}, "spec": {},
                    "status": {"currentStatus": "error", "reason": reason}}));
    let expected = format!("Failed traffic-targets-committed: Retry httpbin/cart: {reason}");
    assert_eq!(faults(&checked(&fake).await), [expected]);
}

#[tokio::test]
async fn a_route_that_a_service_does_not_accept_or_that_leads_nowhere_is_named_with_its_reason() {
    let (fake, _) = healthy().await;
    let route = |kind: &str, name: &str, controller: &str, conditions: Value| {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
               "metadata": {"name": name, "namespace": "httpbin"}, "spec": {},
               "status": {"parents": [{"controllerName": controller, "parentRef": {}, "conditions": conditions}]}})
    };
    let ours = "tidegate.io/mesh-controller";
    let is = |kind: &str, status: &str| json!({"type": kind, "status": status, "message": format!("{kind} {status}")});
    fake.put(crd("httproutes", "gateway.networking.k8s.io", "v1"));
    // A version that is not read.
    fake.put(crd("tcproutes", "gateway.networking.k8s.io", "v1alpha2"));
    fake.put(route("HTTPRoute", "edge", "example.com/gateway", json!([is("Accepted", "False")])));
    let well = json!([is("Accepted", "True"), is("ResolvedRefs", "True"), is("PartiallyInvalid", "False")]);
    fake.put(route("HTTPRoute", "good", ours, well));
    assert_eq!(faults(&checked(&fake).await), Vec::<String>::new());
    fake.put(crd("grpcroutes", "gateway.networking.k8s.io", "v1"));
    fake.put(route("HTTPRoute", "lost", ours, json!([is("Accepted", "True"), is("ResolvedRefs", "False")])));
    fake.put(route(
        "HTTPRoute",
        "partly",
        ours,
        json!([is("Accepted", "True"), is("PartiallyInvalid", "True")]),
    ));
    fake.put(route(
        "GRPCRoute",
        "refused",
        ours,
        json!([is("Accepted", "False"), is("ResolvedRefs", "True")]),
    ));
    assert_eq!(
        faults(&checked(&fake).await),
        ["Warning gateway-routes-accepted: HTTPRoute httpbin/lost: ResolvedRefs False; \
             HTTPRoute httpbin/partly: PartiallyInvalid True; GRPCRoute httpbin/refused: Accepted False"]
    );
}

#[tokio::test]
async fn an_egress_proxy_that_is_not_in_force_is_named_with_its_reason() {
    let (fake, _) = healthy().await;
    let message = "spec.credentials.secretName: Secret httpbin/squid: it has no key username";
    let conditions = json!([{"type": "Accepted", "status": "False", "message": message}]);
    fake.put(crd("egressproxies", "tidegate.io", "v1alpha1"));
    fake.put(egress_proxy(&conditions));
    let expected = format!("Warning egress-proxies-accepted: httpbin/squid: {message}");
    assert_eq!(faults(&checked(&fake).await), [expected]);
}

fn egress_proxy(conditions: &Value) -> Value {
    json!({"apiVersion": "tidegate.io/v1alpha1", "kind": "EgressProxy",
           "metadata": {"name": "squid", "namespace": "httpbin"}, "spec": {}, "status": {"conditions": conditions}})
}

#[tokio::test]
async fn a_proxy_that_does_not_work_is_named_with_its_own_words() {
    let (fake, _) = healthy().await;
    let message = "1 of 1 proxies fail: forward proxy http://10.9.9.9:3128 answers CONNECT with 407 Who";
    fake.put(crd("egressproxies", "tidegate.io", "v1alpha1"));
    let accepted = json!({"type": "Accepted", "status": "True", "message": "fine"});
    fake.put(egress_proxy(&json!([accepted, {"type": "Healthy", "status": "False", "message": message}])));
    let expected = format!("Warning egress-proxies-healthy: httpbin/squid: {message}");
    assert_eq!(faults(&checked(&fake).await), [expected]);
}

#[tokio::test]
async fn a_service_entry_that_is_not_in_force_is_named_with_its_reason() {
    let (fake, _) = healthy().await;
    let entry = |namespace: &str, name: &str, status: &str, message: &str| {
        let conditions = json!([{"type": "Other", "status": "False"}, {"type": "Accepted", "status": status, "message": message}]);
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
               "metadata": {"name": name, "namespace": namespace}, "spec": {}, "status": {"conditions": conditions}})
    };
    fake.put(crd("serviceentries", "networking.istio.io", "v1"));
    fake.put(namespace("elsewhere", json!({})));
    fake.put(entry("elsewhere", "theirs", "False", "wrong"));
    fake.put(entry("httpbin", "good", "True", "fine"));
    assert_eq!(faults(&checked(&fake).await), Vec::<String>::new());
    fake.put(entry("httpbin", "bad", "False", "spec.resolution: DNS is not supported yet"));
    assert_eq!(
        faults(&checked(&fake).await),
        ["Warning service-entries-accepted: httpbin/bad: spec.resolution: DNS is not supported yet"]
    );
}
