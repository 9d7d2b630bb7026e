//! Egress policies, by name, by the service accounts that they are for and by the objects that they refer to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_crds::egress::{EgressMatch, EgressPort, EgressReference, EgressSource};
use tidegate_crds::{Egress, EgressSpec, validate};

use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Kind, Object, ObjectName};

/// The objects by name, with references from what they name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Egresses {
    by_name: BTreeMap<ObjectName, Arc<Egress>>,
    by_account: ReferenceIndex,
    by_reference: BTreeMap<(Kind, ObjectName), BTreeSet<ObjectName>>,
}

impl Egresses {
    /// Every Egress.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Egress>)> {
        self.by_name.iter()
    }

    /// Those of a namespace.
    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = (&ObjectName, &Arc<Egress>)> {
        in_namespace(&self.by_name, namespace)
    }

    /// Those for the workloads of a service account.
    pub(crate) fn of_account(
        &self,
        account: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<Egress>)> {
        self.by_account.to(account).filter_map(|name| self.by_name.get_key_value(name))
    }

    /// Those that refer to an object.
    pub(super) fn referring_to(
        &self,
        kind: Kind,
        object: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<Egress>)> {
        let names = self.by_reference.get(&(kind, object.clone()));
        names.into_iter().flatten().filter_map(|name| self.by_name.get_key_value(name))
    }
}

impl Indexed for Egress {
    type Part = Egresses;

    fn get<'p>(part: &'p Egresses, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut Egresses, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        for account in accounts(&object) {
            part.by_account.add(account, &name);
        }
        for reference in references(&name, &object) {
            part.by_reference.entry(reference).or_default().insert(name.clone());
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut Egresses, name: &ObjectName) {
        let Some(object) = part.by_name.remove(name) else { return };
        for account in accounts(&object) {
            part.by_account.remove(&account, name);
        }
        for reference in references(name, &object) {
            if let Some(names) = part.by_reference.get_mut(&reference) {
                names.remove(name);
                if names.is_empty() {
                    part.by_reference.remove(&reference);
                }
            }
        }
    }

    fn effects(part: &Egresses, name: &ObjectName) -> Vec<Effect> {
        let accounts = part.by_name.get(name).into_iter().flat_map(|object| accounts(object));
        [Effect::Statuses(name.namespace.clone())].into_iter().chain(accounts.map(Effect::Account)).collect()
    }
}

impl Stored for Egress {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        let EgressSpec { sources, hosts, ip_addresses, ports, matches } = &self.spec;
        let source = |source: &EgressSource| {
            item::<EgressSource>()
                + REFERENCE
                + text(&source.kind)
                + 2 * text(&source.name)
                + 2 * text(&source.namespace)
        };
        let reference = |one: &EgressMatch| {
            item::<EgressMatch>() + REFERENCE + text(&one.api_group) + text(&one.kind) + 2 * text(&one.name)
        };
        let texts = hosts.iter().chain(ip_addresses).map(|one| item::<String>() + text(one));
        let ports = ports.iter().map(|port| item::<EgressPort>() + text(&port.protocol));
        size_of::<Self>()
            + STATUS
            + of_metadata(&self.metadata)
            + sources.iter().map(source).sum::<usize>()
            + matches.iter().map(reference).sum::<usize>()
            + texts.chain(ports).sum::<usize>()
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(Egress::crd);
        Some(CustomKind::new(&DEFINITION, |_, object| validate::egress(&object.spec)))
    }
}

impl Custom for Egress {
    fn of(metadata: ObjectMeta, spec: EgressSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// The service accounts that a policy is for.
pub(super) fn accounts(object: &Egress) -> BTreeSet<ObjectName> {
    let of = |source: &EgressSource| ObjectName::new(source.namespace.as_str(), source.name.as_str());
    object.spec.sources.iter().map(of).collect()
}

/// The objects that a policy refers to, in its own namespace.
fn references(name: &ObjectName, object: &Egress) -> BTreeSet<(Kind, ObjectName)> {
    let kind = |one: &EgressMatch| match one.refers_to()? {
        EgressReference::HttpRouteGroup => Some(Kind::HTTPRouteGroup),
        EgressReference::UpstreamTrafficSetting => Some(Kind::UpstreamTrafficSetting),
    };
    let reference =
        |one: &EgressMatch| Some((kind(one)?, ObjectName::new(name.namespace.clone(), one.name.as_str())));
    object.spec.matches.iter().filter_map(reference).collect()
}
