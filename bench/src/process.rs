//! Processes that the benchmark owns: pinned to a core, stopped with it however it ends, measured from /proc.

pub(crate) mod usage;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Signal};
use rustix::thread::CpuSet;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// Time for a process to exit on its own after SIGTERM.
const GRACE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// Bytes of a process's log to show when it fails.
const LOG_TAIL: usize = 2000;

/// A running process, stopped on drop.
#[derive(Debug)]
pub(crate) struct Process {
    /// Name for errors and for the log's file.
    name: String,
    /// The process.
    child: Child,
    /// File of its output.
    log: PathBuf,
}

/// Flags of the hidden command that executes another program.
#[derive(Debug, clap::Args)]
pub(crate) struct PinnedOptions {
    /// The core to pin to.
    #[arg(long)]
    core: usize,
    /// The parent process; when it ends, this one ends, too.
    #[arg(long)]
    parent: i32,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Process {
    /// Starts a program on `core`; its output goes to `<directory>/<name>.log`.
    pub(crate) fn start<S: AsRef<OsStr>>(
        name: &str,
        core: usize,
        directory: &Path,
        program: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let child = pinned(core, program, arguments)?
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Starts this program with one of its commands on `core`, with a readable standard output.
    pub(crate) fn start_own<S: AsRef<OsStr>>(
        name: &str,
        core: usize,
        directory: &Path,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<(Self, pipe::Receiver)> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut child = pinned(core, &own_program()?, arguments)?
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("no standard output")?;
        let process = Self { name: name.to_owned(), child, log };
        Ok((process, pipe::Receiver::from_owned_fd(OwnedFd::from(stdout))?))
    }

    /// Waits for the process to exit and returns its output; fails unless it succeeded.
    pub(crate) async fn output(mut self, mut stdout: pipe::Receiver) -> Result<String> {
        let mut text = String::new();
        stdout.read_to_string(&mut text).await?;
        // The pipe is closed, so the process is about to exit.
        let status = self.child.wait()?;
        ensure!(status.success(), "{} failed ({status}): {}", self.name, self.log_tail());
        Ok(text)
    }

    /// Process ID.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the end of its log, if the process has exited.
    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}): {}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let start = log.len().saturating_sub(LOG_TAIL);
        log.get(start..).unwrap_or(&log).trim().to_owned()
    }

    /// Stops the process: SIGTERM, then SIGKILL for its whole family.
    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let family = usage::family(self.id())?;
        let pid = Pid::from_child(&self.child);
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        rustix::process::kill_process(pid, Signal::TERM)?;
        let ended = rustix::event::poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&GRACE))?;
        if ended == 0 {
            eprintln!("{} did not exit on SIGTERM; killing it", self.name);
            for member in family.into_iter().filter_map(|id| Pid::from_raw(id as i32)) {
                // It may have just exited on its own.
                rustix::process::kill_process(member, Signal::KILL).ok();
            }
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("cannot end {} (pid {}): {error:#}", self.name, self.id());
        }
    }
}

/// Pins this process, ties its lifetime to its parent's and executes the command. Returns only on failure.
pub(crate) fn become_pinned(options: PinnedOptions) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
    let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    ensure!(parent == options.parent, "the parent process has exited");
    let mut cores = CpuSet::new();
    ensure!(options.core < CpuSet::MAX_CPU, "core {} does not exist", options.core);
    cores.set(options.core);
    rustix::thread::sched_setaffinity(None, &cores)
        .with_context(|| format!("cannot run on core {}", options.core))?;
    let mut files = rustix::process::getrlimit(Resource::Nofile);
    files.current = files.maximum;
    rustix::process::setrlimit(Resource::Nofile, files).context("cannot raise the limit of open files")?;
    let (program, arguments) = options.command.split_first().context("no command")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot execute {}", program.to_string_lossy()))
}

/// The command that starts a program through this program's `pinned`.
fn pinned<S: AsRef<OsStr>>(
    core: usize,
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Result<Command> {
    let mut command = Command::new(own_program()?);
    command
        .args(["pinned", "--core", &core.to_string(), "--parent", &std::process::id().to_string(), "--"])
        .arg(program)
        .args(arguments)
        .stdin(Stdio::null());
    Ok(command)
}

/// Path of this program.
fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's executable")
}
