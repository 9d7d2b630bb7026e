//! The cluster, and commands for it.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{env, fmt};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::ROLLOUT;
use super::process::{self, PodProcess};
use crate::helm::Helm;
use crate::{daemon, wait};

static SHARED: OnceLock<Cluster> = OnceLock::new();

/// Overrides `suites`, the name of the cluster that the suites share and that `tests/run` stops, so that two runs can
/// coexist.
const NAME: &str = "TIDEGATE_TEST_CLUSTER";
/// The script's limit.
const LONGEST_NAME: usize = 12;

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    /// Folder of the programs in its images, and of `tidegate`.
    programs: PathBuf,
    /// Its name if the project's script started it, which can then also break it.
    name: Option<String>,
}

/// A cluster of one test; stopped when dropped.
#[derive(Debug)]
pub struct OwnCluster(Cluster);

/// A command that ended with another code than 0.
#[derive(Clone, Debug)]
pub struct CommandFailure {
    /// The command, as a shell would take it.
    pub command: String,
    /// Its code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Cluster {
    /// The cluster that all suites of this run share; loaded with our images if we started it.
    pub fn get() -> &'static Self {
        SHARED.get_or_init(|| match env::var_os("KUBECONFIG") {
            Some(kubeconfig) => Self {
                kubeconfig: kubeconfig.into(),
                kubectl: "kubectl".into(),
                programs: daemon::programs(),
                name: None,
            },
            None => {
                let name = env::var(NAME).unwrap_or_else(|_| "suites".to_owned());
                Self::start_with_apps(&name, &daemon::programs())
            }
        })
    }

    /// Starts a cluster of this name with the programs of this folder; from then on [`Cluster::get`] returns it.
    #[track_caller]
    pub fn start_shared(name: &str, programs: &Path) -> &'static Self {
        assert!(SHARED.get().is_none(), "there is a cluster already: {SHARED:?}");
        SHARED.get_or_init(|| Self::start_with_apps(name, programs))
    }

    /// A second cluster, for tests that cannot share one: they use the default mesh name and namespace.
    #[track_caller]
    pub fn own(name: &str) -> OwnCluster {
        let mut name = name.to_owned() + &env::var(NAME).unwrap_or_default();
        name.truncate(LONGEST_NAME);
        // Left over from an interrupted run.
        must(&["down", &name]);
        OwnCluster(Self::start(&name, &daemon::programs()))
    }

    /// Removes the cluster of this name, if it exists, with everything that belongs to it.
    pub fn end(name: &str) -> Result<(), CommandFailure> {
        run(script("cluster").args(["down", name]), "").map(drop)
    }

    fn start_with_apps(name: &str, programs: &Path) -> Self {
        let cluster = Self::start(name, programs);
        cluster.load_images(&["app", "nginx"]);
        cluster
    }

    fn start(name: &str, programs: &Path) -> Self {
        let kubeconfig = PathBuf::from(must(&["up", name]).trim());
        let kubectl = kubeconfig.with_file_name("bin").join("kubectl");
        Self { kubeconfig, kubectl, programs: programs.to_owned(), name: Some(name.to_owned()) }
    }

    /// The program that [`Cluster::kubectl`] runs.
    pub fn kubectl_program(&self) -> &Path {
        &self.kubectl
    }

    /// The kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The name of its node, its network namespace and its cgroup.
    #[track_caller]
    pub fn node_name(&self) -> String {
        format!("tidegate-{}", self.own_name())
    }

    /// Moves the calling thread, and the threads that it starts, to the node's network.
    #[track_caller]
    pub fn move_thread_to_node(&self) {
        let file = self.node_network();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// The node's network namespace.
    #[track_caller]
    pub fn node_network(&self) -> File {
        File::open(Path::new("/run/netns").join(self.node_name())).unwrap()
    }

    /// Every process of its pods, which run on this machine.
    #[track_caller]
    pub fn pod_processes(&self) -> Vec<PodProcess> {
        process::of_node(&self.node_name())
    }

    /// Builds these images and loads them, if we started the cluster. A user's cluster already has them.
    pub fn load_images(&self, names: &[&str]) {
        let Some(name) = &self.name else { return };
        let made = run(script("images").arg(&self.programs).args(names), "");
        let tars = made.unwrap_or_else(|failure| panic!("{failure}"));
        must(&[&["load", name, "--"], &tars.lines().collect::<Vec<_>>()[..]].concat());
    }

    /// Loads the image in this docker archive, if we started the cluster.
    #[track_caller]
    pub fn load_archive(&self, tar: &Path) {
        if let Some(name) = &self.name {
            must(&["load", name, "--", &tar.display().to_string()]);
        }
    }

    /// `kubectl`, which must succeed; its output.
    #[track_caller]
    pub fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.try_kubectl(arguments, "").unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// `kubectl` with this standard input.
    pub fn try_kubectl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String, CommandFailure> {
        run(self.command(&self.kubectl).args(arguments), input)
    }

    /// `tidegate`, which must succeed; its output.
    #[track_caller]
    pub fn tidegate<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        self.try_tidegate(arguments).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// `tidegate`.
    pub fn try_tidegate<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, CommandFailure> {
        run(self.command(self.programs.join("tidegate")).args(arguments), "")
    }

    /// A program with this cluster's `KUBECONFIG`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command.env("TIDEGATE_HELM", Helm::newest().program());
        command
    }

    /// `kubectl apply -f -` of these documents.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        self.try_apply(yaml).unwrap_or_else(|failure| panic!("{failure}\n{yaml}"));
    }

    /// [`Cluster::apply`], which may be refused.
    pub fn try_apply(&self, yaml: &str) -> Result<String, CommandFailure> {
        self.try_kubectl(["apply", "-f", "-"], yaml)
    }

    /// An object or a list, as `kubectl get` takes it.
    #[track_caller]
    pub fn get_json(&self, what: &[&str]) -> Value {
        self.try_get_json(what).unwrap_or_else(|failure| panic!("{failure}"))
    }

    /// [`Cluster::get_json`] of what may not exist.
    pub fn try_get_json(&self, what: &[&str]) -> Result<Value, CommandFailure> {
        let text = self.try_kubectl([&["get", "-o", "json"], what].concat(), "")?;
        Ok(serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("kubectl get {what:?}: {error}: {text}")))
    }

    /// Waits until an object exists and `probe` finds something in it.
    #[track_caller]
    pub fn wait_for<T>(&self, wanted: &str, what: &[&str], mut probe: impl FnMut(&Value) -> Option<T>) -> T {
        let mut last = String::from("it does not exist");
        let mut found = None;
        let deadline = std::time::Instant::now() + ROLLOUT;
        while found.is_none() && std::time::Instant::now() < deadline {
            match self.try_get_json(what) {
                Ok(value) => {
                    found = probe(&value);
                    last = format!("{value:#}");
                }
                Err(failure) => last = failure.to_string(),
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
        found.unwrap_or_else(|| panic!("timed out waiting: {wanted}; {what:?}: {last}"))
    }

    /// Waits until an object is gone.
    #[track_caller]
    pub fn wait_until_gone(&self, what: &[&str]) {
        wait::until_true(&format!("{what:?} is gone"), ROLLOUT, || {
            self.try_get_json(what).is_err_and(|failure| failure.stderr.contains("NotFound"))
        });
    }

    /// Kills a part of the cluster, as a crash does.
    #[track_caller]
    pub fn kill_part(&self, part: &str) {
        self.part("kill", part);
    }

    /// Starts a part again.
    #[track_caller]
    pub fn start_part(&self, part: &str) {
        self.part("start", part);
    }

    /// Runs the program given as its next argument on the node's network.
    #[track_caller]
    pub fn on_node(&self) -> Command {
        let mut command = script("cluster");
        command.args(["enter", self.own_name(), "--"]);
        command
    }

    #[track_caller]
    fn part(&self, action: &str, part: &str) {
        must(&[action, self.own_name(), part]);
    }

    /// Its name; fails unless the project's script started it, on this machine.
    #[track_caller]
    pub fn own_name(&self) -> &str {
        self.name.as_deref().expect("this runs only on the project's own cluster: unset KUBECONFIG")
    }
}

impl Deref for OwnCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        if let Err(failure) = Cluster::end(self.own_name()) {
            eprintln!("{failure}");
        }
    }
}

impl fmt::Display for CommandFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(formatter, "{command}: exit code {code:?}\n{stdout}{stderr}")
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command, input: &str) -> Result<String, CommandFailure> {
    let text = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // A command that ends without having read everything is judged by its code.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let (stdout, stderr) = (lossy(output.stdout), lossy(output.stderr));
    if output.status.success() {
        return Ok(stdout);
    }
    Err(CommandFailure { command: text, code: output.status.code(), stdout, stderr })
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// The script `cluster`, which must succeed; its output.
#[track_caller]
fn must(arguments: &[&str]) -> String {
    run(script("cluster").args(arguments), "").unwrap_or_else(|failure| panic!("{failure}"))
}

fn script(name: &str) -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name))
}
