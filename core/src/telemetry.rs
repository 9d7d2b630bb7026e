//! What a sidecar reports about the traffic of its workload.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

/// Settings of a workload's metrics and traces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TelemetrySettings {
    /// What the pod belongs to, such as the name of its Deployment. `None`: the controller does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<Arc<str>>,
    /// `None`: nothing is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<TracingSettings>,
}

/// Which requests are traced, and where their spans go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TracingSettings {
    /// Where spans go.
    pub collector: TraceCollector,
    /// Of a million traces so many are recorded, where a request does not say whether its trace is.
    pub sampled_per_million: u32,
}

/// A collector of spans, which takes OTLP in plaintext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TraceCollector {
    /// Name or IP address, without brackets.
    pub host: Arc<str>,
    /// 1 to 65535.
    pub port: u16,
    /// Path for OTLP over HTTP; `None`: OTLP over gRPC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Arc<str>>,
}

impl fmt::Display for TraceCollector {
    /// `<host>:<port>`, as in a URI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}
