//! The sidecar beside a client.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;

use super::TargetSite;
use super::mesh::{LocalMesh, ProgramFlags};
use super::tokens::TokenKey;
use crate::targets::free_addresses;

/// The caller's address.
pub(super) const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 2));
/// The Service's address, which the client dials: no host has it, but the sidecar knows the endpoint behind it.
pub(super) const SERVICE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

/// Addresses and files of the caller's sidecar.
#[derive(Debug)]
pub(super) struct CallerSidecar {
    /// Its admin server.
    pub(super) admin: SocketAddr,
    /// Where the client connects to, in place of what it dials.
    pub(super) outbound: SocketAddr,
    /// What the client dials.
    dialled: SocketAddr,
    /// Its service account token.
    token: PathBuf,
}

impl CallerSidecar {
    /// Writes the sidecar's token.
    pub(super) fn prepare(site: &TargetSite<'_>, key: &TokenKey, dialled: SocketAddr) -> Result<Self> {
        let [admin, outbound] = free_addresses()?;
        let token = site.directory.join("caller.token");
        fs::write(&token, key.token("httpbin", "caller")?)?;
        Ok(Self { admin, outbound, dialled, token })
    }

    /// Flags of the sidecar. Its inbound listener, which a sidecar must have, is not used.
    pub(super) fn arguments(&self, site: &TargetSite<'_>, mesh: &LocalMesh) -> ProgramFlags {
        let port = site.app.port();
        mesh.workload_arguments(site, "httpbin/caller", self.admin, &self.token)
            .with("--inbound", format!("{}={}", SocketAddr::new(POD, port), site.app))
            .with("--outbound", format!("{}={}", self.outbound, self.dialled))
    }
}
