//! The quick start as its readers run it: the commands of README.md and of docs/kubernetes.md, verbatim, on a cluster
//! without a previous installation.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;
use tidegate_tests::daemon;
use tidegate_tests::golden::repository;
use tidegate_tests::helm::{self, Helm};
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::kubernetes::cluster::{CommandFailure, OwnCluster, run};
use tidegate_tests::wait;

const IMAGES: [&str; 6] = ["sidecar", "controller", "cert-manager", "injector", "httpbin", "curl"];
/// The images have the chart's default tag; the registry is the reader's own choice.
const REGISTRY: &str = "tidegate.test";

/// Results that the page promises: the page's words, the command, a part of its output.
const PROMISES: [(&str, &str, &str); 3] = [
    ("The Pod shows `2/2`", "kubectl get pods -n httpbin", " 2/2 "),
    ("the connection is reset and curl fails", "! kubectl exec", "Connection reset by peer"),
    ("It prints `200`", "kubectl exec", "200\n"),
];

/// Lists the names of all objects of an installation, the example and its user's namespaces.
const EVERYTHING: &str = "kubectl get -A -o name crds,clusterroles,clusterrolebindings,namespaces,pods,secrets,\
    mutatingwebhookconfigurations,validatingwebhookconfigurations";

/// The lines of a page's shell blocks.
fn commands(page: &str) -> Vec<&str> {
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(str::lines).filter(|line| !line.is_empty()).collect()
}

/// The part of a page below a heading.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let rest = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")).1;
    rest.split("\n## ").next().unwrap()
}

/// Commands within sentences.
fn mentioned(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|words| words.starts_with("tidegate ") || words.starts_with("kubectl "))
}

/// A shell in the repository's folder, with our programs and the cluster's first in `PATH`.
struct Shell {
    cluster: OwnCluster,
    folder: TempDir,
}

impl Shell {
    fn start() -> Self {
        let cluster = Cluster::own("quick");
        cluster.load_images(&IMAGES);
        let folder = tempfile::tempdir().unwrap();
        let programs = [
            ("tidegate", daemon::ours("tidegate")),
            ("kubectl", cluster.kubectl_program().to_owned()),
            ("helm", Helm::newest().program().to_owned()),
        ];
        for (name, program) in programs {
            symlink(program, folder.path().join(name)).unwrap();
        }
        Self { cluster, folder }
    }

    /// Runs a line, which must succeed; returns both outputs.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        self.try_run(line).unwrap_or_else(|failure| panic!("{line}\n{failure}"))
    }

    fn try_run(&self, line: &str) -> Result<String, CommandFailure> {
        let mut command = self.cluster.command("bash");
        command.args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{line}")]).current_dir(repository());
        command.env("PATH", format!("{}:/usr/bin:/bin", self.folder.path().display()));
        command
            .env("HOME", self.folder.path())
            .env("TIDEGATE_REGISTRY", REGISTRY)
            .env_remove("TIDEGATE_HELM");
        run(&mut command, "")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in ["kubectl get all -A", "kubectl get events -A", "kubectl describe pods -n httpbin"] {
                eprintln!("{:?}", self.try_run(line));
            }
        }
    }
}

#[test]
fn the_quick_start_runs_as_written_and_shows_what_it_promises() {
    let (readme, page) = (helm::read("README.md"), helm::read("docs/kubernetes.md"));
    let (short, whole) = (commands(section(&readme, "On Kubernetes")), commands(&page));
    assert!(short.len() > 5 && whole.starts_with(&short), "README.md begins as the page does: {short:#?}");
    let cleanup = commands(section(&page, "Clean up"));
    let rest = whole[short.len()..].strip_suffix(&cleanup[..]).unwrap();

    let shell = Shell::start();
    let mut kept = PROMISES.map(|_| false);
    for line in short.iter().chain(rest) {
        let shown = shell.run(line);
        for ((words, command, text), kept) in PROMISES.iter().zip(&mut kept) {
            if line.starts_with(command) {
                assert!(page.contains(words), "the page no longer says {words:?}");
                assert!(shown.contains(text), "{line}: {shown}");
                *kept = true;
            }
        }
    }
    assert_eq!(kept, PROMISES.map(|_| true), "{PROMISES:?}");
    assert!(section(&readme, "On Kubernetes").contains(PROMISES[0].0));

    let further: Vec<_> = mentioned(section(&page, "Next")).collect();
    assert!(further.len() >= 3, "{further:?}");
    for line in further {
        let shown = shell.run(line);
        assert!(shown.contains("httpbin"), "{line}: {shown}");
    }

    assert!(page.contains("A change or deletion of the policy applies to the next connection."));
    shell.run("kubectl delete -f examples/kubernetes/policy.yaml");
    let refused = rest.iter().find(|line| line.starts_with("! kubectl exec")).unwrap();
    wait::until_true("without the policy nothing comes in", Duration::from_secs(30), || {
        shell.try_run(refused).is_ok()
    });

    for line in cleanup {
        shell.run(line);
    }
    wait::until_true("nothing is left", Duration::from_secs(60), || {
        let names = shell.run(EVERYTHING);
        !["tidegate", "openservicemesh", "httpbin"].iter().any(|word| names.contains(word))
    });
}
