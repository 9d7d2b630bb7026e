//! Names of programs, objects, folders and web paths.

use super::ports;

/// The CA: its program, Deployment, container, Service, ServiceAccount and Lease.
pub const CERT_MANAGER: &str = "tidegate-cert-manager";
/// The controller: its program, Deployment, container, Service, ServiceAccount and Lease.
pub const CONTROLLER: &str = "tidegate-controller";
/// The injector: its program, Deployment, container, Service and ServiceAccount.
pub const INJECTOR: &str = "tidegate-injector";
/// The sidecar: its program and its container in a Pod.
pub const SIDECAR: &str = "tidegate-sidecar";
/// The init container that redirects a Pod's connections.
pub const INTERCEPT: &str = "tidegate-intercept";

/// The control plane's namespace, unless another is chosen.
pub const DEFAULT_CONTROL_PLANE: &str = "tidegate-system";
/// The mesh's name, unless another is chosen: the one that OSM's users have on their namespaces.
pub const DEFAULT_MESH_NAME: &str = "osm";
/// The one MeshConfig that is read.
pub const MESH_CONFIG_NAME: &str = "osm-mesh-config";
/// The Secret with the root and its key, in the control plane's namespace.
pub const ROOT_SECRET: &str = "tidegate-ca-bundle";

/// The ConfigMap with the trust bundle in the default mesh; see [`trust_bundle_config_map`].
pub const TRUST_BUNDLE: &str = "tidegate-trust-bundle";
/// The key of the trust bundle, PEM, in that ConfigMap: a file of the same name where it is mounted.
pub const TRUST_BUNDLE_KEY: &str = "ca.crt";
/// The volume of the trust bundle in a Pod with a sidecar.
pub const TRUST_VOLUME: &str = "tidegate-trust";
/// Where the trust bundle is mounted.
pub const TRUST_FOLDER: &str = "/var/run/tidegate/trust";
/// The audience of tokens in the default mesh; see [`token_audience`].
pub const TOKEN_AUDIENCE: &str = "tidegate-ca";
/// The volume of the token in a Pod with a sidecar.
pub const TOKEN_VOLUME: &str = "tidegate-token";
/// The token's file where it is mounted.
pub const TOKEN_KEY: &str = "token";
/// Where the token is mounted.
pub const TOKEN_FOLDER: &str = "/var/run/tidegate/token";

/// `controllerName` of the mesh's entries in the status of Gateway API's routes.
pub const GATEWAY_CONTROLLER: &str = "tidegate.io/mesh-controller";

/// Web path: whether a process is ready.
pub const READY_PATH: &str = "/ready";
/// Web path: whether a process is alive.
pub const LIVE_PATH: &str = "/live";
/// Web path: metrics of a process.
pub const METRICS_PATH: &str = "/metrics";
/// Web path: a sidecar's metrics, as OSM's users scrape them.
pub const SIDECAR_METRICS_PATH: &str = "/stats/prometheus";
/// Page of a sidecar's admin server that shows what the workload has reached outside the mesh.
pub const EGRESS_PATH: &str = "/egress";
/// Web path: the injector's webhook.
pub const MUTATE_PATH: &str = "/mutate";
/// Web path: the controller's webhook.
pub const VALIDATE_PATH: &str = "/validate";

/// The user and group of the sidecar, whose connections are not redirected.
pub const SIDECAR_USER: u32 = 1500;

/// The name of an object that shares its scope with objects of other meshes, such as a cluster-scoped one: `name` in
/// the mesh [`DEFAULT_MESH_NAME`], `<name>-<mesh>` in others.
pub fn name_in_mesh(name: &str, mesh_name: &str) -> String {
    if mesh_name == DEFAULT_MESH_NAME { name.to_owned() } else { format!("{name}-{mesh_name}") }
}

/// The ConfigMap with the trust bundle, in each namespace of the mesh and in the control plane's. Its name is different
/// for each mesh, because while a namespace moves from one mesh to another, Pods of both run there.
pub fn trust_bundle_config_map(mesh_name: &str) -> String {
    name_in_mesh(TRUST_BUNDLE, mesh_name)
}

/// The audience of the tokens that authenticate this mesh's workloads to its certificate authority. It is different for
/// each mesh, so that a token for one authority is worthless at another.
pub fn token_audience(mesh_name: &str) -> String {
    name_in_mesh(TOKEN_AUDIENCE, mesh_name)
}

/// The host of a Service: `<service>.<namespace>.svc`.
pub fn service_host(service: &str, namespace: &str) -> String {
    format!("{service}.{namespace}.svc")
}

/// The CA of the control plane in this namespace.
pub fn ca_address(control_plane: &str) -> String {
    format!("https://{}:{}", service_host(CERT_MANAGER, control_plane), ports::CA)
}

/// The controller of the control plane in this namespace.
pub fn discovery_address(control_plane: &str) -> String {
    format!("https://{}:{}", service_host(CONTROLLER, control_plane), ports::DISCOVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_meshes_that_share_a_place_have_names_of_their_own() {
        assert_eq!(trust_bundle_config_map("osm"), "tidegate-trust-bundle");
        assert_eq!(trust_bundle_config_map("blue"), "tidegate-trust-bundle-blue");
        assert_eq!(
            (token_audience("osm"), token_audience("blue")),
            ("tidegate-ca".into(), "tidegate-ca-blue".into())
        );
    }

    #[test]
    fn services_are_reached_in_the_namespace_of_the_control_plane() {
        assert_eq!(ca_address("mesh"), "https://tidegate-cert-manager.mesh.svc:15012");
        assert_eq!(discovery_address("mesh"), "https://tidegate-controller.mesh.svc:15128");
    }
}
