//! The certificate of this process: requested from the CA with a service account token, and renewed long before it
//! expires.
//!
//! [`start`] runs its lifecycle: `renewal` decides when to request, `request` sends the request, `verify` checks the
//! answer before it is used. The private key is generated here, a new one for each certificate, and never leaves
//! memory.

mod page;
mod renewal;
mod request;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls_pki_types::ServerName;
use tidegate_core::Identity;
use tidegate_core::contract::{environment, flags};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::credentials::Credentials;
use crate::forward_proxy::ControlPlaneProxyOptions;
use crate::grpc;
use crate::metrics::Metrics;
use crate::trust_bundle::TrustBundle;

pub use page::CertificatePage;
pub use request::RequestError;
pub use verify::VerifyError;

/// Options of the CA client.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct CaOptions {
    /// The CA: https://host:port. It serves istio.v1.auth.IstioCertificateService.
    #[arg(long = flags::CA_ADDRESS, env = "TIDEGATE_CA_ADDRESS", value_name = "URL")]
    pub ca_address: grpc::Address,

    /// The name to verify in the CA's certificate [default: the host in --ca-address]
    #[arg(
        long = flags::CA_SERVER_NAME,
        env = "TIDEGATE_CA_SERVER_NAME",
        value_name = "NAME",
        value_parser = parse_server_name
    )]
    pub ca_server_name: Option<ServerName<'static>>,

    /// PEM file with the mesh's roots; read every second. It also verifies the CA itself.
    #[arg(
        long = flags::CA_TRUST_BUNDLE,
        env = "TIDEGATE_CA_TRUST_BUNDLE",
        value_name = "FILE",
        default_value = "/var/run/secrets/tidegate/ca/root-cert.pem"
    )]
    pub ca_trust_bundle: PathBuf,

    /// File with the service account token that authenticates this process to the CA; reread for each certificate.
    #[arg(
        long = flags::TOKEN_FILE,
        env = "TIDEGATE_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/tidegate/token/token"
    )]
    pub token_file: PathBuf,

    /// The way to the CA, and to the controller.
    #[command(flatten)]
    pub proxy: ControlPlaneProxyOptions,

    /// Lifetime to request, such as 24h or 30m; the CA may grant less. Renewed after half of it.
    #[arg(
        long,
        env = environment::CERTIFICATE_LIFETIME,
        value_name = "DURATION",
        default_value = "24h",
        value_parser = humantime::parse_duration
    )]
    pub certificate_lifetime: Duration,
}

/// A certificate that is kept renewed.
#[derive(Debug)]
pub struct KeptCredentials {
    /// `None` until the first certificate arrives, never `None` again. Expired credentials stay, because there is
    /// nothing better, and watchers are woken when they expire: see [`Credentials::is_expired`].
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// The renewal task. It ends when every receiver is dropped; abort it to stop earlier.
    pub task: JoinHandle<()>,
}

/// Gets a certificate from the CA and renews it as long as a receiver is held.
///
/// A certificate is renewed at half of its lifetime on arrival, plus or minus a random tenth of it; within a minute, at
/// a random moment, when the bundle's first root, the issuing one, becomes one that the certificate does not chain to;
/// and at once when the bundle drops the root it chains to, or the wall clock jumps past the renewal time. A failed
/// attempt is logged, counted in `tidegate_certificate_renewals_total{result}` and retried indefinitely, with
/// exponential backoff and full jitter from 100 ms to 30 s. If `expected` is given, the CSR names it and a certificate
/// for any other identity is refused. Needs a tokio runtime.
pub fn start(
    options: CaOptions,
    expected: Option<Identity>,
    trust_bundle: watch::Receiver<Arc<TrustBundle>>,
    metrics: &Metrics,
) -> KeptCredentials {
    let (sender, credentials) = watch::channel(None);
    let renewal = renewal::Renewal::new(options, expected, trust_bundle, metrics, sender);
    KeptCredentials { credentials, task: tokio::spawn(renewal.run()) }
}

/// Parses the name to verify in a server's certificate, for flags: a DNS name or an IP address.
pub fn parse_server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned())
        .map_err(|_| format!("{text:?} is neither a DNS name nor an IP address"))
}

#[cfg(test)]
mod tests;
