//! TCPRoutes, by name.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_crds::{TCPRoute, TCPRouteSpec};

use super::part::{Effect, Indexed};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{STATUS, item, of_metadata};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Kind, Object, ObjectName};

#[derive(Clone, Debug, Default)]
pub(crate) struct TcpRoutes(BTreeMap<ObjectName, Arc<TCPRoute>>);

impl TcpRoutes {
    /// Every TCPRoute.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<TCPRoute>)> {
        self.0.iter()
    }
}

impl Indexed for TCPRoute {
    type Part = TcpRoutes;

    fn get<'p>(part: &'p TcpRoutes, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.0.get(name)
    }

    fn insert(part: &mut TcpRoutes, name: ObjectName, object: Arc<Self>) {
        part.0.insert(name, object);
    }

    fn remove(part: &mut TcpRoutes, name: &ObjectName) {
        part.0.remove(name);
    }

    fn effects(_: &TcpRoutes, name: &ObjectName) -> Vec<Effect> {
        vec![Effect::Statuses(name.namespace.clone()), Effect::Target(Kind::TCPRoute, name.clone())]
    }
}

impl Stored for TCPRoute {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        let ports = item::<u16>() * self.spec.matches.ports.len();
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + ports
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(TCPRoute::crd);
        Some(CustomKind::new(&DEFINITION, |_, _| Vec::new()))
    }
}

impl Custom for TCPRoute {
    fn of(metadata: ObjectMeta, spec: TCPRouteSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}
