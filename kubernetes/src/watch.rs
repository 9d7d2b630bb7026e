//! All objects of a kind, followed for ever.
//!
//! A [`Watch`] lists in pages, then watches from there, and says what differs from what it said before. It goes on
//! where it was after a disconnect, an API server that restarts or an answer cut short; where that cannot be (410
//! Gone, an event that cannot be read) it lists anew and finds out itself what is gone. Every wait has a bound: a
//! connection whose other end is dead without a word is noticed because the API server ends each watch after
//! [`Timing::server`] and this one did not.
//!
//! Why not `kube::runtime::watcher`: it has no bound for lists and for the first byte of a watch, tries a watch that
//! is refused with status 410 from the same version for ever, and leaves out an event that it cannot read.

mod meter;
mod objects;

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use kube::Api;
use kube::api::{ListParams, Resource, WatchEvent, WatchParams};
use rand::RngExt;
use serde::de::DeserializeOwned;
use tidegate_runtime::backoff::Backoff;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

pub use meter::{KindMeter, WatchMetrics};
pub use objects::Name;

use objects::{name_of, version_of};

/// Objects in a page of a list.
const PAGE: u32 = 500;

/// How long a watch waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The API server is asked to end a watch after this, or up to a quarter earlier. Whole seconds.
    pub server: Duration,
    /// The most that a watch may be silent; longer than `server`.
    pub idle: Duration,
    /// The most until an answer begins, and for a whole page of a list.
    pub answer: Duration,
    /// The first pause after a failure; later ones double.
    pub first_pause: Duration,
    /// The longest pause after a failure.
    pub longest_pause: Duration,
}

/// All objects of a kind that are followed.
#[derive(Debug)]
pub struct Watch<K> {
    api: Api<K>,
    name: Option<String>,
    prune: Prune<K>,
    timing: Timing,
    meter: KindMeter,
    /// What was told: objects and their versions.
    told: HashMap<Name, String>,
    /// The last failure that was told, until things go well again.
    failure: Option<String>,
}

/// Takes out of an object what nobody reads.
struct Prune<K>(Box<dyn Fn(&mut K) + Send + Sync>);

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<K> {
    /// What is new, different or gone. The first one holds all objects that there are, even if there are none.
    Changed {
        /// Objects that are there, as they are now.
        applied: Vec<K>,
        /// Objects that are not there any more.
        deleted: Vec<Name>,
    },
    /// The objects cannot be read, for this reason; what was told still holds as far as is known. The next
    /// [`Event::Changed`] says that they can be again.
    Unreadable(String),
}

impl<K> Event<K> {
    /// Brings what is known of the one object of a [`Watch::named`] up to date. An event without any object says that
    /// all is as it was: a list that was made anew tells of nothing else.
    pub fn update(self, known: &mut Option<K>) {
        let Self::Changed { mut applied, deleted } = self else { return };
        if let Some(object) = applied.pop() {
            *known = Some(object);
        } else if !deleted.is_empty() {
            *known = None;
        }
    }
}

/// How a watch ended.
enum End {
    /// As the API server had been asked to.
    InOrder,
    /// It can go on from where it was.
    Broken(String),
    /// It must begin with a list.
    Lost(String),
    /// Nobody listens any more.
    Closed,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            server: Duration::from_secs(30),
            idle: Duration::from_secs(35),
            answer: Duration::from_secs(10),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(2),
        }
    }
}

impl<K> Debug for Prune<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prune").finish_non_exhaustive()
    }
}

impl<K> Watch<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Follows what `api` covers. `prune` takes out of each object what nobody reads; managed fields and what
    /// `kubectl apply` notes are taken out anyway.
    pub fn new(api: Api<K>, prune: impl Fn(&mut K) + Send + Sync + 'static, meter: KindMeter) -> Self {
        let (prune, timing) = (Prune(Box::new(prune)), Timing::default());
        Self { api, name: None, prune, timing, meter, told: HashMap::new(), failure: None }
    }

    /// Only the object of this name, for which a permission by name is enough.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Other waits than the default ones.
    #[must_use]
    pub fn timing(mut self, timing: Timing) -> Self {
        self.timing = timing;
        self
    }

    /// Runs until the receiver is dropped.
    pub async fn run<T: Send>(mut self, sender: mpsc::Sender<T>, wrap: impl Fn(Event<K>) -> T) {
        let mut backoff = Backoff::new(self.timing.first_pause, self.timing.longest_pause);
        loop {
            let listed = tokio::select! {
                () = sender.closed() => return,
                listed = self.list() => listed,
            };
            let (event, version) = match listed {
                Ok((objects, version)) => (self.differences(objects), version),
                Err(error) => {
                    self.meter.disconnected();
                    if let Some(failure) = self.failed(error)
                        && sender.send(wrap(failure)).await.is_err()
                    {
                        return;
                    }
                    sleep(backoff.next_delay()).await;
                    continue;
                }
            };
            self.failure = None;
            if sender.send(wrap(event)).await.is_err() {
                return;
            }
            let Some(reason) = self.follow(version, &sender, &wrap, &mut backoff).await else { return };
            info!(kind = self.meter.kind(), reason, "listing anew");
            self.meter.restarted();
        }
    }

    /// Every object that there is, and the version to watch from.
    async fn list(&self) -> Result<(Vec<K>, String), String> {
        let mut params = ListParams { field_selector: self.selector(), ..ListParams::default() }.limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = match timeout(self.timing.answer, self.api.list(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(kube::Error::Api(status)))
                    if status.code == 410 && params.continue_token.is_some() =>
                {
                    debug!(kind = self.meter.kind(), "the list has expired between two pages");
                    params.continue_token = None;
                    objects.clear();
                    continue;
                }
                Ok(Err(error)) => return Err(text(&error)),
                Err(_) => return Err(format!("no list within {:?}", self.timing.answer)),
            };
            self.meter.heard();
            objects.extend(page.items.into_iter().map(|object| self.pruned(object)));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                return Ok((objects, version.ok_or("the list has no resourceVersion")?));
            }
        }
    }

    /// Watches on and on; returns why a new list is due, or nothing once nobody listens.
    async fn follow<T: Send>(
        &mut self,
        mut version: String,
        sender: &mpsc::Sender<T>,
        wrap: &impl Fn(Event<K>) -> T,
        backoff: &mut Backoff,
    ) -> Option<String> {
        loop {
            let begun = Instant::now();
            let end = tokio::select! {
                () = sender.closed() => return None,
                end = self.watch(&mut version, sender, wrap) => end,
            };
            // Only a watch that held for a while shows that things are well.
            let is_brief = begun.elapsed() < self.timing.first_pause;
            match end {
                End::Closed => return None,
                End::InOrder if !is_brief => backoff.reset(),
                End::InOrder => sleep(backoff.next_delay()).await,
                End::Lost(reason) => {
                    self.meter.disconnected();
                    if is_brief {
                        // Lists are dear: a server that ends every watch so is not asked for them without a pause.
                        sleep(backoff.next_delay()).await;
                    } else {
                        backoff.reset();
                    }
                    return Some(reason);
                }
                End::Broken(error) => {
                    self.meter.disconnected();
                    self.meter.restarted();
                    if !is_brief {
                        backoff.reset();
                    }
                    if let Some(failure) = self.failed(error)
                        && sender.send(wrap(failure)).await.is_err()
                    {
                        return None;
                    }
                    sleep(backoff.next_delay()).await;
                }
            }
        }
    }

    /// One watch, from this version to the newest one that it tells of.
    async fn watch<T: Send>(
        &mut self,
        version: &mut String,
        sender: &mpsc::Sender<T>,
        wrap: &impl Fn(Event<K>) -> T,
    ) -> End {
        let longest = u32::try_from(self.timing.server.as_secs()).unwrap_or(u32::MAX).max(1);
        // Spread, so that the watches of a restart do not come in step for ever.
        let seconds = rand::rng().random_range((longest - longest / 4)..=longest);
        let params = WatchParams {
            field_selector: self.selector(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let stream = match timeout(self.timing.answer, self.api.watch(&params, version)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(kube::Error::Api(status))) if status.code == 410 => return End::Lost(status.message),
            Ok(Err(error)) => return End::Broken(text(&error)),
            Err(_) => return End::Broken(format!("no answer to a watch within {:?}", self.timing.answer)),
        };
        self.meter.connected();
        if self.failure.take().is_some() {
            let event = Event::Changed { applied: Vec::new(), deleted: Vec::new() };
            if sender.send(wrap(event)).await.is_err() {
                return End::Closed;
            }
        }
        let mut stream = std::pin::pin!(stream.into_stream());
        loop {
            let event = match timeout(self.timing.idle, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(Some(Err(error @ kube::Error::SerdeError(_)))) => return End::Lost(text(&error)),
                Ok(Some(Err(error))) => return End::Broken(text(&error)),
                Ok(None) => return End::InOrder,
                Err(_) => return End::Broken(format!("nothing heard for {:?}", self.timing.idle)),
            };
            self.meter.heard();
            let (newest, told) = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    (version_of(&object), self.applied(object))
                }
                WatchEvent::Deleted(object) => (version_of(&object), self.deleted(&object)),
                WatchEvent::Bookmark(bookmark) => (bookmark.metadata.resource_version, None),
                WatchEvent::Error(status) => return End::Lost(format!("{} {}", status.code, status.message)),
            };
            if newest.is_empty() {
                return End::Lost("an event has no resourceVersion".to_owned());
            }
            if let Some(event) = told
                && sender.send(wrap(event)).await.is_err()
            {
                return End::Closed;
            }
            // Only now: what was not told must come again.
            *version = newest;
        }
    }

    /// How a list differs from what was told.
    fn differences(&mut self, objects: Vec<K>) -> Event<K> {
        let mut gone = std::mem::take(&mut self.told);
        let mut applied = Vec::new();
        for object in objects {
            let (name, version) = (name_of(&object), version_of(&object));
            if gone.remove(&name).is_none_or(|told| told != version) {
                applied.push(object);
            }
            self.told.insert(name, version);
        }
        Event::Changed { applied, deleted: gone.into_keys().collect() }
    }

    fn applied(&mut self, object: K) -> Option<Event<K>> {
        let version = version_of(&object);
        let before = self.told.insert(name_of(&object), version.clone());
        // After a resumption an event may come twice.
        if before.is_some_and(|before| before == version) {
            return None;
        }
        Some(Event::Changed { applied: vec![self.pruned(object)], deleted: Vec::new() })
    }

    fn deleted(&mut self, object: &K) -> Option<Event<K>> {
        let name = name_of(object);
        self.told.remove(&name)?;
        Some(Event::Changed { applied: Vec::new(), deleted: vec![name] })
    }

    fn pruned(&self, mut object: K) -> K {
        objects::prune_metadata(object.meta_mut());
        (self.prune.0)(&mut object);
        object
    }

    /// Notes a failure; it is told only if the one before was another.
    fn failed(&mut self, error: String) -> Option<Event<K>> {
        if self.failure.as_ref() == Some(&error) {
            return None;
        }
        warn!(kind = self.meter.kind(), error, "objects cannot be read");
        self.failure = Some(error.clone());
        Some(Event::Unreadable(error))
    }

    fn selector(&self) -> Option<String> {
        self.name.as_ref().map(|name| format!("metadata.name={name}"))
    }
}

/// What an operator needs of an error: the API server's words, or all causes.
fn text(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} {}", status.code, status.message);
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
