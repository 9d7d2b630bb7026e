//! The programs of a release, and whether one of them is ready.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::net::TcpStream;

use super::TargetSite;
use super::mesh::ProgramFlags;
use crate::http::HttpConnection;
use crate::process::Process;
use crate::targets::PEERS;

/// Timeout until a program is ready.
const START: Duration = Duration::from_secs(20);
/// Pause between two looks at a program.
const POLL: Duration = Duration::from_millis(20);

/// The three programs of a release.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::targets) struct ReleasePrograms {
    /// `tidegate-cert-manager`.
    pub(in crate::targets) cert_manager: PathBuf,
    /// `tidegate-controller`.
    pub(in crate::targets) controller: PathBuf,
    /// `tidegate-sidecar`.
    pub(in crate::targets) sidecar: PathBuf,
}

impl ReleasePrograms {
    /// `place` is the folder of the programs, or one of the programs in it.
    pub(in crate::targets) fn find(place: &Path) -> Result<Self> {
        let folder = match place.parent() {
            _ if place.is_dir() => place,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            // A bare name would be searched in PATH.
            _ => Path::new("."),
        };
        let program = |name: &str| {
            let program = folder.join(name);
            if !program.is_file() {
                bail!(
                    "{} does not exist; build it with `cargo build --release`, or give its folder with --tidegate",
                    program.display()
                );
            }
            Ok(program)
        };
        Ok(Self {
            cert_manager: program("tidegate-cert-manager")?,
            controller: program("tidegate-controller")?,
            sidecar: program("tidegate-sidecar")?,
        })
    }

    /// Starts a sidecar, and waits until it is ready.
    pub(super) async fn start_sidecar(
        &self,
        site: &TargetSite<'_>,
        name: &str,
        arguments: ProgramFlags,
        admin: SocketAddr,
    ) -> Result<Process> {
        let mut sidecar = Process::start(name, site.core, site.directory, &self.sidecar, arguments.0)?;
        until(name, &mut sidecar, async || ready(admin).await).await?;
        Ok(sidecar)
    }
}

/// Waits until `holds`, while the process runs.
pub(super) async fn until(
    name: &str,
    process: &mut Process,
    mut holds: impl AsyncFnMut() -> bool,
) -> Result<()> {
    let wait = async {
        loop {
            process.ensure_running()?;
            if holds().await {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    if let Ok(result) = tokio::time::timeout(START, wait).await {
        return result;
    }
    bail!("{name} is not ready after {START:?}: {}", process.log_tail())
}

/// Whether a program's admin server reports ready.
pub(super) async fn ready(admin: SocketAddr) -> bool {
    let Ok(stream) = TcpStream::connect(admin).await else { return false };
    let request = format!("GET /ready HTTP/1.1\r\nhost: {PEERS}\r\n\r\n");
    HttpConnection::new(stream).exchange(request.as_bytes()).await.is_ok_and(|answer| answer.status == 200)
}

/// Whether each of these files exists and is not empty.
pub(super) fn has_content<const COUNT: usize>(folder: &Path, files: [&str; COUNT]) -> bool {
    files.iter().all(|file| fs::metadata(folder.join(file)).is_ok_and(|file| file.len() > 0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_programs_are_found_by_their_folder_or_by_any_program_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["tidegate-cert-manager", "tidegate-controller", "tidegate-sidecar"] {
            let error = ReleasePrograms::find(folder.path()).unwrap_err().to_string();
            let start =
                format!("{} does not exist; build it with `cargo build --release`", path(name).display());
            assert!(error.starts_with(&start), "{error}");
            fs::write(path(name), "").unwrap();
        }
        let programs = ReleasePrograms::find(folder.path()).unwrap();
        assert_eq!(programs.sidecar, path("tidegate-sidecar"));
        assert_eq!(ReleasePrograms::find(&path("tidegate")).unwrap(), programs);
    }

    #[test]
    fn files_count_only_once_each_has_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let complete = || has_content(folder.path(), ["tls.crt", "tls.key"]);
        assert!(!complete());
        fs::write(path("tls.crt"), "certificate").unwrap();
        symlink(path("data"), path("tls.key")).unwrap();
        assert!(!complete(), "the key's link leads nowhere");
        fs::write(path("data"), "").unwrap();
        assert!(!complete(), "the key is empty");
        fs::write(path("data"), "key").unwrap();
        assert!(complete());
    }

    #[tokio::test]
    async fn a_program_is_ready_only_when_its_admin_server_says_200() {
        let listener = TcpListener::bind((PEERS, 0)).await.unwrap();
        let admin = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            for status in ["503 Service Unavailable", "200 OK"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /ready HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        assert!(!ready(admin).await);
        assert!(ready(admin).await);
        server.await.unwrap();
        assert!(!ready(admin).await, "the listener is closed");
    }
}
