use std::time::Duration;

use tidegate_kubernetes::fake_api::FakeApi;
use tokio::task::JoinHandle;

use super::*;
use crate::compile::status::parents::{ParentCondition, ParentStatus};
use crate::compile::status::{CurrentStatus, HealthCondition};
use crate::object::ObjectName;

const BACKENDS: &str = "policy.openservicemesh.io/v1alpha1/ingressbackends";
const CONFIGS: &str = "config.openservicemesh.io/v1alpha2/meshconfigs";

struct Replica {
    statuses: KubernetesStatuses,
    leads: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Replica {
    fn start(api: &FakeApi, leads: bool) -> Self {
        let statuses = KubernetesStatuses::default();
        let leads = watch::Sender::new(leads);
        let task = tokio::spawn(statuses.clone().publish(api.client(), leads.subscribe()));
        Self { statuses, leads, task }
    }

    fn write(&self, name: &str, status: &ObjectStatus) {
        self.statuses.write(&key(Kind::IngressBackend, name), status, None);
    }
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    ObjectKey { kind, name: ObjectName::parse(name).unwrap() }
}

fn committed() -> ObjectStatus {
    let reason = "successfully committed by the system".to_owned();
    ObjectStatus {
        current: CurrentStatus::Committed,
        reason,
        warnings: Vec::new(),
        observed_generation: Some(2),
        condition: None,
        health: None,
        parents: None,
    }
}

fn error(reason: &str) -> ObjectStatus {
    ObjectStatus {
        current: CurrentStatus::Error,
        reason: reason.to_owned(),
        warnings: vec!["a warning".into()],
        observed_generation: None,
        condition: None,
        health: None,
        parents: None,
    }
}

fn put(api: &FakeApi, name: &str) {
    let spec = json!({"backends": [], "sources": []});
    let status = json!({"theirs": "kept"});
    api.apply(
        BACKENDS,
        json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec, "status": status}),
    );
}

fn status(api: &FakeApi, name: &str) -> Value {
    api.get(BACKENDS, "ns", name).map(|object| object["status"].clone()).unwrap_or_default()
}

fn writes(api: &FakeApi) -> usize {
    api.requests().iter().filter(|request| request.verb == "patch").count()
}

#[tokio::test]
async fn a_status_is_written_to_the_object_and_what_others_wrote_stays() {
    let api = FakeApi::start().await;
    put(&api, "a");
    let replica = Replica::start(&api, true);
    replica.write("ns/a", &error("endpoints not found for service x/y"));
    api.wait_for(|api| status(api, "a")["currentStatus"] == "error").await;
    assert_eq!(
        status(&api, "a"),
        json!({"theirs": "kept", "currentStatus": "error", "warnings": ["a warning"],
            "reason": "endpoints not found for service x/y"})
    );
    replica.write("ns/a", &committed());
    api.wait_for(|api| status(api, "a")["currentStatus"] == "committed").await;
    assert_eq!(
        status(&api, "a"),
        json!({"theirs": "kept", "currentStatus": "committed", "observedGeneration": 2,
            "reason": "successfully committed by the system"})
    );
    let request = api.requests().into_iter().find(|request| request.verb == "patch").unwrap();
    assert_eq!((request.resource.as_str(), request.namespace.as_str()), ("ingressbackends/status", "ns"));
}

#[tokio::test]
async fn an_object_that_our_types_cannot_read_still_gets_its_status() {
    let api = FakeApi::start().await;
    api.apply(BACKENDS, json!({"metadata": {"namespace": "ns", "name": "a"}, "spec": "nonsense"}));
    let replica = Replica::start(&api, true);
    replica.write("ns/a", &error("spec: must be of type object, got string: \"nonsense\""));
    api.wait_for(|api| status(api, "a")["currentStatus"] == "error").await;
    api.wait_for(|_| replica.statuses.0.lock().unwritten.is_empty()).await;
    assert_eq!(writes(&api), 1);
}

#[tokio::test]
async fn the_mesh_config_has_a_status_too() {
    let api = FakeApi::start().await;
    api.apply(CONFIGS, json!({"metadata": {"namespace": "ns", "name": "osm-mesh-config"}, "spec": {}}));
    let replica = Replica::start(&api, true);
    replica.statuses.write(&key(Kind::MeshConfig, "ns/osm-mesh-config"), &committed(), None);
    api.wait_for(|api| {
        api.get(CONFIGS, "ns", "osm-mesh-config").unwrap()["status"]["currentStatus"] == "committed"
    })
    .await;
}

#[tokio::test]
async fn only_who_leads_writes_and_a_new_leader_writes_everything() {
    let api = FakeApi::start().await;
    put(&api, "a");
    put(&api, "b");
    let (first, second) = (Replica::start(&api, true), Replica::start(&api, false));
    for replica in [&first, &second] {
        replica.write("ns/a", &committed());
        replica.write("ns/b", &committed());
    }
    api.wait_for(|api| status(api, "b")["currentStatus"] == "committed").await;
    api.wait_for(|api| writes(api) == 2).await;
    // The first leader dies and leaves a wrong status behind.
    first.leads.send_replace(false);
    first.task.abort();
    put(&api, "a");
    second.leads.send_replace(true);
    api.wait_for(|api| status(api, "a")["currentStatus"] == "committed").await;
    api.wait_for(|api| writes(api) == 4).await;
}

#[tokio::test]
async fn a_write_that_fails_is_tried_again_with_the_newest_status() {
    let api = FakeApi::start().await;
    put(&api, "a");
    for code in [409, 500, 403] {
        api.refuse_writes(code, 3);
        let before = writes(&api);
        let replica = Replica::start(&api, true);
        replica.write("ns/a", &error("old"));
        api.wait_for(|api| writes(api) > before).await;
        replica.write("ns/a", &error("newest"));
        api.wait_for(|api| status(api, "a")["reason"] == "newest").await;
        assert!(writes(&api) > before + 3);
        put(&api, "a");
    }
}

#[tokio::test]
async fn an_object_that_is_gone_or_refused_does_not_hold_up_others() {
    let api = FakeApi::start().await;
    put(&api, "b");
    let replica = Replica::start(&api, true);
    replica.write("ns/gone", &committed());
    replica.write("ns/b", &committed());
    api.wait_for(|api| status(api, "b")["currentStatus"] == "committed").await;
    api.refuse_writes(422, 1);
    replica.write("ns/b", &error("refused"));
    api.wait_for(|api| writes(api) >= 3).await;
    replica.write("ns/b", &error("taken"));
    api.wait_for(|api| status(api, "b")["reason"] == "taken").await;
    tokio::time::timeout(Duration::from_secs(10), async {
        while !replica.statuses.0.lock().unwritten.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("nothing is left to do");
}

const ROUTES: &str = "gateway.networking.k8s.io/v1/httproutes";

fn of_parent(name: &str, holds: bool) -> ObjectStatus {
    let parent_ref = serde_json::from_value(json!({"group": "", "kind": "Service", "name": name})).unwrap();
    let condition = ParentCondition { kind: "Accepted", holds, reason: "Accepted", message: "x".to_owned() };
    let parents = Some(vec![ParentStatus { parent_ref, conditions: vec![condition] }]);
    ObjectStatus { parents, ..committed() }
}

#[tokio::test]
async fn a_route_s_parents_are_merged_into_those_of_other_controllers_and_written_only_if_they_differ() {
    let api = FakeApi::start().await;
    let theirs =
        json!({"controllerName": "example.com/edge", "parentRef": {"name": "edge"}, "conditions": []});
    let metadata = json!({"namespace": "ns", "name": "r"});
    api.apply(ROUTES, json!({"metadata": metadata, "spec": {}, "status": {"parents": [theirs.clone()]}}));
    let key = key(Kind::HTTPRoute, "ns/r");
    let parents = |api: &FakeApi| api.get(ROUTES, "ns", "r").unwrap()["status"]["parents"].clone();
    let replica = Replica::start(&api, true);
    // Another writer is faster once.
    api.refuse_writes(409, 1);
    replica.statuses.write(&key, &of_parent("cart", true), None);
    api.wait_for(|api| parents(api).as_array().unwrap().len() == 2).await;
    let written = parents(&api);
    assert_eq!(written[0], theirs);
    assert_eq!(written[1]["parentRef"], json!({"group": "", "kind": "Service", "name": "cart"}));
    let condition = &written[1]["conditions"][0];
    assert_eq!((&condition["status"], &condition["observedGeneration"]), (&json!("True"), &json!(2)));
    let before = writes(&api);
    replica.statuses.write(&key, &of_parent("cart", true), None);
    api.wait_for(|_| replica.statuses.0.lock().unwritten.is_empty()).await;
    assert_eq!((parents(&api), writes(&api)), (written, before), "nothing is new");
    replica.statuses.write(&key, &ObjectStatus { parents: Some(vec![]), ..committed() }, None);
    api.wait_for(|api| parents(api) == json!([theirs])).await;
}

#[tokio::test]
async fn a_service_entry_s_status_has_a_condition_beside_those_of_others() {
    const ENTRIES: &str = "networking.istio.io/v1/serviceentries";
    let api = FakeApi::start().await;
    let theirs = json!({"type": "Reconciled", "status": "True"});
    let status = json!({"conditions": [theirs], "addresses": [{"value": "240.240.0.1"}]});
    api.apply(
        ENTRIES,
        json!({"metadata": {"namespace": "ns", "name": "a"}, "spec": {"hosts": ["a"]}, "status": status}),
    );
    let replica = Replica::start(&api, true);
    let refused = ObjectStatus { condition: Some("Conflicted"), ..error("port 443 is another's") };
    replica.statuses.write(&key(Kind::ServiceEntry, "ns/a"), &refused, None);
    let stored = |api: &FakeApi| api.get(ENTRIES, "ns", "a").unwrap()["status"].clone();
    api.wait_for(|api| stored(api)["conditions"].as_array().is_some_and(|all| all.len() == 2)).await;
    let first = stored(&api);
    assert_eq!((&first["conditions"][0], &first["addresses"]), (&theirs, &status["addresses"]));
    let ours = &first["conditions"][1];
    assert_eq!(ours["message"], "port 443 is another's; warning: a warning");
    assert_eq!([&ours["type"], &ours["status"], &ours["reason"]], ["Accepted", "False", "Conflicted"]);
    let accepted = ObjectStatus { condition: Some("Accepted"), ..committed() };
    replica.statuses.write(&key(Kind::ServiceEntry, "ns/a"), &accepted, None);
    api.wait_for(|api| stored(api)["conditions"][1]["status"] == "True").await;
    assert_eq!(stored(&api)["conditions"][0], theirs);
}

#[test]
fn an_object_whose_proxies_were_probed_has_two_conditions() {
    let message = "1 of 1 proxies fail: forward proxy http://10.9.9.9:3128: closed".to_owned();
    let health = Some(HealthCondition { is_healthy: false, reason: "Closed", message: message.clone() });
    let fields =
        fields(Kind::EgressProxy, &ObjectStatus { condition: Some("Accepted"), health, ..committed() });
    let healthy = json!({"type": "Healthy", "status": "False", "reason": "Closed", "message": message,
                         "observedGeneration": 2});
    assert_eq!(fields["conditions"][1], healthy);
    assert_eq!([&fields["conditions"][0]["type"], &fields["conditions"][0]["status"]], ["Accepted", "True"]);
}
