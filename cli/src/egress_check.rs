//! `tidegate check egress`: whether a TLS server outside the mesh can be reached from here, and whether a forward proxy
//! passes its certificate on or shows one of its own.
//!
//! [`object`] finds the proxy of an EgressProxy, [`probe`] connects, directly and through the proxy, [`chain`] speaks TLS without sending a byte to the server,
//! [`verdict`] compares what both have seen.

mod chain;
mod object;
mod probe;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tidegate_runtime::forward_proxy::HttpProxy;

use self::object::{CheckedProxy, EgressProxyName};
use self::probe::{CheckedServer, ProbeRoute};
use self::verdict::EgressCheckReport;
use crate::cluster::client::ClusterOptions;
use crate::output::{OutputFormat, print_as};

/// What `tidegate check` checks besides the installation.
#[derive(Subcommand, Debug)]
pub(crate) enum CheckSubject {
    /// Check whether a TLS server outside the mesh is reachable from this machine, and whether a proxy intercepts TLS.
    ///
    /// Run it where the app runs, or on a machine with the same way out. Exits with 0 if an app that trusts this machine's
    /// roots can speak to the server itself.
    Egress(EgressCheckOptions),
}

/// Flags of `tidegate check egress`.
#[derive(Args, Debug)]
pub(crate) struct EgressCheckOptions {
    /// The server: a name or an address [default port: 443]
    #[arg(value_name = "HOST[:PORT]")]
    server: CheckedServer,
    /// Compare with the connection through this proxy, such as http://proxy.example:3128, with user:password@ before the
    /// host if it wants credentials.
    #[arg(long, value_name = "URL")]
    proxy: Option<HttpProxy>,
    /// Compare with the connection through the first proxy of this EgressProxy, with its credentials, which you must be
    /// allowed to read.
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "proxy")]
    egress_proxy: Option<EgressProxyName>,
    /// PEM file of roots to trust besides this machine's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// How long each connection may take, handshake included.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// Runs the command.
pub(crate) async fn run(subject: CheckSubject) -> anyhow::Result<ExitCode> {
    let CheckSubject::Egress(options) = subject;
    let roots = options.roots()?;
    let proxy = options.checked_proxy(&roots).await?;
    let direct = probe::probe(&options.server, &ProbeRoute::Direct, &roots, options.timeout);
    let through = async {
        let CheckedProxy { proxy, roots: proxy_roots } = proxy.as_ref()?;
        let route = ProbeRoute::Through(proxy, proxy_roots);
        Some(probe::probe(&options.server, &route, &roots, options.timeout).await)
    };
    let (direct, through) = tokio::join!(direct, through);
    let compared = proxy.as_ref().map(|checked| &checked.proxy).zip(through);
    let report = EgressCheckReport::new(&options.server, direct, compared);
    print_as(options.output, &report, EgressCheckReport::text)?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl EgressCheckOptions {
    /// The proxy to compare with. `roots`: those that verify one of `--proxy`.
    async fn checked_proxy(&self, roots: &RootCertStore) -> anyhow::Result<Option<CheckedProxy>> {
        if let Some(name) = &self.egress_proxy {
            let cluster = self.cluster.connect().await?;
            return CheckedProxy::of_object(&cluster, name, &self.server).await.map(Some);
        }
        let proxy = self.proxy.clone();
        Ok(proxy.map(|proxy| CheckedProxy { proxy, roots: roots.clone() }))
    }

    /// This machine's roots, and those of the file.
    fn roots(&self) -> anyhow::Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(file) = &self.ca_file {
            let context = || format!("--ca-file {}", file.display());
            let text = std::fs::read(file).with_context(context)?;
            let certificates: Vec<_> =
                CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().with_context(context)?;
            anyhow::ensure!(!certificates.is_empty(), "{}: it has no certificate", context());
            for certificate in certificates {
                roots.add(certificate).with_context(context)?;
            }
        }
        Ok(roots)
    }
}

#[cfg(test)]
mod tests;
