//! Runs the iptables programs, and chooses between the two backends.
//!
//! The kernel applies the rules of both backends, so ours belong in the one that the node's and the pod's other rules
//! use. The choice is made as by the `iptables-wrappers` in Kubernetes' own images.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs, io};

use clap::ValueEnum;
use iptables::IPTables;

use super::InterceptError;
use super::rule::{IpFamily, IptablesRule, Table};

/// The iptables backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum IptablesBackend {
    /// The backend that already has rules; nft if neither has.
    Auto,
    /// nf_tables.
    Nft,
    /// x_tables.
    Legacy,
}

/// `iptables` or `ip6tables` of one backend.
pub(super) struct IptablesProgram {
    family: IpFamily,
    backend: IptablesBackend,
    path: &'static str,
    iptables: IPTables,
}

/// Folders that are searched in addition to `PATH`: a container's `PATH` may lack root's folders.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// Chains by which kubelet marks the backend that the node uses.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT", ":KUBE-KUBELET-CANARY"];

/// Lock file of the legacy programs, unless `XTABLES_LOCKFILE` is set.
const LOCK_FILE: &str = "/run/xtables.lock";
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
/// Writable in a container with a read-only root file system.
const OTHER_LOCK_FILE: &str = "/dev/shm/tidegate-xtables.lock";

/// Restarts this program with a lock file that the legacy programs can write, if the default one is not writable. A
/// restart is needed because a process that may have threads must not change its own environment.
pub(super) fn ensure_lock_file() -> Result<(), InterceptError> {
    let is_writable = || File::options().create(true).append(true).open(LOCK_FILE).is_ok();
    if env::var_os(LOCK_VARIABLE).is_some() || is_writable() {
        return Ok(());
    }
    let again = env::current_exe().map(|program| {
        Command::new(program).args(env::args_os().skip(1)).env(LOCK_VARIABLE, OTHER_LOCK_FILE).exec()
    });
    let (Ok(error) | Err(error)) = again;
    Err(InterceptError::Restart(error))
}

impl IptablesBackend {
    /// The backend to use; never [`IptablesBackend::Auto`].
    pub(super) fn choose(self) -> Result<Self, InterceptError> {
        if self != Self::Auto {
            return Ok(self);
        }
        let [nft, legacy] = [Self::Nft, Self::Legacy].map(BackendUsage::of);
        if BackendUsage::prefers_legacy(&nft, &legacy) {
            Ok(Self::Legacy)
        } else if nft.works {
            Ok(Self::Nft)
        } else if legacy.works {
            Ok(Self::Legacy)
        } else {
            Err(InterceptError::NoBackend {
                nft: nft.error.unwrap_or_default(),
                legacy: legacy.error.unwrap_or_default(),
            })
        }
    }

    /// The backend's program for an address family.
    pub(super) fn program(self, family: IpFamily) -> Result<IptablesProgram, InterceptError> {
        let base = family.program();
        let named = match self {
            Self::Legacy => format!("{base}-legacy"),
            Self::Nft | Self::Auto => format!("{base}-nft"),
        };
        if let Some(path) = find(&named) {
            return Ok(IptablesProgram::new(self, family, &path));
        }
        // Some images have only one backend, under the plain name.
        let plain = find(base).filter(|path| Self::of_program(path) == Some(self));
        let missing = || InterceptError::NoProgram { program: named.clone(), folders: FOLDERS.join(", ") };
        Ok(IptablesProgram::new(self, family, &plain.ok_or_else(missing)?))
    }

    /// The backend of a program, according to its `--version`.
    fn of_program(path: &Path) -> Option<Self> {
        let output = Command::new(path).arg("--version").output().ok()?;
        let is_nft = String::from_utf8_lossy(&output.stdout).contains("nf_tables");
        Some(if is_nft { Self::Nft } else { Self::Legacy })
    }
}

/// To what extent a backend is used in this network namespace.
#[derive(Default)]
struct BackendUsage {
    works: bool,
    error: Option<String>,
    has_hint: bool,
    rules: usize,
}

impl BackendUsage {
    /// Looks at both families' rules. Reading those of the legacy backend would load its kernel modules, so a family
    /// without legacy tables is passed over.
    fn of(backend: IptablesBackend) -> Self {
        let mut usage = Self::default();
        match backend.program(IpFamily::V4).and_then(|program| program.list(Table::Nat)) {
            Ok(_) => usage.works = true,
            Err(error) => usage.error = Some(error.to_string()),
        }
        for family in [IpFamily::V4, IpFamily::V6] {
            let Ok(program) = backend.program(family) else { continue };
            if backend == IptablesBackend::Legacy && family.legacy_tables().is_empty() {
                continue;
            }
            let Ok(output) = Command::new(format!("{}-save", program.path)).output() else { continue };
            let text = String::from_utf8_lossy(&output.stdout);
            usage.has_hint |= text.lines().any(|line| HINTS.iter().any(|hint| line.starts_with(hint)));
            usage.rules += text.lines().filter(|line| line.starts_with('-')).count();
        }
        usage
    }

    /// Whether legacy is the backend that the node uses.
    fn prefers_legacy(nft: &Self, legacy: &Self) -> bool {
        legacy.works && !nft.has_hint && (legacy.has_hint || legacy.rules > nft.rules)
    }
}

impl IptablesProgram {
    fn new(backend: IptablesBackend, family: IpFamily, path: &Path) -> Self {
        // The crate needs a `'static` name. At most two leak, and the process ends soon.
        let path: &'static str = Box::leak(path.to_string_lossy().into_owned().into_boxed_str());
        // Every release since 1.4.20 (2013) has `--check` and `--wait`.
        let iptables = IPTables { cmd: path, has_check: true, has_wait: true, is_numeric: true };
        Self { family, backend, path, iptables }
    }

    /// Lists all chains and rules of a table, one per line.
    pub(super) fn list(&self, table: Table) -> Result<Vec<String>, InterceptError> {
        if self.backend == IptablesBackend::Legacy
            && !self.family.legacy_tables().contains(&table.to_string())
        {
            // Listing would load the kernel module of a table that is empty.
            return Ok(Vec::new());
        }
        let output = self.execute(table, "-S")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Whether a rule is in place.
    pub(super) fn has(&self, rule: &IptablesRule) -> Result<bool, InterceptError> {
        let (table, chain) = (rule.table.to_string(), rule.chain.to_string());
        self.iptables
            .exists(&table, &chain, &rule.to_string())
            .map_err(|error| self.failed(&error.to_string()))
    }

    /// Runs one command, such as `-F CHAIN`.
    pub(super) fn execute(&self, table: Table, command: &str) -> Result<Output, InterceptError> {
        let output = self.iptables.execute(&table.to_string(), command);
        let output = output.map_err(|error| self.failed(&error.to_string()))?;
        if !output.status.success() {
            return Err(self.failed(&String::from_utf8_lossy(&output.stderr)));
        }
        Ok(output)
    }

    /// Applies all rules in an `iptables-restore` text, or none of them.
    pub(super) fn restore(&self, text: &str) -> Result<(), InterceptError> {
        let fails = |error: io::Error| self.failed(&error.to_string());
        let mut restore = Command::new(format!("{}-restore", self.path));
        restore.args(["--noflush", "--wait"]);
        let mut child = restore
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(fails)?;
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(text.as_bytes()));
        let output = child.wait_with_output().map_err(fails)?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            return Err(self.failed(&format!("{}{}", message.trim_end(), line_of(&message, text))));
        }
        written.unwrap_or(Ok(())).map_err(fails)
    }

    /// An error of the program, in its words, with a hint.
    fn failed(&self, message: &str) -> InterceptError {
        InterceptError::Program {
            program: self.path.to_owned(),
            message: message.trim().to_owned(),
            hint: hint(message),
        }
    }
}

impl IpFamily {
    /// The legacy tables that exist in this network namespace.
    fn legacy_tables(self) -> Vec<String> {
        let file = match self {
            Self::V4 => "/proc/self/net/ip_tables_names",
            Self::V6 => "/proc/self/net/ip6_tables_names",
        };
        fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }
}

/// What to do about an error, if known.
fn hint(message: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["owner"])
        && says(&["missing kernel module", "No chain/target/match", "RULE_APPEND", "No such file"])
    {
        ": the kernel has no xt_owner; load it on the node: modprobe xt_owner"
    } else if says(&["Permission denied", "Operation not permitted", "you must be root"]) {
        ": root with the capabilities NET_ADMIN and NET_RAW in the pod's network namespace is required"
    } else if says(&["xtables.lock", "xtables lock"]) && says(&["Read-only", "open lock file", "Fatal"]) {
        ": the lock file cannot be written; set XTABLES_LOCKFILE to a file that can be, such as /dev/shm/xtables.lock"
    } else if says(&[
        "Table does not exist",
        "insmod",
        "table `nat'",
        "Could not fetch rule set",
        "not supported",
    ]) {
        ": the kernel lacks this backend or its nat table; try the other --backend, or load on the node: modprobe iptable_nat ip6table_nat (legacy), nft_compat nft_chain_nat (nft)"
    } else if says(&["missing kernel module", "No chain/target/match", "Couldn't load"]) {
        ": the kernel or the image lacks an extension; needed are xt_owner, xt_multiport, xt_conntrack, xt_REDIRECT and, for PodIP mode, xt_nat"
    } else {
        ""
    }
}

/// The line of our text to which a message refers.
fn line_of(message: &str, text: &str) -> String {
    let number = message.split("line ").nth(1).and_then(|rest| {
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<usize>().ok())
    });
    let line = number.and_then(|number| text.lines().nth(number.checked_sub(1)?));
    line.map(|line| format!(" (in {line:?})")).unwrap_or_default()
}

/// Searches for a program.
fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_with_kubelets_chain_is_used_and_else_the_one_with_more_rules() {
        let usage = |has_hint, rules| BackendUsage { works: true, has_hint, rules, error: None };
        for (nft, legacy, expected) in [
            (usage(false, 0), usage(false, 0), false),
            (usage(false, 1), usage(false, 2), true),
            (usage(false, 2), usage(false, 2), false),
            (usage(false, 9), usage(true, 1), true),
            (usage(true, 1), usage(true, 9), false),
            (usage(false, 0), BackendUsage { works: false, ..usage(true, 9) }, false),
        ] {
            assert_eq!(BackendUsage::prefers_legacy(&nft, &legacy), expected);
        }
    }

    #[test]
    fn a_failure_says_what_is_missing_and_which_rule_it_was() {
        for (message, expected) in [
            ("Warning: Extension owner revision 0 not supported, missing kernel module?", "xt_owner"),
            (
                "iptables v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)",
                "NET_ADMIN",
            ),
            (
                "can't initialize ip6tables table `nat': Table does not exist (do you need to insmod?)",
                "--backend",
            ),
            ("Fatal: can't open lock file /run/xtables.lock: Read-only file system", "XTABLES_LOCKFILE"),
        ] {
            assert!(hint(message).contains(expected), "{message}: {}", hint(message));
        }
        assert_eq!(line_of("iptables-restore: line 2 failed", "*nat\n-A X\n"), " (in \"-A X\")");
        assert_eq!(line_of("something else", "*nat\n"), "");
    }
}
