//! The project's programs, as processes.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, io, thread};

use rustix::process::{Pid, Resource, Rlimit, Signal};
use serde_json::Value;

use crate::client::Client;
use crate::http1::Message;
use crate::process;
use crate::wait::{self, SOON};

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    file_limit: Option<u32>,
    user: Option<u32>,
    log: PathBuf,
    admin: Option<SocketAddr>,
    child: Option<Child>,
}

impl Daemon {
    /// Prepares one of our programs; nothing runs yet. `name` names its log in `folder`.
    pub fn new(
        program: &str,
        name: &str,
        folder: &Path,
        arguments: Vec<String>,
        admin: Option<SocketAddr>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            program: ours(program),
            arguments,
            file_limit: None,
            user: None,
            log: folder.join(format!("{name}.log")),
            admin,
            child: None,
        }
    }

    /// At most this many open files, hard limit included.
    #[must_use]
    pub(crate) fn with_file_limit(mut self, files: u32) -> Self {
        self.file_limit = Some(files);
        self
    }

    /// As this user. It can still read root's files, because the test chose where programs and their files are.
    #[must_use]
    pub fn with_user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// With another value of one of its arguments.
    #[must_use]
    pub fn with_argument(mut self, flag: &str, value: &str) -> Self {
        let at = self
            .arguments
            .iter()
            .position(|argument| argument == flag)
            .unwrap_or_else(|| panic!("no {flag}"));
        self.arguments[at + 1] = value.to_owned();
        self
    }

    /// With one more argument, such as `--flag=value`.
    #[must_use]
    pub fn with_further(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts it, or starts it again.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = match (self.file_limit, self.user) {
            (None, None) => Command::new(&self.program),
            (None, Some(user)) => {
                let mut setpriv = Command::new("setpriv");
                setpriv.args([format!("--reuid={user}"), format!("--regid={user}")]);
                setpriv.args(["--clear-groups", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]);
                setpriv.arg("--").arg(&self.program);
                setpriv
            }
            (Some(limit), _) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")]).arg(&self.program);
                shell
            }
        };
        command.args(&self.arguments).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        self.child = Some(child);
    }

    /// [`Daemon::start`], then waits until it is ready.
    #[track_caller]
    pub fn start_ready(&mut self) {
        self.start();
        self.wait_ready();
    }

    /// Waits until `/ready` answers 200.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let what = format!("{} is ready", self.name);
        wait::until_true(&what, SOON, || {
            if let Some(status) = self.exited() {
                panic!("{} ended: {status}", self.name);
            }
            self.is_ready()
        });
    }

    /// Whether `/ready` answers 200.
    pub fn is_ready(&self) -> bool {
        self.admin_get("/ready").is_ok_and(|answer| answer.status() == 200)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name)).id()
    }

    /// Its output, both streams.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Bytes of output, both streams.
    pub fn log_bytes(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        process::resident_bytes(self.pid()).unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// From now on it can allocate no more memory than this; it ends when it tries.
    pub fn limit_memory(&self, bytes: u64) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap());
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        rustix::process::prlimit(pid, Resource::Data, limit).unwrap();
    }

    /// CPU time that it has used, to a hundredth of a second.
    pub fn processor_time(&self) -> Duration {
        process::processor_time(self.pid()).unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// Its open files, as `/proc` names them.
    pub fn open_files(&self) -> Vec<String> {
        process::open_files(self.pid()).unwrap_or_else(|| panic!("{} has ended", self.name))
    }

    /// GET at the admin address.
    pub fn admin_get(&self, path: &str) -> Result<Message, io::Error> {
        self.admin(&format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.admin_address()
        ))
    }

    /// POST at the admin address.
    pub fn admin_post(&self, path: &str, body: &str) -> Result<Message, io::Error> {
        let (host, length) = (self.admin_address(), body.len());
        self.admin(&format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    }

    /// JSON from the admin address.
    #[track_caller]
    pub fn admin_json(&self, path: &str) -> Value {
        let answer = self.admin_get(path).unwrap_or_else(|error| panic!("{} {path}: {error}", self.name));
        serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("{} {path}: {error} in {:?}", self.name, answer.text()))
    }

    /// Where its admin server listens.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.unwrap_or_else(|| panic!("{} has no admin address", self.name))
    }

    fn admin(&self, request: &str) -> io::Result<Message> {
        let failed = |end| io::Error::other(format!("{end:?}"));
        let mut connection = Client::to(self.admin_address()).connect().map_err(failed)?;
        connection.request(request.as_bytes()).map_err(failed)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- {} (last {} lines)\n{}", self.name, last.len(), last.join("\n"));
        }
    }
}

/// A program of the workspace, beside the test's own.
pub fn ours(program: &str) -> PathBuf {
    let path = programs().join(program);
    assert!(path.exists(), "{} is missing: cargo build --workspace makes it", path.display());
    path
}

/// The folder of the workspace's programs: `TIDEGATE_TEST_PROGRAMS` if set, else this program's own, or the one above it
/// for a test.
pub fn programs() -> PathBuf {
    if let Some(folder) = env::var_os("TIDEGATE_TEST_PROGRAMS") {
        return folder.into();
    }
    let own = env::current_exe().unwrap();
    let folder = own.parent().unwrap();
    if folder.ends_with("deps") { folder.parent().unwrap().to_owned() } else { folder.to_owned() }
}
