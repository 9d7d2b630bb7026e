//! Pages of the documentation as their readers run them: the commands of the shell blocks, verbatim.

use std::os::unix::fs::symlink;
use std::{fs, thread};

use tempfile::TempDir;

use crate::daemon;
use crate::golden::repository;
use crate::helm::Helm;
use crate::kubernetes::Cluster;
use crate::kubernetes::cluster::{CommandFailure, OwnCluster, run};

/// The registry of the images of [`Shell`], which is the reader's own choice; they have the chart's default tag.
const REGISTRY: &str = "tidegate.test";
/// What a failed walk-through leaves to read.
const REMAINS: [&str; 3] = ["kubectl get all -A", "kubectl get events -A", "kubectl describe pods -A"];

/// The commands of each of a page's shell blocks. One of several lines, with a here-document or `\` at their ends, stays
/// whole.
pub fn blocks(page: &str) -> impl Iterator<Item = Vec<&str>> {
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| {
        let (mut commands, mut rest) = (Vec::new(), block);
        while !rest.is_empty() {
            let (command, further) = rest.split_at(first_command(rest));
            commands.extend(Some(command.trim_end()).filter(|command| !command.is_empty()));
            rest = further;
        }
        commands
    })
}

/// The commands of all of a page's shell blocks.
pub fn commands(page: &str) -> Vec<&str> {
    blocks(page).flatten().collect()
}

/// The length of a block's first command.
fn first_command(block: &str) -> usize {
    let (mut length, mut is_document) = (0, false);
    for line in block.split_inclusive('\n') {
        length += line.len();
        let line = line.trim_end();
        is_document = if is_document { line != "EOF" } else { line.ends_with("<<EOF") };
        if !is_document && !line.ends_with('\\') {
            break;
        }
    }
    length
}

/// The part of a page below a heading of this level, such as `## Install`, to the next one.
#[track_caller]
pub fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let rest = page.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading:?}")).1;
    let level = heading.split(' ').next().unwrap();
    rest.split(&format!("\n{level} ")).next().unwrap()
}

/// A shell on the node of a cluster of its own, in a folder with the repository's charts and examples, with our programs
/// and the cluster's first in `PATH`. Exported variables stay for the next command.
#[derive(Debug)]
pub struct Shell {
    cluster: OwnCluster,
    folder: TempDir,
}

impl Shell {
    /// On a new cluster of this name with these images.
    pub fn start(name: &str, images: &[&str]) -> Self {
        let cluster = Cluster::own(name);
        cluster.load_images(images);
        let folder = tempfile::tempdir().unwrap();
        let programs = [
            ("tidegate", daemon::ours("tidegate")),
            ("kubectl", cluster.kubectl_program().to_owned()),
            ("helm", Helm::newest().program().to_owned()),
            ("charts", repository().join("charts")),
            ("examples", repository().join("examples")),
        ];
        for (name, target) in programs {
            symlink(target, folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("hosts"), "127.0.0.1 localhost\n").unwrap();
        Self { cluster, folder }
    }

    /// Its cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Names that this machine resolves besides its own: lines of a hosts file.
    pub fn add_hosts(&self, lines: &str) {
        fs::write(self.folder.path().join("hosts"), format!("127.0.0.1 localhost\n{lines}\n")).unwrap();
    }

    /// Exports a variable to the commands.
    pub fn export(&self, name: &str, value: &str) {
        self.run(&format!("export {name}='{value}'"));
    }

    /// Runs a command, which must succeed; returns both outputs.
    #[track_caller]
    pub fn run(&self, command: &str) -> String {
        self.try_run(command).unwrap_or_else(|failure| panic!("{command}\n{failure}"))
    }

    /// Runs a command.
    pub fn try_run(&self, command: &str) -> Result<String, CommandFailure> {
        let script = format!(
            "exec 2>&1\nmount --bind ~/hosts /etc/hosts\n[ ! -e ~/exports ] || . ~/exports\n\
             {command}\nstatus=$?\nexport -p >~/exports\nexit $status"
        );
        let mut shell = self.cluster.on_node();
        shell.args(["unshare", "--mount", "bash", "-euo", "pipefail", "-c", &script]);
        shell
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.folder.path().display()))
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("TIDEGATE_REGISTRY", REGISTRY)
            .env_remove("TIDEGATE_HELM");
        run(&mut shell, "")
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if thread::panicking() {
            for command in REMAINS {
                eprintln!("{:?}", self.try_run(command));
            }
        }
    }
}
