//! IngressBackends, by name and by the Services that they name as sources.
//!
//! An IngressBackend affects the workloads behind the Services that it opens. A change of a Service or Pod affects it
//! in turn if the Service is one of its sources, which is what `by_source` finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_crds::ingress_backend::{BackendSpec, IngressSourceSpec, Match};
use tidegate_crds::{IngressBackend, IngressBackendSpec, validate};

use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Object, ObjectName};

/// The objects by name, with references from the Services that are their sources.
#[derive(Clone, Debug, Default)]
pub(crate) struct IngressBackends {
    by_name: BTreeMap<ObjectName, Arc<IngressBackend>>,
    by_source: ReferenceIndex,
}

impl IngressBackends {
    /// Every IngressBackend.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<IngressBackend>)> {
        self.by_name.iter()
    }

    /// IngressBackends of a namespace.
    pub(crate) fn in_namespace(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<IngressBackend>)> {
        in_namespace(&self.by_name, namespace)
    }

    /// The IngressBackends that name a Service as a source.
    pub(super) fn with_source(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<IngressBackend>)> {
        self.by_source.to(service).filter_map(|name| self.by_name.get_key_value(name))
    }
}

impl Indexed for IngressBackend {
    type Part = IngressBackends;

    fn get<'p>(part: &'p IngressBackends, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut IngressBackends, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        for service in sources_of(&object) {
            part.by_source.add(service, &name);
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut IngressBackends, name: &ObjectName) {
        if let Some(backend) = part.by_name.remove(name) {
            for service in sources_of(&backend) {
                part.by_source.remove(&service, name);
            }
        }
    }

    fn effects(part: &IngressBackends, name: &ObjectName) -> Vec<Effect> {
        let mut effects = vec![Effect::Statuses(name.namespace.clone())];
        effects.extend(part.by_name.get(name).map(|backend| Effect::Opened(opened(name, backend))));
        effects
    }
}

impl Stored for IngressBackend {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + spec_size(&self.spec)
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(IngressBackend::crd);
        Some(CustomKind::new(&DEFINITION, |_, object| validate::ingress_backend(&object.spec)))
    }
}

impl Custom for IngressBackend {
    fn of(metadata: ObjectMeta, spec: IngressBackendSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// Bytes of memory of a decoded spec: an upper bound, by the rules of [`size`](crate::object::stored::size).
fn spec_size(spec: &IngressBackendSpec) -> usize {
    let backends: usize = spec
        .backends
        .iter()
        .map(|backend| {
            let hosts = backend.tls.iter().flat_map(|tls| tls.sni_hosts.iter().flatten());
            let hosts: usize = hosts.map(|host| item::<String>() + text(host)).sum();
            item::<BackendSpec>() + text(&backend.name) + text(&backend.port.protocol) + hosts
        })
        .sum();
    let sources: usize = spec
        .sources
        .iter()
        .map(|source| {
            item::<IngressSourceSpec>()
                + REFERENCE
                + text(&source.kind)
                + text(&source.name)
                + optional(&source.namespace)
        })
        .sum();
    let matches = spec.matches.iter().flatten();
    let matches: usize = matches
        .map(|found| item::<Match>() + text(&found.api_group) + text(&found.kind) + text(&found.name))
        .sum();
    backends + sources + matches
}

/// The Services that an IngressBackend opens.
pub(super) fn opened(name: &ObjectName, backend: &IngressBackend) -> Vec<ObjectName> {
    let services: BTreeSet<&str> = backend.spec.backends.iter().map(|backend| &*backend.name).collect();
    services.into_iter().map(|service| ObjectName::new(name.namespace.clone(), service)).collect()
}

/// The Services that an IngressBackend names as sources.
fn sources_of(backend: &IngressBackend) -> BTreeSet<ObjectName> {
    let services = backend.spec.sources.iter().filter(|source| source.kind == "Service");
    services
        .filter_map(|source| Some(ObjectName::new(source.namespace.as_deref()?, source.name.as_str())))
        .collect()
}
