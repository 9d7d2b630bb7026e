//! UpstreamTrafficSettings, by name, by the Service that each is about and by that of its rate limit service.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use tidegate_core::route::filter::LocalRateLimit;
use tidegate_crds::upstream_traffic_setting::{
    DescriptorSpec, GlobalRateLimitSpec, HeaderConditionSpec, HttpDescriptorEntrySpec, HttpRateLimitSpec,
    HttpRouteLimitSpec, RateLimitServiceSpec, ResponseHeaderSpec, TcpDescriptorEntrySpec,
};
use tidegate_crds::{UpstreamTrafficSetting, UpstreamTrafficSettingSpec, validate};

use super::part::{Effect, Indexed, ReferenceIndex, in_namespace};
use super::service_entries::service_named;
use crate::object::stored::custom::{self, Custom};
use crate::object::stored::size::{REFERENCE, STATUS, item, of_metadata, optional, text};
use crate::object::stored::{CustomKind, Stored};
use crate::object::{Kind, Object, ObjectName};

/// The objects by name, with references from their Services and from the Services that they call.
#[derive(Clone, Debug, Default)]
pub(crate) struct UpstreamTrafficSettings {
    by_name: BTreeMap<ObjectName, Arc<UpstreamTrafficSetting>>,
    by_service: ReferenceIndex,
    by_called: ReferenceIndex,
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

    /// Those whose rate limit service is this Service.
    pub(super) fn calling(&self, service: &ObjectName) -> impl Iterator<Item = &ObjectName> {
        self.by_called.to(service)
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
        called_services(&object).for_each(|service| part.by_called.add(service, &name));
        part.by_name.insert(name, object);
    }

    fn remove(part: &mut UpstreamTrafficSettings, name: &ObjectName) {
        let Some(object) = part.by_name.remove(name) else { return };
        if let Some(service) = setting_service(name, &object) {
            part.by_service.remove(&service, name);
        }
        called_services(&object).for_each(|service| part.by_called.remove(&service, name));
    }

    fn effects(part: &UpstreamTrafficSettings, name: &ObjectName) -> Vec<Effect> {
        let mut effects = vec![
            Effect::Statuses(name.namespace.clone()),
            Effect::Target(Kind::UpstreamTrafficSetting, name.clone()),
        ];
        let service = part.by_name.get(name).and_then(|object| setting_service(name, object));
        if let Some(service) = service {
            effects.extend([Effect::Opened(vec![service.clone()]), Effect::Clients(service)]);
        }
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

/// The Services of the cluster that an UpstreamTrafficSetting calls.
fn called_services(object: &UpstreamTrafficSetting) -> impl Iterator<Item = ObjectName> {
    object.spec.rate_limit_services().filter_map(|service| service_named(&service.host))
}

/// As an object, and as the limits that are compiled from it.
fn spec_size(spec: &UpstreamTrafficSettingSpec) -> usize {
    let general = spec.local().and_then(|local| local.http.as_ref()).map_or(0, limit_size);
    let routes = spec.http_routes.iter().flatten().map(|route| {
        let global = route.global().map_or(0, |global| descriptors_size(&global.descriptors, entry_size));
        item::<HttpRouteLimitSpec>() + 3 * text(&route.path) + route.local().map_or(0, limit_size) + global
    });
    let timeout = spec.connection_settings.iter().filter_map(|settings| settings.tcp.as_ref());
    let timeout = timeout.map(|tcp| optional(&tcp.connect_timeout)).sum::<usize>();
    let global = spec.global().map_or(0, global_size);
    REFERENCE + text(&spec.host) + timeout + general + global + routes.sum::<usize>()
}

/// Texts count twice: as those of the object, and as those of the limit.
fn global_size(global: &GlobalRateLimitSpec) -> usize {
    let service = |service: &RateLimitServiceSpec, domain: &String, timeout: &Option<String>| {
        REFERENCE + 2 * (text(&service.host) + text(domain)) + optional(timeout)
    };
    let tcp = global.tcp.as_ref().map_or(0, |tcp| {
        let entry = |entry: &TcpDescriptorEntrySpec| text(&entry.key) + text(&entry.value);
        let descriptors = descriptors_size(&tcp.descriptors, entry);
        service(&tcp.rate_limit_service, &tcp.domain, &tcp.timeout) + descriptors
    });
    let http = global.http.as_ref().map_or(0, |http| {
        let descriptors = descriptors_size(http.descriptors.as_deref().unwrap_or_default(), entry_size);
        service(&http.rate_limit_service, &http.domain, &http.timeout) + descriptors
    });
    tcp + http
}

/// `entry`: the texts of an entry.
fn descriptors_size<E>(descriptors: &[DescriptorSpec<E>], entry: impl Fn(&E) -> usize) -> usize {
    let entries = descriptors.iter().flat_map(|descriptor| &descriptor.entries);
    let entries = entries.map(|one| 2 * (item::<E>() + entry(one)));
    2 * item::<DescriptorSpec<E>>() * descriptors.len() + entries.sum::<usize>()
}

fn entry_size(entry: &HttpDescriptorEntrySpec) -> usize {
    let generic = entry.generic_key.as_ref().map_or(0, |key| text(&key.value) + optional(&key.key));
    let header = entry.request_header.as_ref().map_or(0, |header| text(&header.name) + text(&header.key));
    let matched = entry.header_value_match.as_ref().map_or(0, |matched| {
        let conditions = matched.headers.iter().map(|condition| {
            let HeaderConditionSpec { name, exact, prefix, suffix, regex, contains, .. } = condition;
            let tests = [exact, prefix, suffix, regex, contains].map(optional);
            item::<HeaderConditionSpec>() + text(name) + tests.iter().sum::<usize>()
        });
        text(&matched.value) + optional(&matched.key) + conditions.sum::<usize>()
    });
    generic + header + matched
}

fn limit_size(limit: &HttpRateLimitSpec) -> usize {
    let headers = limit.response_headers_to_add.iter().flatten();
    let headers = headers.map(|header| {
        2 * (item::<ResponseHeaderSpec>() + text(&header.name) + text(&header.value)) + text(&header.name)
    });
    size_of::<LocalRateLimit>() + REFERENCE + headers.sum::<usize>()
}
