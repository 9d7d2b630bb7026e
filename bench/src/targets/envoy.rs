//! Envoy: one worker, the RBAC filter with the client's alternative name, for HTTP or for opaque bytes.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

use super::{Running, StartedProxy, TargetSite, free_address};
use crate::certificates::SERVER;
use crate::process::Process;
use crate::template;

/// In front of the app.
pub(super) const HTTP_INBOUND: EnvoyTemplate =
    EnvoyTemplate { text: include_str!("../../templates/envoy.yaml"), is_http: true };
/// The same for opaque bytes.
pub(super) const TCP_INBOUND: EnvoyTemplate =
    EnvoyTemplate { text: include_str!("../../templates/envoy-tcp.yaml"), is_http: false };
/// Beside the client of a pair.
pub(super) const HTTP_OUTBOUND: EnvoyTemplate =
    EnvoyTemplate { text: include_str!("../../templates/outbound/envoy.yaml"), is_http: true };
/// The same for opaque bytes.
pub(super) const TCP_OUTBOUND: EnvoyTemplate =
    EnvoyTemplate { text: include_str!("../../templates/outbound/envoy-tcp.yaml"), is_http: false };
/// Beside a client of the app outside the mesh.
pub(super) const TUNNELS: &str = include_str!("../../templates/outbound/envoy-tunnels.yaml");
/// The file access log with Envoy's default format.
const ACCESS_LOG: &str = r#"[{name: envoy.access_loggers.file, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /dev/null}}]"#;

/// A configuration with placeholders.
pub(super) struct EnvoyTemplate {
    /// The file.
    text: &'static str,
    /// Whether Envoy parses HTTP, so that it has an access log and a version of HTTP to speak.
    is_http: bool,
}

/// Starts Envoy in front of the app, on an unused port.
pub(super) fn http_inbound(site: &TargetSite<'_>) -> Result<StartedProxy> {
    inbound(site, &HTTP_INBOUND)
}

/// The same for opaque bytes.
pub(super) fn tcp_inbound(site: &TargetSite<'_>) -> Result<StartedProxy> {
    inbound(site, &TCP_INBOUND)
}

/// Starts Envoy beside the client; it connects to `to`.
pub(super) fn http_outbound(site: &TargetSite<'_>, to: SocketAddr) -> Result<StartedProxy> {
    outbound(site, &HTTP_OUTBOUND, to)
}

/// The same for opaque bytes.
pub(super) fn tcp_outbound(site: &TargetSite<'_>, to: SocketAddr) -> Result<StartedProxy> {
    outbound(site, &TCP_OUTBOUND, to)
}

/// Starts Envoy beside a client of the app outside the mesh; it opens a tunnel for each connection.
pub(super) fn start_tunnels(site: &TargetSite<'_>) -> Result<Running> {
    let listen = free_address()?;
    let proxy = start(site, "envoy-tunnels", listen, &render_tunnels(site, listen)?)?;
    Ok(Running::outside(proxy, vec![], site))
}

fn inbound(site: &TargetSite<'_>, template: &EnvoyTemplate) -> Result<StartedProxy> {
    let listen = free_address()?;
    start(site, "envoy", listen, &render_inbound(site, template, listen)?)
}

fn outbound(site: &TargetSite<'_>, template: &EnvoyTemplate, to: SocketAddr) -> Result<StartedProxy> {
    let listen = free_address()?;
    start(site, "envoy-outbound", listen, &render_outbound(site, template, listen, to)?)
}

fn start(site: &TargetSite<'_>, name: &str, listen: SocketAddr, config: &str) -> Result<StartedProxy> {
    let file = site.directory.join(format!("{name}.yaml"));
    fs::write(&file, config)?;
    let process = Process::start(
        name,
        site.core,
        site.directory,
        &site.programs.envoy()?,
        [
            "--config-path".as_ref(),
            file.as_os_str(),
            "--concurrency".as_ref(),
            "1".as_ref(),
            "--disable-hot-restart".as_ref(),
            "--log-level".as_ref(),
            "warning".as_ref(),
        ],
    )?;
    Ok(StartedProxy { process, listen })
}

/// The configuration in front of the app.
pub(super) fn render_inbound(
    site: &TargetSite<'_>,
    template: &EnvoyTemplate,
    listen: SocketAddr,
) -> Result<String> {
    template
        .render(
            site,
            [
                ("allowed", site.topology.admitted().to_owned()),
                ("app_address", site.app.ip().to_string()),
                ("app_port", site.app.port().to_string()),
                ("listen_address", listen.ip().to_string()),
                ("listen_port", listen.port().to_string()),
                ("certificate", site.certificates.server.certificate.display().to_string()),
                ("key", site.certificates.server.key.display().to_string()),
                ("ca", site.certificates.ca.display().to_string()),
            ],
        )
        .context("Envoy's configuration in front of the app")
}

/// The configuration beside the client.
pub(super) fn render_outbound(
    site: &TargetSite<'_>,
    template: &EnvoyTemplate,
    listen: SocketAddr,
    to: SocketAddr,
) -> Result<String> {
    template
        .render(
            site,
            [
                ("server_name", SERVER.to_owned()),
                ("to_address", to.ip().to_string()),
                ("to_port", to.port().to_string()),
                ("listen_address", listen.ip().to_string()),
                ("listen_port", listen.port().to_string()),
                ("certificate", site.certificates.caller.certificate.display().to_string()),
                ("key", site.certificates.caller.key.display().to_string()),
                ("ca", site.certificates.ca.display().to_string()),
            ],
        )
        .context("Envoy's configuration beside the client")
}

impl EnvoyTemplate {
    /// Fills the placeholders: `values`, and what depends on the site in any configuration for HTTP.
    fn render<const COUNT: usize>(
        &self,
        site: &TargetSite<'_>,
        values: [(&str, String); COUNT],
    ) -> Result<String> {
        let mut values = values.to_vec();
        if self.is_http {
            let protocol = if site.is_http2 { "http2_protocol_options" } else { "http_protocol_options" };
            values.push(("upstream_protocol", protocol.to_owned()));
            values.push(("access_log", if site.has_access_log { ACCESS_LOG } else { "[]" }.to_owned()));
        }
        template::render(self.text, &values)
    }
}

/// The configuration beside a client of the app outside the mesh.
pub(super) fn render_tunnels(site: &TargetSite<'_>, listen: SocketAddr) -> Result<String> {
    template::render(
        TUNNELS,
        &[
            ("proxy_address", site.app.ip().to_string()),
            ("proxy_port", site.app.port().to_string()),
            ("listen_address", listen.ip().to_string()),
            ("listen_port", listen.port().to_string()),
        ],
    )
    .context("Envoy's configuration for tunnels")
}
