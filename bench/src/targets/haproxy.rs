//! HAProxy: one thread, upstream connections shared by all clients, the client's common name compared.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{Running, TargetSite, free_address};
use crate::certificates::ALLOWED;
use crate::process::Process;
use crate::template;

/// Configuration with placeholders.
const TEMPLATE: &str = include_str!("../../templates/haproxy.cfg");

/// Starts HAProxy on an unused port.
pub(super) fn start(site: &TargetSite<'_>) -> Result<Running> {
    let listen = free_address()?;
    let config = site.directory.join("haproxy.cfg");
    fs::write(&config, render(site, listen)?)?;
    let process = Process::start(
        "haproxy",
        site.core,
        site.directory,
        &site.programs.haproxy()?,
        ["-db".as_ref(), "-f".as_ref(), config.as_os_str()],
    )?;
    Ok(Running::single(process, listen, site.certificates))
}

/// The configuration of a run.
pub(super) fn render(site: &TargetSite<'_>, listen: SocketAddr) -> Result<String> {
    template::render(
        TEMPLATE,
        &[
            ("allowed", ALLOWED.to_owned()),
            ("app", site.app.to_string()),
            ("listen", listen.to_string()),
            ("certificate_with_key", site.certificates.server_with_key.display().to_string()),
            ("ca", site.certificates.ca.display().to_string()),
        ],
    )
    .context("haproxy.cfg")
}
