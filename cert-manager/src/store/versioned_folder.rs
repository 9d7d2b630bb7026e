//! A folder whose files change all at once.
//!
//! ```text
//! <folder>/tls.crt  -> ..data/tls.crt
//! <folder>/tls.key  -> ..data/tls.key
//! <folder>/..data   -> ..tidegate_5f0c…     the version in force
//! <folder>/..tidegate_5f0c…/{tls.crt,tls.key}
//! ```
//!
//! A write makes a new version folder and renames a symbolic link over `..data`, as kubelet does for its volumes.
//! Whoever resolves `..data` once and reads below it sees one version; the version before stays until the next
//! write, so such a reader always finds its files. Processes are kept apart by a lock on `..lock`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Entries, StoreError, Stored};

#[cfg(test)]
mod tests;

const DATA: &str = "..data";
const LOCK: &str = "..lock";
const VERSION_PREFIX: &str = "..tidegate_";
const TRASH_PREFIX: &str = "..trash_";
/// Files of a larger size are no certificates or keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A folder of this kind; it need not exist yet.
#[derive(Debug, Clone)]
pub struct VersionedFolder {
    path: PathBuf,
    public: bool,
}

/// Held while a folder is changed: no other process changes it meanwhile.
#[derive(Debug)]
pub struct Locked<'a> {
    folder: &'a VersionedFolder,
    _lock: File,
}

impl VersionedFolder {
    /// A folder that only its owner may enter; every file has mode 0600.
    pub fn private(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), public: false }
    }

    /// A folder that others may read, but for its `*.key` files, which have mode 0600.
    pub fn public(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), public: true }
    }

    /// The entries in force, or `None` if there are none that a version of ours holds.
    pub fn read(&self) -> Result<Option<Stored>, StoreError> {
        // A version vanishes only after two more writes; whoever meets that starts over.
        for _ in 0..10 {
            let Some(revision) = self.revision()? else { return Ok(None) };
            match read_version(&self.path.join(&revision)) {
                Ok(entries) => return Ok(Some(Stored { entries, revision })),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if self.revision()?.as_deref() == Some(revision.as_str()) {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(StoreError::io(self.path.join(revision).display())(error)),
            }
        }
        Err(StoreError::Conflict)
    }

    /// Waits until no other process changes the folder. Makes the folder if need be.
    pub fn lock(&self) -> Result<Locked<'_>, StoreError> {
        let what = || self.path.display().to_string();
        DirBuilder::new()
            .recursive(true)
            .mode(if self.public { 0o755 } else { 0o700 })
            .create(&self.path)
            .map_err(StoreError::io(what()))?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join(LOCK))
            .map_err(StoreError::io(what()))?;
        lock.lock().map_err(StoreError::io(what()))?;
        Ok(Locked { folder: self, _lock: lock })
    }

    /// Removes what [`Locked::write`] has made, and the folder if nothing else is in it.
    pub fn remove(&self) -> Result<(), StoreError> {
        if self.revision()?.is_none() {
            return Ok(());
        }
        let locked = self.lock()?;
        locked.remove().map_err(StoreError::io(self.path.display()))
    }

    /// Whether a version of ours is in force.
    pub fn is_ours(&self) -> bool {
        matches!(self.revision(), Ok(Some(_)))
    }

    fn revision(&self) -> Result<Option<String>, StoreError> {
        let data = self.path.join(DATA);
        match fs::read_link(&data) {
            Ok(target) => {
                let name =
                    target.to_str().filter(|name| name.starts_with(VERSION_PREFIX) && !name.contains('/'));
                Ok(name.map(ToOwned::to_owned))
            }
            // Absent, or not a link: nothing of ours.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput) => Ok(None),
            Err(error) => Err(StoreError::io(data.display())(error)),
        }
    }
}

impl Locked<'_> {
    /// Replaces all entries at once; what is written is on the disk when this returns.
    pub fn write(&self, entries: &Entries) -> Result<Stored, StoreError> {
        let revision = format!("{VERSION_PREFIX}{:032x}", rand::random::<u128>());
        self.try_write(entries, &revision).map_err(StoreError::io(self.folder.path.display()))?;
        Ok(Stored { entries: entries.clone(), revision })
    }

    fn try_write(&self, entries: &Entries, revision: &str) -> io::Result<()> {
        let root = &self.folder.path;
        let before = fs::read_link(root.join(DATA)).ok();
        let version = root.join(revision);
        DirBuilder::new().mode(if self.folder.public { 0o755 } else { 0o700 }).create(&version)?;
        for (name, value) in &entries.0 {
            let readable = self.folder.public && !name.ends_with(".key");
            let mode = if readable { 0o644 } else { 0o600 };
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(mode).open(version.join(name))?;
            file.write_all(value)?;
            file.sync_all()?;
        }
        sync_folder(&version)?;

        let link = root.join(format!("{revision}.link"));
        symlink(revision, &link)?;
        fs::rename(&link, root.join(DATA))?;
        for name in entries.0.keys() {
            place_link(root, name)?;
        }
        sync_folder(root)?;
        self.clean(entries, &[Path::new(revision), before.as_deref().unwrap_or(Path::new(""))])
    }

    /// Drops links that lead nowhere and versions that nobody can be reading any more.
    fn clean(&self, entries: &Entries, keep: &[&Path]) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = Path::new(&name);
            let text = name.to_string_lossy();
            if text.starts_with(TRASH_PREFIX) {
                remove_any(&entry.path())?;
            } else if text.starts_with(VERSION_PREFIX) {
                if !keep.contains(&name) {
                    // It loses its name first: a reader within it notices.
                    let trash =
                        self.folder.path.join(format!("{TRASH_PREFIX}{:016x}", rand::random::<u64>()));
                    fs::rename(entry.path(), &trash)?;
                    remove_any(&trash)?;
                }
            } else if is_our_link(&entry.path()) && !entries.0.contains_key(text.as_ref()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        let root = &self.folder.path;
        for entry in fs::read_dir(root)? {
            let path = entry?.path();
            if is_our_link(&path) {
                fs::remove_file(&path)?;
            }
        }
        remove_any(&root.join(DATA))?;
        self.clean(&Entries::default(), &[])?;
        remove_any(&root.join(LOCK))?;
        match fs::remove_dir(root) {
            Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => Err(error),
            _ => Ok(()),
        }
    }
}

fn read_version(path: &Path) -> io::Result<Entries> {
    let mut entries = Entries::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.metadata()?.len() > MAX_FILE_BYTES {
            return Err(io::Error::new(ErrorKind::FileTooLarge, entry.path().display().to_string()));
        }
        entries.0.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    // Gone now, it may have lost files while it was read.
    fs::metadata(path)?;
    Ok(entries)
}

/// `<folder>/<name>` leads to `..data/<name>`; a plain file of that name gives way.
fn place_link(root: &Path, name: &str) -> io::Result<()> {
    let path = root.join(name);
    let target = Path::new(DATA).join(name);
    if fs::read_link(&path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let link = root.join(format!("{VERSION_PREFIX}{:016x}.link", rand::random::<u64>()));
    symlink(&target, &link)?;
    fs::rename(&link, &path)
}

fn is_our_link(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target.starts_with(DATA))
}

fn remove_any(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
