use serde_json::{Value, json};

use super::*;
use crate::fake_api::FakeApi;
use crate::watch::WatchMetrics;
use crate::webhook::testing::WebhookCa;

const RESOURCE: &str = "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const NAME: &str = "tidegate-injector";

struct Keeper {
    api: FakeApi,
    bundle: watch::Sender<Arc<TrustBundle>>,
    metrics: Metrics,
    readiness: Readiness,
}

fn configuration(bundles: &[Value]) -> Value {
    let webhooks: Vec<_> = bundles
        .iter()
        .enumerate()
        .map(|(index, bundle)| {
            let client_config = json!({"service": {"name": "i", "namespace": "n"}, "caBundle": bundle});
            json!({
                "name": format!("{index}.tidegate.io"),
                "clientConfig": client_config,
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
            })
        })
        .collect();
    json!({"metadata": {"name": NAME}, "webhooks": webhooks})
}

fn encoded(bundle: &TrustBundle) -> Value {
    json!(ByteString(bundle.to_pem().into_bytes()))
}

impl Keeper {
    fn start(api: FakeApi, bundle: &Arc<TrustBundle>) -> Self {
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        let bundle = watch::Sender::new(bundle.clone());
        let keeper = CaBundleKeeper::<MutatingWebhookConfiguration>::new(
            api.client(),
            NAME,
            bundle.subscribe(),
            &metrics,
            WatchMetrics::new(&metrics).kind("MutatingWebhookConfiguration"),
            Some(readiness.clone()),
        );
        tokio::spawn(keeper.run());
        Self { api, bundle, metrics, readiness }
    }

    async fn holds(&self, bundle: &TrustBundle) {
        self.api.wait_for(|api| all_hold(api, bundle)).await;
    }

    async fn is_ready(&self) {
        tokio::time::timeout(Duration::from_secs(30), self.readiness.ready()).await.unwrap();
    }
}

fn all_hold(api: &FakeApi, bundle: &TrustBundle) -> bool {
    let Some(configuration) = api.get(RESOURCE, "", NAME) else { return false };
    let configuration: MutatingWebhookConfiguration = serde_json::from_value(configuration).unwrap();
    configuration.client_configs().into_iter().all(|client_config| holds(client_config, bundle))
}

#[tokio::test]
async fn missing_and_foreign_roots_are_put_right_and_nothing_else_is_touched() {
    let (ours, foreign) = (WebhookCa::new().bundle, WebhookCa::new().bundle);
    let api = FakeApi::start().await;
    api.apply(RESOURCE, configuration(&[Value::Null, encoded(&foreign), encoded(&ours)]));
    let keeper = Keeper::start(api, &ours);
    assert_eq!(keeper.readiness.blocked_by(), [BLOCKER]);
    keeper.holds(&ours).await;
    keeper.is_ready().await;
    let now = keeper.api.get(RESOURCE, "", NAME).unwrap();
    let expected = configuration(&[encoded(&ours), encoded(&ours), encoded(&ours)]);
    assert_eq!(now["webhooks"], expected["webhooks"]);
    assert!(keeper.metrics.encode().contains("tidegate_webhook_ca_bundle_repairs_total 1\n"));
    assert!(keeper.metrics.encode().contains("tidegate_webhook_configuration_wrong 0\n"));
}

#[tokio::test]
async fn drift_is_healed_within_a_second_each_time() {
    let ours = WebhookCa::new().bundle;
    let api = FakeApi::start().await;
    api.apply(RESOURCE, configuration(&[encoded(&ours)]));
    let keeper = Keeper::start(api, &ours);
    keeper.is_ready().await;
    for garbage in [Value::Null, encoded(&WebhookCa::new().bundle), json!(ByteString(b"no PEM".to_vec()))] {
        keeper.api.apply(RESOURCE, configuration(&[garbage]));
        let start = Instant::now();
        keeper.holds(&ours).await;
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn the_configuration_follows_the_trust_bundle() {
    let (old, new) = (WebhookCa::new().bundle, WebhookCa::new().bundle);
    let api = FakeApi::start().await;
    api.apply(RESOURCE, configuration(&[Value::Null]));
    let keeper = Keeper::start(api, &old);
    keeper.holds(&old).await;
    let both = old.roots().iter().chain(new.roots()).cloned();
    let both = Arc::new(TrustBundle::from_certificates(both).unwrap());
    keeper.bundle.send_replace(both.clone());
    keeper.holds(&both).await;
    keeper.bundle.send_replace(new.clone());
    keeper.holds(&new).await;
}

#[tokio::test]
async fn the_same_roots_in_another_order_or_spelling_are_left_alone() {
    let (a, b) = (WebhookCa::new().bundle, WebhookCa::new().bundle);
    let ours = Arc::new(TrustBundle::from_certificates(a.roots().iter().chain(b.roots()).cloned()).unwrap());
    let text = format!("# ours\r\n{}\n\n{}", b.to_pem(), a.to_pem().replace('\n', "\r\n"));
    let api = FakeApi::start().await;
    api.apply(RESOURCE, configuration(&[json!(ByteString(text.into_bytes()))]));
    let keeper = Keeper::start(api, &ours);
    keeper.is_ready().await;
    assert!(keeper.api.requests().iter().all(|request| request.verb != "patch"));
}

#[tokio::test]
async fn several_replicas_agree() {
    let ours = WebhookCa::new().bundle;
    let first = FakeApi::start().await;
    first.apply(RESOURCE, configuration(&[Value::Null]));
    let client = first.client();
    let keeper = Keeper::start(first, &ours);
    let metrics = Metrics::new();
    let second_ready = Readiness::new();
    let (_sender, receiver) = watch::channel(ours.clone());
    let second = CaBundleKeeper::<MutatingWebhookConfiguration>::new(
        client,
        NAME,
        receiver,
        &metrics,
        WatchMetrics::new(&metrics).kind("MutatingWebhookConfiguration"),
        Some(second_ready.clone()),
    );
    tokio::spawn(second.run());
    keeper.is_ready().await;
    tokio::time::timeout(Duration::from_secs(30), second_ready.ready()).await.unwrap();
    assert!(all_hold(&keeper.api, &ours));
}

#[tokio::test]
async fn a_missing_configuration_blocks_readiness_until_it_is_there_and_right() {
    let ours = WebhookCa::new().bundle;
    let keeper = Keeper::start(FakeApi::start().await, &ours);
    keeper.api.wait_for(|api| api.requests().iter().any(|request| request.verb == "watch")).await;
    assert_eq!(keeper.readiness.blocked_by(), [BLOCKER]);
    keeper.api.apply(RESOURCE, configuration(&[Value::Null]));
    keeper.holds(&ours).await;
    keeper.is_ready().await;
    keeper.api.delete(RESOURCE, "", NAME);
    keeper.api.wait_for(|_| !keeper.readiness.is_ready()).await;
}

#[tokio::test]
async fn a_repeated_list_that_shows_nothing_new_leaves_readiness_alone() {
    let ours = WebhookCa::new().bundle;
    let api = FakeApi::start().await;
    api.apply(RESOURCE, configuration(&[encoded(&ours)]));
    let keeper = Keeper::start(api, &ours);
    keeper.is_ready().await;
    let watches = |api: &FakeApi| api.requests().iter().filter(|request| request.verb == "watch").count();
    let before = watches(&keeper.api);
    keeper.api.stop();
    keeper.api.apply("v1/secrets", json!({"metadata": {"name": "s", "namespace": "ns"}}));
    keeper.api.compact();
    keeper.api.restart().await;
    // One that gets 410, and one after the new list.
    keeper.api.wait_for(|api| watches(api) >= before + 2).await;
    // Who thinks that the configuration is gone does not put it right.
    let next = WebhookCa::new().bundle;
    keeper.bundle.send_replace(next.clone());
    keeper.holds(&next).await;
    keeper.is_ready().await;
}

#[tokio::test]
async fn a_patch_that_fails_is_tried_again_and_each_request_needs_no_more_than_the_chart_grants() {
    let ours = WebhookCa::new().bundle;
    let api = FakeApi::start().await;
    api.apply(RESOURCE, configuration(&[Value::Null]));
    api.refuse_writes(409, 2);
    let keeper = Keeper::start(api, &ours);
    keeper.holds(&ours).await;
    for request in keeper.api.requests() {
        assert!(["list", "watch", "patch"].contains(&request.verb), "{request:?}");
        assert_eq!(request.name, NAME, "{request:?}");
    }
}

#[test]
fn who_fights_is_slowed_down_and_peace_is_forgiving() {
    let start = Instant::now();
    let mut pace = RepairPace::new();
    assert_eq!(pace.delay(start), Duration::ZERO);
    for _ in 0..20 {
        pace.repaired(start);
        assert!(pace.delay(start) <= SLOWEST_REPAIR);
    }
    let later = start + PEACE + Duration::from_secs(1);
    assert_eq!(pace.delay(later), Duration::ZERO);
    pace.repaired(later);
    assert!(pace.delay(later) <= Duration::from_millis(250));
}
