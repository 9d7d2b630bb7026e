//! The content of each file of the folder, across edits, errors and removal.
//!
//! Editors save a file in steps: truncate and write, or write another file and rename it. A file that is missing,
//! blank or open for writing is therefore left as it was for a moment ([`SAVE_GRACE`], [`WRITE_GRACE`]), and read
//! when the save is complete. Files are read again when their metadata or an event says that they changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::document::{self, ParsedFile, ParsedObject};
use crate::object::Object;
use crate::source::{ProblemSeverity, SourceProblem};

/// The most bytes of one file.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// The deepest nesting of folders.
const MAX_DEPTH: usize = 16;
/// A file that has been missing or blank for less than this is considered in the middle of a save.
const SAVE_GRACE: Duration = Duration::from_millis(60);
/// A file that a writer keeps open for longer than this without writing is read anyway.
const WRITE_GRACE: Duration = Duration::from_secs(1);
/// When to look again at a file that is being saved.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What was reported about paths since the last refresh.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Changed, whatever their timestamps.
    pub(super) changed: HashSet<PathBuf>,
    /// Open for writing, with the time of the last write.
    pub(super) writing: HashMap<PathBuf, Instant>,
}

#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// By path relative to the folder, which is how they are sorted and shown.
    files: BTreeMap<String, File>,
    /// Problems with the folder itself.
    problems: Vec<SourceProblem>,
    /// Counts refreshes that found differences.
    changes: u64,
}

/// One file: what it last defined, and the problems of its current content.
#[derive(Debug, Default)]
struct File {
    stamp: Option<FileStamp>,
    objects: Vec<ParsedObject>,
    problems: Vec<SourceProblem>,
    /// Since when it is missing or blank although it held objects.
    empty_since: Option<Instant>,
}

/// Metadata that distinguishes two states of a file without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Files {
    /// No file is read before the first [`Files::refresh`].
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, files: BTreeMap::new(), problems: Vec::new(), changes: 0 }
    }

    /// Changes with every refresh that found a difference.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Every object with its file and line, ordered by file and line.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&Object, &str, u64)> {
        self.files
            .iter()
            .flat_map(|(name, file)| file.objects.iter().map(move |o| (&o.object, name.as_str(), o.line)))
    }

    /// The problems of the folder, then those of its files in their order.
    pub(super) fn problems(&self) -> Vec<SourceProblem> {
        let files = self.files.values().flat_map(|file| &file.problems);
        self.problems.iter().chain(files).cloned().collect()
    }

    /// Reads what has changed. Returns when to look again if a file is being saved.
    pub(super) fn refresh(&mut self, hints: &Hints) -> Option<Duration> {
        let mut found = BTreeMap::new();
        let problems = std::mem::take(&mut self.problems);
        let is_whole = self.list(&self.folder.clone(), 0, &mut found);
        let mut again = false;
        for (name, (path, stamp)) in &found {
            again |= self.refresh_file(name, path, *stamp, hints);
        }
        self.changes += u64::from(problems != self.problems);
        // If a folder could not be listed, a missing file may still exist.
        if is_whole {
            again |= self.forget_missing(&found.into_keys().collect());
        }
        again.then_some(LOOK_AGAIN)
    }

    /// Whether to look at the file again soon.
    fn refresh_file(&mut self, name: &str, path: &Path, stamp: FileStamp, hints: &Hints) -> bool {
        let known = self.files.get(name);
        let is_same = known.is_some_and(|file| file.stamp == Some(stamp) && file.empty_since.is_none());
        if is_same && !hints.changed.contains(path) {
            return false;
        }
        if hints.writing.get(path).is_some_and(|last| last.elapsed() < WRITE_GRACE) {
            return true;
        }
        let file = self.files.entry(name.to_owned()).or_default();
        match read(path) {
            Ok(text) => {
                if text.trim().is_empty() && file.is_within_grace() {
                    return true;
                }
                file.empty_since = None;
                file.stamp = Some(stamp);
                file.replace(document::parse(name, &text));
                self.changes += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(error) => {
                file.stamp = Some(stamp);
                file.problems = vec![whole_file(name, format!("cannot be read: {error}"))];
                self.changes += 1;
            }
        }
        false
    }

    /// Forgets files that are gone, and with them their objects; whether to look again soon at one that may be in the
    /// middle of a save.
    fn forget_missing(&mut self, found: &BTreeSet<String>) -> bool {
        let mut again = false;
        let before = self.files.len();
        self.files.retain(|name, file| {
            let is_kept = found.contains(name) || file.is_within_grace();
            again |= is_kept && !found.contains(name);
            is_kept
        });
        self.changes += (before - self.files.len()) as u64;
        again
    }

    /// Collects files; false if a folder could not be listed.
    fn list(
        &mut self,
        folder: &Path,
        depth: usize,
        found: &mut BTreeMap<String, (PathBuf, FileStamp)>,
    ) -> bool {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => {
                let name = self.relative(folder);
                self.problems.push(whole_file(&name, format!("cannot be listed: {error}")));
                return false;
            }
        };
        let mut is_whole = true;
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            // Follows links: a mounted ConfigMap consists of them.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            if metadata.is_dir() && depth < MAX_DEPTH {
                is_whole &= self.list(&path, depth + 1, found);
            } else if metadata.is_file() && is_manifest(&path) {
                let stamp = FileStamp {
                    inode: metadata.ino(),
                    bytes: metadata.len(),
                    modified: (metadata.mtime(), metadata.mtime_nsec()),
                };
                found.insert(self.relative(&path), (path, stamp));
            }
        }
        is_whole
    }

    /// The path within the folder, for display; the folder itself is shown by its own path.
    fn relative(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.folder).unwrap_or(path);
        let shown = if relative.as_os_str().is_empty() { path } else { relative };
        shown.to_string_lossy().into_owned()
    }
}

impl File {
    /// Whether a file that held objects and is now missing or blank may be in the middle of a save.
    fn is_within_grace(&mut self) -> bool {
        !self.objects.is_empty() && self.empty_since.get_or_insert_with(Instant::now).elapsed() < SAVE_GRACE
    }

    /// Applies what was parsed, and keeps the last good state of what is broken. While a broken document might define
    /// any object, no earlier object is considered deleted.
    fn replace(&mut self, parsed: ParsedFile) {
        let mut objects = parsed.objects;
        for old in std::mem::take(&mut self.objects) {
            let key = old.object.key();
            let is_broken = parsed.has_unknown || parsed.broken.contains(&key);
            if is_broken && objects.iter().all(|new| new.object.key() != key) {
                objects.push(old);
            }
        }
        self.objects = objects;
        self.problems = parsed.problems;
    }
}

/// The text of a file of at most [`MAX_FILE_BYTES`] in UTF-8.
fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("larger than {MAX_FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("not UTF-8"))
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

/// An error about a file as a whole, without a line.
fn whole_file(name: &str, message: String) -> SourceProblem {
    SourceProblem {
        file: name.to_owned(),
        line: 0,
        column: 0,
        field: None,
        object: None,
        severity: ProblemSeverity::Error,
        message,
    }
}
