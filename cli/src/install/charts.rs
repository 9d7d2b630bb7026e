//! The Helm charts that this program carries.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;

/// Every file of `charts/`: its path there, and what it holds.
static FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/charts.rs"));

/// The charts in a temporary folder; gone when dropped.
#[derive(Debug)]
pub(super) struct Charts {
    folder: TempDir,
}

impl Charts {
    /// Writes them down.
    pub(super) fn unpack() -> anyhow::Result<Self> {
        let folder = TempDir::with_prefix("tidegate-charts-").context("temporary folder for the charts")?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
