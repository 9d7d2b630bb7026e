//! Retries, by name and by the Services that they are about.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_core::ServiceRetry;
use tidegate_crds::retry::RetryEndSpec;
use tidegate_crds::{Retry, RetrySpec, validate};

use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Object, ObjectName};

/// The objects by name, with references from their destinations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Retries {
    by_name: BTreeMap<ObjectName, Arc<Retry>>,
    by_service: ReferenceIndex,
}

impl Retries {
    /// Every Retry.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Retry>)> {
        self.by_name.iter()
    }

    /// Retries of a namespace.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Retry>)> {
        in_namespace(&self.by_name, namespace)
    }

    /// The names of those about a Service.
    pub(super) fn about(&self, service: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        self.by_service.to(service)
    }
}

impl Indexed for Retry {
    type Part = Retries;

    fn get<'p>(part: &'p Retries, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut Retries, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        for service in retried_services(&object) {
            part.by_service.add(service, &name);
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut Retries, name: &ObjectName) {
        let Some(object) = part.by_name.remove(name) else { return };
        for service in retried_services(&object) {
            part.by_service.remove(&service, name);
        }
    }

    fn effects(part: &Retries, name: &ObjectName) -> Vec<Effect> {
        let account = part.by_name.get(name).and_then(|object| object.spec.account(&name.namespace));
        let account =
            account.map(|account| Effect::Account(ObjectName::new(name.namespace.clone(), account)));
        [Effect::Statuses(name.namespace.clone())].into_iter().chain(account).collect()
    }
}

impl Stored for Retry {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        let RetrySpec { source, destinations, retry_policy } = &self.spec;
        let end = |end: &RetryEndSpec| text(&end.kind) + text(&end.name) + text(&end.namespace);
        let compiled = REFERENCE + size_of::<ServiceRetry>() + text(&retry_policy.retry_on);
        let destinations = destinations.iter().map(|one| item::<RetryEndSpec>() + 3 * end(one) + compiled);
        let times = [&retry_policy.per_try_timeout, &retry_policy.retry_backoff_base_interval];
        let policy = text(&retry_policy.retry_on) + times.map(optional).iter().sum::<usize>();
        size_of::<Self>()
            + STATUS
            + of_metadata(&self.metadata)
            + end(source)
            + destinations.sum::<usize>()
            + policy
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(Retry::crd);
        Some(CustomKind::new(&DEFINITION, |namespace, object| validate::retry(namespace, &object.spec)))
    }
}

impl Custom for Retry {
    fn of(metadata: ObjectMeta, spec: RetrySpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// The Services that a Retry is about, each once.
pub(crate) fn retried_services(object: &Retry) -> BTreeSet<ObjectName> {
    object.spec.services().map(|(namespace, name)| ObjectName::new(namespace, name)).collect()
}
