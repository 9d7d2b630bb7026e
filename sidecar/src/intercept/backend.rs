//! The programs that change the kernel's rules, and which of the kernel's two rule sets they are to use.
//!
//! Rules of both sets hold at the same time, so ours belong where the node's or the pod's others are: the choice is made
//! as the `iptables-wrappers` of Kubernetes' own images make it.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::{env, fs, io};

use clap::ValueEnum;
use iptables::IPTables;

use super::InterceptError;
use super::rule::{Family, Rule, Table};

/// Which rule set of the kernel's is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// The one that has rules already; nft if none has.
    Auto,
    /// nf_tables.
    Nft,
    /// x_tables.
    Legacy,
}

/// `iptables` or `ip6tables` of one backend.
pub(super) struct Program {
    family: Family,
    backend: Backend,
    path: &'static str,
    iptables: IPTables,
}

/// Where programs are looked for beside `PATH`: a container's `PATH` may lack what is root's.
const FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// Chains by which kubelet shows which rule set the node uses.
const HINTS: [&str; 2] = [":KUBE-IPTABLES-HINT", ":KUBE-KUBELET-CANARY"];

/// Where the legacy programs lock, unless `XTABLES_LOCKFILE` says otherwise.
const LOCK_FILE: &str = "/run/xtables.lock";
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";
/// What can be written in a container whose root file system cannot.
const OTHER_LOCK_FILE: &str = "/dev/shm/tidegate-xtables.lock";

/// Starts this program anew with a lock file that the legacy programs can write, if theirs is not one: a process may
/// not change its own environment once it could have threads.
pub(super) fn ensure_lock_file() -> Result<(), InterceptError> {
    let is_writable = || File::options().create(true).append(true).open(LOCK_FILE).is_ok();
    if env::var_os(LOCK_VARIABLE).is_some() || is_writable() {
        return Ok(());
    }
    let again = env::current_exe().map(|program| {
        Command::new(program).args(env::args_os().skip(1)).env(LOCK_VARIABLE, OTHER_LOCK_FILE).exec()
    });
    let (Ok(error) | Err(error)) = again;
    Err(InterceptError::StartAnew(error))
}

impl Backend {
    /// The backend that is meant; never [`Backend::Auto`].
    pub(super) fn choose(self) -> Result<Self, InterceptError> {
        if self != Self::Auto {
            return Ok(self);
        }
        let [nft, legacy] = [Self::Nft, Self::Legacy].map(Usage::of);
        match Usage::prefers_legacy(&nft, &legacy) {
            true => Ok(Self::Legacy),
            false if nft.works => Ok(Self::Nft),
            false if legacy.works => Ok(Self::Legacy),
            false => Err(InterceptError::NoBackend {
                nft: nft.error.unwrap_or_default(),
                legacy: legacy.error.unwrap_or_default(),
            }),
        }
    }

    /// Its program for a family of addresses.
    pub(super) fn program(self, family: Family) -> Result<Program, InterceptError> {
        let base = family.program();
        let named = match self {
            Self::Legacy => format!("{base}-legacy"),
            Self::Nft | Self::Auto => format!("{base}-nft"),
        };
        if let Some(path) = find(&named) {
            return Ok(Program::new(self, family, &path));
        }
        // Some images have one backend only, under the plain name.
        let plain = find(base).filter(|path| Self::of_program(path) == Some(self));
        let missing = || InterceptError::NoProgram { program: named.clone(), folders: FOLDERS.join(", ") };
        Ok(Program::new(self, family, &plain.ok_or_else(missing)?))
    }

    fn of_program(path: &Path) -> Option<Self> {
        let output = Command::new(path).arg("--version").output().ok()?;
        match String::from_utf8_lossy(&output.stdout).contains("nf_tables") {
            true => Some(Self::Nft),
            false => Some(Self::Legacy),
        }
    }
}

/// How much a backend is used in this network namespace.
#[derive(Default)]
struct Usage {
    works: bool,
    error: Option<String>,
    has_hint: bool,
    rules: usize,
}

impl Usage {
    fn of(backend: Backend) -> Self {
        let mut usage = Self::default();
        match backend.program(Family::V4).and_then(|program| program.list(Table::Nat)) {
            Ok(_) => usage.works = true,
            Err(error) => usage.error = Some(error.to_string()),
        }
        for family in [Family::V4, Family::V6] {
            let Ok(program) = backend.program(family) else { continue };
            if backend == Backend::Legacy && family.legacy_tables().is_empty() {
                continue;
            }
            let Ok(output) = Command::new(format!("{}-save", program.path)).output() else { continue };
            let text = String::from_utf8_lossy(&output.stdout);
            usage.has_hint |= text.lines().any(|line| HINTS.iter().any(|hint| line.starts_with(hint)));
            usage.rules += text.lines().filter(|line| line.starts_with('-')).count();
        }
        usage
    }

    fn prefers_legacy(nft: &Self, legacy: &Self) -> bool {
        legacy.works && !nft.has_hint && (legacy.has_hint || legacy.rules > nft.rules)
    }
}

impl Program {
    fn new(backend: Backend, family: Family, path: &Path) -> Self {
        // Two at most in a process that ends at once; the crate wants a name for ever.
        let path: &'static str = Box::leak(path.to_string_lossy().into_owned().into_boxed_str());
        // Everything since 1.4.20 (2013) can check and wait.
        let iptables = IPTables { cmd: path, has_check: true, has_wait: true, is_numeric: true };
        Self { family, backend, path, iptables }
    }

    /// Every chain and rule of a table, one a line.
    pub(super) fn list(&self, table: Table) -> Result<Vec<String>, InterceptError> {
        if self.backend == Backend::Legacy && !self.family.legacy_tables().contains(&table.to_string()) {
            // To ask would make the kernel load the table, and there is nothing in it.
            return Ok(Vec::new());
        }
        let output = self.execute(table, "-S")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Whether a rule is there.
    pub(super) fn has(&self, rule: &Rule) -> Result<bool, InterceptError> {
        let (table, chain) = (rule.table.to_string(), rule.chain.to_string());
        self.iptables
            .exists(&table, &chain, &rule.to_string())
            .map_err(|error| self.failed(&error.to_string()))
    }

    /// One command, such as `-F CHAIN`.
    pub(super) fn execute(&self, table: Table, command: &str) -> Result<Output, InterceptError> {
        let output = self.iptables.execute(&table.to_string(), command);
        let output = output.map_err(|error| self.failed(&error.to_string()))?;
        match output.status.success() {
            true => Ok(output),
            false => Err(self.failed(&String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// All rules of a text at once, or none of them.
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

    fn failed(&self, message: &str) -> InterceptError {
        InterceptError::Program {
            program: self.path.to_owned(),
            message: message.trim().to_owned(),
            hint: hint(message),
        }
    }
}

impl Family {
    /// The tables of x_tables that this network namespace has.
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

/// What to do about it, where that is known.
fn hint(message: &str) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["owner"])
        && says(&["missing kernel module", "No chain/target/match", "RULE_APPEND", "No such file"])
    {
        ": the kernel has no xt_owner; load it on the node: modprobe xt_owner"
    } else if says(&["Permission denied", "Operation not permitted", "you must be root"]) {
        ": it takes root with the capabilities NET_ADMIN and NET_RAW in the pod's network namespace"
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

/// The line of our text that a message speaks of.
fn line_of(message: &str, text: &str) -> String {
    let number = message.split("line ").nth(1).and_then(|rest| {
        rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse::<usize>().ok())
    });
    let line = number.and_then(|number| text.lines().nth(number.checked_sub(1)?));
    line.map(|line| format!(" (in {line:?})")).unwrap_or_default()
}

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
        let usage = |has_hint, rules| Usage { works: true, has_hint, rules, error: None };
        for (nft, legacy, expected) in [
            (usage(false, 0), usage(false, 0), false),
            (usage(false, 1), usage(false, 2), true),
            (usage(false, 2), usage(false, 2), false),
            (usage(false, 9), usage(true, 1), true),
            (usage(true, 1), usage(true, 9), false),
            (usage(false, 0), Usage { works: false, ..usage(true, 9) }, false),
        ] {
            assert_eq!(Usage::prefers_legacy(&nft, &legacy), expected);
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
