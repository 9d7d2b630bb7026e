//! The whole mesh in one process: `tidegate standalone` on the manifests of `examples/ingress`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::client::{Client, RequestOutcome, Tls};
use crate::daemon::Daemon;
use crate::files::replace;
use crate::load::SecretFiles;
use crate::loopback::Block;
use crate::mesh::{PORT, SERVER_NAME, example};
use crate::wait::{self, SOON};

const ADMIN: u8 = 3;
const POD: u8 = 10;
const APP: u8 = 20;
const GATEWAY: u8 = 30;

/// A running mesh, at the test's own addresses. It ends when it is dropped.
#[derive(Debug)]
pub struct StandaloneProcess {
    /// The process.
    pub process: Daemon,
    folder: TempDir,
    block: Block,
}

impl StandaloneProcess {
    /// Starts it, without a policy; returns when it is ready.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// [`StandaloneProcess::start`] with further flags.
    #[track_caller]
    pub fn with(flags: &[(&str, &str)]) -> Self {
        let (folder, block) = (tempfile::tempdir().unwrap(), Block::claim());
        let manifests = folder.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        for name in ["httpbin", "ingress-nginx", "meshconfig"] {
            let text = fs::read_to_string(example(&format!("mesh/{name}.yaml"))).unwrap();
            let text = text.replace("127.0.7.", &block.prefix());
            fs::write(manifests.join(format!("{name}.yaml")), text).unwrap();
        }
        let admin = block.at(ADMIN, 15000);
        let own = [
            ("--folder", manifests.display().to_string()),
            ("--state-dir", folder.path().join("state").display().to_string()),
            ("--admin-address", admin.to_string()),
        ];
        let flags = flags.iter().map(|(flag, value)| (*flag, (*value).to_owned()));
        let flags = own.into_iter().chain(flags).flat_map(|(flag, value)| [flag.to_owned(), value]);
        let arguments = std::iter::once("standalone".to_owned()).chain(flags).collect();
        let mut process = Daemon::new("tidegate", "standalone", folder.path(), arguments, Some(admin));
        process.start_ready();
        Self { process, folder, block }
    }

    /// The folder of everything; its state is in `state`.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of its objects.
    pub fn manifests(&self) -> PathBuf {
        self.path().join("manifests")
    }

    /// A file of [`StandaloneProcess::manifests`].
    pub fn manifest(&self, name: &str) -> PathBuf {
        self.manifests().join(name)
    }

    /// The test's addresses.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Where the app listens.
    pub fn app_address(&self) -> SocketAddr {
        self.block.at(APP, PORT)
    }

    /// Replaces a file by the result of `change`.
    pub fn change(&self, name: &str, change: impl Fn(String) -> String) {
        let path = self.manifest(name);
        replace(&path, &change(fs::read_to_string(&path).unwrap()));
    }

    /// Replaces the policy by one of the example's.
    pub fn apply_example(&self, name: &str) {
        let text = fs::read_to_string(example(&format!("policies/{name}.yaml"))).unwrap();
        replace(&self.manifest("policy.yaml"), &text);
    }

    /// A plaintext client at the ingress controller's address.
    pub fn plain(&self) -> Client {
        Client::to(self.block.at(POD, PORT)).from(self.block.ip(GATEWAY))
    }

    /// The ingress controller's Secret, which may not exist yet.
    pub fn secret(&self) -> SecretFiles {
        let found = find(self.path(), "osm-nginx-client-cert");
        SecretFiles(found.unwrap_or_else(|| self.path().join("absent")))
    }

    /// A client at the ingress controller's address, with its certificate.
    #[track_caller]
    pub fn mutual(&self) -> Client {
        wait::until_true("the Secret is there", SOON, || self.secret().0.join("tls.crt").exists());
        let tls = Tls::new(self.secret().roots(), SERVER_NAME).credentials(self.secret().credentials());
        self.plain().tls(tls)
    }

    /// The mesh's root in DER.
    #[track_caller]
    pub fn root(&self) -> Vec<u8> {
        self.mutual();
        self.secret().roots()[0].to_vec()
    }

    /// Waits until a client gets this from `/get`.
    #[track_caller]
    pub fn wait_for(&self, client: &Client, expected: &RequestOutcome) {
        wait::until_true(&format!("{expected:?}"), SOON, || client.get("/get") == *expected);
    }
}

/// A folder of this name, anywhere below.
fn find(below: &Path, name: &str) -> Option<PathBuf> {
    let folders = fs::read_dir(below).ok()?.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    let folders: Vec<_> = folders.collect();
    let here = folders.iter().find(|path| path.file_name().is_some_and(|found| found == name)).cloned();
    here.or_else(|| folders.iter().find_map(|path| find(path, name)))
}
