//! The external authorization that the MeshConfig in force sets.
//!
//! A setting that cannot be understood refuses every request, and so does a MeshConfig that cannot be read if it may have
//! enabled the external authorization. The workloads behind the server's own Service are not subject to it: each check
//! would need another one.

use std::sync::Arc;

use tidegate_core::policy::{ExternalAuthorization, ExternalAuthorizationState, ServerAddress};
use tidegate_crds::mesh_config::FieldProblem;

use super::audit::is_audit;
use crate::index::Index;
use crate::object::{Kind, ObjectName};

/// What is the same for all workloads.
pub(super) struct MeshExternalAuthorization {
    authorization: Option<Arc<ExternalAuthorization>>,
    server: Option<ServerLocation>,
}

/// Where the server is, if it is in the cluster.
enum ServerLocation {
    /// Behind this Service, by `<namespace>/<name>`.
    Service(Arc<str>),
    /// In these Pods.
    Pods(Vec<ObjectName>),
}

impl MeshExternalAuthorization {
    /// What the MeshConfig says of it.
    pub(super) fn of(index: &Index) -> Self {
        let authorization = in_force(index);
        let server = authorization.as_ref().and_then(|authorization| match &authorization.state {
            ExternalAuthorizationState::Active(server) => ServerLocation::of(index, &server.address),
            ExternalAuthorizationState::Invalid(_) => None,
        });
        Self { authorization: authorization.map(Arc::new), server }
    }

    /// The external authorization of the workload that runs in this Pod behind these Services (`<namespace>/<name>`).
    pub(super) fn for_workload<'s>(
        &self,
        pod: &ObjectName,
        services: impl IntoIterator<Item = &'s Arc<str>>,
    ) -> Option<Arc<ExternalAuthorization>> {
        let is_server = match &self.server {
            Some(ServerLocation::Service(service)) => services.into_iter().any(|one| one == service),
            Some(ServerLocation::Pods(pods)) => pods.contains(pod),
            None => false,
        };
        self.authorization.clone().filter(|_| !is_server)
    }
}

impl ServerLocation {
    /// `None` for what is not in the cluster. A Service's name is `<name>.<namespace>[.svc[.<cluster domain>]]`.
    fn of(index: &Index, address: &ServerAddress) -> Option<Self> {
        match address {
            ServerAddress::Address(address) => Some(match index.service_at(address.ip()) {
                Some((name, _)) => Self::Service(name.to_shared()),
                None => Self::Pods(index.pods_at(address.ip()).map(|(name, _)| name.clone()).collect()),
            }),
            ServerAddress::Name(name, _) => {
                let mut labels = name.split('.');
                let (name, namespace) = (labels.next()?, labels.next()?);
                let is_of_cluster = labels.next().is_none_or(|label| label == "svc");
                is_of_cluster.then(|| Self::Service(format!("{namespace}/{name}").into()))
            }
        }
    }
}

/// The external authorization of the mesh.
fn in_force(index: &Index) -> Option<ExternalAuthorization> {
    if let Some(config) = index.unreadable_mesh_config() {
        return config.may_authorize_externally().then(|| ExternalAuthorization {
            origin: config.name().to_ref(Kind::MeshConfig),
            state: ExternalAuthorizationState::Invalid(config.reason().into()),
            is_audit: false,
        });
    }
    let (name, config) = index.mesh_config()?;
    let state = match config.spec.external_authorization()?.server() {
        Ok(server) => ExternalAuthorizationState::Active(server),
        Err(FieldProblem { field, problem }) => {
            let why = format!("spec.traffic.inboundExternalAuthorization.{field}: {problem}");
            ExternalAuthorizationState::Invalid(why.into())
        }
    };
    let (origin, is_audit) = (name.to_ref(Kind::MeshConfig), is_audit(&config.metadata));
    Some(ExternalAuthorization { origin, state, is_audit })
}

#[cfg(test)]
mod tests;
