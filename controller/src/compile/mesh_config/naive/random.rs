//! Random MeshConfigs.

use std::fmt;

use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use tidegate_core::contract::annotations::AUDIT;
use tidegate_core::contract::names::MESH_CONFIG_NAME;
use tidegate_crds::MeshConfig;

use crate::index::{Affected, Index};
use crate::testing::{BOOKS, HTTPBIN, index, stored};

#[derive(Clone)]
pub(super) struct RandomConfig {
    /// Another name than `osm-mesh-config`.
    pub(super) is_misnamed: bool,
    pub(super) namespace: &'static str,
    pub(super) is_readable: bool,
    pub(super) is_permissive: Option<bool>,
    pub(super) enable_egress: Option<bool>,
    pub(super) tracing: Option<RandomTracing>,
    pub(super) external: Option<RandomAuthorization>,
    pub(super) audit: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) struct RandomTracing {
    pub(super) enable: Option<bool>,
    pub(super) port: Option<u16>,
    pub(super) endpoint: Option<&'static str>,
    pub(super) address: Option<&'static str>,
    pub(super) share: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) struct RandomAuthorization {
    pub(super) enable: Option<bool>,
    pub(super) address: Option<&'static str>,
    pub(super) port: Option<u16>,
    pub(super) timeout: Option<&'static str>,
    pub(super) failure_mode_allow: Option<bool>,
}

/// A cluster's source reads one MeshConfig; a folder may have several, all of which can be read.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) configs: Vec<RandomConfig>,
    /// Whether a TrafficTarget is about the workload.
    pub(super) has_target: bool,
}

impl fmt::Debug for RandomConfig {
    /// In one line: what is absent is left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {:?}", self.name(), without_nulls(self.object()["spec"].take()), self.audit)
    }
}

fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(fields) = &mut value {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(|value| *value = without_nulls(value.take()));
    }
    value
}

impl RandomConfig {
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.namespace, if self.is_misnamed { "mesh" } else { MESH_CONFIG_NAME })
    }

    fn object(&self) -> Value {
        let tracing = self.tracing.as_ref().map(|it| {
            json!({
                "enable": it.enable,
                "port": it.port,
                "endpoint": it.endpoint,
                "address": it.address,
                "sampledFraction": it.share,
            })
        });
        let external = self.external.as_ref().map(|it| {
            json!({
                "enable": it.enable,
                "address": it.address,
                "port": it.port,
                "timeout": it.timeout,
                "failureModeAllow": it.failure_mode_allow,
            })
        });
        let (namespace, name) = (self.namespace, self.name());
        json!({
            "metadata": {
                "name": name.split_once('/').unwrap().1,
                "namespace": namespace,
                "annotations": self.audit.map(|value| json!({AUDIT: value})),
            },
            "spec": {
                "sidecar": (!self.is_readable).then_some("none"),
                "observability": {"tracing": tracing},
                "traffic": {
                    "enablePermissiveTrafficPolicyMode": self.is_permissive,
                    "enableEgress": self.enable_egress,
                    "inboundExternalAuthorization": external,
                },
            },
        })
    }
}

impl World {
    pub(super) fn index(&self) -> Index {
        let documents = if self.has_target { vec![HTTPBIN, BOOKS] } else { vec![HTTPBIN] };
        let mut index = index(&documents);
        for config in &self.configs {
            index.apply(stored::<MeshConfig>(&config.object()), &mut Affected::default());
        }
        index
    }
}

fn config(is_readable: BoxedStrategy<bool>) -> impl Strategy<Value = RandomConfig> {
    let enable = || option::weighted(0.9, prop::bool::weighted(0.9));
    let tracing = (
        enable(),
        option::of(select(vec![4317_u16, 4318, 9411, 0])),
        option::of(select(vec!["/v1/traces", "/api/v2/spans", "traces"])),
        option::of(select(vec!["otel.monitoring", "10.0.0.1", "http://otel"])),
        option::weighted(0.3, select(vec!["0.01", "1.5", "half"])),
    );
    let tracing = tracing.prop_map(|(enable, port, endpoint, address, share)| RandomTracing {
        enable,
        port,
        endpoint,
        address,
        share,
    });
    let external = (
        enable(),
        option::weighted(0.8, select(vec!["opa.opa", "10.1.2.3", "http://opa"])),
        option::weighted(0.8, select(vec![9191_u16, 9191, 0])),
        option::of(select(vec!["300ms", "2m", "soon", "0s"])),
        option::of(any::<bool>()),
    );
    let external = external.prop_map(|(enable, address, port, timeout, failure_mode_allow)| {
        RandomAuthorization { enable, address, port, timeout, failure_mode_allow }
    });
    let audit = option::weighted(0.3, select(vec!["true", "false", "yes"]));
    let of_all = (is_readable, option::of(any::<bool>()), option::of(any::<bool>()));
    let rest = (option::weighted(0.8, tracing), option::weighted(0.8, external), audit);
    (prop::bool::weighted(0.2), select(vec!["a", "b", "c"]), of_all, rest).prop_map(
        |(
            is_misnamed,
            namespace,
            (is_readable, is_permissive, enable_egress),
            (tracing, external, audit),
        )| {
            RandomConfig {
                is_misnamed,
                namespace,
                is_readable,
                is_permissive,
                enable_egress,
                tracing,
                external,
                audit,
            }
        },
    )
}

pub(super) fn world() -> impl Strategy<Value = World> {
    let of_cluster = config(prop::bool::weighted(0.6).boxed());
    let of_cluster = of_cluster.prop_map(|config| vec![RandomConfig { is_misnamed: false, ..config }]);
    let of_folder = prop::collection::vec(config(Just(true).boxed()), 0..4).prop_map(|mut configs| {
        configs.sort_by_key(RandomConfig::name);
        configs.dedup_by_key(|config| config.name());
        configs
    });
    (prop_oneof![of_cluster, of_folder], any::<bool>())
        .prop_map(|(configs, has_target)| World { configs, has_target })
}
