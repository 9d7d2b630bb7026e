//! Flags for a sidecar in a pod, whose connections are redirected to it.

use std::net::{AddrParseError, IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use tidegate_core::contract::{environment, flags, ports};

use crate::probes::Probes;

/// Flags that only a sidecar in a pod needs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "In a pod")]
pub struct PodOptions {
    /// Accept the connections that `tidegate-sidecar intercept` redirects, on all addresses, instead of --inbound.
    #[arg(long = flags::TRANSPARENT, env = "TIDEGATE_TRANSPARENT")]
    pub transparent: bool,

    /// Port to which connections from other hosts are redirected.
    #[arg(
        long,
        env = environment::INBOUND_PORT,
        value_name = "PORT",
        default_value_t = ports::INBOUND,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub inbound_port: u16,

    /// Port to which the app's own connections are redirected.
    #[arg(
        long,
        env = environment::OUTBOUND_PORT,
        value_name = "PORT",
        default_value_t = ports::OUTBOUND,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub outbound_port: u16,

    /// The pod's addresses, separated by commas. Addresses of additional interfaces are detected.
    #[arg(long = flags::POD_IPS, env = environment::POD_IPS, value_name = "IP,IP", default_value = "")]
    pub pod_ips: PodIps,

    /// Address for kubelet and Prometheus: /ready, /live, /metrics, /stats/prometheus [default: none]
    #[arg(long = flags::HEALTH_ADDRESS, env = environment::HEALTH_ADDRESS, value_name = "ADDRESS")]
    pub health_address: Option<SocketAddr>,

    /// The app's probes that kubelet sends to the sidecar, as a JSON list.
    #[arg(long = flags::PROBES, env = "TIDEGATE_PROBES", value_name = "JSON", default_value = "[]")]
    pub probes: Probes,
}

/// The pod's addresses, in the format of the downward API: separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodIps(pub Arc<[IpAddr]>);

/// Text that is not a list of addresses.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an IP address: {source}")]
pub struct PodIpsError {
    text: String,
    source: AddrParseError,
}

impl Default for PodOptions {
    /// For a sidecar outside a pod.
    fn default() -> Self {
        Self {
            transparent: false,
            inbound_port: ports::INBOUND,
            outbound_port: ports::OUTBOUND,
            pod_ips: PodIps::default(),
            health_address: None,
            probes: Probes::default(),
        }
    }
}

impl FromStr for PodIps {
    type Err = PodIpsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = |text: &str| text.parse().map_err(|source| PodIpsError { text: text.to_owned(), source });
        text.split(',')
            .map(str::trim)
            .filter(|ip| !ip.is_empty())
            .map(parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_downward_api_writes_them() {
        let ips: PodIps = "10.1.2.3,fd00::1".parse().unwrap();
        assert_eq!(*ips.0, ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!("".parse::<PodIps>().unwrap(), PodIps::default());
        assert!("10.1.2.3,httpbin".parse::<PodIps>().unwrap_err().to_string().contains("\"httpbin\""));
    }
}
