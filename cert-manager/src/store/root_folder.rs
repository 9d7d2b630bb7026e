//! The certificate authority in a folder that only its owner may read.

use std::path::PathBuf;

use super::versioned_folder::VersionedFolder;
use super::{Entries, RootStore, StoreError, Stored, blocking};

/// A [`RootStore`] on files of mode 0600. Processes that share the folder agree on one root.
#[derive(Debug, Clone)]
pub struct RootFolder(VersionedFolder);

impl RootFolder {
    /// Keeps the authority in `path`, which is made when it is first written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(VersionedFolder::private(path))
    }
}

#[tonic::async_trait]
impl RootStore for RootFolder {
    async fn load(&self) -> Result<Option<Stored>, StoreError> {
        let folder = self.0.clone();
        blocking(move || folder.read()).await
    }

    async fn create_if_absent(&self, entries: Entries) -> Result<Stored, StoreError> {
        let folder = self.0.clone();
        blocking(move || {
            let locked = folder.lock()?;
            match folder.read()? {
                Some(stored) => Ok(stored),
                None => locked.write(&entries),
            }
        })
        .await
    }

    async fn update(&self, revision: &str, entries: Entries) -> Result<Stored, StoreError> {
        let (folder, revision) = (self.0.clone(), revision.to_owned());
        blocking(move || {
            let locked = folder.lock()?;
            match folder.read()? {
                Some(stored) if stored.revision == revision => locked.write(&entries),
                _ => Err(StoreError::Conflict),
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(value: &str) -> Entries {
        Entries([("issuer.key".to_owned(), value.as_bytes().to_vec())].into())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_creators_at_once_one_wins_and_all_agree() {
        let dir = tempfile::tempdir().unwrap();
        let tasks: Vec<_> = (0..16)
            .map(|i| {
                let store = RootFolder::new(dir.path().join("ca"));
                tokio::spawn(async move { store.create_if_absent(entries(&i.to_string())).await.unwrap() })
            })
            .collect();
        let mut answers = Vec::new();
        for task in tasks {
            answers.push(task.await.unwrap());
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    }

    #[tokio::test]
    async fn an_update_of_what_has_changed_meanwhile_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = RootFolder::new(dir.path());
        assert!(matches!(store.update("", entries("0")).await, Err(StoreError::Conflict)));
        let first = store.create_if_absent(entries("1")).await.unwrap();
        let second = store.update(&first.revision, entries("2")).await.unwrap();
        assert!(matches!(store.update(&first.revision, entries("3")).await, Err(StoreError::Conflict)));
        assert_eq!(store.load().await.unwrap(), Some(second));
    }
}
