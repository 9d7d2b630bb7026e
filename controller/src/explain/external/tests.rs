//! What explanations of destinations outside the mesh say.

use super::*;
use crate::testing::index;

const OBJECTS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec:
  hosts: [api.example.com, '*.apis.example.com']
  addresses: [192.0.2.1]
  ports: [{number: 443, name: tls, protocol: TLS}]
  exportTo: ['.']
";

fn mesh_config(egress: bool) -> String {
    format!(
        "apiVersion: config.openservicemesh.io/v1alpha2\nkind: MeshConfig\nmetadata: {{name: osm-mesh-config, \
         namespace: tidegate-system}}\nspec: {{traffic: {{enableEgress: {egress}}}}}\n"
    )
}

#[test]
fn a_connection_that_an_egress_proxy_takes_names_the_object_and_its_proxy() {
    let proxy = |spec: &str| {
        format!(
            "apiVersion: tidegate.io/v1alpha1\nkind: EgressProxy\nmetadata: {{name: squid, namespace: shop}}\nspec: {{{spec}}}\n"
        )
    };
    let asked = |spec: &str, port: u16| {
        let query = ExternalQuery {
            caller: ObjectName::new("shop", "cart"),
            host: Some("www.example.com".to_owned()),
            address: None,
            port,
        };
        let objects = index(&[OBJECTS, &mesh_config(true), &proxy(spec)]);
        explain_external(&objects, &TrustDomain::default(), |_| true, &query).unwrap()
    };
    let spec = "proxies: [{address: 10.9.9.9, port: 3128}], selector: {matchLabels: {app: cart}}";
    let found = asked(spec, 443);
    assert_eq!((found.decision, found.rule.as_deref()), ("allow", Some("EgressProxy shop/squid")));
    assert!(
        found.reason.contains("of Pods with app=cart go through the forward proxy 10.9.9.9:3128"),
        "{}",
        found.reason
    );
    assert_eq!(asked(spec, 8443).rule.as_deref(), Some("MeshConfig tidegate-system/osm-mesh-config"));
    let found = asked("proxies: [{address: squid, port: 3128}]", 443);
    assert_eq!((found.decision, found.code), ("deny", Some("no_healthy_upstream")));
}

#[test]
fn a_service_entry_or_a_policy_allows_and_an_egress_proxy_carries() {
    let proxy = "apiVersion: tidegate.io/v1alpha1\nkind: EgressProxy\nmetadata: {name: squid, namespace: shop}\n\
                 spec: {proxies: [{address: 10.9.9.9, port: 3128}], hosts: ['*.example.com']}";
    let through = "go through the forward proxy 10.9.9.9:3128 of EgressProxy shop/squid";
    let asked = |objects: &str, host: &str, address: &str| {
        let query = ExternalQuery {
            caller: ObjectName::new("shop", "cart"),
            host: Some(host.to_owned()),
            address: address.parse().ok(),
            port: 443,
        };
        let objects = index(&[objects, EGRESSES, &mesh_config(false), proxy]);
        explain_external(&objects, &TrustDomain::default(), |_| true, &query).unwrap()
    };
    let of_entry = asked(OBJECTS, "api.example.com", "");
    assert_eq!((of_entry.decision, of_entry.rule.as_deref()), ("allow", Some("ServiceEntry shop/api")));
    assert!(of_entry.reason.contains(through), "{}", of_entry.reason);
    let other = asked(OBJECTS, "www.example.com", "192.0.2.1");
    assert!(!other.reason.contains(through), "the entry has no such host: {}", other.reason);
    for direct in
        ["  location: MESH_INTERNAL\n", "  resolution: STATIC\n  endpoints: [{address: 192.0.2.9}]\n"]
    {
        let reason = asked(&format!("{OBJECTS}{direct}"), "api.example.com", "").reason;
        assert!(!reason.contains(through), "{reason}");
    }
    let by_host = asked("", "host.example.com", "");
    assert!(by_host.reason.starts_with("Egress shop/hosts allows") && by_host.reason.contains(through));
    let by_address = asked("", "other.example.com", "198.51.100.7");
    assert!(by_address.reason.starts_with("Egress shop/range allows any bytes"));
    assert!(!by_address.reason.contains(through), "no name goes to the proxy: {}", by_address.reason);
}

const EGRESSES: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop}
spec: {serviceAccountName: cart}
---
apiVersion: policy.openservicemesh.io/v1alpha1
kind: Egress
metadata: {name: hosts, namespace: shop}
spec:
  sources: [{kind: ServiceAccount, name: cart, namespace: shop}]
  hosts: [host.example.com]
  ports: [{number: 443, protocol: https}]
---
apiVersion: policy.openservicemesh.io/v1alpha1
kind: Egress
metadata: {name: range, namespace: shop}
spec:
  sources: [{kind: ServiceAccount, name: cart, namespace: shop}]
  ipAddresses: [198.51.100.0/24]
  ports: [{number: 443, protocol: tcp}]
";

fn explained(egress: bool, caller: &str, host: &str, address: &str, port: u16) -> ExternalExplanation {
    let query = ExternalQuery {
        caller: ObjectName::new(caller, "client"),
        host: (!host.is_empty()).then(|| host.to_owned()),
        address: address.parse().ok(),
        port,
    };
    let objects = index(&[OBJECTS, &mesh_config(egress)]);
    explain_external(&objects, &TrustDomain::default(), |_| true, &query).unwrap()
}

#[test]
fn the_entry_or_the_setting_that_decides_is_named() {
    for (caller, host, address, port, decision, reason) in [
        ("shop", "api.example.com", "", 443, "allow", "ServiceEntry shop/api has 192.0.2.1:443"),
        ("shop", "a.apis.example.com", "", 443, "allow", "ServiceEntry shop/api has 192.0.2.1:443"),
        ("shop", "", "192.0.2.1", 443, "allow", "ServiceEntry shop/api has 192.0.2.1:443"),
        (
            "shop",
            "b.example.com",
            "192.0.2.1",
            443,
            "allow",
            "ServiceEntry shop/api has 192.0.2.1:443, which decides; b.example.com is not one of its hosts",
        ),
        (
            "shop",
            "b.example.com",
            "",
            443,
            "deny",
            "spec.traffic.enableEgress of MeshConfig tidegate-system/osm-mesh-config is false, and no object has the \
             address",
        ),
        ("shop", "", "10.96.0.10", 80, "allow", "Service shop/cart has 10.96.0.10:80"),
    ] {
        let found = explained(false, caller, host, address, port);
        assert!(found.reason.starts_with(reason), "{found:?}");
        assert_eq!(found.decision, decision, "{found:?}");
    }
    let open = explained(true, "web", "b.example.com", "", 443);
    assert_eq!((open.decision, open.server.as_str()), ("allow", "b.example.com:443"));
    let setting = "no object has the address, and spec.traffic.enableEgress of MeshConfig tidegate-system/osm-mesh-config";
    assert!(open.reason.starts_with(setting), "{open:?}");
    assert_eq!(open.rule.as_deref(), Some("MeshConfig tidegate-system/osm-mesh-config"));
}

#[test]
fn an_egress_for_the_service_account_allows_what_it_lists() {
    let policy = "apiVersion: v1\nkind: Pod\nmetadata: {name: client, namespace: web}\nspec: {serviceAccountName: curl}\n---\n\
                  apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Egress\nmetadata: {name: out, namespace: web}\nspec: \
                  {sources: [{kind: ServiceAccount, name: curl, namespace: web}], hosts: [b.example.com], ports: [{number: 443, \
                  protocol: https}, {number: 80, protocol: http}]}\n";
    let objects = index(&[OBJECTS, &mesh_config(false), policy]);
    let explained = |host: &str, port| {
        let host = Some(host.to_owned());
        let query = ExternalQuery { caller: ObjectName::new("web", "client"), host, address: None, port };
        explain_external(&objects, &TrustDomain::default(), |_| true, &query).unwrap()
    };
    let tls = explained("b.example.com", 443);
    assert_eq!((tls.decision, tls.rule.as_deref()), ("allow", Some("Egress web/out")));
    assert_eq!(tls.reason, "Egress web/out allows TLS with this server name");
    assert_eq!(
        explained("b.example.com", 80).reason,
        "Egress web/out allows requests such as GET / for this host"
    );
    let refused = explained("c.example.com", 443);
    assert_eq!(refused.decision, "deny");
    assert!(refused.reason.ends_with("no Egress for service account web/curl allows it"), "{refused:?}");
}

#[test]
fn entries_that_list_the_host_and_do_not_decide_say_why() {
    let found = explained(false, "web", "api.example.com", "", 443);
    assert_eq!((found.decision, found.code), ("deny", Some("destination_unregistered")));
    assert_eq!(found.others, ["ServiceEntry shop/api lists the host, but is not exported to namespace web"]);
    let found = explained(false, "shop", "api.example.com", "", 80);
    assert_eq!(found.others, ["ServiceEntry shop/api lists the host, but has only the ports {443}"]);
}

#[test]
fn a_pod_by_its_own_address_is_a_destination_only_with_a_sidecar() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: squid, namespace: external}\nspec: {serviceAccountName: default, \
               containers: [{name: squid, ports: [{containerPort: 3128}]}]}\nstatus: {podIP: 10.1.0.7}\n";
    let objects = index(&[&mesh_config(false), pod]);
    let query = ExternalQuery {
        caller: ObjectName::new("web", "client"),
        host: None,
        address: "10.1.0.7".parse().ok(),
        port: 3128,
    };
    let explained = |is_workload: fn(&Pod) -> bool| {
        let found = explain_external(&objects, &TrustDomain::default(), is_workload, &query).unwrap();
        (found.decision, found.rule.unwrap_or_default())
    };
    assert_eq!(explained(|_| true), ("allow", "Pod external/squid".to_owned()));
    assert_eq!(explained(|_| false), ("deny", "MeshConfig tidegate-system/osm-mesh-config".to_owned()));
}

#[test]
fn the_name_of_a_service_is_refused_as_an_external_host() {
    let query = ExternalQuery {
        caller: ObjectName::new("web", "client"),
        host: Some("cart.shop.svc.cluster.local".to_owned()),
        address: None,
        port: 80,
    };
    let objects = index(&[OBJECTS]);
    let error = explain_external(&objects, &TrustDomain::default(), |_| true, &query).unwrap_err();
    assert_eq!(error.to_string(), "cart.shop.svc.cluster.local is service shop/cart: ask about shop/cart");
}

#[test]
fn an_entry_whose_selector_selects_no_pod_leads_nowhere() {
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: cart, namespace: shop}\nspec: \
                 {hosts: [cart.example], addresses: [240.0.0.1], location: MESH_INTERNAL, resolution: STATIC, \
                 workloadSelector: {labels: {app: cart}}, ports: [{number: 80, name: http, protocol: HTTP}]}\n";
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: cart, namespace: shop, labels: {app: cart}}\nstatus: {podIP: 10.1.0.1}\n";
    let query = ExternalQuery {
        caller: ObjectName::new("shop", "web"),
        host: None,
        address: Some([240, 0, 0, 1].into()),
        port: 80,
    };
    let explained = |documents: &[&str]| {
        explain_external(&index(documents), &TrustDomain::default(), |_| true, &query).unwrap()
    };
    let none = explained(&[entry][..]);
    assert_eq!((none.decision, none.code), ("deny", Some("no_healthy_upstream")));
    let has = "ServiceEntry shop/cart has 240.0.0.1:80";
    assert_eq!(none.reason, format!("{has}, and its workloadSelector selects no Pod that is ready"));
    assert_eq!(explained(&[entry, pod][..]).reason, has);
}
