//! The ingress gateway's Secret as files, updated as a volume would be.

use std::fs;
use std::os::unix::fs::symlink;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tempfile::TempDir;
use tidegate_tests::kubernetes::Cluster;
use tidegate_tests::load::SecretFiles;

/// A copy of a Secret.
pub(super) struct SecretCopy {
    folder: TempDir,
    namespace: &'static str,
    name: &'static str,
    /// The version that was copied.
    resource_version: Value,
}

impl SecretCopy {
    /// Waits for the Secret and copies it.
    pub(super) fn start(cluster: &Cluster, namespace: &'static str, name: &'static str) -> Self {
        let mut copy =
            Self { folder: tempfile::tempdir().unwrap(), namespace, name, resource_version: Value::Null };
        cluster.wait_for("the ingress gateway's Secret", &["secret", "-n", namespace, name], |secret| {
            copy.take(secret)
        });
        copy
    }

    /// Copies it again if it has changed. While the API server does not answer, the copy stays unchanged.
    pub(super) fn follow(&mut self, cluster: &Cluster) {
        if let Ok(secret) = cluster.try_get_json(&["secret", "-n", self.namespace, self.name]) {
            self.take(&secret);
        }
    }

    /// The files.
    pub(super) fn files(&self) -> SecretFiles {
        SecretFiles(self.folder.path().to_owned())
    }

    /// Each version is a folder, and the link to it is replaced atomically.
    fn take(&mut self, secret: &Value) -> Option<()> {
        let version = &secret["metadata"]["resourceVersion"];
        if *version == self.resource_version {
            return Some(());
        }
        let folder = self.folder.path();
        let fresh = folder.join(version.as_str()?);
        let mut files = Vec::new();
        for key in ["tls.crt", "tls.key", "ca.crt"] {
            files.push((key, BASE64_STANDARD.decode(secret["data"][key].as_str()?).ok()?));
        }
        fs::create_dir_all(&fresh).unwrap();
        for (key, content) in files {
            fs::write(fresh.join(key), content).unwrap();
        }
        symlink(&fresh, folder.join("..fresh")).unwrap();
        fs::rename(folder.join("..fresh"), folder.join("..data")).unwrap();
        self.resource_version = version.clone();
        Some(())
    }
}
