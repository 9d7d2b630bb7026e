//! HAProxy: one thread, upstream connections shared by all clients, the client's common name compared.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{StartedProxy, TargetSite, free_address};
use crate::certificates::SERVER;
use crate::process::Process;
use crate::template;

/// In front of the app: configuration with placeholders.
const INBOUND: &str = include_str!("../../templates/haproxy.cfg");
/// Beside the client of a pair.
const OUTBOUND: &str = include_str!("../../templates/outbound/haproxy.cfg");

/// Starts HAProxy in front of the app, on an unused port.
pub(super) fn inbound(site: &TargetSite<'_>) -> Result<StartedProxy> {
    let listen = free_address()?;
    start(site, "haproxy", listen, &render_inbound(site, listen)?)
}

/// Starts HAProxy beside the client; it connects to `to`.
pub(super) fn outbound(site: &TargetSite<'_>, to: SocketAddr) -> Result<StartedProxy> {
    let listen = free_address()?;
    start(site, "haproxy-outbound", listen, &render_outbound(site, listen, to)?)
}

fn start(site: &TargetSite<'_>, name: &str, listen: SocketAddr, config: &str) -> Result<StartedProxy> {
    let file = site.directory.join(format!("{name}.cfg"));
    fs::write(&file, config)?;
    let process = Process::start(
        name,
        site.core,
        site.directory,
        &site.programs.haproxy()?,
        ["-db".as_ref(), "-f".as_ref(), file.as_os_str()],
    )?;
    Ok(StartedProxy { process, listen })
}

/// The configuration in front of the app.
pub(super) fn render_inbound(site: &TargetSite<'_>, listen: SocketAddr) -> Result<String> {
    template::render(
        INBOUND,
        &[
            ("allowed", site.topology.admitted().to_owned()),
            ("app", site.app.to_string()),
            ("app_protocol", if site.is_http2 { " proto h2" } else { "" }.to_owned()),
            ("listen", listen.to_string()),
            ("certificate_with_key", site.certificates.server_with_key.display().to_string()),
            ("ca", site.certificates.ca.display().to_string()),
        ],
    )
    .context("haproxy.cfg")
}

/// The configuration beside the client.
pub(super) fn render_outbound(site: &TargetSite<'_>, listen: SocketAddr, to: SocketAddr) -> Result<String> {
    template::render(
        OUTBOUND,
        &[
            ("to", to.to_string()),
            ("protocol", if site.is_http2 { " alpn h2" } else { "" }.to_owned()),
            ("server_name", SERVER.to_owned()),
            ("listen", listen.to_string()),
            ("certificate_with_key", site.certificates.caller_with_key.display().to_string()),
            ("ca", site.certificates.ca.display().to_string()),
        ],
    )
    .context("outbound/haproxy.cfg")
}
