//! nginx: one worker, upstream keep-alive, the client's common name compared.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{Running, TargetSite, free_address};
use crate::certificates::ALLOWED;
use crate::process::Process;
use crate::template;

/// Configuration with placeholders.
const TEMPLATE: &str = include_str!("../../templates/nginx.conf");

/// Starts nginx on an unused port.
pub(super) fn start(site: &TargetSite<'_>) -> Result<Running> {
    let listen = free_address()?;
    let config = site.directory.join("nginx.conf");
    fs::write(&config, render(site, listen)?)?;
    let process = Process::start(
        "nginx",
        site.core,
        site.directory,
        &site.programs.nginx()?,
        [
            "-e".as_ref(),
            "stderr".as_ref(),
            "-p".as_ref(),
            site.directory.as_os_str(),
            "-c".as_ref(),
            config.as_os_str(),
        ],
    )?;
    Ok(Running::single(process, listen, site.certificates))
}

/// The configuration of a run.
pub(super) fn render(site: &TargetSite<'_>, listen: SocketAddr) -> Result<String> {
    // Otherwise root nginx would drop to a user that cannot read the run's folder.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    template::render(
        TEMPLATE,
        &[
            ("directory", site.directory.display().to_string()),
            ("user", user.to_owned()),
            ("allowed", ALLOWED.to_owned()),
            ("app", site.app.to_string()),
            ("listen", listen.to_string()),
            ("certificate", site.certificates.server.certificate.display().to_string()),
            ("key", site.certificates.server.key.display().to_string()),
            ("ca", site.certificates.ca.display().to_string()),
        ],
    )
    .context("nginx.conf")
}
