//! Flags that another program sets or reads, without their dashes, and the subcommand of the interception step.

/// The sidecar's subcommand that redirects a Pod's connections to it.
pub const INTERCEPT: &str = "intercept";

/// Interception: the sidecar's user.
pub const UID: &str = "uid";
/// Interception: ports that others reach without the sidecar.
pub const EXCLUDE_INBOUND_PORTS: &str = "exclude-inbound-ports";
/// Interception: ports that the Pod dials without the sidecar.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "exclude-outbound-ports";
/// Interception: ranges that the Pod dials without the sidecar.
pub const EXCLUDE_OUTBOUND_RANGES: &str = "exclude-outbound-ranges";
/// Interception: the only ranges that the Pod dials through the sidecar.
pub const INCLUDE_OUTBOUND_RANGES: &str = "include-outbound-ranges";
/// Interception: interfaces whose traffic bypasses the sidecar.
pub const EXCLUDE_INTERFACES: &str = "exclude-interfaces";
/// Interception: whether UDP may bypass the mesh.
pub const UDP: &str = "udp";
/// Interception: whether the app listens at the Pod's address.
pub const LOCAL_PROXY_MODE: &str = "local-proxy-mode";
/// Interception: waits for the sidecar.
pub const AFTER_SIDECAR: &str = "after-sidecar";
/// Interception: verifies the rules.
pub const CHECK: &str = "check";

/// Sidecar and interception: the Pod's addresses.
pub const POD_IPS: &str = "pod-ips";
/// Sidecar: its workload.
pub const WORKLOAD: &str = "workload";
/// Sidecar: takes redirected connections.
pub const TRANSPARENT: &str = "transparent";
/// Sidecar: the probes that it answers for the app.
pub const PROBES: &str = "probes";
/// Sidecar: the name to verify in the controller's certificate.
pub const DISCOVERY_SERVER_NAME: &str = "discovery-server-name";
/// Sidecar and injector: the controller.
pub const DISCOVERY_ADDRESS: &str = "discovery-address";

/// Every program with a certificate: the CA.
pub const CA_ADDRESS: &str = "ca-address";
/// Every program with a certificate: the name to verify in the CA's certificate.
pub const CA_SERVER_NAME: &str = "ca-server-name";
/// Every program with a certificate: the file with the mesh's roots.
pub const CA_TRUST_BUNDLE: &str = "ca-trust-bundle";
/// Every program with a certificate: the forward proxy on the way to the CA and the controller.
pub const CONTROL_PLANE_PROXY: &str = "control-plane-proxy";
/// Every program with a certificate: the file with the roots of that proxy.
pub const CONTROL_PLANE_PROXY_CA: &str = "control-plane-proxy-ca";
/// Every program with a certificate: the file with its token.
pub const TOKEN_FILE: &str = "token-file";

/// Injector: `HTTP_PROXY` of sidecars.
pub const SIDECAR_HTTP_PROXY: &str = "sidecar-http-proxy";
/// Injector: `HTTPS_PROXY` of sidecars.
pub const SIDECAR_HTTPS_PROXY: &str = "sidecar-https-proxy";
/// Injector: `NO_PROXY` of sidecars.
pub const SIDECAR_NO_PROXY: &str = "sidecar-no-proxy";
/// Injector: the roots of sidecars' proxies with https.
pub const SIDECAR_PROXY_CA_BUNDLE: &str = "sidecar-proxy-ca-bundle";

/// Daemons: an API server instead of folders.
pub const KUBERNETES: &str = "kubernetes";
/// Daemons: the mesh's name.
pub const MESH_NAME: &str = "mesh-name";
/// Daemons: the trust domain of identities.
pub const TRUST_DOMAIN: &str = "trust-domain";
/// CA and controller: the address of their gRPC service.
pub const LISTEN: &str = "listen";
/// CA: a name of its Service.
pub const SERVING_NAME: &str = "serving-name";
/// CA: names of other Services.
pub const SERVICE_NAMES: &str = "service-names";
/// Controller and injector: the address of their webhook.
pub const WEBHOOK_ADDRESS: &str = "webhook-address";
/// Injector: the image of sidecars.
pub const SIDECAR_IMAGE: &str = "sidecar-image";
/// Injector: when nodes pull the image.
pub const SIDECAR_IMAGE_PULL_POLICY: &str = "sidecar-image-pull-policy";

/// Daemons and sidecar: the address for kubelet and Prometheus.
pub const HEALTH_ADDRESS: &str = "health-address";
/// Every program with an admin server: its address.
pub const ADMIN_ADDRESS: &str = "admin-address";
/// Every program: what to log.
pub const LOG_LEVEL: &str = "log-level";
/// Every program: the format of log lines.
pub const LOG_FORMAT: &str = "log-format";

/// The argument `--<flag>`.
pub fn switch(flag: &str) -> String {
    format!("--{flag}")
}

/// The argument `--<flag>=<value>`.
pub fn argument(flag: &str, value: impl std::fmt::Display) -> String {
    format!("--{flag}={value}")
}

/// The value in the argument `--<flag>=<value>`, if it is one of this flag.
pub fn value<'a>(argument: &'a str, flag: &str) -> Option<&'a str> {
    argument.strip_prefix("--")?.strip_prefix(flag)?.strip_prefix('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_read_as_it_is_written() {
        assert_eq!(switch(CHECK), "--check");
        let written = argument(CA_ADDRESS, "https://ca:1");
        assert_eq!(written, "--ca-address=https://ca:1");
        assert_eq!(value(&written, CA_ADDRESS), Some("https://ca:1"));
        for other in ["--ca-address", "--ca-address-two=x", "ca-address=x", "--ca=x", ""] {
            assert_eq!(value(other, CA_ADDRESS), None, "{other:?}");
        }
    }
}
