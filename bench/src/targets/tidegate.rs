//! Tidegate: only the sidecars are measured; the CA and the controller that they need run beside them.
//!
//! All are the real programs. The CA signs with the run's own root, so that the refused client is the same as for
//! the other proxies; the admitted client has the certificate that the CA issues for the ingress gateway.

mod caller;
mod mesh;
mod outside;
mod programs;
mod rules;
mod tokens;

use anyhow::Result;

use self::mesh::LocalMesh;
pub(super) use self::outside::{OutsidePolicy, start_outside};
pub(super) use self::programs::ReleasePrograms;
use super::{ClientFiles, MtlsListener, Running, TargetSite};
use crate::app;
use crate::certificates::SERVER;
use crate::tls::ClientIdentity;

/// What distinguishes the targets.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairSettings {
    /// What the app's port declares.
    pub(super) protocol: &'static str,
    /// So many routes of the caller's requests, and matches of a TrafficTarget, come before the one that applies; 0: no
    /// routes, and one match.
    pub(super) rules: usize,
    /// Whether 1 % of the traces are recorded and exported.
    pub(super) is_traced: bool,
}

/// Starts CA, controller and sidecars, each after the previous one is ready, and waits until a sidecar has its
/// certificate and its policy.
pub(super) async fn start(site: &TargetSite<'_>, settings: PairSettings) -> Result<Running> {
    let programs = site.programs.tidegate()?;
    let collector = match settings.is_traced {
        true => Some(app::start("collector", site.load_core, site.directory, None).await?),
        false => None,
    };
    let mesh = LocalMesh::prepare(site, settings, collector.as_ref().map(|(_, address)| *address))?;
    let collector = collector.map(|(process, _)| process);
    let [controller, ca] = mesh.start_control_plane(site, &programs).await?;
    let sidecar = mesh.sidecar_arguments(site);
    let sidecar = programs.start_sidecar(site, "sidecar", sidecar, mesh.sidecar_admin).await?;
    let gateway = mesh.gateway();

    let Some(caller) = &mesh.caller else {
        return Ok(Running {
            measured: vec![sidecar.id()],
            processes: vec![sidecar, controller, ca],
            address: mesh::listen(site),
            tls: Some(ClientFiles {
                ca: gateway.join("ca.crt"),
                server_name: SERVER.to_owned(),
                allowed: ClientIdentity {
                    certificate: gateway.join("tls.crt"),
                    key: gateway.join("tls.key"),
                },
                foreign: site.certificates.foreign.clone(),
            }),
            inner: None,
            collector,
        });
    };
    let outbound =
        programs.start_sidecar(site, "caller", caller.arguments(site, &mesh), caller.admin).await?;
    Ok(Running {
        measured: vec![outbound.id(), sidecar.id()],
        processes: vec![outbound, sidecar, controller, ca],
        address: caller.outbound,
        tls: None,
        inner: Some(MtlsListener {
            address: mesh::listen(site),
            files: ClientFiles::of(site.certificates, &site.certificates.caller),
            // What is not parsed meets no rule that distinguishes requests.
            protocols: if settings.protocol == "tcp" { &[b"tidegate/tcp"] } else { &[b"tidegate/h1"] },
        }),
        collector,
    })
}
