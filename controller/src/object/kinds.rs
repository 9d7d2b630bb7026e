//! The table of kinds: a row for each kind that the controller reads. Names, objects, the parts of the index, and what
//! sources read are generated from it.

/// Calls another macro with all rows: the variant of [`Kind`](super::Kind) and [`Object`](super::Object) with its
/// documentation, the type, and the name of its part in the index.
macro_rules! kinds {
    ($with:ident) => {
        $with! {
            /// Decides by its labels whether it belongs to the mesh; `v1`.
            Namespace(k8s_openapi::api::core::v1::Namespace): namespaces,
            /// The identity of a workload; `v1`.
            ServiceAccount(k8s_openapi::api::core::v1::ServiceAccount): service_accounts,
            /// A backend, or a source of traffic; `v1`.
            Service(k8s_openapi::api::core::v1::Service): services,
            /// A Service's endpoints; `discovery.k8s.io/v1`.
            EndpointSlice(k8s_openapi::api::discovery::v1::EndpointSlice): endpoint_slices,
            /// A workload, or another Pod; `v1`.
            Pod(k8s_openapi::api::core::v1::Pod): pods,
            /// Where Pods run, of which only the zone is read; `v1`.
            Node(k8s_openapi::api::core::v1::Node): nodes,
            /// Which clients outside the mesh are admitted; `policy.openservicemesh.io/v1alpha1`.
            IngressBackend(tidegate_crds::IngressBackend): ingress_backends,
            /// Which workloads may send what to the Pods of a service account; `access.smi-spec.io/v1alpha3`.
            TrafficTarget(tidegate_crds::TrafficTarget): traffic_targets,
            /// Which Services share the traffic of a Service; `split.smi-spec.io/v1alpha4`.
            TrafficSplit(tidegate_crds::TrafficSplit): traffic_splits,
            /// Sets of HTTP requests; `specs.smi-spec.io/v1alpha4`.
            HTTPRouteGroup(tidegate_crds::HTTPRouteGroup): http_route_groups,
            /// Ports; `specs.smi-spec.io/v1alpha4`.
            TCPRoute(tidegate_crds::TCPRoute): tcp_routes,
            /// Limits of the traffic to a Service; `policy.openservicemesh.io/v1alpha1`.
            UpstreamTrafficSetting(tidegate_crds::UpstreamTrafficSetting): upstream_traffic_settings,
            /// Which failed requests to Services are sent again; `policy.openservicemesh.io/v1alpha1`.
            Retry(tidegate_crds::Retry): retries,
            /// The mesh's settings; `config.openservicemesh.io/v1alpha2`.
            MeshConfig(tidegate_crds::MeshConfig): mesh_configs,
            /// What workloads may reach, mostly outside the mesh; `networking.istio.io/v1`.
            ServiceEntry(tidegate_crds::ServiceEntry): service_entries,
            /// Which traffic leaves the mesh through forward proxies; `tidegate.io/v1alpha1`.
            EgressProxy(tidegate_crds::EgressProxy): egress_proxies,
            /// Basic credentials for forward proxies; of other Secrets nothing is kept; `v1`.
            Secret(crate::object::secret::BasicAuthSecret): secrets,
            /// What the workloads of service accounts may reach outside the mesh; `policy.openservicemesh.io/v1alpha1`.
            Egress(tidegate_crds::Egress): egresses,
            /// Where HTTP requests for a Service go; `gateway.networking.k8s.io/v1`.
            HTTPRoute(tidegate_crds::gateway_api::GatewayRoute<tidegate_crds::gateway_api::Http>): http_routes,
            /// Where gRPC calls for a Service go; `gateway.networking.k8s.io/v1`.
            GRPCRoute(tidegate_crds::gateway_api::GatewayRoute<tidegate_crds::gateway_api::Grpc>): grpc_routes,
            /// Where TLS connections to a Service go, by server name; `gateway.networking.k8s.io/v1`.
            TLSRoute(tidegate_crds::gateway_api::GatewayRoute<tidegate_crds::gateway_api::Tls>): tls_routes,
            /// Where connections to a Service go; `gateway.networking.k8s.io/v1`.
            GatewayTCPRoute(tidegate_crds::gateway_api::GatewayRoute<tidegate_crds::gateway_api::Tcp>): gateway_tcp_routes,
        }
    };
}

pub(crate) use kinds;
