//! The trust bundle as a PEM file.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use super::{BundlePublisher, PublishedBundle, StoreError, blocking};

/// Writes the bundle to a file, which a rename replaces as a whole.
#[derive(Debug, Clone)]
pub struct BundleFile(PathBuf);

impl BundleFile {
    /// Publishes to `path`; its folder is created if necessary.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

#[tonic::async_trait]
impl BundlePublisher for BundleFile {
    async fn publish(&self, pem: &str) -> Result<(), StoreError> {
        let (path, pem) = (self.0.clone(), pem.to_owned());
        blocking(move || {
            if fs::read(&path).is_ok_and(|found| found == pem.as_bytes()) {
                return Ok(());
            }
            let failed = || StoreError::io(path.display());
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder {
                fs::create_dir_all(folder).map_err(failed())?;
            }
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{:016x}.tmp", rand::random::<u64>()));
            let temporary = PathBuf::from(name);
            let written = fs::write(&temporary, &pem)
                .and_then(|()| fs::File::open(&temporary)?.sync_all())
                .and_then(|()| fs::rename(&temporary, &path));
            if written.is_err() {
                let _ = fs::remove_file(&temporary);
            }
            written.map_err(failed())
        })
        .await
    }

    async fn published(&self) -> Result<Option<PublishedBundle>, StoreError> {
        let path = self.0.clone();
        blocking(move || match fs::read_to_string(&path) {
            Ok(pem) => Ok(Some(PublishedBundle { place: path.display().to_string(), pem })),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io(path.display())(error)),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_holds_the_bundle_whatever_happened_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trust/bundle.pem");
        let publisher = BundleFile::new(&path);
        for pem in ["one", "two"] {
            publisher.publish(pem).await.unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), pem);
        }
        fs::remove_file(&path).unwrap();
        publisher.publish("two").await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(dir.path().join("trust")).unwrap().count(), 1);
    }
}
