//! nginx: one worker, upstream keep-alive, the client's common name compared.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{StartedProxy, TargetSite, free_address};
use crate::certificates::SERVER;
use crate::process::Process;
use crate::template;

/// In front of the app: configuration with placeholders.
const INBOUND: &str = include_str!("../../templates/nginx.conf");
/// Beside the client of a pair.
const OUTBOUND: &str = include_str!("../../templates/outbound/nginx.conf");

/// Starts nginx in front of the app, on an unused port.
pub(super) fn inbound(site: &TargetSite<'_>) -> Result<StartedProxy> {
    let listen = free_address()?;
    start(site, "nginx", listen, &render_inbound(site, listen)?)
}

/// Starts nginx beside the client; it connects to `to`.
pub(super) fn outbound(site: &TargetSite<'_>, to: SocketAddr) -> Result<StartedProxy> {
    let listen = free_address()?;
    start(site, "nginx-outbound", listen, &render_outbound(site, listen, to)?)
}

fn start(site: &TargetSite<'_>, name: &str, listen: SocketAddr, config: &str) -> Result<StartedProxy> {
    let file = site.directory.join(format!("{name}.conf"));
    fs::write(&file, config)?;
    let process = Process::start(
        name,
        site.core,
        site.directory,
        &site.programs.nginx()?,
        [
            "-e".as_ref(),
            "stderr".as_ref(),
            "-p".as_ref(),
            site.directory.as_os_str(),
            "-c".as_ref(),
            file.as_os_str(),
        ],
    )?;
    Ok(StartedProxy { process, listen })
}

/// The configuration in front of the app.
pub(super) fn render_inbound(site: &TargetSite<'_>, listen: SocketAddr) -> Result<String> {
    template::render(
        INBOUND,
        &[
            ("directory", site.directory.display().to_string()),
            ("user", user().to_owned()),
            ("access_log", access_log(site).to_owned()),
            ("allowed", site.topology.admitted().to_owned()),
            ("app", site.app.to_string()),
            ("listen", listen.to_string()),
            ("certificate", site.certificates.server.certificate.display().to_string()),
            ("key", site.certificates.server.key.display().to_string()),
            ("ca", site.certificates.ca.display().to_string()),
        ],
    )
    .context("nginx.conf")
}

/// The configuration beside the client.
pub(super) fn render_outbound(site: &TargetSite<'_>, listen: SocketAddr, to: SocketAddr) -> Result<String> {
    template::render(
        OUTBOUND,
        &[
            ("directory", site.directory.display().to_string()),
            ("user", user().to_owned()),
            ("access_log", access_log(site).to_owned()),
            ("to", to.to_string()),
            ("server_name", SERVER.to_owned()),
            ("listen", listen.to_string()),
            ("certificate", site.certificates.caller.certificate.display().to_string()),
            ("key", site.certificates.caller.key.display().to_string()),
            ("ca", site.certificates.ca.display().to_string()),
        ],
    )
    .context("outbound/nginx.conf")
}

/// The access log's file; each line is written as its request ends.
fn access_log(site: &TargetSite<'_>) -> &'static str {
    if site.has_access_log { "/dev/null" } else { "off" }
}

/// Without this directive, root nginx would drop to a user that cannot read the run's folder.
fn user() -> &'static str {
    if rustix::process::geteuid().is_root() { "user root;" } else { "" }
}
