//! Which controller `tidegate policy` and `tidegate explain` query, and which sidecar.
//!
//! The order: `--admin-address`, a cluster that is configured by flags, environment or the usual files, and last the
//! default address of `tidegate standalone`, so that a laptop without a cluster needs no flag.

use std::net::SocketAddr;

use clap::Args;
use serde::de::DeserializeOwned;
use tidegate_controller::object::ObjectName;
use tidegate_core::contract::{environment, ports};

use crate::admin_client::fetch;
use crate::cluster::client::ClusterOptions;
use crate::cluster::control_plane::Part;
use crate::cluster::proxy::meshed_pod;

/// The controller to query: the cluster's, or that of a local process.
#[derive(Args, Clone, Debug)]
pub(crate) struct AdminTarget {
    /// Query the process at this admin address, such as `tidegate standalone`, instead of a cluster [default:
    /// 127.0.0.1:15000 if no cluster is configured]
    #[arg(long, env = environment::ADMIN_ADDRESS, value_name = "ADDRESS")]
    admin_address: Option<SocketAddr>,
    #[command(flatten)]
    cluster: ClusterOptions,
}

impl AdminTarget {
    /// The controller's answer to `GET path`.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        match self.admin_address {
            Some(address) => fetch(address, path).await,
            None if self.cluster.is_configured() => {
                self.cluster.connect().await?.ask(Part::Controller, path).await
            }
            None => fetch(ports::ADMIN_ADDRESS, path).await,
        }
    }

    /// The answer of a Pod's sidecar to `GET path`; with `--admin-address`, that of the sidecar there.
    pub(crate) async fn ask_sidecar<T: DeserializeOwned>(
        &self,
        pod: &ObjectName,
        path: &str,
    ) -> anyhow::Result<T> {
        match self.admin_address {
            Some(address) => fetch(address, path).await,
            None => {
                let cluster = self.cluster.connect().await?;
                meshed_pod(&cluster, &pod.namespace, &pod.name).await?;
                Ok(cluster.admin_json(&pod.namespace, &pod.name, path).await?)
            }
        }
    }
}
