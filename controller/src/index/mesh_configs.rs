//! MeshConfigs, of which one is in force.
//!
//! Any change of any of them affects the whole mesh: a MeshConfig is changed rarely, and permissive mode is part of
//! every policy.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_core::contract::names::MESH_CONFIG_NAME;
use tidegate_crds::mesh_config::OLDER_MESH_CONFIG;
use tidegate_crds::{MeshConfig, MeshConfigSpec, validate};

use super::part::{Effect, Indexed};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::{CustomKind, Scope, Stored};
use crate::object::{Object, ObjectName};

/// All that the source reports. On a cluster that is at most one, because only the one in the control plane's
/// namespace is watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct MeshConfigs(BTreeMap<ObjectName, Arc<MeshConfig>>);

impl MeshConfigs {
    /// Every MeshConfig; only one of them is in force.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<MeshConfig>)> {
        self.0.iter()
    }

    /// The MeshConfig in force: the one with OSM's name for it; of several, the first by namespace.
    pub(crate) fn in_force(&self) -> Option<(&ObjectName, &Arc<MeshConfig>)> {
        self.0.iter().find(|(name, _)| &*name.name == MESH_CONFIG_NAME)
    }
}

impl Indexed for MeshConfig {
    type Part = MeshConfigs;

    fn get<'p>(part: &'p MeshConfigs, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.0.get(name)
    }

    fn insert(part: &mut MeshConfigs, name: ObjectName, object: Arc<Self>) {
        part.0.insert(name, object);
    }

    fn remove(part: &mut MeshConfigs, name: &ObjectName) {
        part.0.remove(name);
    }

    fn effects(_: &MeshConfigs, _: &ObjectName) -> Vec<Effect> {
        vec![Effect::All]
    }
}

impl Stored for MeshConfig {
    const SCOPE: Scope = Scope::ControlPlane(MESH_CONFIG_NAME);
    const HAS_SHARE: bool = false;

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        0
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(MeshConfig::crd);
        let kind = CustomKind::<Self>::new(&DEFINITION, |_, object| validate::mesh_config(&object.spec));
        Some(kind.older(&[OLDER_MESH_CONFIG], true))
    }
}

impl Custom for MeshConfig {
    fn of(metadata: ObjectMeta, spec: MeshConfigSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}
