//! A ServiceEntry whose endpoints are Pods.

use super::*;

const ENTRY: &str = r"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: shop}
spec:
  hosts: [cart.example]
  addresses: [240.0.0.1]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: cart}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
";

fn pod(namespace: &str, name: &str, ip: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: cart}}{more}}}\n\
         spec: {{serviceAccountName: cart, containers: []}}\nstatus: {{podIP: {ip}}}\n"
    )
}

/// The endpoints of the newest backend that the subscriber got, each with the account that it must have; `None`: nothing has changed.
fn endpoints(subscriber: &Subscriber) -> Option<String> {
    let mut newest = None;
    while let Some((_, value)) = subscriber.next_change() {
        let Body::Backend(backend) = value.unwrap().body() else { panic!() };
        let backend = Backend::try_from(backend.clone()).unwrap();
        let shown = backend.endpoints.iter().map(|endpoint| match &endpoint.transport {
            tidegate_core::backend::Transport::Mesh(identity) => {
                format!("{}={}", endpoint.address, identity.service_account())
            }
            _ => endpoint.address.to_string(),
        });
        newest = Some(shown.collect::<Vec<_>>().join(" "));
    }
    newest
}

#[test]
fn selected_pods_are_endpoints_from_when_they_are_ready_until_they_end() {
    let controller = Controller::started();
    let mut client = controller.resources.subscriber("web");
    controller.apply(ENTRY);
    client.subscribe(Arc::new(ResourceName::parse("backend/ServiceEntry/shop/e:80").unwrap()));
    assert_eq!(endpoints(&client).unwrap(), "");
    let ready = |ready| format!("127.0.0.21, conditions: [{{type: Ready, status: '{ready}'}}]");
    controller.apply(&pod("shop", "a", &ready("False"), ""));
    assert!(endpoints(&client).is_none_or(|endpoints| endpoints.is_empty()));
    controller.apply(&pod("shop", "a", &ready("True"), ""));
    assert_eq!(endpoints(&client).unwrap(), "127.0.0.21:8080=cart");
    // One of another machine has no sidecar, as far as is known.
    controller.apply(&pod("shop", "b", "192.0.2.22", ""));
    assert_eq!(endpoints(&client).unwrap(), "127.0.0.21:8080=cart 192.0.2.22:8080");
    controller.apply(&pod("web", "c", "127.0.0.23", ""));
    assert_eq!(endpoints(&client), None, "of another namespace");
    controller.apply(&pod("shop", "a", &ready("True"), ", deletionTimestamp: '2026-01-01T00:00:00Z'"));
    assert_eq!(endpoints(&client).unwrap(), "192.0.2.22:8080");
    controller.apply(&pod("shop", "b", "192.0.2.22", "").replace("app: cart", "app: other"));
    assert_eq!(endpoints(&client).unwrap(), "");
}
