use serde_json::Value;
use tidegate_kubernetes::fake_api::FakeApi;

use super::*;
use crate::store::SecretName;

const NAMESPACE: &str = "tidegate-system";
const RESOURCE: &str = "config.openservicemesh.io/v1alpha2/meshconfigs";

struct World {
    api: FakeApi,
    leader: watch::Sender<bool>,
    gateway: watch::Sender<GatewayStatus>,
    settings: watch::Receiver<Option<IngressGatewaySettings>>,
    active: watch::Receiver<bool>,
    life: watch::Receiver<Option<Duration>>,
    _task: JoinSet<()>,
}

async fn world(leads: bool) -> World {
    let api = FakeApi::start().await;
    let leader = watch::channel(leads).0;
    let gateway = watch::channel(GatewayStatus::NotActive).0;
    let meters = WatchMetrics::default();
    let namespaces = Namespaces::start(api.client(), NAMESPACE, "osm", &Arc::default(), &meters);
    let follower =
        MeshConfigFollower::start(api.client(), NAMESPACE, namespaces, leader.subscribe(), &meters);
    let (settings, active, life) = (follower.settings(), follower.active(), follower.workload_life());
    let mut task = JoinSet::new();
    task.spawn(follower.run(gateway.subscribe()));
    World { api, leader, gateway, settings, active, life, _task: task }
}

impl World {
    fn mesh_config(&self, gateway: Value) {
        let certificate =
            json!({"serviceCertValidityDuration": "24h", "certKeyBitSize": 2048, "ingressGateway": gateway});
        self.write(json!({"certificate": certificate}));
    }

    fn write(&self, spec: Value) {
        let status = self.status();
        let before = self.api.get(RESOURCE, NAMESPACE, MESH_CONFIG_NAME);
        let generation =
            before.and_then(|before| before["metadata"]["generation"].as_i64()).unwrap_or_default();
        let metadata =
            json!({"name": MESH_CONFIG_NAME, "namespace": NAMESPACE, "generation": generation + 1});
        self.api.apply(
            RESOURCE,
            json!({
                "apiVersion": "config.openservicemesh.io/v1alpha2", "kind": "MeshConfig",
                "metadata": metadata, "spec": spec, "status": status,
            }),
        );
    }

    fn status(&self) -> Value {
        self.api
            .get(RESOURCE, NAMESPACE, MESH_CONFIG_NAME)
            .map_or(Value::Null, |config| config["status"].clone())
    }

    fn condition(&self) -> Value {
        let conditions = self.status()["conditions"].as_array().cloned().unwrap_or_default();
        let ours = |condition: &Value| condition["type"] == "IngressGatewayReady";
        conditions.into_iter().find(ours).unwrap_or_default()
    }

    async fn condition_is(&self, status: &str, reason: &str, message: &str) {
        self.api
            .wait_for(|_| {
                let found = self.condition();
                found["status"] == status
                    && found["reason"] == reason
                    && found["message"].as_str().is_some_and(|found| found.starts_with(message))
            })
            .await;
    }
}

fn settings(secret: &str) -> IngressGatewaySettings {
    parse(&serde_json::from_value(gateway("24h", secret)).unwrap()).unwrap()
}

fn ready(secret: &str) -> GatewayStatus {
    GatewayStatus::Ready {
        settings: settings(secret),
        serial: "01".to_owned(),
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000),
    }
}

fn gateway(validity: &str, secret: &str) -> Value {
    json!({"subjectAltNames": ["nginx.ingress.cluster.local"], "validityDuration": validity,
        "secret": {"name": secret, "namespace": "ingress"}})
}

#[tokio::test]
async fn settings_are_followed_and_the_condition_says_how_it_went() {
    let mut world = world(true).await;
    world.mesh_config(gateway("24h", "a"));
    let settings = world.settings.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(settings.secret, SecretName { namespace: "ingress".to_owned(), name: "a".to_owned() });
    world.active.wait_for(|active| *active).await.unwrap();
    world.gateway.send_replace(ready("a"));
    world.condition_is("True", "Written", "Secret ingress/a holds a certificate until 2030-03-17T").await;
    assert_eq!(world.condition()["observedGeneration"], 1);
    let since = world.condition()["lastTransitionTime"].clone();
    assert!(humantime::parse_rfc3339(since.as_str().unwrap()).is_ok(), "{since}");
    world.gateway.send_replace(GatewayStatus::Failed { reason: "Secret ingress/a: no".to_owned() });
    world.condition_is("False", "NotWritten", "Secret ingress/a: no").await;
    world.mesh_config(Value::Null);
    world.settings.wait_for(Option::is_none).await.unwrap();
    world.gateway.send_replace(GatewayStatus::NotConfigured);
    world.condition_is("Unknown", "NotConfigured", "").await;
    assert_eq!(world.condition()["observedGeneration"], 2);
}

#[tokio::test]
async fn a_wait_for_the_condition_is_a_wait_for_the_settings_that_are_in_force() {
    let mut world = world(true).await;
    world.mesh_config(Value::Null);
    world.gateway.send_replace(GatewayStatus::NotConfigured);
    world.condition_is("Unknown", "NotConfigured", "").await;
    world.mesh_config(gateway("24h", "a"));
    world.settings.wait_for(Option::is_some).await.unwrap();
    world.gateway.send_replace(ready("a"));
    world.condition_is("True", "Written", "").await;
    assert_eq!(world.condition()["observedGeneration"], 2);
    // The status that comes now is still of the settings before.
    world.mesh_config(gateway("24h", "b"));
    world.settings.wait_for(|settings| *settings == Some(self::settings("b"))).await.unwrap();
    world.gateway.send_replace(ready("a"));
    world.gateway.send_replace(GatewayStatus::Failed { reason: "not yet".to_owned() });
    world.condition_is("False", "NotWritten", "not yet").await;
    assert_eq!(world.condition()["observedGeneration"], 3);
    world.gateway.send_replace(ready("b"));
    world.condition_is("True", "Written", "Secret ingress/b").await;
}

#[tokio::test]
async fn annotations_say_which_other_namespaces_get_one() {
    let world = world(true).await;
    let mut settings = world.settings.clone();
    let namespace = |name: &str, labels: Value| {
        world.api.apply("v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    };
    let annotate = |annotations: Value| {
        let mut config = world.api.get(RESOURCE, NAMESPACE, MESH_CONFIG_NAME).unwrap();
        config["metadata"]["annotations"] = annotations;
        world.api.apply(RESOURCE, config);
    };
    namespace("mart", json!({"tls": "yes"}));
    world.mesh_config(gateway("24h", "a"));
    annotate(json!({
        "tidegate.io/ingress-gateway-namespaces": "shop",
        "tidegate.io/ingress-gateway-namespace-selector": "tls=yes",
        "tidegate.io/ingress-gateway-ca-secret": "roots",
    }));
    let mut follows = async |expected: &[&str]| {
        let is_so = |settings: &Option<IngressGatewaySettings>| {
            settings.as_ref().is_some_and(|found| {
                let secrets = found.secrets().into_iter().chain(found.ca_secrets());
                secrets.map(|name| name.to_string()).eq(expected.iter().copied().map(str::to_owned))
            })
        };
        let followed = settings.wait_for(is_so);
        drop(
            tokio::time::timeout(Duration::from_secs(20), followed)
                .await
                .expect("they are followed")
                .unwrap(),
        );
    };
    follows(&["ingress/a", "mart/a", "shop/a", "ingress/roots", "mart/roots", "shop/roots"]).await;
    namespace("mart", json!({}));
    namespace("toys", json!({"tls": "yes"}));
    follows(&["ingress/a", "shop/a", "toys/a", "ingress/roots", "shop/roots", "toys/roots"]).await;
    // What cannot be understood changes nothing.
    annotate(json!({"tidegate.io/ingress-gateway-namespace-selector": "tls in (yes)"}));
    let path =
        "metadata.annotations[tidegate.io/ingress-gateway-namespace-selector]: \"tls in (yes)\" is not";
    world.condition_is("False", "SettingsNotUnderstood", path).await;
    annotate(json!({}));
    follows(&["ingress/a"]).await;
}

#[tokio::test]
async fn what_is_wrong_elsewhere_in_the_mesh_config_does_not_delay_certificates() {
    let mut world = world(true).await;
    let certificate = json!({"serviceCertValidityDuration": "1h", "certKeyBitSize": "many", "ingressGateway": gateway("24h", "a")});
    world.write(json!({"traffic": {"enableEgress": "yes"}, "certificate": certificate}));
    world.settings.wait_for(|found| *found == Some(settings("a"))).await.unwrap();
    world.active.wait_for(|active| *active).await.unwrap();
    world.life.wait_for(|life| *life == Some(Duration::from_secs(3600))).await.unwrap();
    world.gateway.send_replace(ready("a"));
    world.condition_is("True", "Written", "").await;
    for (spec, problem) in [
        (
            json!({"certificate": {"ingressGateway": {"subjectAltNames": "a"}}}),
            "spec.certificate.ingressGateway",
        ),
        (json!({"certificate": 1}), "spec.certificate: must be of type object: 1"),
    ] {
        world.write(spec);
        world.condition_is("False", "SettingsNotUnderstood", problem).await;
        assert_eq!(*world.settings.borrow(), Some(settings("a")), "what works stays");
    }
}

#[tokio::test]
async fn the_life_of_workloads_certificates_is_followed_and_one_that_cannot_be_keeps_the_one_before() {
    let mut world = world(false).await;
    let life =
        |text: &str| json!({"certificate": {"serviceCertValidityDuration": text, "certKeyBitSize": 2048}});
    world.write(life("1h30m"));
    world.life.wait_for(|life| *life == Some(Duration::from_secs(5400))).await.unwrap();
    for wrong in ["soon", "9s", "-1h"] {
        world.write(life(wrong));
    }
    world.write(json!({"certificate": {"serviceCertValidityDuration": 7}}));
    world.write(life("2h"));
    world.life.changed().await.unwrap();
    assert_eq!(*world.life.borrow(), Some(Duration::from_secs(7200)), "nothing came between");
    world.write(json!({}));
    world.life.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test]
async fn what_others_say_in_the_status_stays() {
    let world = world(true).await;
    let theirs = json!({"type": "Theirs", "status": "True"});
    world.mesh_config(Value::Null);
    let mut config = world.api.get(RESOURCE, NAMESPACE, MESH_CONFIG_NAME).unwrap();
    config["status"] =
        json!({"currentStatus": "error", "reason": "the controller's", "conditions": [theirs]});
    world.api.apply(RESOURCE, config);
    world.gateway.send_replace(GatewayStatus::NotConfigured);
    world.condition_is("Unknown", "NotConfigured", "").await;
    let status = world.status();
    assert_eq!((&status["currentStatus"], &status["reason"]), (&json!("error"), &json!("the controller's")));
    assert_eq!(status["conditions"][0], theirs);
}

#[tokio::test]
async fn settings_that_cannot_be_understood_change_nothing_but_the_condition() {
    let mut world = world(true).await;
    world.mesh_config(gateway("24h", "a"));
    world.settings.wait_for(Option::is_some).await.unwrap();
    world.settings.borrow_and_update();
    world.mesh_config(gateway("soon", ""));
    let problem = "spec.certificate.ingressGateway.validityDuration: \"soon\" is not a duration";
    world.condition_is("False", "SettingsNotUnderstood", problem).await;
    let reason = world.condition()["message"].as_str().unwrap().to_owned();
    assert!(reason.contains("; spec.certificate.ingressGateway.secret.name: is needed"), "{reason}");
    assert!(!world.settings.has_changed().unwrap() && *world.active.borrow());
    world.gateway.send_replace(ready("a"));
    world.mesh_config(gateway("24h", "a"));
    world.condition_is("True", "Written", "").await;
}

#[tokio::test]
async fn after_a_restart_nothing_is_done_until_there_are_settings_that_can_be_understood() {
    let mut world = world(true).await;
    world.mesh_config(gateway("soon", "a"));
    world.condition_is("False", "SettingsNotUnderstood", "spec").await;
    assert!(!*world.active.borrow(), "a Secret that works would be removed");
    world.mesh_config(gateway("24h", "a"));
    world.active.wait_for(|active| *active).await.unwrap();
    assert!(world.settings.borrow().is_some(), "settings come before the permission to act on them");
}

#[tokio::test]
async fn a_mesh_config_that_is_away_changes_nothing() {
    let mut world = world(true).await;
    world.mesh_config(gateway("24h", "a"));
    world.active.wait_for(|active| *active).await.unwrap();
    world.api.delete(RESOURCE, NAMESPACE, MESH_CONFIG_NAME);
    world.mesh_config(gateway("24h", "b"));
    let is_b = |settings: &Option<IngressGatewaySettings>| {
        settings.as_ref().is_some_and(|settings| settings.secret.name == "b")
    };
    // Not even for a moment was nothing wanted.
    loop {
        world.settings.changed().await.unwrap();
        let settings = world.settings.borrow_and_update().clone();
        assert!(settings.is_some());
        if is_b(&settings) {
            break;
        }
    }
}

#[tokio::test]
async fn a_replica_that_does_not_lead_writes_nothing_until_it_does() {
    let mut world = world(false).await;
    world.mesh_config(gateway("24h", "a"));
    world.settings.wait_for(Option::is_some).await.unwrap();
    assert!(!*world.active.borrow());
    assert_eq!(world.status(), Value::Null);
    world.gateway.send_replace(ready("a"));
    world.leader.send_replace(true);
    world.active.wait_for(|active| *active).await.unwrap();
    world.condition_is("True", "Written", "").await;
    world.leader.send_replace(false);
    world.active.wait_for(|active| !*active).await.unwrap();
}

#[tokio::test]
async fn a_status_that_could_not_be_written_is_written_later() {
    let world = world(true).await;
    world.api.refuse_writes(500, 1);
    world.gateway.send_replace(ready("a"));
    world.mesh_config(gateway("24h", "a"));
    world.condition_is("True", "Written", "").await;
}

#[test]
fn a_condition_is_written_when_it_says_something_new_and_keeps_since_when() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let said = |gateway: &GatewayStatus, secret: &str| condition(&[], gateway, Some(&settings(secret)), true);
    let wanted = said(&ready("a"), "a").unwrap();
    let written = due(None, wanted.clone(), now).unwrap();
    assert_eq!(written.last_transition_time.as_deref(), Some("2027-01-15T08:00:00Z"));
    assert_eq!(due(Some(&written), wanted, now), None);
    let later = now + Duration::from_secs(60);
    let renamed = due(Some(&written), said(&ready("b"), "b").unwrap(), later).unwrap();
    assert_eq!(renamed.last_transition_time, written.last_transition_time, "it is as ready as before");
    let failed = GatewayStatus::Failed { reason: "no".to_owned() };
    let failed = due(Some(&written), said(&failed, "a").unwrap(), later).unwrap();
    assert_eq!(failed.last_transition_time.as_deref(), Some("2027-01-15T08:01:00Z"));
    assert_eq!(said(&GatewayStatus::NotActive, "a"), None);
    assert_eq!(said(&ready("a"), "b"), None, "it is about other settings");
    assert_eq!(said(&GatewayStatus::NotConfigured, "a"), None);
    let by_another = condition(&[], &ready("a"), Some(&settings("a")), false);
    assert_eq!(by_another, None, "only the leader reports it");
}
