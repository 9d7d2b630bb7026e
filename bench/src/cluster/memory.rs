//! Measures the memory of the mesh's processes. Processes in pods are visible from the host.

use std::fs;

use anyhow::{Result, ensure};

use super::results::{Figures, MeshMemory};
use super::site::ClusterSite;
use crate::process::usage;

/// A process in one of the cluster's pods.
struct MeasuredProcess {
    /// File name of its executable.
    program: String,
    /// Its memory.
    memory: usage::Memory,
}

/// The current memory of all programs. Fails unless every meshed pod has one sidecar.
pub(super) fn measure(site: &ClusterSite) -> Result<MeshMemory> {
    let processes = processes(&site.cluster().node_name())?;
    let of =
        |program: &str| processes.iter().filter(|process| process.program == program).collect::<Vec<_>>();
    let one = |program: &str| -> Result<f64> {
        let found = of(program);
        ensure!(found.len() == 1, "{} processes {program} in the cluster, not one", found.len());
        Ok(found[0].memory.resident_kib as f64)
    };
    let sidecars = of("tidegate-sidecar");
    ensure!(
        sidecars.len() == site.pods(),
        "{} sidecars run, and {} pods are meshed",
        sidecars.len(),
        site.pods()
    );
    Ok(MeshMemory {
        controller: one("tidegate-controller")?,
        cert_manager: one("tidegate-cert-manager")?,
        injector: one("tidegate-injector")?,
        sidecars: sidecars.iter().map(|process| process.memory.resident_kib as f64).collect(),
        sidecars_proportional: sidecars
            .iter()
            .map(|process| process.memory.proportional_kib as f64)
            .collect::<Figures>(),
    })
}

/// Every process in a container of the cluster whose cgroup has this name.
fn processes(cgroup: &str) -> Result<Vec<MeasuredProcess>> {
    let folder = format!(":/{cgroup}/");
    let mut found = Vec::new();
    for id in usage::all()? {
        // A process may end between the listing and the reading.
        let Ok(groups) = fs::read_to_string(format!("/proc/{id}/cgroup")) else { continue };
        if !groups.contains(&folder) {
            continue;
        }
        let Ok(program) = fs::read_link(format!("/proc/{id}/exe")) else { continue };
        let Ok(memory) = usage::memory(id) else { continue };
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        found.push(MeasuredProcess { program, memory });
    }
    Ok(found)
}
