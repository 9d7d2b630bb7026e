//! EgressProxies, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_crds::egress_proxy::{ProxyAddressSpec, ProxyTlsSpec};
use tidegate_crds::{EgressProxy, EgressProxySpec, validate};

use super::part::{Effect, Indexed, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{STATUS, item, of_metadata, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Object, ObjectName};

/// The objects.
#[derive(Clone, Debug, Default)]
pub(crate) struct EgressProxies(BTreeMap<ObjectName, Arc<EgressProxy>>);

impl EgressProxies {
    /// Every EgressProxy.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<EgressProxy>)> {
        self.0.iter()
    }

    /// EgressProxies of a namespace.
    pub(super) fn in_namespace(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<EgressProxy>)> {
        in_namespace(&self.0, namespace)
    }
}

impl Indexed for EgressProxy {
    type Part = EgressProxies;

    fn get<'p>(part: &'p EgressProxies, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.0.get(name)
    }

    fn insert(part: &mut EgressProxies, name: ObjectName, object: Arc<Self>) {
        part.0.insert(name, object);
    }

    fn remove(part: &mut EgressProxies, name: &ObjectName) {
        part.0.remove(name);
    }

    fn effects(_: &EgressProxies, name: &ObjectName) -> Vec<Effect> {
        vec![Effect::EgressProxies(name.namespace.clone())]
    }
}

impl Stored for EgressProxy {
    /// Clusters on which only an older version of the definitions is installed lack it.
    const IS_OPTIONAL: bool = true;

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        let EgressProxySpec { namespaces, hosts, ports, proxies, http_proxies, no_proxy, tls, .. } =
            &self.spec;
        let texts = [namespaces, hosts, no_proxy].into_iter().flatten();
        let texts: usize = texts.map(|entry| 2 * item::<String>() + 2 * text(entry)).sum();
        let proxies = proxies.iter().chain(http_proxies);
        let proxies: usize = proxies.map(|proxy| item::<ProxyAddressSpec>() + text(&proxy.address)).sum();
        let tls = tls.as_ref();
        let tls = tls.map_or(0, |tls: &ProxyTlsSpec| text(&tls.server_name) + 2 * text(&tls.ca_bundle));
        let labels = self.spec.selector.as_ref().map(|selector| &selector.match_labels);
        let labels: usize =
            labels.into_iter().flatten().map(|(name, value)| 128 + text(name) + text(value)).sum();
        let ports = item::<u16>() * 2 * ports.len();
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + texts + proxies + tls + labels + ports
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(EgressProxy::crd);
        Some(CustomKind::new(&DEFINITION, |_, object: &Self| validate::egress_proxy(&object.spec)))
    }
}

impl Custom for EgressProxy {
    fn of(metadata: ObjectMeta, spec: EgressProxySpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// The Secret with the credentials of an EgressProxy.
pub(crate) fn secret_of(proxy: &EgressProxy) -> Option<ObjectName> {
    let credentials = proxy.spec.credentials.as_ref()?;
    let namespace = proxy.metadata.namespace.as_deref().unwrap_or_default();
    Some(ObjectName::new(namespace, credentials.secret_name.as_str()))
}

/// Whether the credentials of an EgressProxy are in this Secret.
pub(super) fn names_secret(proxy: &EgressProxy, secret: &ObjectName) -> bool {
    secret_of(proxy).as_ref() == Some(secret)
}
