//! The Helm charts that are embedded in this program.
//!
//! A binary installs the charts of its own version, whatever is in the current folder or in a repository.
//! `cli/build.rs` embeds them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use tempfile::TempDir;

/// Every file of `charts/`: its path there, and its content.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/charts.rs"));

/// The charts in a temporary folder, which is removed on drop.
#[derive(Debug)]
pub(super) struct Charts {
    folder: TempDir,
}

impl Charts {
    /// Writes the charts to a temporary folder.
    pub(super) fn unpack() -> anyhow::Result<Self> {
        let folder =
            TempDir::with_prefix("tidegate-charts-").context("creating a temporary folder for the charts")?;
        for (name, text) in FILES {
            let path = folder.path().join(name);
            let parent = path.parent().unwrap_or(Path::new("."));
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(Self { folder })
    }

    /// The chart of the custom resource definitions.
    pub(super) fn crds(&self) -> PathBuf {
        self.folder.path().join("tidegate-crds")
    }

    /// The chart of the control plane.
    pub(super) fn control_plane(&self) -> PathBuf {
        self.folder.path().join("tidegate")
    }

    /// Values for three replicas of each daemon.
    pub(super) fn high_availability(&self) -> PathBuf {
        self.control_plane().join("values-ha.yaml")
    }

    /// The chart's own values for each value that [`Self::high_availability`] sets: a release remembers the values that
    /// it was given until another value replaces them.
    pub(super) fn without_high_availability(&self) -> anyhow::Result<PathBuf> {
        let read = |file: &Path| -> anyhow::Result<Value> {
            let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
            serde_saphyr::from_str(&text).with_context(|| file.display().to_string())
        };
        let chosen = read(&self.high_availability())?;
        let default = read(&self.control_plane().join("values.yaml"))?;
        let file = self.folder.path().join("values-no-ha.json");
        fs::write(&file, defaults_of(&chosen, &default).to_string())
            .with_context(|| file.display().to_string())?;
        Ok(file)
    }
}

/// The part of `default` that has the same keys as `chosen`.
fn defaults_of(chosen: &Value, default: &Value) -> Value {
    match (chosen, default) {
        (Value::Object(chosen), Value::Object(default)) => {
            let kept = chosen.iter().map(|(key, value)| {
                let default = default.get(key).unwrap_or(&Value::Null);
                (key.clone(), defaults_of(value, default))
            });
            kept.collect()
        }
        _ => default.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn high_availability_is_taken_back_value_by_value() {
        let charts = Charts::unpack().unwrap();
        let file = charts.without_high_availability().unwrap();
        let values: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
        let daemon = json!({"replicas": 1});
        assert_eq!(
            values,
            json!({
                "controller": daemon, "certManager": daemon, "injector": daemon,
                "topologySpreadConstraints": [], "priorityClassName": "",
                "podDisruptionBudget": {"enabled": false},
            })
        );
    }

    #[test]
    fn the_charts_are_whole() {
        let charts = Charts::unpack().unwrap();
        for file in [
            charts.crds().join("Chart.yaml"),
            charts.control_plane().join("templates/_helpers.tpl"),
            charts.control_plane().join("values.schema.json"),
            charts.high_availability(),
        ] {
            assert!(file.is_file(), "{}", file.display());
        }
    }
}
