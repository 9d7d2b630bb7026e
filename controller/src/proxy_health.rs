//! Whether the forward proxies of EgressProxies work, as this replica sees it.
//!
//! Each proxy of an object in force gets a `CONNECT` for a name that does not exist, every 15 seconds ([`ProxyProbe`]). Any
//! well-formed answer shows that the proxy works, a refusal too, except of credentials and of `CONNECT` itself. The engine puts
//! the results into the index and writes the statuses that they change.

mod probe;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_runtime::forward_proxy::HttpProxy;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::object::ObjectName;

/// The pause between two probes of a proxy. With [`probe::LONGEST`], a proxy that fails is known within a minute.
const INTERVAL: Duration = Duration::from_secs(15);

/// A proxy to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyProbe {
    /// The EgressProxy that lists it.
    pub(crate) object: ObjectName,
    /// Its address and credentials.
    pub(crate) proxy: HttpProxy,
    /// Roots in PEM, for TLS with the proxy.
    pub(crate) roots: Option<Arc<str>>,
    /// Whether it has to open tunnels. One of `httpProxies` alone need not.
    pub(crate) opens_tunnels: bool,
    /// The most time for a connection, TLS included.
    pub(crate) connect_timeout: Duration,
    /// The most time for the answer.
    pub(crate) response_timeout: Duration,
}

/// What is wrong with a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyDefect {
    /// In one word, the reason of a condition.
    pub(crate) reason: &'static str,
    /// Names the proxy; with its own words, if it has any.
    pub(crate) message: String,
}

/// The proxies of one EgressProxy, once each of them has been probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProbedProxies {
    /// How many there are.
    pub(crate) count: usize,
    /// Of those that do not work, in the order of the object.
    pub(crate) defects: Vec<ProxyDefect>,
}

/// The state of all proxies, by the EgressProxies that list them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProxyHealth(BTreeMap<ObjectName, ProbedProxies>);

/// A proxy that is probed by a task of its own, until the task is aborted.
struct WatchedProxy {
    probe: Arc<ProxyProbe>,
    task: AbortHandle,
    /// Of the last probe; `None` before the first.
    result: Option<Result<(), ProxyDefect>>,
}

/// What a task reports.
struct ProbeResult {
    probe: Arc<ProxyProbe>,
    result: Result<(), ProxyDefect>,
}

#[cfg(test)]
impl<const N: usize> From<[(ObjectName, ProbedProxies); N]> for ProxyHealth {
    fn from(objects: [(ObjectName, ProbedProxies); N]) -> Self {
        Self(BTreeMap::from(objects))
    }
}

impl ProxyHealth {
    /// The proxies of an object; `None` until each has been probed.
    pub(crate) fn of(&self, object: &ObjectName) -> Option<&ProbedProxies> {
        self.0.get(object)
    }

    /// The objects whose proxies have another state in `other`.
    pub(crate) fn changed<'h>(&'h self, other: &'h Self) -> impl Iterator<Item = &'h ObjectName> {
        let objects = self.0.keys().chain(other.0.keys());
        objects.filter(move |object| self.of(object) != other.of(object))
    }

    /// The objects whose proxies have all been probed.
    fn new(watched: &[WatchedProxy]) -> Self {
        let mut health = BTreeMap::<_, ProbedProxies>::new();
        for known in watched {
            let object = health.entry(known.probe.object.clone()).or_default();
            object.count += 1;
            object.defects.extend(known.result.clone().and_then(Result::err));
        }
        for known in watched.iter().filter(|known| known.result.is_none()) {
            health.remove(&known.probe.object);
        }
        Self(health)
    }
}

/// Probes these proxies until their sender is dropped, and reports each change. Proxies that stay keep their state.
pub(crate) async fn watch_proxies(
    mut probes: watch::Receiver<Arc<Vec<ProxyProbe>>>,
    health: watch::Sender<Arc<ProxyHealth>>,
) {
    let (sender, mut results) = mpsc::channel(16);
    let (mut tasks, mut watched) = (JoinSet::new(), Vec::new());
    loop {
        tokio::select! {
            changed = probes.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = probes.borrow_and_update().clone();
                watched = follow(&wanted, watched, &mut tasks, &sender);
            }
            Some(ProbeResult { probe, result }) = results.recv() => {
                if let Some(known) = watched.iter_mut().find(|known: &&mut WatchedProxy| known.probe == probe) {
                    known.result = Some(result);
                }
            }
            Some(_) = tasks.join_next() => continue,
        }
        let news = ProxyHealth::new(&watched);
        health.send_if_modified(|known| {
            let is_news = **known != news;
            if is_news {
                *known = Arc::new(news);
            }
            is_news
        });
    }
}

/// Starts tasks for new proxies, and ends those of others.
fn follow(
    wanted: &[ProxyProbe],
    mut before: Vec<WatchedProxy>,
    tasks: &mut JoinSet<()>,
    results: &mpsc::Sender<ProbeResult>,
) -> Vec<WatchedProxy> {
    let mut watched = Vec::with_capacity(wanted.len());
    for probe in wanted {
        if let Some(place) = before.iter().position(|known| *known.probe == *probe) {
            watched.push(before.swap_remove(place));
            continue;
        }
        let probe = Arc::new(probe.clone());
        let task = tasks.spawn(repeat(probe.clone(), results.clone()));
        watched.push(WatchedProxy { probe, task, result: None });
    }
    before.iter().for_each(|known| known.task.abort());
    watched
}

/// Probes a proxy again and again.
async fn repeat(probe: Arc<ProxyProbe>, results: mpsc::Sender<ProbeResult>) {
    loop {
        let result = probe.run().await;
        if results.send(ProbeResult { probe: probe.clone(), result }).await.is_err() {
            return;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests;
