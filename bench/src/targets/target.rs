//! Which targets are measured in which topology, and how each is started.

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::tidegate::{OutsidePolicy, PairSettings};
use super::{Programs, Running, StartedProxy, TargetSite, envoy, haproxy, nginx, tidegate};
use crate::topology::ProxyTopology;

/// A measured target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// Client → app, plaintext: without a proxy.
    Direct,
    /// Tidegate's sidecar, and HTTP.
    Tidegate,
    /// Tidegate's sidecar, for which the bytes are opaque.
    TidegateTcp,
    /// Tidegate's sidecar and HTTP, with its access log.
    TidegateLog,
    /// Tidegate's sidecars and HTTP; of the traces, 1 % are recorded and exported.
    TidegateTraces,
    /// Tidegate's sidecars and HTTP, with 100 rules at either side, of which the last one applies.
    #[value(name = "tidegate-100-rules")]
    #[serde(rename = "tidegate-100-rules")]
    Tidegate100Rules,
    /// The same with 1,000 rules.
    #[value(name = "tidegate-1000-rules")]
    #[serde(rename = "tidegate-1000-rules")]
    Tidegate1000Rules,
    /// Tidegate's sidecar, and ServiceEntries for the names of the app outside the mesh.
    #[value(name = "tidegate-3-entries")]
    #[serde(rename = "tidegate-3-entries")]
    Tidegate3Entries,
    /// The same among 1,000 ServiceEntries.
    #[value(name = "tidegate-1000-entries")]
    #[serde(rename = "tidegate-1000-entries")]
    Tidegate1000Entries,
    /// The same among 10,000 ServiceEntries.
    #[value(name = "tidegate-10000-entries")]
    #[serde(rename = "tidegate-10000-entries")]
    Tidegate10000Entries,
    /// Tidegate's sidecar, and Egresses with 1,000 hosts.
    #[value(name = "tidegate-1000-hosts")]
    #[serde(rename = "tidegate-1000-hosts")]
    Tidegate1000Hosts,
    /// The same with 10,000 hosts.
    #[value(name = "tidegate-10000-hosts")]
    #[serde(rename = "tidegate-10000-hosts")]
    Tidegate10000Hosts,
    Nginx,
    /// nginx with its access log.
    NginxLog,
    Haproxy,
    /// Envoy, and HTTP.
    Envoy,
    /// Envoy and HTTP, with its access log.
    EnvoyLog,
    /// Envoy, for which the bytes are opaque.
    EnvoyTcp,
}

impl Target {
    /// The targets that are measured in a topology, in the order of the columns.
    pub(crate) fn all(topology: ProxyTopology) -> &'static [Self] {
        match topology {
            ProxyTopology::Ingress => {
                &[Self::Direct, Self::Tidegate, Self::Nginx, Self::Haproxy, Self::Envoy]
            }
            ProxyTopology::Pair => &[
                Self::Direct,
                Self::Tidegate,
                Self::TidegateTcp,
                Self::Tidegate100Rules,
                Self::Tidegate1000Rules,
                Self::Nginx,
                Self::Haproxy,
                Self::Envoy,
                Self::EnvoyTcp,
            ],
            ProxyTopology::Egress => &[
                Self::Tidegate,
                Self::Tidegate3Entries,
                Self::Tidegate1000Entries,
                Self::Tidegate10000Entries,
                Self::Tidegate1000Hosts,
                Self::Tidegate10000Hosts,
                Self::Envoy,
            ],
        }
    }

    /// The targets that an extended run measures in addition, in the order of the columns.
    pub(crate) fn extended(topology: ProxyTopology) -> &'static [Self] {
        match topology {
            ProxyTopology::Ingress => &[Self::TidegateLog, Self::NginxLog, Self::EnvoyLog],
            ProxyTopology::Egress => &[],
            ProxyTopology::Pair => &[Self::TidegateLog, Self::TidegateTraces, Self::NginxLog, Self::EnvoyLog],
        }
    }

    /// Whether its proxies write an access log.
    pub(crate) fn has_access_log(self) -> bool {
        matches!(self, Self::TidegateLog | Self::NginxLog | Self::EnvoyLog)
    }

    /// Whether it differs from another target by one setting only, so that its main measurements say enough.
    pub(crate) fn is_variant(self) -> bool {
        self.has_access_log()
            || matches!(self, Self::TidegateTraces | Self::Tidegate100Rules | Self::Tidegate1000Rules)
    }

    /// Whether it can carry HTTP/2 from the client of a pair to the app.
    pub(crate) fn carries_http2(self) -> bool {
        matches!(self, Self::Direct | Self::Tidegate | Self::Haproxy | Self::Envoy)
    }

    /// The version that its program reports; `None` without a program. If it is missing, the error says how to get it.
    pub(crate) fn version(self, programs: &Programs) -> Result<Option<String>> {
        let (program, flag) = match self {
            Self::Direct => return Ok(None),
            Self::Nginx | Self::NginxLog => (programs.nginx()?, "-v"),
            Self::Haproxy => (programs.haproxy()?, "-v"),
            Self::Envoy | Self::EnvoyLog | Self::EnvoyTcp => (programs.envoy()?, "--version"),
            _ => (programs.tidegate()?.sidecar, "--version"),
        };
        let output = Command::new(&program)
            .arg(flag)
            .output()
            .with_context(|| format!("cannot execute {}", program.display()))?;
        let text =
            String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout })
                .into_owned();
        let number =
            version_number(&text).with_context(|| format!("{self} does not report a version: {text}"))?;
        Ok(Some(format!("{} {number}", self.program())))
    }

    /// Starts the target. It may not serve yet.
    pub(crate) async fn start(self, site: &TargetSite<'_>) -> Result<Running> {
        let http = PairSettings {
            protocol: if site.is_http2 { "grpc" } else { "http" },
            rules: 0,
            is_traced: false,
        };
        match self {
            Self::Direct => Ok(Running::without_proxy(site.app)),
            Self::Tidegate | Self::Envoy if site.topology == ProxyTopology::Egress => match self {
                Self::Envoy => envoy::start_tunnels(site),
                _ => tidegate::start_outside(site, OutsidePolicy::ForwardProxy).await,
            },
            Self::Tidegate3Entries => tidegate::start_outside(site, OutsidePolicy::Entries(3)).await,
            Self::Tidegate1000Entries => tidegate::start_outside(site, OutsidePolicy::Entries(1000)).await,
            Self::Tidegate10000Entries => tidegate::start_outside(site, OutsidePolicy::Entries(10_000)).await,
            Self::Tidegate1000Hosts => tidegate::start_outside(site, OutsidePolicy::Hosts(1000)).await,
            Self::Tidegate10000Hosts => tidegate::start_outside(site, OutsidePolicy::Hosts(10_000)).await,
            Self::Tidegate | Self::TidegateLog => tidegate::start(site, http).await,
            Self::TidegateTcp => tidegate::start(site, PairSettings { protocol: "tcp", ..http }).await,
            Self::TidegateTraces => tidegate::start(site, PairSettings { is_traced: true, ..http }).await,
            Self::Tidegate100Rules => tidegate::start(site, PairSettings { rules: 100, ..http }).await,
            Self::Tidegate1000Rules => tidegate::start(site, PairSettings { rules: 1000, ..http }).await,
            Self::Nginx | Self::NginxLog => start_peer(site, nginx::inbound, nginx::outbound),
            Self::Haproxy => start_peer(site, haproxy::inbound, haproxy::outbound),
            Self::Envoy | Self::EnvoyLog => start_peer(site, envoy::http_inbound, envoy::http_outbound),
            Self::EnvoyTcp => start_peer(site, envoy::tcp_inbound, envoy::tcp_outbound),
        }
    }

    /// The name of its program.
    fn program(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx | Self::NginxLog => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Envoy | Self::EnvoyLog | Self::EnvoyTcp => "Envoy",
            _ => "Tidegate",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.program())?;
        formatter.write_str(match self {
            Self::TidegateTcp | Self::EnvoyTcp => " TCP",
            Self::TidegateLog | Self::NginxLog | Self::EnvoyLog => " log",
            Self::TidegateTraces => " traces",
            Self::Tidegate100Rules => " 100 rules",
            Self::Tidegate1000Rules => " 1,000 rules",
            Self::Tidegate3Entries => " 3 entries",
            Self::Tidegate1000Entries => " 1,000 entries",
            Self::Tidegate10000Entries => " 10,000 entries",
            Self::Tidegate1000Hosts => " 1,000 hosts",
            Self::Tidegate10000Hosts => " 10,000 hosts",
            _ => "",
        })
    }
}

/// Starts the proxy in front of the app, and for a pair the one beside the client, which connects to it.
fn start_peer(
    site: &TargetSite<'_>,
    inbound: fn(&TargetSite<'_>) -> Result<StartedProxy>,
    outbound: fn(&TargetSite<'_>, SocketAddr) -> Result<StartedProxy>,
) -> Result<Running> {
    let inbound = inbound(site)?;
    match site.topology {
        ProxyTopology::Ingress => Ok(Running::single(inbound, site)),
        ProxyTopology::Pair | ProxyTopology::Egress => {
            Ok(Running::pair(outbound(site, inbound.listen)?, inbound, site))
        }
    }
}

/// The first word, or `/`-separated part of a word, that starts like 1.2.
pub(super) fn version_number(text: &str) -> Option<&str> {
    text.split(|character: char| character.is_whitespace() || character == '/').find(|part| {
        let mut numbers =
            part.split('.').map(|number| number.starts_with(|first: char| first.is_ascii_digit()));
        numbers.next() == Some(true) && numbers.next() == Some(true)
    })
}
