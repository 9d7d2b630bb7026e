//! What a sidecar reports. Never refused: nothing of it decides about traffic.

use tidegate_core::telemetry::TelemetrySettings;

use crate::discovery as wire;

/// An absent name is empty, which no workload has.
pub(super) fn telemetry_to_wire(settings: &TelemetrySettings) -> wire::Telemetry {
    wire::Telemetry { workload: settings.workload.as_deref().unwrap_or_default().to_owned() }
}

/// Never fails.
pub(super) fn telemetry_from_wire(settings: wire::Telemetry) -> TelemetrySettings {
    let workload = Some(settings.workload).filter(|name| !name.is_empty());
    TelemetrySettings { workload: workload.map(Into::into) }
}
