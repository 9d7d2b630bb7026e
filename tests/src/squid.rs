//! A real Squid: the forward proxy of a company.

use std::fmt::Write;
use std::fs::{self, Permissions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::wait::{self, SOON};

/// Debian's path; a missing Squid is an error of the test.
const PROGRAM: &str = "/usr/sbin/squid";

/// Squid in the foreground, in the network namespace of the thread that starts it; killed when dropped.
#[derive(Debug)]
pub struct Squid {
    folder: TempDir,
    /// Names its segments of shared memory, so that several can run at once.
    service: String,
    address: SocketAddr,
    child: Option<Child>,
}

/// An authenticator of Squid's: answers `OK` to each line `name password` that is in the file of users.
const CHECK: &str = r#"#!/bin/sh
while read -r line; do grep -qxF "$line" "$1" && echo OK || echo ERR; done
"#;

/// Rules of a Squid that wants Basic credentials, and the file of users with lines `name password`, which may change.
/// `folder`: where it is written, open to all users. `then`: rules about requests of known users.
pub fn authenticated(folder: &Path, users: &str, then: &str) -> (String, PathBuf) {
    let (check, file) = (folder.join("check"), folder.join("users"));
    fs::write(&check, CHECK).unwrap();
    fs::write(&file, users).unwrap();
    for (path, mode) in [(folder, 0o755), (&check, 0o755), (&file, 0o644)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let program = format!("{} {}", check.display(), file.display());
    let rules = format!(
        "auth_param basic program {program}\nauth_param basic children 4\nauth_param basic realm Corp Proxy\n\
         auth_param basic credentialsttl 1 second\nacl known proxy_auth REQUIRED\nhttp_access deny !known\n{then}"
    );
    (rules, file)
}

impl Squid {
    /// Listens at `address`. `rules`: further lines of its configuration, such as `http_access allow all`; what they do
    /// not allow is denied. `hosts`: names that it resolves, with their addresses.
    #[track_caller]
    pub fn start(address: SocketAddr, rules: &str, hosts: &[(&str, &str)]) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing; on Debian: apt-get install squid");
        let folder = tempfile::tempdir().unwrap();
        // Squid drops root's rights, and writes its logs as another user.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let lines = hosts.iter().fold(String::new(), |mut lines, (name, address)| {
            writeln!(lines, "{address} {name}").unwrap();
            lines
        });
        fs::write(folder.path().join("hosts"), lines).unwrap();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let service = format!("tgt{}x{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut squid = Self { folder, service, address, child: None };
        squid.configure(rules);
        squid.run();
        squid
    }

    fn configure(&self, rules: &str) {
        let (at, folder) = (self.address, self.folder.path().display());
        let configuration = format!(
            "http_port {at}\n{rules}\nhttp_access deny all\n\
             access_log stdio:{folder}/access.log squid\nlogfile_rotate 0\nbuffered_logs off\n\
             cache_log {folder}/cache.log\ncache deny all\ncache_mem 8 MB\n\
             hosts_file {folder}/hosts\npid_filename {folder}/squid.pid\ncoredump_dir {folder}\n\
             visible_hostname squid.example\npinger_enable off\nnetdb_filename none\nmax_filedescriptors 4096\n\
             shutdown_lifetime 0 seconds\nforward_max_tries 1\n"
        );
        fs::write(self.folder.path().join("squid.conf"), configuration).unwrap();
    }

    fn run(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["-N", "-n", &self.service, "-f"]).arg(self.folder.path().join("squid.conf"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.child = Some(child);
        wait::until_true("squid listens", SOON, || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "squid ended: {}", self.log());
            TcpStream::connect(self.address).is_ok()
        });
    }

    /// Starts it again with other rules.
    pub fn restart(&mut self, rules: &str) {
        self.stop();
        self.configure(rules);
        self.run();
    }

    /// Ends it, with all its connections.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        let _ = child.wait();
        // These are removed only at an orderly end.
        let _ = fs::remove_file(self.folder.path().join("squid.pid"));
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("{}-", self.service)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its access log. A line of a tunnel is written when it ends.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default()
    }

    /// What it says of itself.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("cache.log")).unwrap_or_default()
    }
}

impl Drop for Squid {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            eprintln!("---- squid\n{}\n{}", self.log(), self.access_log());
        }
    }
}
