//! Gateway API's conformance suite for meshes, profiles MESH-HTTP and MESH-GRPC, with every feature that its tests of a
//! mesh ask for. `tests/conformance/run` keeps the report.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tidegate_tests::daemon::programs;
use tidegate_tests::golden::repository;
use tidegate_tests::kubernetes::cluster::{Cluster, run};
use tidegate_tests::kubernetes::mesh::Mesh;

/// What is claimed. A test of the suite is left out unless each feature that it lists is; some tests of a mesh also list
/// features of gateways' routes.
const FEATURES: [&str; 20] = [
    "Mesh",
    "HTTPRoute",
    "GRPCRoute",
    "ReferenceGrant",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteParentRefPort",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteNamedRouteRule",
    "GRPCRouteNamedRouteRule",
];

/// Profiles with the numbers of their tests: core and extended.
const PROFILES: [(&str, u64, u64); 2] = [("MESH-HTTP", 7, 7), ("MESH-GRPC", 3, 0)];

/// Tests that no profile counts.
const UNCOUNTED: [&str; 7] = [
    "MeshFrontend",
    "MeshFrontendHostname",
    "MeshPorts",
    "MeshConsumerRoute",
    "MeshHTTPRoute303Redirect",
    "MeshHTTPRoute307Redirect",
    "MeshHTTPRoute308Redirect",
];

/// The suite, built once for all runs.
struct Suite {
    folder: PathBuf,
}

impl Suite {
    fn build() -> Self {
        let script = repository().join("tests/conformance/build");
        let built = run(&mut Command::new(script), "").unwrap_or_else(|failure| panic!("{failure}"));
        Self { folder: PathBuf::from(built.trim()) }
    }

    /// The suite's own definitions of Gateway API's kinds.
    fn definitions(&self) -> String {
        self.folder.join("crds").display().to_string()
    }

    /// Asserts that the chart's definitions are these, byte for byte.
    fn assert_chart_has_definitions(&self) {
        let chart = repository().join("charts/tidegate-crds/gateway-api");
        for file in std::fs::read_dir(chart).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|extension| extension == "yaml") {
                let original = self.folder.join("crds").join(file.file_name().unwrap());
                let read = |file: &Path| std::fs::read(file).unwrap();
                assert!(
                    read(&file) == read(&original),
                    "{} differs from {}",
                    file.display(),
                    original.display()
                );
            }
        }
    }

    /// Loads the image that the suite's Pods run.
    fn load_image(&self, cluster: &Cluster) {
        let tar = programs().join("images/echo-advanced.tar");
        let image = repository().join("tests/cluster/image");
        let of = |source: &str, target: &str| format!("{}:{target}", self.folder.join(source).display());
        let mut command = Command::new(image);
        command.args(["--tag", "registry.k8s.io/gateway-api/conformance/echo-advanced:v0.1.0"]);
        command.arg("--output").arg(&tar).args(["--entrypoint", "/usr/local/bin/server"]);
        command.args(["--program", &of("server", "/usr/local/bin/server")]);
        command.args(["--program", &of("client", "/usr/local/bin/client")]);
        command.args(["--copy", &of("cert.crt", "/cert.crt"), "--copy", &of("cert.key", "/cert.key")]);
        run(&mut command, "").unwrap_or_else(|failure| panic!("{failure}"));
        cluster.load_archive(&tar);
    }

    /// Runs it; what it prints, and its report.
    fn run(&self, cluster: &Cluster, report: &Path) -> (String, Value) {
        let mut command = cluster.command(self.folder.join("suite"));
        command.current_dir(&self.folder).args(["-test.v", "-test.timeout=20m", "--gateway-class=none"]);
        command.args([
            "--mesh-name=tidegate",
            "--conformance-profiles=MESH-HTTP,MESH-GRPC",
            &format!("--supported-features={}", FEATURES.join(",")),
            "--namespace-labels=openservicemesh.io/monitored-by=osm",
            "--namespace-annotations=openservicemesh.io/sidecar-injection=enabled",
            "--timeout-config-overrides=MaxTimeToConsistency:5",
            "--organization=tidegate",
            "--project=tidegate",
            "--url=https://tidegate.io",
            &format!("--version=v{}", env!("CARGO_PKG_VERSION")),
            "--contact=https://tidegate.io",
            &format!("--report-output={}", report.display()),
        ]);
        let printed = match run(&mut command, "") {
            Ok(printed) => printed,
            Err(failure) => failure.to_string(),
        };
        let text = std::fs::read_to_string(report).unwrap_or_else(|error| panic!("{error}: {printed}"));
        (printed, serde_saphyr::from_str(&text).unwrap())
    }
}

#[test]
fn routes_of_services_conform_to_gateway_api() {
    let suite = Suite::build();
    let cluster = Mesh::get().cluster();
    suite.assert_chart_has_definitions();
    suite.load_image(cluster);
    cluster.kubectl(["apply", "--server-side", "-f", &suite.definitions()]);
    let report = programs().join("conformance.yaml");
    let (printed, results) = suite.run(cluster, &report);
    cluster.kubectl(["delete", "--wait=false", "-f", &suite.definitions()]);

    assert!(!printed.contains("--- FAIL"), "{printed}");
    for test in UNCOUNTED {
        assert!(printed.contains(&format!("--- PASS: TestConformance/{test} ")), "{test}: {printed}");
    }
    for (name, core, extended) in PROFILES {
        let profiles = results["profiles"].as_array().unwrap();
        let profile = profiles.iter().find(|profile| profile["name"] == name).unwrap();
        let passed = |part: &str| profile[part]["statistics"]["Passed"].as_u64().unwrap_or_default();
        assert_eq!((passed("core"), passed("extended")), (core, extended), "{results:#}");
    }
}
