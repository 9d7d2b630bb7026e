mod selected_pods;

use tidegate_proto::discovery::resource::Body;
use tidegate_proto::discovery::weighted_backend::Target;

use super::*;
use crate::object::{Change, ObjectKey};
use crate::source::folder::{FolderSource, is_workload};

const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.10, selector: {app: cart}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 10.96.0.12, selector: {app: v2}, ports: [{name: http, port: 80}]}
";

/// A controller whose objects are manifests.
struct Controller {
    resources: Arc<OnDemand>,
    index: Arc<RwLock<Index>>,
}

impl Controller {
    fn started() -> Self {
        let index = Arc::<RwLock<Index>>::default();
        let (store, left_out) = (Arc::default(), NamespaceGauge::default());
        let resources = OnDemand::new(store, index.clone(), TrustDomain::default(), is_workload, left_out);
        let controller = Self { resources: Arc::new(resources.with_features(Features::EXECUTED)), index };
        controller.apply(SERVICES);
        controller
    }

    fn apply(&self, documents: &str) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), documents).unwrap();
        self.change(FolderSource::new(folder.path()).load().changes);
    }

    fn change(&self, changes: Vec<Change>) {
        let mut affected = Affected::default();
        for change in changes {
            self.index.write().unwrap().apply(change, &mut affected);
        }
        self.resources.update(&self.index.read().unwrap(), &affected);
    }
}

/// An HTTPRoute of this name that sends requests for `cart` to a backend of `shop`.
fn route(name: &str, backend: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{parentRefs: [{{group: '', kind: Service, name: cart, namespace: shop}}], \
         rules: [{{backendRefs: [{{name: {backend}, namespace: shop, port: 80}}]}}]}}\n"
    )
}

/// The names and contents of everything that has changed for a subscriber; routes are their backends.
fn news(subscriber: &Subscriber) -> Vec<String> {
    let mut all = Vec::new();
    while let Some((name, value)) = subscriber.next_change() {
        let content = match value.as_ref().map(|value| value.body()) {
            None => "gone".to_owned(),
            Some(Body::Routes(routes)) => {
                let rules = routes.routes.iter().flat_map(|route| &route.rules);
                let targets = rules.flat_map(|rule| match &rule.action {
                    Some(tidegate_proto::discovery::route_rule::Action::Forward(forward)) => forward
                        .backends
                        .iter()
                        .map(|backend| match &backend.target {
                            Some(Target::Backend(backend)) => backend.object.as_ref().unwrap().name.clone(),
                            Some(Target::Invalid(_)) => "invalid".to_owned(),
                            _ => panic!("an app"),
                        })
                        .collect::<Vec<_>>(),
                    _ => vec!["no backend".to_owned()],
                });
                targets.collect::<Vec<_>>().join(",")
            }
            Some(_) => {
                format!("{:?}", value.unwrap().references.iter().map(ToString::to_string).collect::<Vec<_>>())
            }
        };
        all.push(format!("{name}: {content}"));
    }
    all
}

const DESTINATION: &str = "destination/10.96.0.10:80";
const ROUTES: &str = "routes/Service/shop/cart:80";

fn subscribed(controller: &Controller, namespace: &str) -> Subscriber {
    let mut subscriber = controller.resources.subscriber(namespace);
    for name in [DESTINATION, ROUTES] {
        subscriber.subscribe(Arc::new(ResourceName::parse(name).unwrap()));
    }
    subscriber
}

#[test]
fn a_destination_leads_to_routes_while_there_are_any() {
    let controller = Controller::started();
    let client = subscribed(&controller, "web");
    let backend = format!("{DESTINATION}: [\"backend/Service/shop/cart:80\"]");
    let before = news(&client);
    assert!(before.contains(&format!("{ROUTES}: gone")), "{before:?}");
    controller.apply(&route("shop/r", "v2"));
    assert_eq!(news(&client), [format!("{ROUTES}: v2"), format!("{DESTINATION}: [\"{ROUTES}\"]")]);
    let key = controller.index.read().unwrap().routes().next().map(|route| (route.kind, route.name.clone()));
    let (kind, name) = key.unwrap();
    controller.change(vec![Change::Delete(ObjectKey { kind, name })]);
    let after = news(&client);
    assert_eq!(after[0], format!("{ROUTES}: gone"));
    assert!(after[1] == backend || after[1] == format!("{DESTINATION}: []"), "{after:?}");
}

#[test]
fn by_one_name_each_namespace_gets_its_own_routes() {
    let controller = Controller::started();
    controller.apply(&format!("{}---\n{}", route("shop/p", "cart"), route("web/c", "v2")));
    let (web, shop, other) =
        (subscribed(&controller, "web"), subscribed(&controller, "shop"), subscribed(&controller, "other"));
    let routes = |subscriber: &Subscriber| news(subscriber).into_iter().find(|news| news.starts_with(ROUTES));
    assert_eq!(routes(&web), Some(format!("{ROUTES}: v2")));
    assert_eq!(routes(&shop), Some(format!("{ROUTES}: cart")));
    assert_eq!(routes(&other), Some(format!("{ROUTES}: cart")));
    controller.apply(&route("web/c", "none"));
    assert_eq!(news(&web), [format!("{ROUTES}: invalid")]);
    assert_eq!((news(&shop), news(&other)), (vec![], vec![]), "it is not theirs");
    let kept = |namespace| {
        let name = format!("routes/Service/shop/cart:80@{namespace}");
        controller.resources.store.value(&ResourceName::parse(&name).unwrap()).unwrap()
    };
    assert!(Arc::ptr_eq(&kept("shop"), &kept("other")), "equal routes are kept once");
}

#[test]
fn a_backend_that_appears_changes_the_routes_that_name_it() {
    let controller = Controller::started();
    controller.apply(&route("shop/r", "v3"));
    let client = subscribed(&controller, "web");
    assert!(news(&client).contains(&format!("{ROUTES}: invalid")));
    controller.apply(&SERVICES.replace("name: v2", "name: v3"));
    assert_eq!(news(&client), [format!("{ROUTES}: v3")]);
}

#[test]
fn an_unsubscribed_name_is_forgotten() {
    let controller = Controller::started();
    controller.apply(&route("shop/r", "v2"));
    let mut client = subscribed(&controller, "web");
    let name = ResourceName::parse(ROUTES).unwrap();
    assert!(client.wants(&name) && client.unsubscribe(&name) && !client.wants(&name));
    assert_eq!(controller.resources.len(), 1);
}

#[test]
fn a_split_its_group_and_its_backends_change_the_routes_of_its_root() {
    let controller = Controller::started();
    let client = subscribed(&controller, "web");
    news(&client);
    let split = |more: &str| {
        format!(
            "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: s, namespace: shop}}\n\
             spec: {{service: cart, backends: [{{service: v2, weight: 1}}, {{service: v3, weight: 1}}]{more}}}\n"
        )
    };
    let group = "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {name: g, namespace: shop}\n\
                 spec: {matches: [{name: a, pathRegex: /a}]}\n";
    controller.apply(&split(""));
    let leads = format!("{DESTINATION}: [\"{ROUTES}\"]");
    assert_eq!(news(&client), [format!("{ROUTES}: v2,invalid"), leads.clone()]);
    controller.apply(&SERVICES.replace("name: v2", "name: v3"));
    assert_eq!(news(&client), [format!("{ROUTES}: v2,v3")]);
    controller.apply(&split(", matches: [{kind: HTTPRouteGroup, name: g}]"));
    assert_eq!(news(&client)[0], format!("{ROUTES}: gone"), "the group is not there yet");
    controller.apply(group);
    assert_eq!(news(&client), [format!("{ROUTES}: v2,v3,cart"), leads]);
    controller.apply(&group.replace("/a", "/b"));
    assert_eq!(news(&client), [format!("{ROUTES}: v2,v3,cart")], "its new matches");
    controller.apply(&route("shop/r", "v2"));
    assert_eq!(news(&client), [format!("{ROUTES}: v2")]);
}

#[test]
fn clients_of_a_namespace_get_what_its_own_service_entry_makes_of_an_address() {
    let controller = Controller::started();
    let name = Arc::new(ResourceName::parse("destination/192.0.2.1:443").unwrap());
    let [mut web, mut shop] = ["web", "shop"].map(|namespace| controller.resources.subscriber(namespace));
    for client in [&mut web, &mut shop] {
        client.subscribe(name.clone());
        assert_eq!(news(client), [format!("{name}: []")]);
    }
    let entry = |namespace: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e, namespace: {namespace}}}\n\
             spec: {{hosts: [a.example], addresses: [192.0.2.0/24], ports: [{{number: 443, name: t, protocol: TCP}}]}}\n"
        )
    };
    let led_to = |namespace: &str| format!("{name}: [\"backend/ServiceEntry/{namespace}/e:443\"]");
    controller.apply(&entry("ops"));
    for client in [&web, &shop] {
        assert_eq!(news(client), [led_to("ops")]);
    }
    controller.apply(&entry("shop"));
    assert_eq!(news(&shop), [led_to("shop")]);
    let same = news(&web);
    assert!(same.iter().all(|line| *line == led_to("ops")), "{same:?}");
    let backend = Arc::new(ResourceName::parse("backend/ServiceEntry/shop/e:443").unwrap());
    shop.subscribe(backend.clone());
    assert_eq!(news(&shop), [format!("{backend}: []")]);
    let key = |namespace: &str| ObjectKey { kind: Kind::ServiceEntry, name: ObjectName::new(namespace, "e") };
    controller.change(vec![Change::Delete(key("shop")), Change::Delete(key("ops"))]);
    assert_eq!(news(&shop), [format!("{backend}: gone"), format!("{name}: []")]);
    assert_eq!(news(&web), [format!("{name}: []")]);
    drop((web, shop));
    assert_eq!(controller.resources.len(), 0);
}

/// An entry for a host at port 443, without addresses.
fn host_entry(namespace: &str, name: &str, host: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{hosts: [{host}], ports: [{{number: 443, name: t, protocol: TLS}}]}}\n"
    )
}

#[test]
fn a_host_is_followed_by_itself_and_changes_with_its_entry() {
    let controller = Controller::started();
    let mut web = controller.resources.subscriber("web");
    let [address, host] = ["destination/192.0.2.1:443", "destination/192.0.2.1:443/tls/a.example"];
    for name in [address, host] {
        web.subscribe(Arc::new(ResourceName::parse(name).unwrap()));
    }
    assert_eq!(news(&web), [format!("{address}: []"), format!("{host}: []")]);
    controller.apply(&host_entry("ops", "e", "a.example"));
    let led = format!("{host}: [\"backend/ServiceEntry/ops/e:443\"]");
    assert_eq!(news(&web), [format!("{address}: []"), led]);
    controller.apply(&host_entry("web", "mine", "'*.example'"));
    assert!(!news(&web).contains(&format!("{host}: []")), "the whole name comes first");
    let key = |namespace: &str, name: &str| ObjectKey {
        kind: Kind::ServiceEntry,
        name: ObjectName::new(namespace, name),
    };
    controller.change(vec![Change::Delete(key("ops", "e"))]);
    assert!(news(&web).contains(&format!("{host}: [\"backend/ServiceEntry/web/mine:443\"]")));
    controller.change(vec![Change::Delete(key("web", "mine"))]);
    assert!(news(&web).contains(&format!("{host}: []")));
}

#[test]
fn of_ten_thousand_hosts_a_sidecar_gets_the_three_that_it_uses() {
    let controller = Controller::started();
    let entries =
        (0..10_000).map(|i| host_entry(&format!("ns{}", i % 50), &format!("e{i}"), &format!("h{i}.example")));
    controller.apply(&entries.collect::<String>());
    let mut web = controller.resources.subscriber("web");
    for host in ["", "/tls/h0.example", "/tls/h77.example", "/tls/h9999.example", "/tls/other.example"] {
        let name = format!("destination/192.0.2.1:443{host}");
        web.subscribe(Arc::new(ResourceName::parse(&name).unwrap()));
    }
    let mut bytes = 0;
    let mut backends = BTreeSet::new();
    while let Some((_, value)) = web.next_change() {
        let value = value.unwrap();
        bytes += value.held_bytes();
        backends.extend(value.references.iter().map(ToString::to_string));
    }
    let expected =
        ["ns0/e0", "ns27/e77", "ns49/e9999"].map(|name| format!("backend/ServiceEntry/{name}:443"));
    assert_eq!(backends.into_iter().collect::<Vec<_>>(), expected);
    assert!(bytes < 20_000, "{bytes} bytes");
}
