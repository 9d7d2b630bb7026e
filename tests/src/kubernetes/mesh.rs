//! Tidegate on the cluster.

use std::io::Write;
use std::sync::OnceLock;

use super::{Cluster, ROLLOUT};

/// The control plane's namespace: the one of Open Service Mesh's guides.
pub const CONTROL_PLANE: &str = "osm-system";
/// The daemons' Deployments.
pub const DAEMONS: [&str; 3] = ["tidegate-controller", "tidegate-cert-manager", "tidegate-injector"];

/// Values by which the chart takes the images of the tests.
pub const VALUES: &str = "\
image: {registry: tidegate.test, tag: '1', pullPolicy: IfNotPresent}
";

/// An installed mesh.
#[derive(Debug)]
pub struct Mesh {
    cluster: &'static Cluster,
}

impl Mesh {
    /// The one that all suites of a run share; installed once, by `tidegate install`.
    pub fn get() -> &'static Self {
        static MESH: OnceLock<Mesh> = OnceLock::new();
        MESH.get_or_init(|| {
            let mesh = Self { cluster: Cluster::get() };
            mesh.install();
            mesh
        })
    }

    /// Its cluster.
    pub fn cluster(&self) -> &'static Cluster {
        self.cluster
    }

    /// Waits until every replica of the control plane is ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        let limit = format!("--timeout={}s", ROLLOUT.as_secs());
        for daemon in DAEMONS {
            let target = format!("deployment/{daemon}");
            self.cluster.kubectl(["-n", CONTROL_PLANE, "rollout", "status", &target, &limit]);
        }
    }

    fn install(&self) {
        self.cluster.load_images(&["sidecar", "controller", "cert-manager", "injector"]);
        if self.cluster.try_get_json(&["deployment", "-n", CONTROL_PLANE, DAEMONS[0]]).is_err() {
            let mut values = tempfile::NamedTempFile::new().unwrap();
            values.write_all(VALUES.as_bytes()).unwrap();
            let file = values.path().to_str().unwrap();
            let namespace = format!("--tidegate-namespace={CONTROL_PLANE}");
            self.cluster.tidegate(["install", "--apply", &namespace, "--values", file]);
        }
        self.wait_ready();
    }
}
