//! Processes of a cluster's pods, which run on this machine.

use std::fs;
use std::path::PathBuf;

use rustix::process::Pid;

/// A process of a pod.
#[derive(Clone, Debug)]
pub struct PodProcess {
    /// Its number on this machine.
    pub pid: u32,
    /// Name of its program.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// The first process named `program` whose `file` in `/proc/<pid>`, such as `cmdline` or `environ`, contains this word.
pub(super) fn find(program: &str, file: &str, word: &str) -> Option<Pid> {
    // The kernel keeps the first 15 bytes.
    let name = &program[..program.len().min(15)];
    let is_it = |process: &PathBuf| {
        let text = |file: &str| fs::read(process.join(file)).unwrap_or_default();
        text("comm").trim_ascii() == name.as_bytes()
            && text(file).split(|byte| *byte == 0).any(|found| found == word.as_bytes())
    };
    let mut processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let number = processes.find(is_it)?.file_name()?.to_str()?.parse().ok()?;
    Pid::from_raw(number)
}

/// Every process of the pods of a cluster whose node has this name. kubelet's cgroups are named after the node.
pub(super) fn of_node(node: &str) -> Vec<PodProcess> {
    let cgroup = format!("/{node}/");
    let processes = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let text = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let pid = entry.file_name().to_str()?.parse().ok()?;
        if !String::from_utf8_lossy(&text("cgroup")).contains(&cgroup) {
            return None;
        }
        let words = text("cmdline");
        let mut words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        let program = words.next()?.rsplit('/').next()?.to_owned();
        Some(PodProcess { pid, program, arguments: words.collect() })
    });
    processes.collect()
}
