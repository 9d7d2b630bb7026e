//! Stores the certificate authority in a folder that only its owner may read.

use std::path::PathBuf;

use super::versioned_folder::VersionedFolder;
use super::{NamedValues, RootStore, StoreError, StoredValues, blocking};

/// A [`RootStore`] on files of mode 0600. Processes that share the folder agree on one root.
#[derive(Debug, Clone)]
pub struct RootFolder(VersionedFolder);

impl RootFolder {
    /// Stores the authority in `path`, which is created with the first write.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(VersionedFolder::private(path))
    }
}

#[tonic::async_trait]
impl RootStore for RootFolder {
    fn place(&self) -> String {
        format!("folder {}", self.0.path().display())
    }

    async fn load(&self) -> Result<Option<StoredValues>, StoreError> {
        let folder = self.0.clone();
        blocking(move || folder.read()).await
    }

    async fn create_if_absent(&self, entries: NamedValues) -> Result<StoredValues, StoreError> {
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

    async fn update(&self, revision: &str, entries: NamedValues) -> Result<StoredValues, StoreError> {
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
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    fn entries(value: &str) -> NamedValues {
        NamedValues([("issuer.key".to_owned(), value.as_bytes().to_vec())].into())
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

    /// Every file below, links followed; what is not a file is left out.
    fn files(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            match fs::symlink_metadata(&path).unwrap() {
                it if it.is_dir() => found.extend(files(&path)),
                it if it.is_file() => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
                _ => {}
            }
        }
        found
    }

    fn copy(how: &str, dir: &Path) {
        let run = Command::new("sh").args(["-c", how]).current_dir(dir).output().unwrap();
        assert!(run.status.success(), "{how}: {}", String::from_utf8_lossy(&run.stderr));
    }

    async fn filled(path: &Path, versions: usize) -> StoredValues {
        let store = RootFolder::new(path);
        let mut stored = store.create_if_absent(entries("0")).await.unwrap();
        for value in 1..versions {
            stored = store.update(&stored.revision, entries(&value.to_string())).await.unwrap();
        }
        stored
    }

    #[tokio::test]
    async fn every_copy_of_a_folder_holds_what_the_folder_held_and_can_be_updated() {
        for (how, versions) in [
            ("cp -r a b", 2),
            ("cp -rL a b", 2),
            ("mkdir b && cp a/issuer.key b", 2),
            ("mkdir b && cp -L a/* b", 2),
            // As `rsync -r` does: no links.
            ("cp -r a b && find b -type l -delete", 1),
            // A copy that ended in the midst of being put right.
            ("cp -rL a b && mv b/..data b/..tidegate_x", 2),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let stored = filled(&dir.path().join("a"), versions).await;
            copy(how, dir.path());
            let copied = RootFolder::new(dir.path().join("b"));
            let found = copied.load().await.unwrap().unwrap();
            assert_eq!(found.entries, stored.entries, "{how}");
            assert_eq!(
                copied.create_if_absent(entries("new")).await.unwrap().entries,
                stored.entries,
                "{how}"
            );
            let updated = copied.update(&found.revision, entries("next")).await.unwrap();
            assert_eq!(copied.load().await.unwrap(), Some(updated), "{how}");
            assert_eq!(fs::read(dir.path().join("b/issuer.key")).unwrap(), b"next", "{how}");
        }
    }

    #[tokio::test]
    async fn where_something_was_and_is_lost_nothing_is_made_and_no_file_changes() {
        for (how, found) in [
            ("find a -mindepth 1 -maxdepth 1 -type d -exec rm -r {} +", "..data leads to ..tidegate_"),
            ("find a -type l -delete", "several versions (..tidegate_"),
            ("find a -mindepth 1 -name '..[dt]*' -exec rm -r {} +", "links that lead nowhere (issuer.key)"),
            ("rm a/..data && touch a/..data", "..data is neither a link nor a folder"),
            ("rm a/..data a/issuer.key && echo other > a/issuer.key", "files (issuer.key) and versions"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            filled(&dir.path().join("a"), 2).await;
            copy(how, dir.path());
            let (store, before) = (RootFolder::new(dir.path().join("a")), files(dir.path()));
            for lost in [store.load().await.err(), store.create_if_absent(entries("new")).await.err()] {
                let Some(StoreError::Lost { place, found: what }) = lost else { panic!("{how}: {lost:?}") };
                assert!(place.ends_with("/a") && what.contains(found), "{how}: {place} {what}");
            }
            assert_eq!(files(dir.path()), before, "{how}");
        }
    }

    #[tokio::test]
    async fn a_folder_that_holds_nothing_of_an_authority_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        fs::write(dir.path().join("README"), "").unwrap();
        // What an interrupted first write leaves behind.
        fs::create_dir(dir.path().join("..new_0123")).unwrap();
        let store = RootFolder::new(dir.path());
        assert_eq!(store.load().await.unwrap(), None);
        assert_eq!(store.create_if_absent(entries("1")).await.unwrap().entries, entries("1"));
        assert!(!dir.path().join("..new_0123").exists());
    }
}
