//! Follows all objects of a kind, without end.
//!
//! An [`ObjectWatch`] lists in pages, then watches from there, and reports differences from what it reported before. After a
//! disconnect, a restart of the API server or a truncated response it resumes; if that is impossible (410 Gone, an
//! unreadable event), it lists again and works out itself which objects are gone. Every wait has a deadline: the API
//! server ends each watch after [`WatchTiming::server`], so a watch that lasts longer has lost its peer.
//!
//! Memory is bounded too: a page that is larger than a limit is requested again with fewer objects, and each object is
//! decoded separately, into a type with only the fields that are read ([`ObjectWatch::lean`]), before the next one. If the
//! number of objects must be bounded as well, the caller stores them itself ([`ObjectWatch::kept`]).
//!
//! Why not `kube::runtime::watcher`: it has no timeout for lists and for the first byte of a watch, retries a watch that
//! is refused with status 410 from the same version without end, skips events that it cannot read, and decodes whole
//! objects, a page of them at a time.

mod event;
mod meter;
mod objects;
mod reported;
mod wire;

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{ListParams, Resource, WatchParams};
use kube::core::Request;
use kube::{Api, Client};
use rand::RngExt;
use serde::de::DeserializeOwned;
use tidegate_runtime::backoff::ExponentialBackoff;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

pub use event::Event;
pub use meter::{KindMeter, WatchMetrics};
pub use objects::Name;

use objects::ObjectHead;
use reported::{Listed, ReportedVersions};
use wire::{Lines, ListPage, PageHead, RawEvent, ReadFailure};

/// Objects in a page of a list, unless these are too large together.
const PAGE: u32 = 500;

/// How long a watch waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchTiming {
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
pub struct ObjectWatch<K> {
    client: Client,
    url: String,
    name: Option<String>,
    decode: Decode<K>,
    timing: WatchTiming,
    meter: KindMeter,
    /// The objects that the receiver has.
    reported: ReportedVersions,
    /// Whether `decode` holds the objects ([`ObjectWatch::kept`]).
    is_kept: bool,
    /// Asks for a new list.
    relist: Arc<Notify>,
    /// The last reported failure, until the watch recovers.
    failure: Option<String>,
}

/// Makes of an object's text what is kept of it; `None` if nothing is, not even its name.
#[allow(clippy::type_complexity, reason = "it is named here and nowhere else")]
struct Decode<K>(Box<dyn Fn(&str) -> serde_json::Result<Option<K>> + Send + Sync>);

/// An event of a watch, decoded.
struct NewEvent<K> {
    /// The version to resume from once it was reported.
    version: String,
    /// `None` if nothing is to be reported: a bookmark, or an event that comes twice.
    report: Option<Event<K>>,
}

/// How a watch ended.
enum WatchEnd {
    /// As the API server had been asked to.
    InOrder,
    /// It can go on from where it was.
    Broken(String),
    /// It must begin with a list.
    Lost(String),
    /// The receiver is gone.
    Closed,
}

impl Default for WatchTiming {
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

impl<K> Debug for ObjectWatch<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectWatch")
            .field("url", &self.url)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl<K> ObjectWatch<K>
where
    K: Resource + DeserializeOwned + Send + 'static,
{
    /// Follows what `api` covers. `prune` removes from each object what is not read; managed fields and what
    /// `kubectl apply` records are always removed. For kinds whose objects tenants write, use [`ObjectWatch::lean`].
    pub fn new(api: Api<K>, prune: impl Fn(&mut K) + Send + Sync + 'static, meter: KindMeter) -> Self {
        let decode = move |text: &str| {
            let mut object: K = serde_json::from_str(text)?;
            objects::prune_metadata(object.meta_mut());
            prune(&mut object);
            Ok(object)
        };
        Self::lean(api, decode, meter)
    }
}

impl ObjectWatch<()> {
    /// Follows what `api` covers without holding objects: `keep` gets each object's JSON, as soon as it is there, and
    /// returns whether it holds anything of it. Events tell that something was handed over, and which of the objects that
    /// are held are gone, also those of a list that failed halfway. Of an object that is not held nothing is noted.
    pub fn kept<R: Resource>(
        api: Api<R>,
        keep: impl Fn(&str) -> serde_json::Result<bool> + Send + Sync + 'static,
        meter: KindMeter,
    ) -> Self {
        let decode = move |text: &str| Ok(keep(text)?.then_some(()));
        Self { is_kept: true, ..Self::with_decode(api, Decode(Box::new(decode)), meter) }
    }
}

impl<K: Send + 'static> ObjectWatch<K> {
    /// Follows what `api` covers. `decode` makes of an object's JSON what is kept of it: a type that reads only the
    /// fields that are needed is never larger than these, whatever else is in the object.
    pub fn lean<R: Resource>(
        api: Api<R>,
        decode: impl Fn(&str) -> serde_json::Result<K> + Send + Sync + 'static,
        meter: KindMeter,
    ) -> Self {
        Self::with_decode(api, Decode(Box::new(move |text| decode(text).map(Some))), meter)
    }

    fn with_decode<R: Resource>(api: Api<R>, decode: Decode<K>, meter: KindMeter) -> Self {
        Self {
            url: api.resource_url().to_owned(),
            client: api.into_client(),
            name: None,
            decode,
            timing: WatchTiming::default(),
            meter,
            reported: ReportedVersions::default(),
            is_kept: false,
            relist: Arc::default(),
            failure: None,
        }
    }

    /// Lists again each time that this is notified, between two events.
    #[must_use]
    pub fn relist(mut self, relist: Arc<Notify>) -> Self {
        self.relist = relist;
        self
    }

    /// Only the object of this name, for which a permission by name is enough.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Other waits than the default ones.
    #[must_use]
    pub fn timing(mut self, timing: WatchTiming) -> Self {
        self.timing = timing;
        self
    }

    /// Runs until the receiver is dropped.
    pub async fn run<T: Send>(mut self, sender: mpsc::Sender<T>, wrap: impl Fn(Event<K>) -> T) {
        let mut backoff = ExponentialBackoff::new(self.timing.first_pause, self.timing.longest_pause);
        loop {
            let listed = tokio::select! {
                () = sender.closed() => return,
                listed = self.list() => listed,
            };
            let (event, version) = match listed {
                Ok((objects, version)) => (self.reported.differences(objects), version),
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
            info!(kind = self.meter.kind(), reason, "listing again");
            self.meter.restarted();
        }
    }

    /// Every object that there is, and the version to watch from.
    async fn list(&mut self) -> Result<(Vec<Listed<K>>, String), String> {
        let mut objects = Vec::new();
        let listed = self.list_into(&mut objects).await;
        if listed.is_err() {
            self.note_handed_over(&objects);
        }
        listed.map(|version| (objects, version))
    }

    /// What `keep` has seen of a list that is given up is reported as gone, unless it is in the next one.
    fn note_handed_over(&mut self, objects: &[Listed<K>]) {
        for listed in objects.iter().filter(|_| self.is_kept) {
            self.reported.handed_over(&listed.name);
        }
    }

    /// Adds every object that there is, and returns the version to watch from.
    async fn list_into(&mut self, objects: &mut Vec<Listed<K>>) -> Result<String, String> {
        let mut params = ListParams { field_selector: self.selector(), ..ListParams::default() }.limit(PAGE);
        loop {
            let page = match timeout(self.timing.answer, self.page(&params, objects)).await {
                Ok(Ok(page)) => page,
                Ok(Err(ReadFailure::Status(410, _))) if params.continue_token.is_some() => {
                    debug!(kind = self.meter.kind(), "the list has expired between two pages");
                    params.continue_token = None;
                    self.note_handed_over(objects);
                    objects.clear();
                    continue;
                }
                Ok(Err(ReadFailure::TooLong)) if params.limit.is_some_and(|limit| limit > 1) => {
                    params.limit = params.limit.map(|limit| limit / 2);
                    debug!(kind = self.meter.kind(), limit = params.limit, "a page is too large");
                    continue;
                }
                Ok(Err(failure)) => return Err(failure.to_string()),
                Err(_) => return Err(format!("no list within {:?}", self.timing.answer)),
            };
            self.meter.heard();
            params.continue_token = page.continue_token.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.resource_version.filter(|version| !version.is_empty());
                return Ok(version.ok_or("the list has no resourceVersion")?);
            }
        }
    }

    /// Adds the objects of a page, one by one, so that none is forgotten that was handed over before another one could
    /// not be read.
    async fn page(&self, params: &ListParams, objects: &mut Vec<Listed<K>>) -> Result<PageHead, ReadFailure> {
        let request = Request::new(self.url.as_str()).list(params);
        let request = request.map_err(|error| ReadFailure::Other(error.to_string()))?;
        let text = wire::whole(wire::open(&self.client, request).await?).await?;
        let unreadable =
            |error: serde_json::Error| ReadFailure::Other(format!("the list cannot be read: {error}"));
        let page: ListPage<'_> = serde_json::from_slice(&text).map_err(unreadable)?;
        for item in page.items.into_iter().flatten() {
            let listed = self.decoded(item.get()).map_err(unreadable)?;
            if listed.object.is_some() {
                objects.push(listed);
            }
        }
        Ok(page.metadata)
    }

    fn decoded(&self, text: &str) -> serde_json::Result<Listed<K>> {
        let (name, version) = serde_json::from_str::<ObjectHead>(text)?.into_parts();
        Ok(Listed { name, version, object: (self.decode.0)(text)? })
    }

    /// Watches on and on; returns why a new list is due, or nothing once the receiver is gone.
    async fn follow<T: Send>(
        &mut self,
        mut version: String,
        sender: &mpsc::Sender<T>,
        wrap: &impl Fn(Event<K>) -> T,
        backoff: &mut ExponentialBackoff,
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
                WatchEnd::Closed => return None,
                WatchEnd::InOrder if !is_brief => backoff.reset(),
                WatchEnd::InOrder => sleep(backoff.next_delay()).await,
                WatchEnd::Lost(reason) => {
                    self.meter.disconnected();
                    if is_brief {
                        // Lists are dear: a server that ends every watch so is not asked for them without a pause.
                        sleep(backoff.next_delay()).await;
                    } else {
                        backoff.reset();
                    }
                    return Some(reason);
                }
                WatchEnd::Broken(error) => {
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

    /// One watch, from this version to the newest one that was reported.
    async fn watch<T: Send>(
        &mut self,
        version: &mut String,
        sender: &mpsc::Sender<T>,
        wrap: &impl Fn(Event<K>) -> T,
    ) -> WatchEnd {
        let mut lines = match self.open_watch(version).await {
            Ok(lines) => lines,
            Err(end) => return end,
        };
        self.meter.connected();
        if self.failure.take().is_some() && sender.send(wrap(Event::unchanged())).await.is_err() {
            return WatchEnd::Closed;
        }
        loop {
            let line = tokio::select! {
                () = self.relist.notified() => return WatchEnd::Lost("a new list was asked for".to_owned()),
                line = self.next_line(&mut lines) => line,
            };
            let event = line.and_then(|line| {
                self.meter.heard();
                self.decoded_event(&line)
            });
            let NewEvent { version: newest, report } = match event {
                Ok(event) => event,
                Err(end) => return end,
            };
            if let Some(report) = report
                && sender.send(wrap(report)).await.is_err()
            {
                return WatchEnd::Closed;
            }
            // Only now: an event that was not reported must come again.
            *version = newest;
        }
    }

    /// Sends the request of a watch, and waits at most [`WatchTiming::answer`] for the response to begin.
    async fn open_watch(&self, version: &str) -> Result<Lines, WatchEnd> {
        let longest = u32::try_from(self.timing.server.as_secs()).unwrap_or(u32::MAX).max(1);
        // Spread, so that the watches of a restart do not stay in step.
        let seconds = rand::rng().random_range((longest - longest / 4)..=longest);
        let params = WatchParams {
            field_selector: self.selector(),
            timeout: Some(seconds),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = Request::new(self.url.as_str())
            .watch(&params, version)
            .map_err(|error| WatchEnd::Broken(error.to_string()))?;
        match timeout(self.timing.answer, wire::open(&self.client, request)).await {
            Ok(Ok(body)) => Ok(Lines::new(body)),
            Ok(Err(ReadFailure::Status(410, message))) => Err(WatchEnd::Lost(message)),
            Ok(Err(failure)) => Err(WatchEnd::Broken(failure.to_string())),
            Err(_) => Err(WatchEnd::Broken(format!("no answer to a watch within {:?}", self.timing.answer))),
        }
    }

    /// The next event of a watch as text; waits at most [`WatchTiming::idle`].
    async fn next_line(&self, lines: &mut Lines) -> Result<Bytes, WatchEnd> {
        match timeout(self.timing.idle, lines.next()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => Err(WatchEnd::InOrder),
            Ok(Err(failure @ ReadFailure::TooLong)) => Err(WatchEnd::Lost(failure.to_string())),
            Ok(Err(failure)) => Err(WatchEnd::Broken(failure.to_string())),
            Err(_) => Err(WatchEnd::Broken(format!("nothing heard for {:?}", self.timing.idle))),
        }
    }

    /// Decodes an event, and notes which objects the receiver has after it.
    fn decoded_event(&mut self, line: &[u8]) -> Result<NewEvent<K>, WatchEnd> {
        let unreadable =
            |error: serde_json::Error| WatchEnd::Lost(format!("an event cannot be read: {error}"));
        let RawEvent { kind, object } = serde_json::from_slice(line).map_err(unreadable)?;
        let object = object.get();
        let head =
            || serde_json::from_str::<ObjectHead>(object).map(ObjectHead::into_parts).map_err(unreadable);
        let (version, report) = match kind.as_str() {
            "ADDED" | "MODIFIED" => {
                let listed = self.decoded(object).map_err(unreadable)?;
                (listed.version.clone(), self.reported.applied(listed))
            }
            "DELETED" => {
                let (name, version) = head()?;
                (version, self.reported.deleted(name))
            }
            "BOOKMARK" => (head()?.1, None),
            _ => {
                let status: Status = serde_json::from_str(object).map_err(unreadable)?;
                let code = status.code.unwrap_or_default();
                return Err(WatchEnd::Lost(format!("{code} {}", status.message.unwrap_or_default())));
            }
        };
        if version.is_empty() {
            return Err(WatchEnd::Lost("an event has no resourceVersion".to_owned()));
        }
        Ok(NewEvent { version, report })
    }

    /// Records a failure; it is reported only if it differs from the last one.
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

#[cfg(test)]
mod tests;
