//! The command line of `tidegate-injector`.

use std::net::{Ipv6Addr, SocketAddr};

use clap::Parser;
use tidegate_core::contract::names::{self, name_in_mesh};
use tidegate_core::contract::{environment, flags, ports};
use tidegate_kubernetes::options::ControlPlaneOptions;
use tidegate_runtime::grpc;
use tidegate_runtime::identity::CaOptions;
use tidegate_runtime::logging::LogOptions;

use crate::settings::Settings;
use crate::sidecar_proxies::SidecarProxies;

/// Adds the sidecar and the interception step to pods of the mesh's namespaces: a mutating admission webhook.
#[derive(Parser, Clone, Debug)]
#[command(name = names::INJECTOR, version)]
pub struct InjectorOptions {
    /// Accepted so that all daemons share a set of flags: the injector only runs on Kubernetes.
    #[arg(long = flags::KUBERNETES, env = environment::KUBERNETES, hide = true)]
    pub kubernetes: bool,

    /// Address of the webhook.
    #[arg(
        long = flags::WEBHOOK_ADDRESS,
        env = environment::WEBHOOK_ADDRESS,
        value_name = "ADDRESS",
        default_value_t = (Ipv6Addr::UNSPECIFIED, ports::WEBHOOK).into()
    )]
    pub webhook_address: SocketAddr,

    /// The webhook configuration whose caBundle is kept up to date [default: tidegate-injector, with -<mesh> unless the
    /// mesh's name is osm]
    #[arg(long, env = "TIDEGATE_WEBHOOK_CONFIGURATION", value_name = "NAME")]
    pub(crate) webhook_configuration: Option<String>,

    /// Address of the admin server; a loopback address.
    #[arg(
        long = flags::ADMIN_ADDRESS,
        env = environment::ADMIN_ADDRESS,
        value_name = "ADDRESS",
        default_value_t = ports::ADMIN_ADDRESS
    )]
    pub admin_address: SocketAddr,

    /// The image of sidecars.
    #[arg(long = flags::SIDECAR_IMAGE, env = "TIDEGATE_SIDECAR_IMAGE", value_name = "IMAGE")]
    pub sidecar_image: String,

    /// When nodes pull it.
    #[arg(
        long = flags::SIDECAR_IMAGE_PULL_POLICY,
        env = "TIDEGATE_SIDECAR_IMAGE_PULL_POLICY",
        value_name = "POLICY",
        default_value = "IfNotPresent",
        value_parser = ["Always", "IfNotPresent", "Never"]
    )]
    pub(crate) sidecar_image_pull_policy: String,

    /// The sidecars' controller: https://host:port [default: tidegate-controller in --namespace]
    #[arg(long = flags::DISCOVERY_ADDRESS, env = environment::DISCOVERY_ADDRESS, value_name = "URL")]
    pub discovery_address: Option<grpc::Address>,

    /// The way out of the cluster for sidecars.
    #[command(flatten)]
    pub sidecar_proxies: SidecarProxies,

    /// Options that all daemons of the control plane share.
    #[command(flatten)]
    pub common: ControlPlaneOptions,

    /// The CA of the injector's own certificate, which sidecars use, too.
    #[command(flatten)]
    pub ca: CaOptions,

    /// Logging.
    #[command(flatten)]
    pub log: LogOptions,
}

impl InjectorOptions {
    /// The settings of every sidecar.
    pub fn settings(&self) -> Settings {
        let ControlPlaneOptions { namespace, trust, .. } = &self.common;
        let named = Settings::of_mesh(namespace, trust.trust_domain.as_str(), &self.sidecar_image);
        Settings {
            mesh_name: self.common.mesh_name.clone(),
            image_pull_policy: self.sidecar_image_pull_policy.clone(),
            discovery_address: self
                .discovery_address
                .as_ref()
                .map_or(named.discovery_address, ToString::to_string),
            ca_address: self.ca.ca_address.to_string(),
            ca_server_name: self
                .ca
                .ca_server_name
                .as_ref()
                .map_or(named.ca_server_name, |name| name.to_str().into_owned()),
            proxies: self.sidecar_proxies.clone(),
            ..named
        }
    }

    /// The name of our MutatingWebhookConfiguration.
    pub fn configuration_name(&self) -> String {
        let named = || name_in_mesh(names::INJECTOR, &self.common.mesh_name);
        self.webhook_configuration.clone().unwrap_or_else(named)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_flag_has_help_and_can_be_set_by_environment() {
        let command = InjectorOptions::command();
        command.clone().debug_assert();
        for argument in command.get_arguments().filter(|a| !matches!(a.get_id().as_str(), "help" | "version"))
        {
            assert!(argument.get_help().is_some(), "{argument} has no help");
            assert!(argument.get_env().is_some(), "{argument} has no variable");
        }
    }

    #[test]
    fn sidecars_get_what_the_flags_say_and_the_rest_follows_from_the_namespace() {
        let common = [
            "tidegate-injector",
            "--sidecar-image=i:1",
            "--namespace=mesh",
            "--ca-address=https://ca.mesh.svc:15012",
        ];
        let options = InjectorOptions::parse_from(common);
        let expected = Settings {
            ca_address: "https://ca.mesh.svc:15012".to_owned(),
            ..Settings::of_mesh("mesh", "cluster.local", "i:1")
        };
        assert_eq!(options.settings(), expected);
        assert_eq!(options.configuration_name(), "tidegate-injector");
        let more = [
            "--mesh-name=two",
            "--ca-server-name=ca.example",
            "--discovery-address=https://d:1",
            "--trust-domain=td",
        ];
        let options = InjectorOptions::parse_from(common.iter().chain(&more));
        let settings = options.settings();
        assert_eq!(settings.discovery_server_name, "tidegate-controller.mesh.td");
        assert_eq!(settings.discovery_address, "https://d:1");
        assert_eq!(settings.ca_server_name, "ca.example");
        assert_eq!(options.configuration_name(), "tidegate-injector-two");
    }
}
