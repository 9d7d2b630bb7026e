//! The workloads at the other end of connections, as metrics and traces name them.
//!
//! Each gets a number when it is first seen: once for a connection of a client, once for an endpoint. Requests carry only
//! the number, so that they cost no work on names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tidegate_core::backend::{Endpoint, Transport};
use tidegate_core::policy::InboundPolicy;
use tidegate_core::{Identity, San};

/// The most remotes that are told apart.
const MOST_REMOTES: usize = 1024;

/// The number of a remote workload in [`Remotes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteId(u16);

/// What is known about a workload. Names are those of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct WorkloadLabels {
    /// Such as the name of its Deployment.
    pub(crate) name: Option<Arc<str>>,
    pub(crate) namespace: Option<Arc<str>>,
    /// Its identity as a SPIFFE URI.
    pub(crate) principal: Option<Arc<str>>,
}

/// What is known about the other end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct RemoteLabels {
    pub(crate) workload: WorkloadLabels,
    /// `<namespace>/<name>` of the Service that the connection is for.
    pub(crate) service: Option<Arc<str>>,
    /// `EgressProxy/<namespace>/<name>` of the object whose proxies take it out of the mesh.
    pub(crate) egress_proxy: Option<Arc<str>>,
}

/// All remote workloads of this one, and itself. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remotes(Arc<Mutex<RemoteTable>>);

#[derive(Debug, Default)]
struct RemoteTable {
    own: WorkloadLabels,
    ids: HashMap<RemoteLabels, RemoteId>,
    /// By number, from [`RemoteId::FIRST`] on.
    labels: Vec<RemoteLabels>,
}

/// The workload behind an endpoint, which gets its number when it is first used.
#[derive(Debug)]
pub(crate) struct EndpointRemote {
    remotes: Remotes,
    /// Name and namespace of the workload.
    workload: Option<Arc<str>>,
    service: Option<Arc<str>>,
    egress_proxy: Option<Arc<str>>,
    id: OnceLock<RemoteId>,
}

impl RemoteId {
    /// Nothing is known about it.
    pub(crate) const UNKNOWN: Self = Self(0);
    /// One of those that are not told apart, because there are too many.
    pub(crate) const OTHER: Self = Self(1);
    /// A destination outside the mesh.
    pub(crate) const OUTSIDE: Self = Self(2);
    /// The first that is in the table.
    const FIRST: u16 = 3;

    /// The one with this number.
    pub(crate) fn of_index(index: u64) -> Option<Self> {
        u16::try_from(index).ok().map(Self)
    }

    /// Its number, at most [`MOST_REMOTES`] and a few.
    pub(crate) fn index(self) -> usize {
        self.0.into()
    }
}

impl Remotes {
    /// The number of the remote workload with these labels.
    pub(crate) fn id(&self, labels: RemoteLabels) -> RemoteId {
        let mut table = self.lock();
        if let Some(id) = table.ids.get(&labels) {
            return *id;
        }
        if table.labels.len() >= MOST_REMOTES {
            return RemoteId::OTHER;
        }
        let id = u16::try_from(table.labels.len())
            .map_or(RemoteId::OTHER, |place| RemoteId(RemoteId::FIRST + place));
        table.labels.push(labels.clone());
        table.ids.insert(labels, id);
        id
    }

    /// What is known about a remote workload; nothing about one that is not in the table.
    pub(crate) fn labels(&self, id: RemoteId) -> RemoteLabels {
        let place = id.0.checked_sub(RemoteId::FIRST).map(usize::from);
        place.and_then(|place| self.lock().labels.get(place).cloned()).unwrap_or_default()
    }

    /// The workload of the sidecar.
    pub(crate) fn own(&self) -> WorkloadLabels {
        self.lock().own.clone()
    }

    /// Takes over from a policy what this workload is called.
    pub(crate) fn identify(&self, policy: &InboundPolicy) {
        let pod = policy.workload.rsplit_once('/').map(|(_, pod)| pod);
        let name = policy.telemetry.workload.clone().or_else(|| pod.map(Into::into));
        self.name_own(WorkloadLabels { name, ..WorkloadLabels::of(&policy.identity) });
    }

    /// Takes over what this workload is called.
    pub(crate) fn name_own(&self, own: WorkloadLabels) {
        self.lock().own = own;
    }

    fn lock(&self) -> MutexGuard<'_, RemoteTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkloadLabels {
    /// A workload of which the identity is known.
    fn of(identity: &Identity) -> Self {
        let principal = Some(identity.spiffe_uri().into());
        Self { name: None, namespace: Some(identity.namespace().into()), principal }
    }

    /// The workload that a verified certificate with these names belongs to. Its first URI is its principal.
    pub(crate) fn of_certificate(names: &[San]) -> Self {
        let uri = names.iter().find_map(|name| match name {
            San::Uri(uri) => Some(uri),
            _ => None,
        });
        let Some(uri) = uri else { return Self::default() };
        match Identity::from_spiffe_uri(uri) {
            Ok(identity) => Self::of(&identity),
            Err(_) => Self { principal: Some(uri.clone().into()), ..Self::default() },
        }
    }
}

impl EndpointRemote {
    /// The workload of an endpoint of a backend. `workload`: in the namespace of `object`, `<namespace>/<name>`, which is a
    /// Service if `is_service`.
    pub(crate) fn new(
        remotes: &Remotes,
        workload: Option<&Arc<str>>,
        object: &Arc<str>,
        is_service: bool,
    ) -> Self {
        let service = is_service.then(|| object.clone());
        Self { workload: workload.cloned(), service, ..Self::of_nothing(remotes.clone(), OnceLock::new()) }
    }

    /// A destination outside the mesh.
    pub(crate) fn outside() -> Self {
        Self::of_nothing(Remotes::default(), RemoteId::OUTSIDE.into())
    }

    /// What is behind the forward proxies of this object, `EgressProxy/<namespace>/<name>`.
    pub(crate) fn proxied(remotes: &Remotes, object: &Arc<str>) -> Self {
        Self { egress_proxy: Some(object.clone()), ..Self::of_nothing(remotes.clone(), OnceLock::new()) }
    }

    fn of_nothing(remotes: Remotes, id: OnceLock<RemoteId>) -> Self {
        Self { remotes, workload: None, service: None, egress_proxy: None, id }
    }

    /// The number of the workload at this endpoint.
    pub(crate) fn id(&self, endpoint: &Endpoint) -> RemoteId {
        *self.id.get_or_init(|| {
            let known = match &endpoint.transport {
                Transport::Mesh(identity) => WorkloadLabels::of(identity),
                Transport::MeshOneOf(_) | Transport::Plain | Transport::Tls(_) => WorkloadLabels::default(),
            };
            let of_service =
                || self.service.as_deref()?.split_once('/').map(|(namespace, _)| namespace.into());
            let namespace = known.namespace.or_else(|| self.workload.as_ref().and_then(|_| of_service()));
            let workload = WorkloadLabels { name: self.workload.clone(), namespace, ..known };
            let (service, egress_proxy) = (self.service.clone(), self.egress_proxy.clone());
            self.remotes.id(RemoteLabels { workload, service, egress_proxy })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> RemoteLabels {
        RemoteLabels { service: Some(name.into()), ..RemoteLabels::default() }
    }

    #[test]
    fn a_remote_workload_keeps_its_number_and_those_beyond_the_bound_are_not_told_apart() {
        let remotes = Remotes::default();
        let first = remotes.id(service("shop/cart"));
        assert_eq!(remotes.labels(first), service("shop/cart"));
        for i in 1..MOST_REMOTES {
            assert_ne!(remotes.id(service(&i.to_string())), RemoteId::OTHER);
        }
        assert_eq!(remotes.id(service("shop/one-more")), RemoteId::OTHER);
        assert_eq!(remotes.id(service("shop/cart")), first);
        assert_eq!(remotes.labels(RemoteId::OTHER), RemoteLabels::default());
    }

    #[test]
    fn a_certificate_names_a_principal_and_a_workload_of_the_mesh_its_namespace() {
        let of = |uri: &str| WorkloadLabels::of_certificate(&[San::Uri(uri.into())]);
        let cart = of("spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(cart.namespace.as_deref(), Some("shop"));
        assert_eq!(cart.principal.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/cart"));
        let other = of("https://gateway.example");
        assert_eq!((other.namespace, other.principal.as_deref()), (None, Some("https://gateway.example")));
        assert_eq!(WorkloadLabels::of_certificate(&[]), WorkloadLabels::default());
    }

    #[test]
    fn an_endpoint_has_its_workload_and_its_service() {
        let remotes = Remotes::default();
        let (cart, object) = ("cart".into(), "shop/cart-service".into());
        let identity = Identity::from_spiffe_uri("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
        let mesh = Endpoint::new("10.0.0.1:80".parse().unwrap(), Transport::Mesh(identity));
        let labels = |remote: EndpointRemote, endpoint| remotes.labels(remote.id(endpoint));
        let labels_of_mesh = labels(EndpointRemote::new(&remotes, Some(&cart), &object, true), &mesh);
        assert_eq!(labels_of_mesh.workload.name.as_deref(), Some("cart"));
        assert_eq!(labels_of_mesh.service.as_deref(), Some("shop/cart-service"));
        assert!(labels_of_mesh.workload.principal.is_some());
        let plain = Endpoint::new(mesh.address, Transport::Plain);
        let labels_of_plain = labels(EndpointRemote::new(&remotes, Some(&cart), &object, true), &plain);
        assert_eq!(labels_of_plain.workload.namespace.as_deref(), Some("shop"));
        assert_eq!(labels_of_plain.workload.principal, None);
        let of_pod = labels(EndpointRemote::new(&remotes, None, &object, false), &plain);
        assert_eq!(of_pod, RemoteLabels::default());
        assert_eq!(EndpointRemote::outside().id(&plain), RemoteId::OUTSIDE);
        let proxied = labels(EndpointRemote::proxied(&remotes, &"EgressProxy/shop/squid".into()), &plain);
        assert_eq!(proxied.egress_proxy.as_deref(), Some("EgressProxy/shop/squid"));
    }
}
