use std::net::SocketAddr;

use tidegate_core::TrustDomain;

use super::*;
use crate::compile::workload;
use crate::proxy_health::{ProxyDefect, ProxyHealth};
use crate::testing::index;

mod naive;

const MESH: &str = r"
apiVersion: config.openservicemesh.io/v1alpha2
kind: MeshConfig
metadata: {name: osm-mesh-config, namespace: tidegate-system}
spec: {}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {serviceAccountName: cart}
";

const SECRET: &str = r"
apiVersion: v1
kind: Secret
metadata: {name: squid, namespace: shop}
stringData: {username: mesh, password: s3cret}
";

fn proxy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: tidegate.io/v1alpha1\nkind: EgressProxy\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n"
    )
}

/// The index of these objects, and the rules of Pod `shop/cart`.
fn rules(documents: &[&str]) -> (Index, Vec<Arc<EgressProxyRule>>) {
    let index = index(&[&[MESH], documents].concat());
    let pod = index.pod(&ObjectName::new("shop", "cart")).unwrap().clone();
    let policy = workload(&index, &pod, &TrustDomain::default()).unwrap();
    (index, policy.egress_proxies)
}

fn origins(rules: &[Arc<EgressProxyRule>]) -> Vec<String> {
    rules.iter().map(|rule| rule.settings.origin.to_string()).collect()
}

/// The reason and the text of an object's status, and its warnings.
fn status(index: &Index, namespace: &str, name: &str) -> (&'static str, String, Vec<String>) {
    let name = ObjectName::new(namespace, name);
    let (_, object) = index.egress_proxies().find(|(known, _)| **known == name).unwrap();
    let status = judge(index, &name, object);
    (status.condition.unwrap(), status.reason, status.warnings)
}

const SQUID: &str = "proxies: [{address: 10.9.9.9, port: 3128}]";

#[test]
fn an_object_means_what_its_fields_say() {
    let spec = "hosts: ['*.example'], ports: [8080], proxies: [{address: 10.9.9.9, port: 3128}, {address: 'fd00::9', port: 1}], \
                httpProxies: [{address: 10.9.9.8, port: 8080}], noProxy: [10.0.0.0/8], credentials: {secretName: squid}, \
                forwardedHeaders: Delete, timeouts: {connect: 1s, response: 2s}";
    let (index, rules) = rules(&[&proxy("shop", "squid", spec), SECRET]);
    let [rule] = rules.as_slice() else { panic!("{rules:?}") };
    let addresses = |list: &[SocketAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(addresses(&rule.proxies), ["10.9.9.9:3128", "[fd00::9]:1"]);
    assert_eq!(addresses(&rule.http_proxies), ["10.9.9.8:8080"]);
    assert_eq!((rule.hosts.len(), &*rule.ports), (1, &[8080][..]));
    let settings = &rule.settings;
    assert_eq!(settings.credentials.as_ref().unwrap().authorization(), "Basic bWVzaDpzM2NyZXQ=");
    assert_eq!((settings.connect_timeout.as_secs(), settings.response_timeout.as_secs()), (1, 2));
    let (reason, _, warnings) = status(&index, "shop", "squid");
    assert_eq!((reason, warnings.len()), ("Accepted", 1), "{warnings:?}");
}

#[test]
fn objects_of_the_pods_namespace_come_first_and_those_of_the_meshconfigs_are_for_all() {
    let all = [
        proxy("tidegate-system", "corporate", SQUID),
        proxy("tidegate-system", "others", &format!("{SQUID}, namespaces: [other]")),
        proxy("shop", "b", SQUID),
        proxy("shop", "a", SQUID),
        proxy("shop", "payment", &format!("{SQUID}, selector: {{matchLabels: {{app: payment}}}}")),
        proxy("other", "foreign", SQUID),
    ];
    let (_, rules) = rules(&all.each_ref().map(String::as_str));
    let expected = ["EgressProxy shop/a", "EgressProxy shop/b", "EgressProxy tidegate-system/corporate"];
    assert_eq!(origins(&rules), expected);
}

#[test]
fn an_object_with_errors_lets_nothing_past_the_proxy() {
    let tls = "tls: {serverName: a, caBundle: '-----BEGIN CERTIFICATE----- x'}";
    for (spec, reason) in [
        ("proxies: [{address: squid.corp, port: 3128}]", "spec.proxies[0].address: expected an IP address"),
        (&format!("{SQUID}, noProxy: ['a b']"), "spec.noProxy[0]: "),
        (&format!("{SQUID}, {tls}"), "spec.tls.caBundle: cannot be read"),
    ] {
        let (index, rules) = rules(&[&proxy("shop", "squid", spec)]);
        assert_eq!(rules[0].proxies, [], "{spec}");
        assert_eq!(rules[0].ports, [80, 443]);
        let (condition, text, _) = status(&index, "shop", "squid");
        assert!(condition == "Invalid" && text.starts_with(reason), "{text}");
    }
}

#[test]
fn without_its_secret_a_proxy_gets_no_credentials_and_the_status_says_so() {
    let spec = format!("{SQUID}, credentials: {{secretName: squid}}");
    let object = proxy("shop", "squid", &spec);
    let (index, compiled) = rules(&[&object]);
    assert_eq!((compiled[0].proxies.len(), compiled[0].settings.credentials.as_ref()), (1, None));
    let (condition, text, _) = status(&index, "shop", "squid");
    let expected = "spec.credentials.secretName: Secret shop/squid: does not exist, or the controller may not read it; the \
                    proxies get no credentials";
    assert_eq!((condition, &*text), ("CredentialsNotFound", expected));
    let (index, _) = rules(&[&object, &SECRET.replace("username", "user")]);
    let (_, text, _) = status(&index, "shop", "squid");
    assert!(text.contains("it has no key username"), "{text}");
}

#[test]
fn a_folder_without_the_secret_is_incomplete_and_not_wrong() {
    let spec = format!("{SQUID}, credentials: {{secretName: squid}}");
    let object = proxy("shop", "squid", &spec);
    let is_incomplete = |objects: &[&str]| {
        let (index, _) = rules(objects);
        let mut statuses = crate::status::all(&index).into_iter();
        statuses.find(|status| status.name == "squid").unwrap().is_incomplete
    };
    assert!(is_incomplete(&[&object]));
    assert!(!is_incomplete(&[&object, &SECRET.replace("username", "user")]));
    assert!(!is_incomplete(&[&proxy("shop", "squid", "proxies: [{address: squid, port: 1}]")]));
}

#[test]
fn only_the_oldest_objects_of_a_namespace_are_in_force() {
    let all: Vec<_> = (0..10).map(|i| proxy("shop", &format!("p{i}"), SQUID)).collect();
    let (index, rules) = rules(&all.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(rules.len(), MOST);
    assert_eq!(status(&index, "shop", "p7").0, "Accepted");
    assert_eq!(status(&index, "shop", "p8").0, "TooMany");
}

#[test]
fn namespaces_of_an_object_elsewhere_are_a_warning() {
    let (index, _) = rules(&[&proxy("shop", "squid", &format!("{SQUID}, namespaces: [other]"))]);
    let (_, _, warnings) = status(&index, "shop", "squid");
    assert_eq!(warnings, ["spec.namespaces: has an effect only in the MeshConfig's namespace"]);
}

#[test]
fn proxies_of_objects_in_force_are_probed_but_none_at_the_controllers_own_addresses() {
    let spec = "proxies: [{address: 10.9.9.9, port: 3128}], credentials: {secretName: squid}, \
                httpProxies: [{address: 10.9.9.9, port: 3128}, {address: 127.0.0.1, port: 8080}]";
    let objects =
        [&proxy("shop", "a", spec), SECRET, &proxy("shop", "b", "proxies: [{address: x, port: 1}]")];
    let (folder, _) = rules(&objects);
    let texts = |index: &Index| {
        let all = probes(index).into_iter();
        all.map(|probe| format!("{} {} {}", probe.object, probe.proxy, probe.opens_tunnels))
            .collect::<Vec<_>>()
    };
    let all = ["shop/a http://10.9.9.9:3128 true", "shop/a http://127.0.0.1:8080 false"];
    assert_eq!(texts(&folder), all);
    assert!(probes(&folder)[0].proxy.credentials().is_some());
    for ip in ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "::ffff:127.0.0.1"] {
        assert!(is_local(ip.parse().unwrap()), "{ip}");
    }
    assert!(!is_local("10.9.9.9".parse().unwrap()));
}

#[test]
fn each_namespace_has_its_share_of_the_probes_and_no_object_is_probed_in_part() {
    let addresses = |third: usize| -> String {
        (0..8).map(|i| format!("{{address: 10.9.{third}.{i}, port: 3128}}, ")).collect()
    };
    let spec = format!("proxies: [{}], httpProxies: [{}]", addresses(1), addresses(2));
    let names: Vec<_> =
        (0..4).flat_map(|i| (0..8).map(move |j| (format!("n{i}"), format!("p{j}")))).collect();
    let all: Vec<_> = names.iter().map(|(namespace, name)| proxy(namespace, name, &spec)).collect();
    let last = proxy("z", "squid", SQUID);
    let texts: Vec<_> = all.iter().map(String::as_str).chain([&*last]).collect();
    let (index, _) = rules(&texts);
    let mut counts = BTreeMap::<_, usize>::new();
    for probe in probes(&index) {
        *counts.entry(probe.object).or_default() += 1;
    }
    assert!(counts.contains_key(&ObjectName::new("z", "squid")), "{counts:?}");
    assert!(counts.values().sum::<usize>() <= MOST_PROBED);
    for namespace in ["n0", "n1", "n2", "n3"] {
        let of_it = counts.iter().filter(|(object, _)| *object.namespace == *namespace);
        let of_it: Vec<_> = of_it.map(|(_, count)| *count).collect();
        assert!(of_it.len() >= 3 && of_it.iter().all(|count| *count == 16), "{counts:?}");
    }
}

#[test]
fn a_status_says_whether_the_proxies_work() {
    let (mut index, _) = rules(&[&proxy("shop", "squid", SQUID)]);
    let name = ObjectName::new("shop", "squid");
    let health_of = |index: &Index| {
        let object = index.egress_proxies().next().unwrap().1.clone();
        let status = judge(index, &name, &object);
        (status.health.map(|health| (health.is_healthy, health.reason, health.message)), status.warnings)
    };
    assert_eq!(health_of(&index), (None, Vec::new()), "not known yet");
    let mut affected = crate::index::Affected::default();
    let mut probed = |count, defects: &[&'static str]| {
        let defects =
            defects.iter().map(|reason| ProxyDefect { reason, message: format!("a {reason}") }).collect();
        let health = ProxyHealth::from([(name.clone(), ProbedProxies { count, defects })]);
        index.set_proxy_health(Arc::new(health), &mut affected);
        health_of(&index)
    };
    let good = (true, "Healthy", "each proxy answers the controller".to_owned());
    assert_eq!(probed(2, &[]), (Some(good), Vec::new()));
    let message = "1 of 2 proxies fail: a Closed".to_owned();
    assert_eq!(probed(2, &["Closed"]), (Some((false, "Degraded", message.clone())), vec![message]));
    let message = "2 of 2 proxies fail: a NoAnswer; a Closed".to_owned();
    assert_eq!(
        probed(2, &["NoAnswer", "Closed"]),
        (Some((false, "NoAnswer", message.clone())), vec![message])
    );
    assert!(affected.policies.contains("shop"));
}
