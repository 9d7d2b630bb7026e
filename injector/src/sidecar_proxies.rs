//! Forward proxies of the sidecars' own connections to servers outside the cluster, such as a collector of spans.

use clap::Args;
use tidegate_core::contract::{environment, flags};

/// Variables of sidecars, as the injector's flags give them.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct SidecarProxies {
    /// HTTP_PROXY of sidecars: for collectors of OTLP over HTTP outside the cluster.
    #[arg(long = flags::SIDECAR_HTTP_PROXY, env = "TIDEGATE_SIDECAR_HTTP_PROXY", value_name = "URL", hide_env_values = true)]
    pub sidecar_http_proxy: Option<String>,

    /// HTTPS_PROXY of sidecars: for collectors of OTLP over gRPC outside the cluster.
    #[arg(long = flags::SIDECAR_HTTPS_PROXY, env = "TIDEGATE_SIDECAR_HTTPS_PROXY", value_name = "URL", hide_env_values = true)]
    pub sidecar_https_proxy: Option<String>,

    /// NO_PROXY of sidecars: hosts outside the cluster that they reach directly.
    #[arg(long = flags::SIDECAR_NO_PROXY, env = "TIDEGATE_SIDECAR_NO_PROXY", value_name = "LIST")]
    pub sidecar_no_proxy: Option<String>,

    /// The roots of these proxies as PEM, if their URLs have https.
    #[arg(long = flags::SIDECAR_PROXY_CA_BUNDLE, env = "TIDEGATE_SIDECAR_PROXY_CA_BUNDLE", value_name = "PEM")]
    pub sidecar_proxy_ca_bundle: Option<String>,
}

impl SidecarProxies {
    /// From the arguments of an injector's container, each written as `--name=value`.
    pub fn of_arguments(arguments: &[String]) -> Self {
        let flag =
            |name| arguments.iter().find_map(|argument| flags::value(argument, name)).map(str::to_owned);
        Self {
            sidecar_http_proxy: flag(flags::SIDECAR_HTTP_PROXY),
            sidecar_https_proxy: flag(flags::SIDECAR_HTTPS_PROXY),
            sidecar_no_proxy: flag(flags::SIDECAR_NO_PROXY),
            sidecar_proxy_ca_bundle: flag(flags::SIDECAR_PROXY_CA_BUNDLE),
        }
    }

    /// The variables that are set, and their values.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("HTTP_PROXY", &self.sidecar_http_proxy),
            ("HTTPS_PROXY", &self.sidecar_https_proxy),
            ("NO_PROXY", &self.sidecar_no_proxy),
            (environment::PROXY_CA_BUNDLE, &self.sidecar_proxy_ca_bundle),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name, value.as_deref().filter(|it| !it.is_empty())?)))
    }
}
