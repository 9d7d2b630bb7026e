//! Tidegate on the cluster.

use std::io::Write;
use std::sync::{Once, OnceLock};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

use super::cluster::run;
use super::{Cluster, ROLLOUT, process};
use crate::golden::repository;
use crate::helm::Helm;
use crate::wait;

/// The control plane's namespace: the one of Open Service Mesh's guides.
pub const CONTROL_PLANE: &str = "osm-system";
/// The daemons' Deployments.
pub const DAEMONS: [&str; 3] = ["tidegate-controller", "tidegate-cert-manager", "tidegate-injector"];

/// Values that make the chart use the tests' images.
pub const VALUES: &str = "image: {registry: tidegate.test, tag: '1', pullPolicy: IfNotPresent}\n";

/// Installs the custom resource definitions with `tidegate install`; all meshes of a cluster share them.
#[track_caller]
pub fn install_crds(cluster: &'static Cluster) {
    // Helm refuses to work on a release that is being worked on.
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let mut command = cluster.command(Helm::newest().program());
        command.current_dir(repository()).args([
            "upgrade",
            "--install",
            "tidegate-crds",
            "charts/tidegate-crds",
        ]);
        command.args(["--namespace", CONTROL_PLANE, "--create-namespace"]);
        run(&mut command, "").unwrap_or_else(|failure| panic!("{failure}"));
    });
}

/// An installed mesh.
#[derive(Debug)]
pub struct Mesh {
    cluster: &'static Cluster,
}

impl Mesh {
    /// The mesh that all suites of a run share; installed once, by `tidegate install`.
    pub fn get() -> &'static Self {
        Self::get_with("")
    }

    /// [`Mesh::get`] with further values of the chart, as YAML, unless it is installed already.
    pub fn get_with(values: &str) -> &'static Self {
        static MESH: OnceLock<Mesh> = OnceLock::new();
        MESH.get_or_init(|| {
            let mesh = Self { cluster: Cluster::get() };
            mesh.install(&format!("{VALUES}{values}"));
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

    fn install(&self, chart_values: &str) {
        self.cluster.load_images(&["sidecar", "controller", "cert-manager", "injector"]);
        if self.cluster.try_get_json(&["deployment", "-n", CONTROL_PLANE, DAEMONS[0]]).is_err() {
            let mut values = tempfile::NamedTempFile::new().unwrap();
            values.write_all(chart_values.as_bytes()).unwrap();
            let helm = Helm::newest();
            let arguments = [
                "install".as_ref(),
                "--apply".as_ref(),
                "--osm-namespace".as_ref(),
                CONTROL_PLANE.as_ref(),
                "--values".as_ref(),
                values.path().as_os_str(),
                "--helm".as_ref(),
                helm.program().as_os_str(),
            ];
            self.cluster.tidegate(arguments);
        }
        self.wait_ready();
    }

    /// Scales a daemon; to zero, waits until its last pod is gone.
    #[track_caller]
    pub fn scale(&self, daemon: &str, replicas: u32) {
        let target = format!("deployment/{daemon}");
        self.cluster.kubectl(["-n", CONTROL_PLANE, "scale", &target, &format!("--replicas={replicas}")]);
        if replicas == 0 {
            let label = format!("app.kubernetes.io/name={daemon}");
            wait::until_true(&format!("no {daemon} runs"), ROLLOUT, || {
                let pods = self.cluster.get_json(&["pods", "-n", CONTROL_PLANE, "-l", &label]);
                pods["items"].as_array().is_some_and(Vec::is_empty)
            });
        }
    }

    /// SIGKILL for the process of each pod of a daemon, as the kernel does when memory is short; then replaces the
    /// pods, because kubelet delays the restart of a container that crashes repeatedly by minutes.
    #[track_caller]
    pub fn kill(&self, daemon: &str) {
        // Processes of another machine are out of reach.
        let _ = self.cluster.own_name();
        let label = format!("app.kubernetes.io/name={daemon}");
        let of_daemon = ["pods", "-n", CONTROL_PLANE, "-l", &label];
        let processes = wait::until(&format!("processes of {daemon}"), ROLLOUT, || {
            let pods = self.cluster.get_json(&of_daemon);
            let found: Option<Vec<Pid>> =
                pods["items"].as_array()?.iter().map(|pod| process(daemon, pod)).collect();
            found.filter(|found| !found.is_empty())
        });
        for process in processes {
            kill_process(process, Signal::KILL).unwrap();
            wait::until_true("it is gone", ROLLOUT, || test_kill_process(process).is_err());
        }
        self.cluster.kubectl(
            [&["delete"], &of_daemon[..], &["--grace-period=0", "--force", "--wait=false"]].concat(),
        );
    }

    /// Changes the MeshConfig's spec.
    pub fn patch_config(&self, spec: &Value) {
        let patch = json!({"spec": spec}).to_string();
        self.cluster.kubectl([
            "patch",
            "meshconfig",
            "osm-mesh-config",
            "-n",
            CONTROL_PLANE,
            "--type=merge",
            "-p",
            &patch,
        ]);
    }
}

/// The process of a daemon's pod.
fn process(daemon: &str, pod: &Value) -> Option<Pid> {
    process::find(daemon, "environ", &format!("TIDEGATE_POD_NAME={}", pod["metadata"]["name"].as_str()?))
}
