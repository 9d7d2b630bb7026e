//! Processes of a cluster's pods, which run on this machine.

use std::fs;
use std::path::PathBuf;

use rustix::process::Pid;

/// The first process of which `file` in `/proc/<pid>`, such as `cmdline` or `environ`, has this word, and `program` is
/// the name.
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
