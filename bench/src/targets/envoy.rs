//! Envoy: one worker, the HTTP RBAC filter with the client's alternative name.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{Running, TargetSite, free_address};
use crate::certificates::ALLOWED;
use crate::process::Process;
use crate::template;

/// Configuration with placeholders.
const TEMPLATE: &str = include_str!("../../templates/envoy.yaml");

/// Starts Envoy on an unused port.
pub(super) fn start(site: &TargetSite<'_>) -> Result<Running> {
    let listen = free_address()?;
    let config = site.directory.join("envoy.yaml");
    fs::write(&config, render(site, listen)?)?;
    let process = Process::start(
        "envoy",
        site.core,
        site.directory,
        &site.programs.envoy()?,
        [
            "--config-path".as_ref(),
            config.as_os_str(),
            "--concurrency".as_ref(),
            "1".as_ref(),
            "--disable-hot-restart".as_ref(),
            "--log-level".as_ref(),
            "warning".as_ref(),
        ],
    )?;
    Ok(Running::single(process, listen, site.certificates))
}

/// The configuration of a run.
pub(super) fn render(site: &TargetSite<'_>, listen: SocketAddr) -> Result<String> {
    template::render(
        TEMPLATE,
        &[
            ("allowed", ALLOWED.to_owned()),
            ("app_address", site.app.ip().to_string()),
            ("app_port", site.app.port().to_string()),
            ("listen_address", listen.ip().to_string()),
            ("listen_port", listen.port().to_string()),
            ("certificate", site.certificates.server.certificate.display().to_string()),
            ("key", site.certificates.server.key.display().to_string()),
            ("ca", site.certificates.ca.display().to_string()),
        ],
    )
    .context("envoy.yaml")
}
