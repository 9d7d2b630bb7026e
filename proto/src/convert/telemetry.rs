//! What a sidecar reports: the name of its own workload in metrics, and where its traces go.
//!
//! A collector is a host, a port and, for OTLP over HTTP, a path; without a path it is OTLP over gRPC. The share of traces
//! that are recorded is in millionths.

use tidegate_core::telemetry::{TelemetrySettings, TraceCollector, TracingSettings};

use super::{ConversionError, missing, port_number};
use crate::discovery as wire;

/// An absent name is empty, which no workload has.
pub(super) fn telemetry_to_wire(settings: &TelemetrySettings) -> wire::Telemetry {
    wire::Telemetry {
        workload: settings.workload.as_deref().unwrap_or_default().to_owned(),
        tracing: settings.tracing.as_ref().map(|tracing| wire::Tracing {
            host: tracing.collector.host.to_string(),
            port: tracing.collector.port.into(),
            path: tracing.collector.path.as_deref().unwrap_or_default().to_owned(),
            sampled_per_million: tracing.sampled_per_million,
        }),
    }
}

/// A collector must have an address.
pub(super) fn telemetry_from_wire(settings: wire::Telemetry) -> Result<TelemetrySettings, ConversionError> {
    let workload = Some(settings.workload).filter(|name| !name.is_empty());
    let tracing = settings.tracing.map(tracing_from_wire).transpose()?;
    Ok(TelemetrySettings { workload: workload.map(Into::into), tracing })
}

/// A host that is empty, or a port of zero, is an error: spans would be recorded and never sent.
fn tracing_from_wire(tracing: wire::Tracing) -> Result<TracingSettings, ConversionError> {
    if tracing.host.is_empty() {
        return Err(missing("telemetry.tracing.host"));
    }
    let path = Some(tracing.path).filter(|path| !path.is_empty());
    let collector = TraceCollector {
        host: tracing.host.into(),
        port: port_number("telemetry.tracing.port", tracing.port)?,
        path: path.map(Into::into),
    };
    Ok(TracingSettings { collector, sampled_per_million: tracing.sampled_per_million })
}
