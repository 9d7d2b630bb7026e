//! CPU time and memory of a process and its children, from /proc.

use std::fs;

use anyhow::{Context, Result};

/// Every process of this machine, including those in containers.
pub(crate) fn all() -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list /proc")? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

/// The process and all its descendants, itself first.
pub(crate) fn family(pid: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for id in all()? {
        // A process may end between the listing and the reading.
        let Some(stat) = fs::read_to_string(format!("/proc/{id}/stat")).ok() else { continue };
        if let Some(parent) = field(&stat, PARENT) {
            parents.push((id, parent as u32));
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(member) = family.get(next).copied() {
        family.extend(parents.iter().filter(|(_, parent)| *parent == member).map(|(id, _)| *id));
        next += 1;
    }
    Ok(family)
}

/// User and system time of a family so far, in seconds: all threads, and children that have ended.
///
/// The kernel counts in ticks of 10 ms, so use it for spans of seconds.
pub(crate) fn cpu_seconds(family: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for pid in family {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} has exited"))?;
        ticks += cpu_ticks(&stat).with_context(|| format!("cannot parse /proc/{pid}/stat"))?;
    }
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Current memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Pages in memory, in KiB.
    pub(crate) resident_kib: u64,
    /// As [`Memory::resident_kib`], with each page divided by the number of processes that share it.
    pub(crate) proportional_kib: u64,
}

/// Memory of one process, exact at this moment.
pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("cannot read the memory of process {pid}"))?;
    held(&rollup).with_context(|| format!("cannot parse /proc/{pid}/smaps_rollup"))
}

/// Resident memory of a family in KiB, exact at this moment; shared pages count once for each member.
pub(crate) fn resident_kib(family: &[u32]) -> Result<u64> {
    family.iter().map(|pid| Ok(memory(*pid)?.resident_kib)).sum()
}

// Fields of /proc/<pid>/stat counted from the state, which follows the name; proc_pid_stat(5).
const PARENT: usize = 1;
const USER_SYSTEM_AND_CHILDREN: std::ops::Range<usize> = 11..15;

/// The name may hold spaces and parentheses; it ends at the last parenthesis.
fn field(stat: &str, index: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(index)?.parse().ok()
}

/// CPU time in ticks, from /proc/<pid>/stat.
fn cpu_ticks(stat: &str) -> Option<u64> {
    USER_SYSTEM_AND_CHILDREN.map(|index| field(stat, index)).sum()
}

/// Memory from /proc/<pid>/smaps_rollup.
fn held(rollup: &str) -> Option<Memory> {
    let kib = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Memory { resident_kib: kib("Rss:")?, proportional_kib: kib("Pss:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "42 (a b) c) S 7 42 42 0 -1 4194560 500 600 0 0 30 12 5 3 20 0 1 0 100 1000 200";
        assert_eq!(cpu_ticks(stat), Some(50));
        assert_eq!(field(stat, PARENT), Some(7));
    }

    #[test]
    fn resident_and_proportional_memory_are_told_apart() {
        let rollup =
            "55d0-7ffe ---p 00000000 00:00 0 [rollup]\nRss:   1234 kB\nPss:    999 kB\nPss_Anon: 5 kB\n";
        assert_eq!(held(rollup), Some(Memory { resident_kib: 1234, proportional_kib: 999 }));
    }

    #[test]
    fn this_very_process_has_memory_and_is_the_head_of_its_family() {
        let family = family(std::process::id()).unwrap();
        assert_eq!(family[0], std::process::id());
        assert!(resident_kib(&family[..1]).unwrap() > 500);
        cpu_seconds(&family[..1]).unwrap();
    }
}
