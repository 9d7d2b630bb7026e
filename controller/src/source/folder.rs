//! Objects from a folder of YAML and JSON files, watched.
//!
//! Every `.yaml`, `.yml` and `.json` file below the folder is read; files and folders whose name starts with a dot
//! are not. A document that is broken keeps the last good state of its objects, a file that is gone takes its objects
//! with it, and a file that an editor is still writing is left until it is whole. An object that is in two places is
//! taken from the first, by path and then by line. A Service that has a selector and no EndpointSlice gets one made
//! from the Pods that it selects.
//!
//! `files` keeps what each file holds, `document` and `yaml` read it, `endpoints` makes EndpointSlices.

mod document;
mod endpoints;
mod files;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use self::files::{Files, Hints};
use super::{Batch, Problem, ProblemSeverity, Source};
use crate::object::pod::has_ended;
use crate::object::{Change, Object, ObjectKey};

/// Changes that come within this time are read together.
const DEBOUNCE: Duration = Duration::from_millis(20);
/// How often the folder is looked through even if nothing was reported: network file systems report nothing.
const POLL: Duration = Duration::from_secs(2);
/// The same where changes cannot be watched at all.
const POLL_UNWATCHED: Duration = Duration::from_millis(200);

/// A folder of manifests.
#[derive(Clone, Debug)]
pub struct FolderSource {
    folder: PathBuf,
}

/// What a folder holds at one moment.
#[derive(Debug)]
pub struct Loaded {
    /// Every object, each as a [`Change::Apply`].
    pub changes: Vec<Change>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

impl FolderSource {
    /// A source that reads this folder. The folder need not exist yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// Reads the folder once.
    pub fn load(&self) -> Loaded {
        let mut state = State::new(self.folder.clone());
        let batch = state.scan(&Hints::default()).batch.unwrap_or_default();
        Loaded { changes: batch.changes, problems: batch.problems }
    }
}

impl Source for FolderSource {
    fn run(self: Box<Self>, batches: mpsc::Sender<Batch>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(watch(self.folder, batches))
    }
}

/// Whether a Pod runs on this machine: its address is a loopback one, and it has not ended. Other Pods only count
/// as endpoints.
pub fn is_local(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let address = status.and_then(|status| status.pod_ip.as_deref()).and_then(|ip| ip.parse::<IpAddr>().ok());
    address.is_some_and(|address| address.is_loopback()) && !has_ended(pod)
}

/// Everything that the last scan knew, and what was told to the receiver.
struct State {
    files: Files,
    told: BTreeMap<ObjectKey, (Object, Option<Arc<str>>)>,
    /// [`Files::changes`] when `told` was made.
    told_at: Option<u64>,
}

struct Scan {
    /// Nothing if nothing is new.
    batch: Option<Batch>,
    /// When to look again although nothing will be reported.
    again: Option<Duration>,
}

impl State {
    fn new(folder: PathBuf) -> Self {
        Self { files: Files::new(folder), told: BTreeMap::new(), told_at: None }
    }

    /// Reads what has changed and says how the objects differ from what was told before.
    fn scan(&mut self, hints: &Hints) -> Scan {
        let again = self.files.refresh(hints);
        if self.told_at.replace(self.files.changes()) == Some(self.files.changes()) {
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
                    problems.push(Problem {
                        file: file.to_owned(),
                        line,
                        column: 0,
                        field: None,
                        object: Some(key.to_string()),
                        severity: ProblemSeverity::Error,
                        message: format!("{key} is in {first} already; this one is left out"),
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

    fn differences(&mut self, objects: BTreeMap<ObjectKey, (Object, Option<Arc<str>>)>) -> Vec<Change> {
        let gone = self.told.keys().filter(|key| !objects.contains_key(key)).cloned().map(Change::Delete);
        let mut changes: Vec<_> = gone.collect();
        for (key, (object, origin)) in &objects {
            if self.told.get(key).is_none_or(|(old, place)| old != object || place != origin) {
                changes.push(Change::Apply { object: object.clone(), origin: origin.clone() });
            }
        }
        self.told = objects;
        changes
    }
}

/// What the watcher tells about one path.
enum Seen {
    /// A process has it open for writing.
    Writing(PathBuf),
    /// It is as it should be, or another thing changed about it.
    Changed(PathBuf),
}

async fn watch(folder: PathBuf, batches: mpsc::Sender<Batch>) {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let mut watcher = FolderWatcher::new(folder.clone(), sender);
    let mut state = State::new(folder.clone());
    let mut hints = Hints::default();
    let mut problems = Vec::new();
    let mut is_first = true;
    loop {
        // Before the scan, so that what changes during it is reported.
        watcher.follow();
        let scanned = tokio::task::spawn_blocking(move || {
            let scan = state.scan(&hints);
            (state, hints, scan)
        });
        let Ok((returned, returned_hints, scan)) = scanned.await else { return };
        (state, hints) = (returned, returned_hints);
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
        // A flood of events must not keep the scan from ever being due.
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

/// Watches the folder as it is, and its parent for another taking its place.
struct FolderWatcher {
    folder: PathBuf,
    sender: mpsc::UnboundedSender<Seen>,
    /// The watcher and the inode that it watches.
    current: Option<(notify::RecommendedWatcher, u64)>,
    is_reported: bool,
}

impl FolderWatcher {
    fn new(folder: PathBuf, sender: mpsc::UnboundedSender<Seen>) -> Self {
        Self { folder, sender, current: None, is_reported: false }
    }

    fn is_watching(&self) -> bool {
        self.current.is_some()
    }

    /// Starts to watch the folder that is there now, unless it is the one that is watched.
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

fn start_watcher(
    folder: &Path,
    sender: mpsc::UnboundedSender<Seen>,
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
            let _ = sender.send(if is_writing { Seen::Writing(path) } else { Seen::Changed(path) });
        }
    };
    let mut watcher = notify::recommended_watcher(report)?;
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        watcher.watch(parent, RecursiveMode::NonRecursive)?;
    }
    watcher.watch(folder, RecursiveMode::Recursive)?;
    Ok(watcher)
}

fn log_problems(now: &[Problem], before: &[Problem]) {
    for problem in now.iter().filter(|problem| !before.contains(problem)) {
        match problem.severity {
            ProblemSeverity::Info => info!("{problem}"),
            ProblemSeverity::Error | ProblemSeverity::Warning => warn!("{problem}"),
        }
    }
}

impl Hints {
    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::Writing(path) => {
                self.writing.insert(path, std::time::Instant::now());
            }
            Seen::Changed(path) => {
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
