//! The proxy of an EgressProxy, with its credentials and its roots, as sidecars use it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, anyhow, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::forward_proxy::{NoProxy, ProxyCredentials};
use tidegate_crds::{EgressProxy, EgressProxySpec};
use tidegate_runtime::forward_proxy::{HttpProxy, roots_of_pem};

use super::probe::CheckedServer;
use crate::cluster::client::Cluster;

/// `<namespace>/<name>` of an EgressProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EgressProxyName {
    namespace: String,
    name: String,
}

/// A proxy, and the roots for TLS with it.
#[derive(Debug)]
pub(super) struct CheckedProxy {
    pub(super) proxy: HttpProxy,
    pub(super) roots: RootCertStore,
}

impl CheckedProxy {
    /// The first proxy of the object, which must be for this server.
    pub(super) async fn of_object(
        cluster: &Cluster,
        name: &EgressProxyName,
        server: &CheckedServer,
    ) -> anyhow::Result<Self> {
        let api: Api<EgressProxy> = Api::namespaced(cluster.client.clone(), &name.namespace);
        let what = format!("EgressProxy {name}");
        let object = cluster.get(&api, &name.name, &what).await?;
        let spec = object.with_context(|| format!("{what} does not exist"))?.spec;
        ensure!(applies(&spec, server), "{what} is not for {server}: by its ports, hosts or noProxy");
        let address = spec.proxies.first().and_then(|proxy| proxy.socket());
        let address = address.with_context(|| format!("{what}: spec.proxies[0] is not a valid address"))?;
        let credentials = match &spec.credentials {
            Some(named) => Some(credentials(cluster, &name.namespace, &named.secret_name).await?),
            None => None,
        };
        let (mut certificate_name, mut roots) = (None, RootCertStore::empty());
        if let Some(tls) = &spec.tls {
            let invalid = || format!("{what}: spec.tls");
            certificate_name = Some(ServerName::try_from(tls.server_name.clone()).with_context(invalid)?);
            roots =
                roots_of_pem(tls.ca_bundle.as_bytes()).map_err(|error| anyhow!("{}: {error}", invalid()))?;
        }
        Ok(Self { proxy: HttpProxy::at(address, certificate_name, credentials), roots })
    }
}

/// Whether connections to a server go through the proxies of an object.
fn applies(spec: &EgressProxySpec, server: &CheckedServer) -> bool {
    let (host, port) = (server.host(), server.port);
    let matches = |listed: &String| {
        listed == "*" || DnsPattern::parse(listed).is_ok_and(|pattern| pattern.matches(&host))
    };
    let is_excepted = NoProxy::parse(spec.no_proxy.iter().map(String::as_str))
        .is_ok_and(|exceptions| exceptions.has_host(&host, port));
    let is_listed = spec.hosts.is_empty() || spec.hosts.iter().any(matches);
    spec.target_ports().contains(&port) && is_listed && !is_excepted
}

/// The Basic credentials in a Secret.
async fn credentials(cluster: &Cluster, namespace: &str, name: &str) -> anyhow::Result<ProxyCredentials> {
    let api: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let what = format!("Secret {namespace}/{name}");
    let secret = cluster.get(&api, name, &what).await?.with_context(|| format!("{what} does not exist"))?;
    let data = secret.data.unwrap_or_default();
    let value = |key: &str| {
        let value = data.get(key).with_context(|| format!("{what}: it has no key {key}"))?;
        std::str::from_utf8(&value.0).with_context(|| format!("{what}: {key} is not text"))
    };
    ProxyCredentials::basic(value("username")?, value("password")?).with_context(|| what.clone())
}

impl FromStr for EgressProxyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is not of the form NAMESPACE/NAME")),
        }
    }
}

impl fmt::Display for EgressProxyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::testing::TestCluster;

    fn object(more: &Value) -> Value {
        let mut spec =
            json!({"proxies": [{"address": "10.9.9.9", "port": 3128}, {"address": "10.9.9.8", "port": 1}]});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"apiVersion": "tidegate.io/v1alpha1", "kind": "EgressProxy",
               "metadata": {"name": "squid", "namespace": "shop"}, "spec": spec})
    }

    /// The proxy for a server, or why there is none.
    async fn found(objects: Vec<Value>, server: &str) -> Result<CheckedProxy, String> {
        let fake = TestCluster::start(objects).await;
        let (name, server) = ("shop/squid".parse().unwrap(), server.parse().unwrap());
        CheckedProxy::of_object(&fake.cluster(), &name, &server).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn the_first_proxy_is_used_with_the_credentials_of_the_secret() {
        let credentials = json!({"credentials": {"secretName": "squid"}});
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "squid", "namespace": "shop"},
                            "data": {"username": "bWVzaA==", "password": "czNjcmV0"}});
        let good = found(vec![object(&credentials), secret], "api.example:443").await.unwrap();
        assert_eq!(good.proxy.to_string(), "http://10.9.9.9:3128");
        assert_eq!(good.proxy.credentials().unwrap().authorization(), "Basic bWVzaDpzM2NyZXQ=");
        let missing = found(vec![object(&credentials)], "api.example:443").await.unwrap_err();
        assert_eq!(missing, "Secret shop/squid does not exist");
    }

    #[tokio::test]
    async fn an_object_that_is_not_for_the_server_is_an_error() {
        let of = async |more: Value, server: &str| found(vec![object(&more)], server).await.err();
        assert_eq!(of(json!({"hosts": ["*.example"]}), "a.example").await, None);
        let expected = "EgressProxy shop/squid is not for a.example:8443: by its ports, hosts or noProxy";
        assert_eq!(of(json!({}), "a.example:8443").await.as_deref(), Some(expected));
        assert!(of(json!({"hosts": ["b.example"]}), "a.example").await.is_some());
        assert!(of(json!({"noProxy": [".example"]}), "a.example").await.is_some());
        assert_eq!(
            found(Vec::new(), "a.example").await.unwrap_err(),
            "EgressProxy shop/squid does not exist"
        );
        for name in ["squid", "/squid", "shop/", "a/b/c"] {
            assert!(name.parse::<EgressProxyName>().is_err(), "{name}");
        }
    }

    #[tokio::test]
    async fn roots_of_the_object_verify_the_proxy_and_nothing_else() {
        let root = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem();
        let tls = json!({"tls": {"serverName": "proxy.example", "caBundle": root}});
        let good = found(vec![object(&tls)], "api.example").await.unwrap();
        assert_eq!((good.proxy.to_string().as_str(), good.roots.len()), ("https://10.9.9.9:3128", 1));
    }
}
