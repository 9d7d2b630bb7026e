//! Check of what the Services of the mesh declare that their ports carry.

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api, ListParams, ResourceExt};
use tidegate_core::PortProtocol;

use super::{Check, CheckOutcome};
use crate::cluster::client::Cluster;

pub(super) const KNOWN: Check = Check {
    id: "port-protocols",
    category: "Workloads",
    title: "each appProtocol of the mesh's Services is known",
    hint: "connections to these ports are passed on without being parsed: set appProtocol to http, http2, grpc or tcp",
};

/// Ports of Services in these namespaces with an `appProtocol` that is not known.
pub(super) async fn known(cluster: &Cluster, namespaces: &[Namespace]) -> anyhow::Result<CheckOutcome> {
    let mut unknown = Vec::new();
    for namespace in namespaces {
        let name = namespace.name_any();
        let api: Api<Service> = Api::namespaced(cluster.client.clone(), &name);
        let what = format!("services of namespace {name}");
        for service in cluster.list(&api, ListParams::default(), &what).await? {
            let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
            for port in ports.into_iter().flatten() {
                let word = port.app_protocol.as_deref();
                if PortProtocol::of(word, None, None) == PortProtocol::Unknown {
                    let word = word.unwrap_or_default();
                    unknown.push(format!("{name}/{}:{}: {word}", service.name_any(), port.port));
                }
            }
        }
    }
    Ok(CheckOutcome::warning_for(&unknown))
}
