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
    _task: JoinSet<()>,
}

async fn world(leads: bool) -> World {
    let api = FakeApi::start().await;
    let leader = watch::channel(leads).0;
    let gateway = watch::channel(GatewayStatus::NotActive).0;
    let follower =
        MeshConfigFollower::start(api.client(), NAMESPACE, leader.subscribe(), &WatchMetrics::default());
    let (settings, active) = (follower.settings(), follower.active());
    let mut task = JoinSet::new();
    task.spawn(follower.run(gateway.subscribe()));
    World { api, leader, gateway, settings, active, _task: task }
}

impl World {
    fn mesh_config(&self, gateway: Value) {
        let certificate =
            json!({"serviceCertValidityDuration": "24h", "certKeyBitSize": 2048, "ingressGateway": gateway});
        let spec = json!({"certificate": certificate});
        let status = self.status();
        let metadata = json!({"name": MESH_CONFIG_NAME, "namespace": NAMESPACE});
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

    async fn status_is(&self, status: &str, reason: &str) {
        self.api
            .wait_for(|_| {
                let found = self.status();
                found["currentStatus"] == status
                    && found["reason"].as_str().is_some_and(|found| found.starts_with(reason))
            })
            .await;
    }
}

fn gateway(validity: &str, secret: &str) -> Value {
    json!({"subjectAltNames": ["nginx.ingress.cluster.local"], "validityDuration": validity,
        "secret": {"name": secret, "namespace": "ingress"}})
}

#[tokio::test]
async fn settings_are_followed_and_the_status_says_how_it_went() {
    let mut world = world(true).await;
    world.mesh_config(gateway("24h", "a"));
    let settings = world.settings.wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert_eq!(settings.secret, SecretName { namespace: "ingress".to_owned(), name: "a".to_owned() });
    world.active.wait_for(|active| *active).await.unwrap();
    world.status_is("committed", COMMITTED).await;
    world.gateway.send_replace(GatewayStatus::Failed { reason: "Secret ingress/a: no".to_owned() });
    world.status_is("error", "spec.certificate.ingressGateway: Secret ingress/a: no").await;
    world.gateway.send_replace(GatewayStatus::NotConfigured);
    world.status_is("committed", COMMITTED).await;
    world.mesh_config(Value::Null);
    world.settings.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_be_understood_change_nothing_but_the_status() {
    let mut world = world(true).await;
    world.mesh_config(gateway("24h", "a"));
    world.settings.wait_for(Option::is_some).await.unwrap();
    world.settings.borrow_and_update();
    world.mesh_config(gateway("soon", ""));
    world
        .status_is("error", "spec.certificate.ingressGateway.validityDuration: \"soon\" is not a duration")
        .await;
    let reason = world.status()["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("; spec.certificate.ingressGateway.secret.name: is needed"), "{reason}");
    assert!(!world.settings.has_changed().unwrap() && *world.active.borrow());
    world.mesh_config(gateway("24h", "a"));
    world.status_is("committed", COMMITTED).await;
}

#[tokio::test]
async fn after_a_restart_nothing_is_done_until_there_are_settings_that_can_be_understood() {
    let mut world = world(true).await;
    world.mesh_config(gateway("soon", "a"));
    world.status_is("error", "spec").await;
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
    world.leader.send_replace(true);
    world.active.wait_for(|active| *active).await.unwrap();
    world.status_is("committed", COMMITTED).await;
    world.leader.send_replace(false);
    world.active.wait_for(|active| !*active).await.unwrap();
}

#[tokio::test]
async fn a_status_that_could_not_be_written_is_written_later() {
    let world = world(true).await;
    world.api.refuse_writes(500, 1);
    world.mesh_config(gateway("24h", "a"));
    world.status_is("committed", COMMITTED).await;
}

#[test]
fn what_the_controller_says_stays_unless_our_fields_are_wrong() {
    let status = |current: &str, reason: &str| MeshConfigStatus {
        current_status: Some(current.to_owned()),
        reason: Some(reason.to_owned()),
        ..MeshConfigStatus::default()
    };
    assert!(is_due(MeshConfigStatus::default(), "committed", COMMITTED));
    assert!(!is_due(status("error", "spec.traffic: no"), "committed", COMMITTED));
    assert!(!is_due(status("committed", "otherwise"), "committed", COMMITTED));
    assert!(is_due(status("error", "spec.certificate.ingressGateway: no"), "committed", COMMITTED));
    assert!(is_due(status("committed", COMMITTED), "error", "spec.certificate.ingressGateway: no"));
    assert!(is_due(status("error", "spec.traffic: no"), "error", "spec.certificate.ingressGateway: no"));
    let ours = "spec.certificate.ingressGateway: no";
    assert!(!is_due(status("error", ours), "error", ours));
}
