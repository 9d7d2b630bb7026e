//! What the chart gives a daemon.

use std::path::Path;

use serde_json::Value;

use super::fail;

/// The memory limit, in bytes, that the chart's values give a daemon, such as `certManager`.
pub fn memory_limit(daemon: &str) -> u64 {
    let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/tidegate/values.yaml");
    let text = std::fs::read_to_string(values).unwrap_or_else(|error| fail(&error));
    let values: Value = serde_saphyr::from_str(&text).unwrap_or_else(|error| fail(&error));
    let limit = &values[daemon]["resources"]["limits"]["memory"];
    let mebibytes = limit.as_str().and_then(|limit| limit.strip_suffix("Mi")?.parse::<u64>().ok());
    mebibytes.unwrap_or_else(|| fail(&format!("{daemon}.resources.limits.memory: {limit} is not in Mi")))
        << 20
}
