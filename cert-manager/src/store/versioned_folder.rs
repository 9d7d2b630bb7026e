//! A folder whose files are replaced all at once.
//!
//! ```text
//! <folder>/tls.crt  -> ..data/tls.crt
//! <folder>/tls.key  -> ..data/tls.key
//! <folder>/..data   -> ..tidegate_5f0c…     the version in force
//! <folder>/..tidegate_5f0c…/{tls.crt,tls.key}
//! ```
//!
//! A write creates a new version folder and renames a symbolic link over `..data`, as kubelet does for its volumes. A
//! reader that resolves `..data` once and reads below it sees one version; the previous version stays until the next
//! write, so such a reader always finds its files. A lock on `..lock` serialises processes.
//!
//! Copies often lose the links: `cp -rL` turns `..data` into a folder, `rsync -r` skips it, and a user may copy only the
//! files. The content of such a copy is read, and becomes a version at the next write. A version that can no longer be
//! read is an error ([`StoreError::Lost`]), never treated as an empty folder. A file `*.key` with a value that is not in
//! this folder's versions is never replaced.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use tidegate_core::hex;

use super::{NamedValues, StoreError, StoredValues};

#[cfg(test)]
mod tests;

const DATA: &str = "..data";
const LOCK: &str = "..lock";
const VERSION_PREFIX: &str = "..tidegate_";
const TRASH_PREFIX: &str = "..trash_";
/// A version that is being written. A leftover one was never in use.
const NEW_PREFIX: &str = "..new_";
const LINK_SUFFIX: &str = ".link";
/// Maximum bytes of a file; larger ones are neither certificates nor keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Such a folder, which need not exist yet.
#[derive(Debug, Clone)]
pub(crate) struct VersionedFolder {
    path: PathBuf,
    public: bool,
    /// Whether plain files count as entries in a folder without versions.
    takes_plain: bool,
}

/// The form of a folder's entries.
#[derive(Debug, PartialEq, Eq)]
enum Layout {
    /// There never were any.
    Empty,
    /// `..data` points to this folder, or this is the only version and the link is missing.
    Version { name: String, is_linked: bool },
    /// `..data` is a folder itself.
    Copied,
    /// There are plain files with these names, but no versions.
    Plain(Vec<String>),
}

/// Held during a change, so that no other process changes the folder.
#[derive(Debug)]
pub(crate) struct Locked<'a> {
    folder: &'a VersionedFolder,
    _lock: File,
}

impl VersionedFolder {
    /// A folder that only its owner may enter; every file has mode 0600. Where there is no version, plain files
    /// `*.crt`, `*.key` and `*.json` are the entries.
    pub(crate) fn private(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), public: false, takes_plain: true }
    }

    /// A folder that others may read, except for its `*.key` files, which have mode 0600. Plain files belong to others.
    pub(crate) fn public(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), public: true, takes_plain: false }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The current entries, or `None` if there never were any. [`StoreError::Lost`] if earlier ones cannot be read.
    pub(crate) fn read(&self) -> Result<Option<StoredValues>, StoreError> {
        // A version is deleted only after two more writes; a reader that loses one starts over.
        for _ in 0..10 {
            let (entries, name) = match self.layout()? {
                Layout::Empty => return Ok(None),
                Layout::Version { name, .. } => (read_version(&self.path.join(&name)), Some(name)),
                Layout::Copied => (read_version(&self.path.join(DATA)), None),
                Layout::Plain(names) => (self.read_plain(&names), None),
            };
            match entries {
                Ok(entries) => {
                    let revision = name.unwrap_or_else(|| version_of(&entries));
                    return Ok(Some(StoredValues { entries, revision }));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io(self.path.display())(error)),
            }
        }
        Err(StoreError::Conflict)
    }

    /// Waits until no other process changes the folder, which is created if necessary.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, StoreError> {
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
        let locked = Locked { folder: self, _lock: lock };
        locked.adopt()?;
        Ok(locked)
    }

    /// Removes what [`Locked::write`] created, and the folder if it is then empty.
    pub(crate) fn remove(&self) -> Result<(), StoreError> {
        if !self.is_ours() {
            return Ok(());
        }
        let locked = self.lock()?;
        locked.remove().map_err(StoreError::io(self.path.display()))
    }

    /// Whether one of our versions, or a copy of one, is in use.
    pub(crate) fn is_ours(&self) -> bool {
        match self.layout() {
            Ok(Layout::Version { name, is_linked }) => is_linked && name.starts_with(VERSION_PREFIX),
            Ok(Layout::Copied) => true,
            _ => false,
        }
    }

    /// What is in the folder now.
    fn layout(&self) -> Result<Layout, StoreError> {
        let data = self.path.join(DATA);
        match fs::read_link(&data) {
            Ok(target) => self.linked(&target),
            Err(error) if error.kind() == ErrorKind::NotFound => self.unlinked(),
            Err(error) if error.kind() == ErrorKind::InvalidInput && data.is_dir() => Ok(Layout::Copied),
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                Err(self.lost(format!("{DATA} is neither a link nor a folder")))
            }
            Err(error) => Err(StoreError::io(data.display())(error)),
        }
    }

    /// The same where `..data` points at `target`.
    fn linked(&self, target: &Path) -> Result<Layout, StoreError> {
        let is_there = self.path.join(target).is_dir();
        // Another writer may have been faster.
        if !is_there && fs::read_link(self.path.join(DATA)).is_ok_and(|now| now == target) {
            return Err(self.lost(format!("{DATA} leads to {}, which is not there", target.display())));
        }
        Ok(Layout::Version { name: target.to_string_lossy().into_owned(), is_linked: true })
    }

    /// Without a link to the current version.
    fn unlinked(&self) -> Result<Layout, StoreError> {
        let (mut versions, mut links, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Layout::Empty),
            entries => entries.map_err(StoreError::io(self.path.display()))?,
        };
        for entry in entries {
            let path = entry.map_err(StoreError::io(self.path.display()))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if is_our_link(&path) {
                links.push(name);
            } else if name.starts_with(VERSION_PREFIX) && path.is_dir() {
                versions.push(name);
            } else if self.takes_plain && is_plain_entry(&path, &name) {
                plain.push(name);
            }
        }
        if plain.is_empty() {
            return match versions.as_slice() {
                [only] => Ok(Layout::Version { name: only.clone(), is_linked: false }),
                [] if links.is_empty() => Ok(Layout::Empty),
                [] => Err(self.lost(format!("links that lead nowhere ({})", listed(links)))),
                _ => Err(self.lost(format!(
                    "several versions ({}) and no {DATA} that says which counts",
                    listed(versions)
                ))),
            };
        }
        if versions.is_empty() {
            return Ok(Layout::Plain(plain));
        }
        let entries = self.read_plain(&plain).map_err(StoreError::io(self.path.display()))?;
        let is_same =
            |version: &&String| read_version(&self.path.join(version)).is_ok_and(|found| found == entries);
        match versions.iter().find(is_same) {
            Some(same) => Ok(Layout::Version { name: same.clone(), is_linked: false }),
            None => {
                let (plain, versions) = (listed(plain), listed(versions));
                Err(self
                    .lost(format!("files ({plain}) and versions ({versions}), none of which holds the same")))
            }
        }
    }

    /// Entries from plain files, as an operator puts them there.
    fn read_plain(&self, names: &[String]) -> io::Result<NamedValues> {
        let read = |name: &String| Ok((name.clone(), read_file(&self.path.join(name))?));
        names.iter().map(read).collect::<io::Result<BTreeMap<_, _>>>().map(NamedValues)
    }

    /// There was content here, and it can no longer be read: writing would destroy what may be left of it.
    fn lost(&self, found: String) -> StoreError {
        StoreError::Lost { place: self.path.display().to_string(), found }
    }
}

impl Locked<'_> {
    /// Replaces all entries at once; they are on the disk when this returns.
    pub(crate) fn write(&self, entries: &NamedValues) -> Result<StoredValues, StoreError> {
        self.protect_keys(entries)?;
        let revision = format!("{VERSION_PREFIX}{:032x}", rand::random::<u128>());
        self.try_write(entries, &revision).map_err(StoreError::io(self.folder.path.display()))?;
        Ok(StoredValues { entries: entries.clone(), revision })
    }

    /// Turns a copy's content into a version, with the revision that [`VersionedFolder::read`] returns.
    fn adopt(&self) -> Result<(), StoreError> {
        let root = &self.folder.path;
        let failed = || StoreError::io(root.display());
        let entries = match self.folder.layout() {
            Ok(Layout::Copied) => {
                let entries = read_version(&root.join(DATA)).map_err(failed())?;
                let version = version_of(&entries);
                let renamed = fs::rename(root.join(DATA), root.join(&version));
                renamed.and_then(|()| self.link_data(&version)).map_err(failed())?;
                entries
            }
            Ok(Layout::Version { name, is_linked: false }) => {
                return self.link_data(&name).map_err(failed());
            }
            Ok(Layout::Plain(names)) => {
                let entries = self.folder.read_plain(&names).map_err(failed())?;
                return self.try_write(&entries, &version_of(&entries)).map_err(failed());
            }
            // Lost content cannot be adopted; readers get the error.
            Ok(Layout::Empty | Layout::Version { .. }) | Err(StoreError::Lost { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        // Links replace copies of the current entries.
        for (name, value) in &entries.0 {
            let path = root.join(name);
            let is_file = fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
            if is_file && read_file(&path).is_ok_and(|found| found == *value) {
                place_link(root, name).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Checks that a key to be replaced by a link is in one of the versions.
    fn protect_keys(&self, entries: &NamedValues) -> Result<(), StoreError> {
        let in_force = match self.folder.read() {
            Ok(stored) => stored.map(|stored| stored.entries).unwrap_or_default(),
            Err(StoreError::Lost { .. }) => NamedValues::default(),
            Err(error) => return Err(error),
        };
        for (name, value) in entries.0.iter().filter(|(name, _)| name.ends_with(".key")) {
            let path = self.folder.path.join(name);
            if !fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()) {
                continue;
            }
            let found = read_file(&path).map_err(StoreError::io(path.display()))?;
            if found != *value && in_force.0.get(name) != Some(&found) {
                return Err(StoreError::ForeignKey(path.display().to_string()));
            }
        }
        Ok(())
    }

    /// Writes a version beside the current one and makes `..data` point at it. The rename is the moment of the change.
    fn try_write(&self, entries: &NamedValues, revision: &str) -> io::Result<()> {
        let root = &self.folder.path;
        let before = fs::read_link(root.join(DATA)).ok();
        let version = root.join(revision);
        // A version is complete as soon as it exists.
        let new = root.join(format!("{NEW_PREFIX}{:016x}", rand::random::<u64>()));
        DirBuilder::new().mode(if self.folder.public { 0o755 } else { 0o700 }).create(&new)?;
        for (name, value) in &entries.0 {
            let readable = self.folder.public && !name.ends_with(".key");
            let mode = if readable { 0o644 } else { 0o600 };
            let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(new.join(name))?;
            file.write_all(value)?;
            file.sync_all()?;
        }
        sync_folder(&new)?;
        // A version with the same name has the same content.
        if !version.is_dir() {
            fs::rename(&new, &version)?;
        }
        self.link_data(revision)?;
        for name in entries.0.keys() {
            place_link(root, name)?;
        }
        sync_folder(root)?;
        self.clean(entries, &[Path::new(revision), before.as_deref().unwrap_or(Path::new(""))])
    }

    /// Replaces the link `..data` by a rename, so that it exists at every moment.
    fn link_data(&self, revision: &str) -> io::Result<()> {
        let root = &self.folder.path;
        let link = root.join(format!("{VERSION_PREFIX}{:016x}{LINK_SUFFIX}", rand::random::<u64>()));
        symlink(revision, &link)?;
        fs::rename(&link, root.join(DATA))?;
        sync_folder(root)
    }

    /// Removes dangling links and versions that can no longer be in use.
    fn clean(&self, entries: &NamedValues, keep: &[&Path]) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = Path::new(&name);
            let text = name.to_string_lossy();
            if text.starts_with(TRASH_PREFIX) || text.starts_with(NEW_PREFIX) {
                remove_any(&entry.path())?;
            } else if text.starts_with(VERSION_PREFIX) {
                if !keep.contains(&name) {
                    // Renamed first, so that a reader in it notices.
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
        self.clean(&NamedValues::default(), &[])?;
        remove_any(&root.join(LOCK))?;
        match fs::remove_dir(root) {
            Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => Err(error),
            _ => Ok(()),
        }
    }
}

/// All files of a version's folder.
fn read_version(path: &Path) -> io::Result<NamedValues> {
    let mut entries = NamedValues::default();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        entries.0.insert(entry.file_name().to_string_lossy().into_owned(), read_file(&entry.path())?);
    }
    // It is gone now, so files may have disappeared while it was read.
    fs::metadata(path)?;
    Ok(entries)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::new(ErrorKind::FileTooLarge, path.display().to_string()));
    }
    fs::read(path)
}

/// The name of a version with these entries, derived only from them.
fn version_of(entries: &NamedValues) -> String {
    let mut digest = Context::new(&SHA256);
    for (name, value) in &entries.0 {
        for part in [name.as_bytes(), value.as_slice()] {
            digest.update(&(part.len() as u64).to_be_bytes());
            digest.update(part);
        }
    }
    let digest = digest.finish();
    format!("{VERSION_PREFIX}{}", hex(digest.as_ref().get(..16).unwrap_or_default()))
}

/// A file, not a link, with an entry's name.
fn is_plain_entry(path: &Path, name: &str) -> bool {
    let is_entry = [".crt", ".key", ".json"].iter().any(|end| name.ends_with(end));
    is_entry && !name.starts_with('.') && fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// Names for a message, in order.
fn listed(mut names: Vec<String>) -> String {
    names.sort_unstable();
    names.join(", ")
}

/// Makes `<folder>/<name>` a link to `..data/<name>`, in place of a plain file of that name.
fn place_link(root: &Path, name: &str) -> io::Result<()> {
    let path = root.join(name);
    let target = Path::new(DATA).join(name);
    if fs::read_link(&path).is_ok_and(|found| found == target) {
        return Ok(());
    }
    let link = root.join(format!("{VERSION_PREFIX}{:016x}{LINK_SUFFIX}", rand::random::<u64>()));
    symlink(&target, &link)?;
    fs::rename(&link, &path)
}

fn is_our_link(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| target.starts_with(DATA))
}

/// Removes a file, a link or a whole folder; it may be gone already.
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

/// Makes a rename in the folder survive a power failure.
fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
