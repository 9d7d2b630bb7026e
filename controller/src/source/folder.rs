//! Objects from a folder of YAML and JSON files, watched.
//!
//! Every `.yaml`, `.yml` and `.json` file below the folder is read; files and folders whose name starts with a dot are
//! not. When a document becomes invalid, the last good state of its objects stays; when a file is deleted, so are its
//! objects; a file that an editor is still writing is read once it is complete. An object defined twice is taken from
//! the first place, by path and then by line. A Service with a selector and without an EndpointSlice gets one derived
//! from the Pods that it selects.
//!
//! `machine` says which Pods are workloads. `files` keeps the content of each file, `document` and `yaml` parse it, `endpoints` derives EndpointSlices.

mod document;
mod endpoints;
mod files;
mod machine;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use self::files::{Files, Hints};
pub use self::machine::{is_of_this_machine, is_workload};
use super::{Batch, ObjectSource, ProblemSeverity, SourceProblem};
use crate::object::{Change, Object, ObjectKey};

/// Changes that come within this time are read together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often the folder is scanned without events: network file systems send none.
const POLL: Duration = Duration::from_secs(2);
/// The same where file watches are unavailable.
const POLL_UNWATCHED: Duration = Duration::from_millis(200);

/// A folder of manifests.
#[derive(Clone, Debug)]
pub struct FolderSource {
    folder: PathBuf,
}

/// The content of a folder at one moment.
#[derive(Debug)]
pub struct LoadedFolder {
    /// Every object, each as a [`Change::Apply`].
    pub changes: Vec<Change>,
    /// All errors and warnings.
    pub problems: Vec<SourceProblem>,
}

impl FolderSource {
    /// A source that reads this folder. The folder need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Reads the folder once.
    pub fn load(&self) -> LoadedFolder {
        let mut scanner = FolderScanner::new(self.folder.clone());
        let batch = scanner.scan(&Hints::default()).batch.unwrap_or_default();
        LoadedFolder { changes: batch.changes, problems: batch.problems }
    }
}

impl ObjectSource for FolderSource {
    fn run(self: Box<Self>, batches: mpsc::Sender<Batch>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(watch(self.folder, batches))
    }
}

/// The result of the last scan, and what was sent to the receiver.
struct FolderScanner {
    files: Files,
    sent: BTreeMap<ObjectKey, (Object, Option<Arc<str>>)>,
    /// [`Files::changes`] when `sent` was built.
    sent_at: Option<u64>,
}

struct Scan {
    /// `None` if nothing has changed.
    batch: Option<Batch>,
    /// When to scan again even without an event.
    again: Option<Duration>,
}

impl FolderScanner {
    fn new(folder: PathBuf) -> Self {
        Self { files: Files::new(folder), sent: BTreeMap::new(), sent_at: None }
    }

    /// Reads what has changed and returns how the objects differ from those sent before.
    fn scan(&mut self, hints: &Hints) -> Scan {
        let again = self.files.refresh(hints);
        if self.sent_at.replace(self.files.changes()) == Some(self.files.changes()) {
            return Scan { batch: None, again };
        }
        let mut problems = self.files.problems();
        let mut objects = BTreeMap::new();
        for (object, file, line) in self.files.objects() {
            let key = object.key();
            let origin: Arc<str> = format!("{file}:{line}").into();
            match objects.get(&key) {
                None => {
                    objects.insert(key, (object.clone(), Some(origin)));
                }
                Some((_, first)) => {
                    let first = first.as_deref().unwrap_or_default();
                    problems.push(SourceProblem {
                        file: file.to_owned(),
                        line,
                        column: 0,
                        field: None,
                        object: Some(key.to_string()),
                        severity: ProblemSeverity::Error,
                        message: format!("{key} already exists in {first}; this one is ignored"),
                    });
                }
            }
        }
        for slice in endpoints::derive(objects.values().map(|(object, _)| object)) {
            objects.entry(slice.key()).or_insert((slice, None));
        }
        problems.sort();
        let batch = Batch { changes: self.differences(objects), is_complete: true, problems };
        Scan { batch: Some(batch), again }
    }

    /// The changes that turn what was sent before into these objects: deletions first, then what is new or different.
    fn differences(&mut self, objects: BTreeMap<ObjectKey, (Object, Option<Arc<str>>)>) -> Vec<Change> {
        let gone = self.sent.keys().filter(|key| !objects.contains_key(key)).cloned().map(Change::Delete);
        let mut changes: Vec<_> = gone.collect();
        for (key, (object, origin)) in &objects {
            if self.sent.get(key).is_none_or(|(old, place)| old != object || place != origin) {
                changes.push(Change::Apply { object: object.clone(), origin: origin.clone() });
            }
        }
        self.sent = objects;
        changes
    }
}

/// An event about one path.
enum FileEvent {
    /// A process has it open for writing.
    Writing(PathBuf),
    /// It was closed after writing, or something else about it changed.
    Changed(PathBuf),
}

/// Scans the folder whenever it changes, and sends what differs, until the receiver is dropped. Scans run on a
/// blocking thread; a scan that finds no difference sends nothing, except the first, which completes the initial
/// list.
async fn watch(folder: PathBuf, batches: mpsc::Sender<Batch>) {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let mut watcher = FolderWatcher::new(folder.clone(), sender);
    let mut scanner = FolderScanner::new(folder.clone());
    let mut hints = Hints::default();
    let mut problems = Vec::new();
    let mut is_first = true;
    loop {
        // Before the scan, so that changes during the scan cause events.
        watcher.follow();
        let scanned = tokio::task::spawn_blocking(move || {
            let scan = scanner.scan(&hints);
            (scanner, hints, scan)
        });
        let Ok((returned, returned_hints, scan)) = scanned.await else { return };
        (scanner, hints) = (returned, returned_hints);
        hints.changed.clear();
        if let Some(batch) = scan.batch
            && (is_first || !batch.changes.is_empty() || batch.problems != problems)
        {
            if is_first {
                info!(folder = %folder.display(), objects = batch.changes.len(), "folder read");
            }
            is_first = false;
            log_problems(&batch.problems, &problems);
            problems.clone_from(&batch.problems);
            if batches.send(batch).await.is_err() {
                return;
            }
        }
        let poll = if watcher.is_watching() { POLL } else { POLL_UNWATCHED };
        let mut due = Instant::now() + scan.again.unwrap_or(poll).min(poll);
        // The deadline bounds the wait: a flood of events must not postpone the scan forever.
        while Instant::now() < due {
            tokio::select! {
                () = batches.closed() => return,
                Some(path) = seen.recv() => {
                    hints.note(path);
                    due = due.min(Instant::now() + DEBOUNCE);
                }
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }
}

/// Watches the folder, and its parent in case the folder is replaced.
struct FolderWatcher {
    folder: PathBuf,
    sender: mpsc::UnboundedSender<FileEvent>,
    /// The watcher and the inode that it watches.
    current: Option<(notify::RecommendedWatcher, u64)>,
    is_reported: bool,
}

impl FolderWatcher {
    fn new(folder: PathBuf, sender: mpsc::UnboundedSender<FileEvent>) -> Self {
        Self { folder, sender, current: None, is_reported: false }
    }

    /// Whether events can be expected; otherwise the folder is polled more often.
    fn is_watching(&self) -> bool {
        self.current.is_some()
    }

    /// Watches the folder that exists now, unless it is already watched.
    fn follow(&mut self) {
        let inode = std::fs::metadata(&self.folder).map(|metadata| metadata.ino()).ok();
        if self.current.as_ref().map(|(_, watched)| *watched) == inode {
            return;
        }
        self.current = None;
        let Some(inode) = inode else { return };
        match start_watcher(&self.folder, self.sender.clone()) {
            Ok(watcher) => {
                self.current = Some((watcher, inode));
                self.is_reported = false;
            }
            Err(error) if !self.is_reported => {
                warn!(folder = %self.folder.display(), %error, "folder cannot be watched, so it is polled");
                self.is_reported = true;
            }
            Err(_) => {}
        }
    }
}

/// Watches the folder with everything below it, and its parent, where the folder's deletion and creation are seen.
/// The parent's other entries are ignored.
fn start_watcher(
    folder: &Path,
    sender: mpsc::UnboundedSender<FileEvent>,
) -> notify::Result<notify::RecommendedWatcher> {
    let below = folder.to_owned();
    let report = move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let is_writing = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_)) => true,
            _ => false,
        };
        for path in event.paths.into_iter().filter(|path| path.starts_with(&below)) {
            // The receiver is gone when the source ends.
            let _ = sender.send(if is_writing { FileEvent::Writing(path) } else { FileEvent::Changed(path) });
        }
    };
    let mut watcher = notify::recommended_watcher(report)?;
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        watcher.watch(parent, RecursiveMode::NonRecursive)?;
    }
    watcher.watch(folder, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Logs each problem once, when it appears, not with every scan that still finds it.
fn log_problems(now: &[SourceProblem], before: &[SourceProblem]) {
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        match problem.severity {
            ProblemSeverity::Info => info!("{problem}"),
            ProblemSeverity::Error | ProblemSeverity::Warning => warn!("{problem}"),
        }
    }
}

impl Hints {
    /// Records an event. The list of files that are being written is bounded: after 1,024 of them it starts from empty, and
    /// such files are read when their timestamps change.
    fn note(&mut self, seen: FileEvent) {
        match seen {
            FileEvent::Writing(path) => {
                self.writing.insert(path, std::time::Instant::now());
            }
            FileEvent::Changed(path) => {
                self.writing.remove(&path);
                self.changed.insert(path);
            }
        }
        if self.writing.len() > 1024 {
            self.writing = HashMap::new();
        }
    }
}

#[cfg(test)]
mod tests;
