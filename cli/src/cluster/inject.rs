//! `tidegate inject`: adds the sidecar to manifests as the webhook would, to inspect or keep the result.
//!
//! The patch is computed by the injector's own code ([`inject_manifests`]); only its inputs are gathered here: the
//! injector's flags from its Deployment, the MeshConfig, and namespaces from the cluster and from the manifests
//! themselves, which may define the namespace that their Pods are in.

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap_complete::ArgValueCandidates;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use tidegate_core::TrustDomain;
use tidegate_core::contract::flags;
use tidegate_core::contract::names::MESH_CONFIG_NAME;
use tidegate_crds::mesh_config::MeshConfig;
use tidegate_injector::settings::{MeshSettings, Settings};
use tidegate_injector::sidecar_proxies::SidecarProxies;
use tidegate_injector::{ManifestNamespaces, NamespaceView, inject_manifests};

use super::client::{Cluster, ClusterOptions};
use super::control_plane::Part;
use super::namespace;
use crate::candidates;
use crate::output::print;

/// The sidecar's image of this command's version.
const IMAGE: &str = concat!("tidegate/sidecar:", env!("CARGO_PKG_VERSION"));

/// Flags of `tidegate inject`.
#[derive(Args, Debug)]
pub(crate) struct InjectOptions {
    /// Manifests, as YAML; - is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Namespace of objects that name none [default: the context's]
    #[arg(short, long, value_name = "NAME", add = ArgValueCandidates::new(candidates::namespaces))]
    namespace: Option<String>,
    /// Do not contact a cluster: use OSM's defaults for the MeshConfig, and treat namespaces that are in no file as in
    /// the mesh
    #[arg(long)]
    offline: bool,
    /// Image of the sidecar [default: the injector's, or with --offline tidegate/sidecar of this version]
    #[arg(long, value_name = "IMAGE")]
    sidecar_image: Option<String>,
    /// The mesh's trust domain [default: the injector's, or with --offline cluster.local]
    #[arg(long, value_name = "NAME", value_parser = |text: &str| TrustDomain::parse(text))]
    trust_domain: Option<TrustDomain>,
    #[command(flatten)]
    cluster: ClusterOptions,
}

/// The configuration of the cluster's injector.
#[derive(Debug, Default, PartialEq)]
struct InjectorFlags {
    sidecar_image: Option<String>,
    pull_policy: Option<String>,
    trust_domain: Option<String>,
    proxies: SidecarProxies,
}

/// Prints the manifests with sidecars.
pub(crate) async fn run(options: InjectOptions) -> anyhow::Result<ExitCode> {
    let (flags, mesh, mut namespaces) = if options.offline {
        let namespaces = ManifestNamespaces::unknown(options.namespace.clone());
        (InjectorFlags::default(), MeshSettings::parse(None)?, namespaces)
    } else {
        let cluster = options.cluster.connect().await?;
        let (flags, mesh) = from_cluster(&cluster).await?;
        (flags, mesh, options.namespaces(&cluster).await?)
    };
    let settings = options.settings(flags);
    let mut texts = Vec::new();
    for file in &options.files {
        let yaml = read(file)?;
        namespaces.read(&yaml).with_context(|| format!("--file {}", file.display()))?;
        texts.push((file, yaml));
    }
    let mut output = String::new();
    for (file, yaml) in texts {
        let injected = inject_manifests(&yaml, &settings, &mesh, &namespaces);
        let injected = injected.with_context(|| format!("--file {}", file.display()))?;
        for note in injected.notes {
            eprintln!("note: --file {}: {note}", file.display());
        }
        if !output.is_empty() && !injected.yaml.starts_with("---") {
            output += "---\n";
        }
        output += &injected.yaml;
        if !output.ends_with('\n') {
            output.push('\n');
        }
    }
    print(output.as_bytes())
}

impl InjectOptions {
    /// The cluster's namespaces, by whose labels the webhook decides.
    async fn namespaces(&self, cluster: &Cluster) -> anyhow::Result<ManifestNamespaces> {
        let all = namespace::all(cluster).await.context("--offline works without a cluster")?;
        let default = self.namespace.clone();
        let default = default.unwrap_or_else(|| cluster.client.default_namespace().to_owned());
        Ok(ManifestNamespaces::of_cluster(all.into_iter().map(NamespaceView::from), default))
    }

    /// What the injector is started with: flags of this command first, then the cluster's injector, then defaults.
    fn settings(&self, injector: InjectorFlags) -> Settings {
        let image = self.sidecar_image.clone().or(injector.sidecar_image).unwrap_or_else(|| IMAGE.to_owned());
        let trust_domain = self.trust_domain.as_ref().map(ToString::to_string).or(injector.trust_domain);
        let trust_domain = trust_domain.unwrap_or_else(|| "cluster.local".to_owned());
        let mut settings = Settings::of_mesh(self.cluster.control_plane(), &trust_domain, &image);
        settings.mesh_name = self.cluster.mesh_name().to_owned();
        settings.proxies = injector.proxies;
        if let Some(policy) = injector.pull_policy {
            settings.image_pull_policy = policy;
        }
        settings
    }
}

/// The configuration that the cluster's injector uses.
async fn from_cluster(cluster: &Cluster) -> anyhow::Result<(InjectorFlags, MeshSettings)> {
    let namespace = &cluster.control_plane;
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let what = format!("Deployment {namespace}/{}", Part::Injector);
    let injector = cluster.get(&api, Part::Injector.name(), &what).await?;
    let injector =
        injector.with_context(|| format!("{what} does not exist; --offline works without a cluster"))?;
    let api: Api<MeshConfig> = Api::namespaced(cluster.client.clone(), namespace);
    let what = format!("MeshConfig {namespace}/{MESH_CONFIG_NAME}");
    let config = cluster.get(&api, MESH_CONFIG_NAME, &what).await?;
    let mesh = MeshSettings::parse(config.as_ref().map(|config| &config.spec))?;
    Ok((InjectorFlags::of(&injector), mesh))
}

impl InjectorFlags {
    /// The values of its flags, each given as `--name=value`; flags that are absent have the injector's defaults.
    fn of(injector: &Deployment) -> Self {
        let pod = injector.spec.template.spec.as_ref();
        let container = pod.and_then(|pod| pod.containers.iter().find(|c| c.name == Part::Injector.name()));
        let arguments = container.and_then(|container| container.args.as_deref()).unwrap_or_default();
        let flag = |name: &str| {
            let value = |argument: &String| flags::value(argument, name).map(str::to_owned);
            arguments.iter().find_map(value)
        };
        Self {
            sidecar_image: flag(flags::SIDECAR_IMAGE),
            pull_policy: flag(flags::SIDECAR_IMAGE_PULL_POLICY),
            trust_domain: flag(flags::TRUST_DOMAIN),
            proxies: SidecarProxies::of_arguments(arguments),
        }
    }
}

/// A manifest; `-` reads standard input to its end.
fn read(file: &PathBuf) -> anyhow::Result<String> {
    if file.as_os_str() == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    fs::read_to_string(file).with_context(|| format!("--file {}", file.display()))
}

#[cfg(test)]
mod tests;
