//! A real mitmproxy: a forward proxy that intercepts TLS, and shows clients certificates of its own root.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;

use crate::wait::{self, SOON};

/// Connects to one address for all names.
const ADDON: &str = r#"
import os

def server_connect(data):
    data.server.address = (os.environ["SERVER"], data.server.address[1])
"#;

/// mitmproxy in the network namespace of the thread that starts it; killed when dropped.
#[derive(Debug)]
pub struct Mitmproxy {
    folder: TempDir,
    child: Child,
}

impl Mitmproxy {
    /// Listens at `address`, and connects to `server` whatever name a client wants. It trusts the roots in `root`.
    #[track_caller]
    pub fn start(address: SocketAddr, server: IpAddr, root: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (addon, log) = (folder.path().join("addon.py"), folder.path().join("log"));
        fs::write(&addon, ADDON).unwrap();
        let mut command = Command::new(program());
        command.env("SERVER", server.to_string());
        command.args(["--mode", "regular", "--listen-host", &address.ip().to_string()]);
        command.args(["--listen-port", &address.port().to_string(), "--set", "connection_strategy=lazy"]);
        command.arg("--set").arg(format!("confdir={}", folder.path().display()));
        command.arg("--set").arg(format!("ssl_verify_upstream_trusted_ca={}", root.display()));
        command.arg("--scripts").arg(addon);
        command.stdin(Stdio::null()).stdout(fs::File::create(&log).unwrap());
        let child = command.stderr(fs::File::create(folder.path().join("errors")).unwrap()).spawn().unwrap();
        let mut started = Self { folder, child };
        wait::until_true("mitmproxy listens", SOON, || {
            let ended = started.child.try_wait().unwrap();
            assert!(ended.is_none(), "mitmproxy ended: {}", started.log());
            TcpStream::connect(address).is_ok()
        });
        started
    }

    /// The root of the certificates that it shows.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("mitmproxy-ca-cert.pem")
    }

    /// What it has seen.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        format!("{}{}", read("log"), read("errors"))
    }
}

impl Drop for Mitmproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- mitmproxy\n{}", self.log());
        }
    }
}

/// Where `tests/mitmproxy` has installed it.
fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("mitmproxy");
    let output = Command::new(&script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{} failed", script.display());
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}
