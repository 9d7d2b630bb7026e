//! The certificate of this process: asked for at the CA with a service account token, renewed long before it ends.
//!
//! [`start`] runs the life of it: `renewal` decides when to ask, `request` asks, `verify` looks at the answer
//! before anybody uses it. The private key is made here, new for each certificate, and never leaves memory.

mod page;
mod renewal;
mod request;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tidegate_core::{Identity, PeerCertificate};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::grpc;
use crate::metrics::Metrics;
use crate::trust_bundle::{TrustBundle, fingerprint};

pub use page::CertificatePage;
pub use request::RequestError;
pub use verify::{VerifyError, leads_to};

/// A certificate with its key, verified to be ours.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The leaf, then what a peer needs to get from it to a root; the root itself is left out.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key (PKCS #8).
    pub key: Arc<PrivateKeyDer<'static>>,
    /// What is in the leaf.
    pub leaf: PeerCertificate,
    /// Counts up by one with each certificate, from 1.
    pub generation: u64,
}

/// Where certificates come from.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct CaOptions {
    /// The CA: https://host:port. It speaks istio.v1.auth.IstioCertificateService.
    #[arg(long, env = "TIDEGATE_CA_ADDRESS", value_name = "URL")]
    pub ca_address: grpc::Address,

    /// The name that the CA's certificate must hold [default: the host in --ca-address]
    #[arg(long, env = "TIDEGATE_CA_SERVER_NAME", value_name = "NAME", value_parser = parse_server_name)]
    pub ca_server_name: Option<ServerName<'static>>,

    /// PEM file with the mesh's roots; read each second. The CA itself is verified by it too.
    #[arg(
        long,
        env = "TIDEGATE_CA_TRUST_BUNDLE",
        value_name = "FILE",
        default_value = "/var/run/secrets/tidegate/ca/root-cert.pem"
    )]
    pub ca_trust_bundle: PathBuf,

    /// File with the service account token that proves to the CA who we are; read afresh for each certificate.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/tidegate/token/token"
    )]
    pub token_file: PathBuf,

    /// Life to ask for, such as 24h or 30m; the CA may give less. Renewed after half of it.
    #[arg(
        long,
        env = "TIDEGATE_CERTIFICATE_LIFETIME",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = humantime::parse_duration
    )]
    pub certificate_lifetime: Duration,
}

/// A certificate that is kept fresh.
#[derive(Debug)]
pub struct KeptCredentials {
    /// `None` until the first certificate is there, never `None` again. Expired credentials stay, for nothing better
    /// exists, and watchers are woken at the moment they expire: see [`Credentials::is_expired`].
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// The renewal. Ends when every receiver is dropped; abort it to end it before.
    pub task: JoinHandle<()>,
}

/// Gets a certificate from the CA and renews it until the receiver is dropped.
///
/// A certificate is renewed at half of the life it had when it came, a tenth of that life earlier or later at random;
/// within a minute, at a random moment, when the bundle's first root, the one that issues, becomes one that it does not
/// hang on; at once when the bundle drops the root it hangs on, or the wall clock jumps past that moment. A failed try is
/// logged, counted in `tidegate_certificate_renewals_total{result}` and repeated for ever, with exponential backoff
/// and full jitter from 100 ms to 30 s. If `expected` is given, the CSR names it and a certificate for anybody else is
/// refused. Needs a tokio runtime.
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

impl Credentials {
    /// Time left before the leaf expires; zero once it has (RFC 5280 §4.1.2.5).
    pub fn time_left(&self, now: SystemTime) -> Duration {
        self.leaf.not_after.duration_since(now).unwrap_or_default()
    }

    /// Fingerprints of the bundle's roots under each of which alone the certificate is good at `now`, for a client and
    /// for a server.
    pub fn roots(&self, bundle: &TrustBundle, now: SystemTime) -> Vec<String> {
        let good = bundle.roots().iter().filter(|root| leads_to(&self.chain, root, now));
        good.map(|root| fingerprint(root)).collect()
    }

    /// Whether the leaf's life is over at `now`.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now > self.leaf.not_after
    }
}

/// Reads the name that a server's certificate must hold, for flags: a DNS name or an IP address.
pub fn parse_server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned())
        .map_err(|_| format!("{text:?} is neither a DNS name nor an IP address"))
}

#[cfg(test)]
mod tests;
