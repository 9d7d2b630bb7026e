//! Random EgressProxies, and connections of Pods.

use std::fmt;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use super::*;
use crate::index::Affected;
use crate::testing::{cluster_index, stored};

/// The MeshConfig's namespace.
pub(super) const ROOT: &str = "tidegate-system";
/// In no mesh.
pub(super) const LONE: &str = "lone";
const HOSTS: [&str; 4] = ["a.example", "*.example", "*", "a b"];
const ADDRESSES: [&str; 4] = ["10.9.9.9", "fd00::9", "127.0.0.1", "squid"];
const EXCEPTIONS: [&str; 4] = ["10.0.0.0/8", "intern.example", "a.example:443", "a b"];
pub(super) const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

#[derive(Clone)]
pub(super) struct RandomProxy {
    pub(super) namespace: &'static str,
    /// Seconds of its creation.
    pub(super) created: u8,
    pub(super) is_readable: bool,
    pub(super) selected: Option<&'static str>,
    pub(super) namespaces: Vec<&'static str>,
    pub(super) hosts: Vec<&'static str>,
    pub(super) ports: Vec<u16>,
    pub(super) proxies: Vec<&'static str>,
    pub(super) http_proxies: Vec<&'static str>,
    pub(super) no_proxy: Vec<&'static str>,
    pub(super) secret: Option<&'static str>,
    pub(super) ca_bundle: Option<&'static str>,
}

/// All objects.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) proxies: Vec<RandomProxy>,
    /// Whether the MeshConfig can be read; `None`: there is none.
    pub(super) mesh_config: Option<bool>,
}

/// A connection of a Pod of this namespace and app.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) namespace: &'static str,
    pub(super) app: &'static str,
    pub(super) host: Option<&'static str>,
    pub(super) dialled: SocketAddr,
}

impl fmt::Debug for RandomProxy {
    /// In one line: what is absent is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut spec = self.object(0)["spec"].take();
        spec.as_object_mut().unwrap().retain(|_, value| !value.is_null() && *value != json!([]));
        write!(f, "{} s, {}: {spec}", self.created, self.namespace)
    }
}

impl RandomProxy {
    fn object(&self, at: usize) -> Value {
        let proxies = |list: &[&str]| -> Vec<_> {
            list.iter().map(|address| json!({"address": address, "port": 8080})).collect()
        };
        json!({
            "metadata": {
                "name": name(at),
                "namespace": self.namespace,
                "creationTimestamp": format!("2020-01-01T00:00:{:02}Z", self.created),
            },
            "spec": {
                "selector": self.selected.map(|app| json!({"matchLabels": {"app": app}})),
                "namespaces": self.namespaces,
                "hosts": self.hosts,
                "ports": self.ports,
                "proxies": if self.is_readable { json!(proxies(&self.proxies)) } else { "squid".into() },
                "httpProxies": proxies(&self.http_proxies),
                "noProxy": self.no_proxy,
                "credentials": self.secret.map(|name| json!({"secretName": name})),
                "tls": self.ca_bundle.map(|pem| json!({"serverName": "squid.example", "caBundle": pem})),
            },
        })
    }
}

impl World {
    pub(super) fn index(&self) -> Index {
        let member = |name: &str| {
            format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{openservicemesh.io/monitored-by: osm}}}}\n"
            )
        };
        let pod = |namespace: &str, app: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {app}, namespace: {namespace}, labels: {{app: {app}}}}}\n"
            )
        };
        let documents = [
            member("shop"),
            member("other"),
            SECRET.to_owned(),
            SECRET.replace("shop", ROOT),
            SECRET.replace("squid", "broken").replace("username", "user"),
        ];
        let pods = ["shop", "other", ROOT]
            .into_iter()
            .flat_map(|namespace| ["cart", "pay"].map(|app| pod(namespace, app)));
        let documents: Vec<_> = documents.into_iter().chain(pods).collect();
        let mut index = cluster_index(&documents.iter().map(String::as_str).collect::<Vec<_>>());
        let mut put = |change| index.apply(change, &mut Affected::default());
        if let Some(is_readable) = self.mesh_config {
            let spec = if is_readable { json!({}) } else { json!({"traffic": "all"}) };
            let metadata = json!({"name": "osm-mesh-config", "namespace": ROOT});
            put(stored::<tidegate_crds::MeshConfig>(&json!({"metadata": metadata, "spec": spec})));
        }
        for (at, one) in self.proxies.iter().enumerate() {
            put(stored::<EgressProxy>(&one.object(at)));
        }
        index
    }
}

pub(super) fn name(at: usize) -> String {
    format!("p{at:02}")
}

pub(super) fn socket(address: &str) -> Option<SocketAddr> {
    Some(SocketAddr::new(address.parse().ok()?, 8080))
}

fn proxy() -> impl Strategy<Value = RandomProxy> {
    let whose = (
        select(vec!["shop", "shop", "shop", "other", ROOT, ROOT, LONE]),
        0..3_u8,
        prop::bool::weighted(0.85),
        prop::option::weighted(0.3, select(vec!["cart", "pay"])),
        subsequence(vec!["shop", "other"], 0..2),
    );
    let rarely_wrong = |all: [&'static str; 4], least| {
        let right = subsequence(all[..3].to_vec(), least..3);
        prop_oneof![9 => right, 1 => subsequence(all.to_vec(), 0..4)]
    };
    let targets = (
        rarely_wrong(HOSTS, 0),
        subsequence(vec![80, 443, 8080], 0..3),
        rarely_wrong(ADDRESSES, 1),
        rarely_wrong(ADDRESSES, 0),
        rarely_wrong(EXCEPTIONS, 0),
    );
    let secrets = (
        prop::option::weighted(0.3, select(vec!["squid", "squid", "broken", "missing"])),
        prop::option::weighted(0.3, select(vec![CERTIFICATE, CERTIFICATE, "-----BEGIN CERTIFICATE----- x"])),
    );
    (whose, targets, secrets).prop_map(|(whose, targets, (secret, ca_bundle))| {
        let (namespace, created, is_readable, selected, namespaces) = whose;
        let (hosts, ports, proxies, http_proxies, no_proxy) = targets;
        RandomProxy {
            namespace,
            created,
            is_readable,
            selected,
            namespaces,
            hosts,
            ports,
            proxies,
            http_proxies,
            no_proxy,
            secret,
            ca_bundle,
        }
    })
}

pub(super) fn connection() -> impl Strategy<Value = Connection> {
    let hosts = vec!["a.example", "b.example", "x.intern.example", "a.test", "cart.shop.svc"];
    let address = select(vec!["192.0.2.1", "10.1.2.3", "10.9.9.9", "127.0.0.1"]);
    let ports = select(vec![80_u16, 443, 8080, 5432]);
    let pod = (select(vec!["shop", "shop", "other", ROOT]), select(vec!["cart", "pay"]));
    (pod, prop::option::weighted(0.8, select(hosts)), address, ports).prop_map(
        |((namespace, app), host, address, port)| Connection {
            namespace,
            app,
            host,
            dialled: SocketAddr::new(address.parse().unwrap(), port),
        },
    )
}

pub(super) fn world() -> impl Strategy<Value = World> {
    let mesh_config = prop::option::weighted(0.8, prop::bool::weighted(0.8));
    let few_or_many =
        prop_oneof![4 => prop::collection::vec(proxy(), 0..5), 1 => prop::collection::vec(proxy(), 12..30)];
    (few_or_many, mesh_config).prop_map(|(proxies, mesh_config)| World { proxies, mesh_config })
}
