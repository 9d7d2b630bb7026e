//! `tidegate demo`: the ingress story, on this machine, with the real programs' code.
//!
//! A CA, a controller and a sidecar as `tidegate standalone` runs them; a small app behind the sidecar; and an ingress
//! controller outside the mesh, with the client certificate that the CA issued to it. The policies of
//! `examples/ingress/` are applied one after the other, and each answer is compared with the expected one.
//!
//! The parts talk to each other over real sockets on addresses of 127.0.0.0/8 that are free, so that several demos
//! can run at once and nothing needs root. Everything is in a temporary folder, which is removed at the end.

mod client;
mod echo;
mod story;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use rustls_pki_types::ServerName;
use tidegate_core::contract::environment;
use tidegate_runtime::logging::{self, LogFormat, LogOptions};
use tidegate_runtime::signals;

use self::client::{IngressClient, MountedSecret};
use self::echo::EchoApp;
use self::story::{STEPS, Story};
use crate::standalone::{Standalone, StandaloneOptions};

/// The port of the app, and of the sidecar in front of it.
const PORT: u16 = 14001;
/// The example's network; the demo moves it to a free one.
const EXAMPLE_NETWORK: &str = "127.0.7.";
/// The name that the backend's certificate holds: `<service account>.<namespace>.<trust domain>`.
const BACKEND_NAME: &str = "httpbin.httpbin.cluster.local";

/// The manifests that stay for the whole demo, by their file names.
const MESH: [(&str, &str); 3] = [
    ("meshconfig.yaml", include_str!("../../examples/ingress/mesh/meshconfig.yaml")),
    ("httpbin.yaml", include_str!("../../examples/ingress/mesh/httpbin.yaml")),
    ("ingress-nginx.yaml", include_str!("../../examples/ingress/mesh/ingress-nginx.yaml")),
];

/// Flags of `tidegate demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoOptions {
    /// Leave everything running at the end, and print addresses and curl commands to try. Ctrl-C stops it.
    #[arg(long)]
    keep: bool,
    /// Log filter of the parts; by default they log only errors.
    #[arg(long, env = environment::LOG_LEVEL, value_name = "FILTER", default_value = "error")]
    log_level: String,
}

/// A network of unused loopback addresses: each part of the demo has its own, as pods do.
#[derive(Clone, Copy, Debug)]
struct Network([u8; 3]);

/// Exits with 0 if every answer was as expected.
pub(crate) async fn run(options: DemoOptions) -> anyhow::Result<ExitCode> {
    let log = logging::init(&LogOptions { level: options.log_level, format: LogFormat::Text })?;
    let folder = tempfile::Builder::new()
        .prefix("tidegate-demo-")
        .tempdir()
        .context("creating a folder for the demo")?;
    let (network, app) = Network::claim().await?;
    let manifests = folder.path().join("manifests");
    for (name, text) in MESH {
        write(&manifests, name, &network.translate(text))?;
    }
    println!("Starting a CA, a controller, and a sidecar in front of the app at {}.", app.address());
    let standalone =
        Standalone::start(StandaloneOptions::in_folder(&manifests, &folder.path().join("state")), log)
            .await?;
    standalone.ready().await;

    let client = IngressClient {
        source: SocketAddr::from((network.address(30), 0)),
        secret: MountedSecret(standalone.secret_folder("osm-system", "osm-nginx-client-cert")),
        server_name: ServerName::try_from(BACKEND_NAME)?,
    };
    client.secret.wait().await?;
    let backend = SocketAddr::from((network.address(10), PORT));
    println!(
        "The sidecar listens at {backend}; the ingress controller connects from {}.",
        network.address(30)
    );
    println!("Its client certificate is in {}.\n", client.secret.0.display());
    let story = Story { client, backend, admin: standalone.admin_address(), manifests: &manifests, network };
    let mut failures = 0;
    for (number, step) in (1..).zip(&STEPS) {
        failures += usize::from(!story.tell(number, step).await?);
    }
    match failures {
        0 => println!("All {} answers were as expected.", STEPS.len()),
        _ => println!("{failures} of {} answers were not as expected.", STEPS.len()),
    }
    if options.keep {
        keep(&story, &manifests).await?;
    }
    standalone.shutdown().await;
    Ok(if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what to try, and waits for a signal.
async fn keep(story: &Story<'_>, manifests: &Path) -> anyhow::Result<()> {
    let shutdown = signals::shutdown()?;
    let Story { client, backend, admin, network, .. } = story;
    let file = |name| client.secret.file(name).display().to_string();
    println!(
        "\nEverything keeps running. Change the manifests in {manifests}, and try again:\n\n  \
         curl -i --interface {source} --resolve {BACKEND_NAME}:{PORT}:{address} \\\n    \
         --cacert {ca} --cert {certificate} --key {key} \\\n    https://{BACKEND_NAME}:{PORT}/get\n\n  \
         curl -i --interface {source} http://{backend}/get\n\n  \
         tidegate policy list --admin-address {admin}\n  \
         tidegate explain httpbin/httpbin --source {source} --principal ingress-nginx.ingress-nginx.cluster.local \
         --admin-address {admin}\n\nStop with Ctrl-C.",
        manifests = manifests.display(),
        source = network.address(30),
        address = backend.ip(),
        ca = file("ca.crt"),
        certificate = file("tls.crt"),
        key = file("tls.key"),
    );
    shutdown.await;
    Ok(())
}

impl Network {
    /// Finds a free network by starting the app in it.
    async fn claim() -> anyhow::Result<(Self, EchoApp)> {
        for _ in 0..32 {
            let network = Self([127, rand::random_range(64..=254), rand::random()]);
            let free = tokio::net::TcpListener::bind((network.address(10), PORT)).await;
            if let (Ok(_), Ok(app)) =
                (free, EchoApp::start(SocketAddr::from((network.address(20), PORT))).await)
            {
                return Ok((network, app));
            }
        }
        anyhow::bail!("port {PORT} is in use at every loopback address that was tried")
    }

    /// The address whose last part is `host`, as in the example's manifests.
    fn address(self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Moves a manifest of the example into this network.
    fn translate(self, manifest: &str) -> String {
        let [a, b, c] = self.0;
        manifest.replace(EXAMPLE_NETWORK, &format!("{a}.{b}.{c}."))
    }
}

/// Writes a manifest atomically, so that the folder's watcher never reads half of it.
fn write(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let context = || format!("{}", folder.join(name).display());
    std::fs::create_dir_all(folder).with_context(context)?;
    let temporary = folder.join(format!(".{name}.new"));
    std::fs::write(&temporary, text).with_context(context)?;
    std::fs::rename(&temporary, folder.join(name)).with_context(context)
}
