//! Whole certificate authorities, several replicas on one API server.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tidegate_core::contract::names::ROOT_SECRET;
use tidegate_core::{DnsName, PeerCertificate, San, TrustDomain};
use tidegate_kubernetes::fake_api::{FakeApi, Rights};
use tidegate_kubernetes::lease::LeaseTiming;
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tidegate_runtime::forward_proxy::ControlPlaneProxyOptions;
use tidegate_runtime::grpc::{Address, channel, client_config};
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::tls::load_pem_certificates;
use tidegate_runtime::trust_bundle::TrustBundle;
use tonic::{Code, Request, Status};

use super::*;
use crate::authority::{NewRoot, Vouched};
use crate::check_schedule::CheckSchedule;
use crate::ingress_gateway::GatewayDependencies;
use crate::manager::CONNECTION_AGE;
use crate::rate_limit::RateLimit;
use crate::rules::IssuingRules;
use crate::service_names::ServiceNames;
use crate::testing::plain_request;
use crate::{CertManager, CertManagerConfig, CertManagerDependencies, CertManagerHandle};

/// The mesh's name is the default one.
const TRUST_BUNDLE_CONFIG_MAP: &str = "tidegate-trust-bundle";
const NAMESPACE: &str = "tidegate-system";
const MESH_CONFIGS: &str = "config.openservicemesh.io/v1alpha2/meshconfigs";

struct Replica {
    manager: CertManagerHandle,
    background: RunningKubernetesTasks,
}

async fn api_server() -> FakeApi {
    let api = FakeApi::start().await;
    for (name, labels) in [(NAMESPACE, json!({})), ("httpbin", json!({"tidegate.io/injection": "enabled"}))] {
        api.apply("v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    api.answer(|request, review| {
        let mut review = review.clone();
        // The account that the token names, if its signature is right.
        let account = review["spec"]["token"].as_str()?.strip_suffix(".good").map(str::to_owned);
        review["status"] = match account {
            Some(_) => json!({
                "authenticated": true,
                "audiences": ["tidegate-ca"],
                "user": {"username": "system:serviceaccount:httpbin:httpbin", "extra": {
                    "authentication.kubernetes.io/pod-name": ["httpbin-1"],
                    "authentication.kubernetes.io/pod-uid": ["8f0c"],
                }},
            }),
            None => json!({"authenticated": false, "error": "invalid bearer token"}),
        };
        (request.resource == "tokenreviews").then_some((201, review))
    });
    api
}

async fn replica(api: &FakeApi, name: &str) -> Replica {
    replica_checking_every(CheckSchedule::default().interval, api, name).await
}

/// A replica that checks nothing on its own within a test: only what wakes it leads to a check.
async fn replica_only_woken(api: &FakeApi, name: &str) -> Replica {
    replica_checking_every(Duration::from_secs(3600), api, name).await
}

async fn replica_checking_every(interval: Duration, api: &FakeApi, name: &str) -> Replica {
    let place = ReplicaConfig {
        namespace: NAMESPACE.to_owned(),
        mesh_name: "osm".to_owned(),
        pod_name: name.to_owned(),
        audience: "tidegate-ca".to_owned(),
        trust_domain: TrustDomain::default(),
        lease: LeaseTiming {
            duration: Duration::from_secs(2),
            deadline: Duration::from_millis(1500),
            interval: Duration::from_millis(200),
        },
    };
    let metrics = Metrics::new();
    let parts = KubernetesParts::start(&api.client(), &place, &metrics);
    let config = CertManagerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: None,
        serving_names: vec![San::Dns(DnsName::parse("ca.example").unwrap())],
        trust_domain: TrustDomain::default(),
        new_root: NewRoot::default(),
        rules: IssuingRules::default(),
        service_names: ServiceNames::new(["httpbin/httpbin=httpbin.httpbin.svc".parse().unwrap()]),
        propagation: Duration::ZERO,
        rate_limit: RateLimit::default(),
        max_connections: 100,
        connection_age: CONNECTION_AGE,
    };
    let dependencies = CertManagerDependencies {
        authenticator: Arc::new(parts.authenticator),
        root_store: Arc::new(parts.root_store),
        given: None,
        publishers: vec![Arc::new(parts.publisher)],
        gateway: Some(GatewayDependencies {
            checks: CheckSchedule { interval, ..parts.gateway.checks },
            ..parts.gateway
        }),
        workload_life: parts.workload_life,
        checks: CheckSchedule { interval, ..parts.checks },
        metrics,
        readiness: Readiness::new(),
        log: LogHandle::detached(),
    };
    let manager = CertManager::start(config, dependencies).await.unwrap();
    let background = parts.background.run(manager.gateway_status());
    Replica { manager, background }
}

impl Replica {
    fn roots(&self) -> Vec<String> {
        self.manager.bundle().borrow().fingerprints()
    }

    async fn ask(&self, signature: &str) -> Result<PeerCertificate, Status> {
        let bundle = self.manager.bundle().borrow().clone();
        let address =
            Address::new(ServerName::try_from("127.0.0.1").unwrap(), self.manager.grpc_address().port());
        let name = ServerName::try_from("ca.example").unwrap();
        let channel = channel(&address, &ControlPlaneProxyOptions::default(), name, move || {
            client_config(&bundle, None).ok()
        });
        let mut request = Request::new(IstioCertificateRequest {
            csr: plain_request(),
            validity_duration: 0,
            metadata: None,
        });
        // {"aud":["tidegate-ca"],"exp":4000000000}
        let claims = "eyJhdWQiOlsidGlkZWdhdGUtY2EiXSwiZXhwIjo0MDAwMDAwMDAwfQ";
        let token = format!("Bearer e30.{claims}.{signature}").parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        let chain = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        let leaf = load_pem_certificates(chain.into_inner().cert_chain[0].as_bytes()).unwrap();
        Ok(PeerCertificate::from_der(&leaf[0]).unwrap())
    }
}

fn published(api: &FakeApi, namespace: &str) -> Option<Vec<String>> {
    let map = api.get("v1/configmaps", namespace, TRUST_BUNDLE_CONFIG_MAP)?;
    Some(TrustBundle::parse(map["data"]["ca.crt"].as_str()?.as_bytes()).unwrap().fingerprints())
}

fn want_gateway(api: &FakeApi, gateway: Value) {
    want(api, "24h", gateway);
}

fn want(api: &FakeApi, life: &str, gateway: Value) {
    let certificate =
        json!({"serviceCertValidityDuration": life, "certKeyBitSize": 2048, "ingressGateway": gateway});
    api.apply(
        MESH_CONFIGS,
        json!({
            "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
            "metadata": {"name": "osm-mesh-config", "namespace": NAMESPACE},
            "spec": {"certificate": certificate},
        }),
    );
}

fn usual_gateway(secret: &str) -> Value {
    json!({"subjectAltNames": ["nginx.ingress.cluster.local"], "validityDuration": "24h",
        "secret": {"name": secret, "namespace": "ingress"}})
}

/// `ca.crt`'s fingerprints and `tls.crt` of the gateway's Secret.
fn gateway(api: &FakeApi, secret: &str) -> Option<(Vec<String>, String)> {
    let secret = api.get("v1/secrets", "ingress", secret)?;
    let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(secret).unwrap();
    let data = secret.data?;
    let roots = TrustBundle::parse(&data["ca.crt"].0).unwrap().fingerprints();
    Some((roots, String::from_utf8(data["tls.crt"].0.clone()).unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_agree_on_one_root_and_all_of_them_issue() {
    let api = api_server().await;
    let (one, two, three) = tokio::join!(replica(&api, "a"), replica(&api, "b"), replica(&api, "c"));
    for replica in [&one, &two, &three] {
        assert_eq!(replica.roots(), one.roots());
        let leaf = replica.ask("good").await.unwrap();
        assert_eq!(
            leaf.display_names(),
            "DNS:httpbin.httpbin.cluster.local, URI:spiffe://cluster.local/ns/httpbin/sa/httpbin, \
             DNS:httpbin.httpbin.svc"
        );
        assert_eq!(replica.ask("forged").await.unwrap_err().code(), Code::Unauthenticated);
    }
    assert_eq!(published(&api, "httpbin"), Some(one.roots()));
    assert_eq!(published(&api, NAMESPACE), Some(one.roots()));
    api.stop();
    let status = two.ask("good").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "callers are to try again: {status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_taken_on_one_replica_wakes_all_others_which_take_it_over() {
    let api = api_server().await;
    let (one, two) = (replica_only_woken(&api, "a").await, replica_only_woken(&api, "b").await);
    let mut bundle = two.manager.bundle();
    for (from, roots) in [(&one, 2), (&one, 2), (&one, 1)] {
        let status = from.manager.rotate(Vouched::Everything).await.unwrap();
        let expected: Vec<_> = status.trusted_roots.into_iter().map(|root| root.fingerprint).collect();
        assert_eq!(expected.len(), roots);
        let taken_over = bundle.wait_for(|bundle| bundle.fingerprints() == expected);
        assert!(tokio::time::timeout(Duration::from_secs(30), taken_over).await.unwrap().is_ok());
        api.wait_for(|api| published(api, "httpbin").as_ref() == Some(&expected)).await;
        // The slower replica has not put an older bundle back.
        two.manager.authority().refresh().await;
        assert_eq!(two.manager.rotation().step, status.step);
    }
    let ended = two.manager.rotate(Vouched::Everything).await.unwrap();
    assert_eq!(ended.step, "trust-both", "the next rotation may begin anywhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replicas_that_take_a_step_at_once_one_does() {
    let api = api_server().await;
    let (one, two) = (replica(&api, "a").await, replica(&api, "b").await);
    let (first, second) =
        tokio::join!(one.manager.rotate(Vouched::Nothing), two.manager.rotate(Vouched::Nothing));
    let refused = match (first, second) {
        (Ok(_), Err(refused)) | (Err(refused), Ok(_)) => refused,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused, crate::authority::NotAllowed::Conflict);
    for replica in [&one, &two] {
        replica.manager.bundle().wait_for(|bundle| bundle.roots().len() == 2).await.unwrap();
    }
    assert_eq!(one.roots(), two.roots());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_secret_follows_mesh_config_and_rotation_and_is_put_back() {
    let api = api_server().await;
    let (one, _two) = (replica_only_woken(&api, "a").await, replica_only_woken(&api, "b").await);
    want_gateway(&api, usual_gateway("first"));
    api.wait_for(|api| gateway(api, "first").is_some()).await;

    // Deleted by hand, it is back as soon as its watch tells.
    let before = gateway(&api, "first").unwrap();
    api.delete("v1/secrets", "ingress", "first");
    api.wait_for(|api| gateway(api, "first").is_some()).await;
    assert_ne!(gateway(&api, "first").unwrap().1, before.1);

    // The write that brings a root brings a new leaf.
    let before = gateway(&api, "first").unwrap();
    let both = loop {
        match one.manager.rotate(Vouched::Everything).await {
            // The other replica has just noted the Secret that it wrote.
            Err(crate::authority::NotAllowed::Conflict) => {}
            rotated => break rotated.unwrap(),
        }
    };
    api.wait_for(|api| {
        gateway(api, "first").is_some_and(|(roots, _)| roots.len() == both.trusted_roots.len())
    })
    .await;
    assert_ne!(gateway(&api, "first").unwrap().1, before.1);

    // Another name: the new one first, then the old one goes.
    want_gateway(&api, usual_gateway("second"));
    api.wait_for(|api| gateway(api, "second").is_some() && gateway(api, "first").is_none()).await;
    want_gateway(&api, Value::Null);
    api.wait_for(|api| gateway(api, "second").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_root_secret_forgets_no_secret_that_was_written_and_one_that_stays_behind_harms_none() {
    let api = api_server().await;
    api.apply("v1/namespaces", json!({"metadata": {"name": "ingress"}}));
    let one = replica(&api, "a").await;
    want_gateway(&api, usual_gateway("first"));
    api.wait_for(|api| gateway(api, "first").is_some()).await;
    api.delete("v1/secrets", NAMESPACE, ROOT_SECRET);
    api.wait_for(|api| {
        let root = api.get("v1/secrets", NAMESPACE, ROOT_SECRET).unwrap_or_default();
        root["metadata"]["annotations"][tidegate_core::contract::annotations::GATEWAY_SECRETS]
            == "ingress/first"
    })
    .await;

    // The old one cannot be looked at any more; the new one is correct anyway.
    api.answer(|request, _| {
        let is_old = request.resource == "secrets" && request.name == "first" && request.verb != "watch";
        is_old.then(|| FakeApi::refusal(403, "secrets \"first\" is forbidden"))
    });
    want_gateway(&api, usual_gateway("second"));
    let mut status = one.manager.gateway_status();
    let is_second = |status: &crate::ingress_gateway::GatewayStatus| matches!(status, crate::ingress_gateway::GatewayStatus::Ready { settings, .. } if settings.secret.name == "second");
    tokio::time::timeout(Duration::from_secs(30), status.wait_for(is_second)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_life_that_mesh_config_says_holds_for_the_next_certificate_of_every_replica() {
    let api = api_server().await;
    let (one, two) = (replica(&api, "a").await, replica(&api, "b").await);
    let hours = |n: u64| Duration::from_secs(n * 3600);
    // The last one cannot be understood, and the one before is more than the rules allow.
    for (said, given) in [("1h", hours(1)), ("8760h", hours(24)), ("2h", hours(2)), ("soon", hours(2))] {
        want(&api, said, Value::Null);
        for replica in [&one, &two] {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            loop {
                let leaf = replica.ask("good").await.unwrap();
                let life = leaf.not_after.duration_since(leaf.not_before).unwrap() - crate::rules::BACKDATE;
                if life == given {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "{said}: {life:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_replica_that_leads_writes_the_gateways_secret_and_another_one_takes_over() {
    let api = api_server().await;
    want_gateway(&api, usual_gateway("a"));
    let (one, two) = (replica(&api, "a").await, replica(&api, "b").await);
    let is_ready = |replica: &Replica| {
        matches!(
            *replica.manager.gateway_status().borrow(),
            crate::ingress_gateway::GatewayStatus::Ready { .. }
        )
    };
    api.wait_for(|_| is_ready(&one) || is_ready(&two)).await;
    assert!(is_ready(&one) != is_ready(&two));
    let (leader, other) = if is_ready(&one) { (one, two) } else { (two, one) };
    let writes = api.requests().iter().filter(|r| r.namespace == "ingress" && r.verb == "create").count();
    assert_eq!(writes, 1);
    // As in a pod that ends.
    leader.background.stop().await;
    drop(leader.manager);
    api.wait_for(|_| is_ready(&other)).await;
    api.delete("v1/secrets", "ingress", "a");
    api.wait_for(|api| gateway(api, "a").is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_restarts_or_forgets_does_not_interrupt_service_for_long() {
    let api = api_server().await;
    let one = replica(&api, "a").await;
    want_gateway(&api, usual_gateway("a"));
    api.wait_for(|api| gateway(api, "a").is_some()).await;
    let roots = one.roots();
    api.stop();
    api.delete("v1/configmaps", "httpbin", TRUST_BUNDLE_CONFIG_MAP);
    api.delete("v1/secrets", "ingress", "a");
    api.delete("v1/secrets", NAMESPACE, ROOT_SECRET);
    api.compact();
    api.restart().await;
    api.wait_for(|api| {
        published(api, "httpbin").as_ref() == Some(&roots)
            && gateway(api, "a").is_some()
            && api.get("v1/secrets", NAMESPACE, ROOT_SECRET).is_some()
    })
    .await;
    assert_eq!(one.roots(), roots);
    let restarted = replica(&api, "b").await;
    assert_eq!(restarted.roots(), roots);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_of_the_api_server_beyond_the_charts_rights() {
    let api = api_server().await;
    let (one, _two) = (replica(&api, "a").await, replica(&api, "b").await);
    want_gateway(&api, usual_gateway("first"));
    api.wait_for(|api| gateway(api, "first").is_some()).await;
    one.ask("good").await.unwrap();
    one.manager.rotate(Vouched::Everything).await.unwrap();
    want_gateway(&api, usual_gateway("second"));
    api.wait_for(|api| gateway(api, "second").is_some() && gateway(api, "first").is_none()).await;
    api.delete("v1/configmaps", "httpbin", TRUST_BUNDLE_CONFIG_MAP);
    api.wait_for(|api| published(api, "httpbin").is_some()).await;
    // One that cannot be changed is recreated.
    let mut immutable = api.get("v1/configmaps", "httpbin", TRUST_BUNDLE_CONFIG_MAP).unwrap();
    immutable["immutable"] = json!(true);
    api.apply("v1/configmaps", immutable);
    api.wait_for(|api| {
        let map = api.get("v1/configmaps", "httpbin", TRUST_BUNDLE_CONFIG_MAP);
        map.is_some_and(|map| map["immutable"].is_null())
    })
    .await;

    // As `certManager.gatewaySecretNamespaces` grants it.
    let secrets = ["get", "list", "watch", "create", "update", "delete"];
    let rights = Rights::of_chart("tidegate-cert-manager").with("ingress", "secrets", &secrets);
    let renews = |request: &tidegate_kubernetes::fake_api::RecordedRequest| {
        request.resource == "leases" && request.verb == "update"
    };
    api.wait_for(|api| api.requests().iter().any(renews)).await;
    let requests = api.requests();
    let beyond = rights.beyond(&requests);
    assert!(beyond.is_empty(), "the role does not grant {beyond:#?}");
    let mut needless = rights.needless(&requests);
    // What a patch that makes the ConfigMap needs of a real API server besides.
    needless.retain(|(_, resource, verb)| (resource.as_str(), verb.as_str()) != ("configmaps", "create"));
    assert!(needless.is_empty(), "the role grants what nothing asks for: {needless:?}");
    // One by one, never all of a namespace's.
    let broad = requests.iter().find(|r| r.resource == "secrets" && r.verb != "create" && r.name.is_empty());
    assert!(broad.is_none(), "{broad:?}");
}
