//! `spec.observability.tracing`: where sidecars send spans.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tidegate_core::telemetry::{TraceCollector, TracingSettings};

use super::bounds::{MOST_CHARACTERS, optional_text};

/// OTLP over gRPC.
const GRPC_PORT: u16 = 4317;
/// OTLP over HTTP.
const HTTP_PORT: u16 = 4318;
const HTTP_PATH: &str = "/v1/traces";
/// What OSM's sidecars spoke.
const ZIPKIN_PORT: u16 = 9411;
const ZIPKIN_PATH: &str = "/api/v2/spans";

/// Where sidecars send the spans of requests, as OTLP.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TracingSpec {
    /// Whether sidecars record and send spans. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// Port of the collector. Default: 4317, for OTLP over gRPC; with `endpoint` 4318, for OTLP over HTTP. Zipkin's 9411
    /// is accepted, but nothing is sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "int32"))]
    pub port: Option<i64>,
    /// Name or IP address of the collector. Default: `jaeger.<control plane namespace>.svc.cluster.local`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub address: Option<String>,
    /// Path of the collector, for OTLP over HTTP. Default: none, for OTLP over gRPC; at port 4318 `/v1/traces`. Zipkin's
    /// `/api/v2/spans`, which Open Service Mesh writes into every MeshConfig, counts as none.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub endpoint: Option<String>,
    /// Share of traces that are recorded, from 0 to 1, where a request does not say whether its trace is. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_text")]
    #[schemars(length(max = MOST_CHARACTERS))]
    pub sampled_fraction: Option<String>,
}

/// Why nothing is traced although it is enabled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TracingError {
    /// The collector takes Zipkin's format only.
    #[error(
        "9411 is Zipkin's port, and sidecars send OTLP: set 4317 (gRPC) or 4318 (HTTP), which Jaeger serves, too; nothing is traced"
    )]
    Zipkin,
    /// Not the number of a port.
    #[error("Expected a port from 1 to 65535, got {0}; nothing is traced")]
    Port(i64),
    /// The address is neither a name nor an IP address.
    #[error("Expected a host name or an IP address, got '{0}'; nothing is traced")]
    Address(String),
    /// The path cannot be one.
    #[error("Expected a path such as /v1/traces, got '{0}'; nothing is traced")]
    Endpoint(String),
    /// The share is not a number from 0 to 1.
    #[error("Expected a number from 0 to 1, got '{0}'; nothing is traced")]
    SampledFraction(String),
}

impl TracingError {
    /// The field with the error.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Zipkin | Self::Port(_) => "spec.observability.tracing.port",
            Self::Address(_) => "spec.observability.tracing.address",
            Self::Endpoint(_) => "spec.observability.tracing.endpoint",
            Self::SampledFraction(_) => "spec.observability.tracing.sampledFraction",
        }
    }
}

impl TracingSpec {
    /// What sidecars do; `None`: they trace nothing. `namespace`: the control plane's.
    ///
    /// # Errors
    ///
    /// If a field cannot be understood: then they trace nothing either.
    pub fn settings(&self, namespace: &str) -> Result<Option<TracingSettings>, TracingError> {
        if self.enable != Some(true) {
            return Ok(None);
        }
        let path = self.endpoint.as_deref().filter(|path| !path.is_empty() && *path != ZIPKIN_PATH);
        let port = match self.port {
            None if path.is_some() => HTTP_PORT,
            None => GRPC_PORT,
            Some(port) => match u16::try_from(port) {
                Ok(ZIPKIN_PORT) => return Err(TracingError::Zipkin),
                Ok(0) | Err(_) => return Err(TracingError::Port(port)),
                Ok(port) => port,
            },
        };
        let path = path.or((port == HTTP_PORT).then_some(HTTP_PATH));
        if let Some(path) = path.filter(|path| !is_path(path)) {
            return Err(TracingError::Endpoint(path.to_owned()));
        }
        let host = match self.address.as_deref().filter(|address| !address.is_empty()) {
            Some(address) if !is_host(address) => return Err(TracingError::Address(address.to_owned())),
            Some(address) => address.to_owned(),
            None => format!("jaeger.{namespace}.svc.cluster.local"),
        };
        let collector = TraceCollector { host: host.into(), port, path: path.map(Into::into) };
        Ok(Some(TracingSettings { collector, sampled_per_million: self.sampled_per_million()? }))
    }

    fn sampled_per_million(&self) -> Result<u32, TracingError> {
        let Some(text) = self.sampled_fraction.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(1_000_000);
        };
        let share = text.parse().ok().filter(|share: &f64| (0.0..=1.0).contains(share));
        // In range.
        let per_million = share.map(|share| (share * 1e6).round() as u32);
        per_million.ok_or_else(|| TracingError::SampledFraction(text.to_owned()))
    }
}

fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte))
}

fn is_host(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(spec: serde_json::Value) -> Result<Option<String>, &'static str> {
        let spec: TracingSpec = serde_json::from_value(spec).unwrap();
        let found = spec.settings("osm-system").map_err(|error| error.path())?;
        Ok(found.map(|TracingSettings { collector, sampled_per_million }| {
            format!("{collector} {} {sampled_per_million}", collector.path.as_deref().unwrap_or("grpc"))
        }))
    }

    #[test]
    fn the_collector_is_jaeger_beside_the_control_plane_unless_the_fields_say_otherwise() {
        let found = |spec| settings(spec).unwrap().unwrap_or_default();
        assert_eq!(found(json!({})), "");
        assert_eq!(found(json!({"enable": false, "port": 0})), "");
        let jaeger = "jaeger.osm-system.svc.cluster.local";
        assert_eq!(found(json!({"enable": true})), format!("{jaeger}:4317 grpc 1000000"));
        assert_eq!(found(json!({"enable": true, "port": 4318})), format!("{jaeger}:4318 /v1/traces 1000000"));
        let spec =
            json!({"enable": true, "endpoint": "/otlp", "address": "10.0.0.1", "sampledFraction": "0.01"});
        assert_eq!(found(spec), "10.0.0.1:4318 /otlp 10000");
        let of_osm =
            json!({"enable": true, "port": 14317, "address": "fd00::1", "endpoint": "/api/v2/spans"});
        assert_eq!(found(of_osm), "[fd00::1]:14317 grpc 1000000");
    }

    #[test]
    fn what_cannot_be_understood_is_named_and_nothing_is_traced() {
        let error = |field: &str, value: serde_json::Value| {
            let path = settings(json!({"enable": true, field: value})).unwrap_err();
            assert!(path.ends_with(field), "{path}");
        };
        error("port", json!(9411));
        let path = settings(json!({"enable": true, "port": 9411, "endpoint": "/v1/traces"})).unwrap_err();
        assert!(path.ends_with("port"), "{path}");
        error("port", json!(70_000));
        error("address", json!("http://jaeger"));
        error("endpoint", json!("v1/traces"));
        error("sampledFraction", json!("1.5"));
        error("sampledFraction", json!("half"));
    }
}
