//! The table of kinds: a row for each kind that the controller reads. What is made from it follows by itself: names,
//! objects, the parts of the index, what sources read.

/// Calls another macro with all rows: the variant of [`Kind`](super::Kind) and [`Object`](super::Object) with its
/// documentation, the type, and the name of its part in the index.
macro_rules! kinds {
    ($with:ident) => {
        $with! {
            /// What belongs to the mesh; `v1`.
            Namespace(k8s_openapi::api::core::v1::Namespace): namespaces,
            /// What a workload runs as; `v1`.
            ServiceAccount(k8s_openapi::api::core::v1::ServiceAccount): service_accounts,
            /// What backends and sources name; `v1`.
            Service(k8s_openapi::api::core::v1::Service): services,
            /// Where a Service's endpoints are; `discovery.k8s.io/v1`.
            EndpointSlice(k8s_openapi::api::discovery::v1::EndpointSlice): endpoint_slices,
            /// A workload, or another Pod; `v1`.
            Pod(k8s_openapi::api::core::v1::Pod): pods,
            /// Who may come in from outside the mesh; `policy.openservicemesh.io/v1alpha1`.
            IngressBackend(tidegate_crds::IngressBackend): ingress_backends,
            /// The mesh's settings; `config.openservicemesh.io/v1alpha2`.
            MeshConfig(tidegate_crds::MeshConfig): mesh_configs,
        }
    };
}

pub(crate) use kinds;
