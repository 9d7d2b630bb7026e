//! UpstreamTrafficSettings, by name and by the Service that each is about.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_core::route::filter::LocalRateLimit;
use tidegate_crds::upstream_traffic_setting::{HttpRateLimitSpec, HttpRouteLimitSpec, ResponseHeaderSpec};
use tidegate_crds::{UpstreamTrafficSetting, UpstreamTrafficSettingSpec, validate};

use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Kind, Object, ObjectName};

/// The objects by name, with references from their Services.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpstreamTrafficSettings {
    by_name: BTreeMap<ObjectName, Arc<UpstreamTrafficSetting>>,
    by_service: ReferenceIndex,
}

impl UpstreamTrafficSettings {
    /// Every UpstreamTrafficSetting.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&ObjectName, &Arc<UpstreamTrafficSetting>)> {
        self.by_name.iter()
    }

    /// UpstreamTrafficSettings of a namespace.
    pub(crate) fn in_namespace(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<UpstreamTrafficSetting>)> {
        in_namespace(&self.by_name, namespace)
    }

    /// Those about a Service.
    pub(crate) fn about(
        &self,
        service: &ObjectName,
    ) -> impl Iterator<Item = (&ObjectName, &Arc<UpstreamTrafficSetting>)> {
        self.by_service.to(service).filter_map(|name| self.by_name.get_key_value(name))
    }
}

impl Indexed for UpstreamTrafficSetting {
    type Part = UpstreamTrafficSettings;

    fn get<'p>(part: &'p UpstreamTrafficSettings, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.by_name.get(name)
    }

    fn insert(part: &mut UpstreamTrafficSettings, name: ObjectName, object: Arc<Self>) {
        Self::remove(part, &name);
        if let Some(service) = setting_service(&name, &object) {
            part.by_service.add(service, &name);
        }
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut UpstreamTrafficSettings, name: &ObjectName) {
        let Some(object) = part.by_name.remove(name) else { return };
        if let Some(service) = setting_service(name, &object) {
            part.by_service.remove(&service, name);
        }
    }

    fn effects(part: &UpstreamTrafficSettings, name: &ObjectName) -> Vec<Effect> {
        let mut effects = vec![
            Effect::Statuses(name.namespace.clone()),
            Effect::Target(Kind::UpstreamTrafficSetting, name.clone()),
        ];
        let service = part.by_name.get(name).and_then(|object| setting_service(name, object));
        effects.extend(service.map(|service| Effect::Opened(vec![service])));
        effects
    }
}

impl Stored for UpstreamTrafficSetting {
    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        custom::decode::<Self>(text)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + STATUS + of_metadata(&self.metadata) + spec_size(&self.spec)
    }

    fn custom() -> Option<CustomKind<Self>> {
        static DEFINITION: LazyLock<CustomResourceDefinition> = LazyLock::new(UpstreamTrafficSetting::crd);
        Some(CustomKind::new(&DEFINITION, |namespace, object| {
            validate::upstream_traffic_setting(namespace, &object.spec)
        }))
    }
}

impl Custom for UpstreamTrafficSetting {
    fn of(metadata: ObjectMeta, spec: UpstreamTrafficSettingSpec) -> Self {
        Self { metadata, spec, status: None }
    }
}

/// The Service that an UpstreamTrafficSetting is about.
pub(crate) fn setting_service(name: &ObjectName, object: &UpstreamTrafficSetting) -> Option<ObjectName> {
    let service = object.spec.service(&name.namespace)?;
    Some(ObjectName::new(name.namespace.clone(), service))
}

/// As an object, and as the limits that are compiled from it.
fn spec_size(spec: &UpstreamTrafficSettingSpec) -> usize {
    let general = spec.local().and_then(|local| local.http.as_ref()).map_or(0, limit_size);
    let routes = spec.http_routes.iter().flatten().map(|route| {
        let limit = route.rate_limit.iter().filter_map(|limit| limit.local.as_ref()).map(limit_size);
        item::<HttpRouteLimitSpec>() + 3 * text(&route.path) + limit.sum::<usize>()
    });
    let timeout = spec.connection_settings.iter().filter_map(|settings| settings.tcp.as_ref());
    let timeout = timeout.map(|tcp| optional(&tcp.connect_timeout)).sum::<usize>();
    REFERENCE + text(&spec.host) + timeout + general + routes.sum::<usize>()
}

fn limit_size(limit: &HttpRateLimitSpec) -> usize {
    let headers = limit.response_headers_to_add.iter().flatten();
    let headers = headers.map(|header| {
        2 * (item::<ResponseHeaderSpec>() + text(&header.name) + text(&header.value)) + text(&header.name)
    });
    size_of::<LocalRateLimit>() + REFERENCE + headers.sum::<usize>()
}
