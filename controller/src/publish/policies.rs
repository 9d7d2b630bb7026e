//! The policy of each workload, or why it has none, and what its sidecar has applied.
//!
//! A workload's entry is made by whichever comes first, its policy or its sidecar's stream, and ends with the last of
//! policy, error and stream. What operators see of a sidecar (versions sent and acknowledged, rejections, its
//! certificate) is that of its latest stream, and is shown after the stream has ended, too.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use tidegate_core::policy::InboundPolicy;
use tidegate_proto::ResourceName;
use tokio::sync::watch;

use super::store::{Published, Store};
use crate::object::ObjectName;

/// Every workload that has a policy, should have one, or has a stream.
#[derive(Debug)]
pub(crate) struct PolicyStore {
    store: Arc<Store>,
    entries: Mutex<BTreeMap<ObjectName, WorkloadState>>,
    is_synced: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct WorkloadState {
    has_policy: bool,
    error: Option<String>,
    follower: Option<SidecarStream>,
    /// Streams for the workload that are open.
    streams: usize,
}

/// A sidecar's stream, the latest for its workload.
#[derive(Clone, Debug)]
pub(crate) struct SidecarStream {
    /// Tells this stream from the ones before and after it.
    pub(crate) stream: u64,
    pub(crate) peer: SocketAddr,
    /// `Node.version` and `Node.instance`.
    pub(crate) program: String,
    pub(crate) instance: String,
    pub(crate) since: SystemTime,
    pub(crate) is_connected: bool,
    pub(crate) sent: Option<Arc<str>>,
    pub(crate) acknowledged: Option<Arc<str>>,
    pub(crate) rejected: Option<Rejected>,
    /// What it rejected besides the policy, by name; some of it, if it is much.
    pub(crate) rejected_resources: BTreeMap<String, Rejected>,
    pub(crate) report: Option<Reported>,
}

/// The certificate and roots that a sidecar reports.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    /// SHA-256 of the roots that it trusts, in hexadecimal.
    pub(crate) trusted_roots: Vec<String>,
    /// When its certificate ends; before the year 10000.
    pub(crate) certificate_not_after: SystemTime,
    /// Those of the roots under which its certificate is good.
    pub(crate) certificate_roots: Vec<String>,
}

/// A version that a sidecar did not take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Rejected {
    pub(crate) version: String,
    pub(crate) reason: String,
}

/// What operators see of a workload.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WorkloadView {
    workload: String,
    identity: Option<String>,
    /// The newest version.
    version: Option<Arc<str>>,
    /// Why there is no policy.
    error: Option<String>,
    sidecar: Option<SidecarView>,
    policy: Option<InboundPolicy>,
}

/// The sidecar's part of [`WorkloadView`]; the field names are the admin API that `tidegate proxy` and `tidegate
/// certificate` read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SidecarView {
    connected: bool,
    connected_since: String,
    address: String,
    program: String,
    instance: String,
    sent_version: Option<Arc<str>>,
    acked_version: Option<Arc<str>>,
    rejected: Option<Rejected>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    rejected_resources: BTreeMap<String, Rejected>,
    /// SHA-256 of the roots that it trusts; none until it has said so.
    trusted_roots: Option<Vec<String>>,
    certificate_not_after: Option<String>,
    /// Those of the roots under which its certificate is good.
    certificate_roots: Option<Vec<String>>,
}

impl PolicyStore {
    /// Policies are values of this store.
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, entries: Mutex::default(), is_synced: watch::Sender::new(false) }
    }

    /// Whether every object that there is has been seen: only then is an absent policy known to be absent.
    pub(crate) fn synced(&self) -> watch::Receiver<bool> {
        self.is_synced.subscribe()
    }

    /// From now on a stream for a workload without a policy is answered that there is none, instead of waiting.
    pub(crate) fn mark_synced(&self) {
        self.is_synced.send_replace(true);
    }

    /// Counts a stream for a workload, which may have no policy. [`PolicyStore::release`] ends it.
    pub(crate) fn hold(&self, name: &ObjectName) {
        self.lock().entry(name.clone()).or_default().streams += 1;
    }

    /// Ends [`PolicyStore::hold`]. Forgets a workload that has neither policy nor stream.
    pub(crate) fn release(&self, name: &ObjectName) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(name) else { return };
        entry.streams = entry.streams.saturating_sub(1);
        if entry.is_unused() {
            entries.remove(name);
        }
    }

    /// Whether the policy is another than before.
    pub(crate) fn publish(&self, name: &ObjectName, policy: InboundPolicy) -> bool {
        let published = Arc::new(Published::listener(policy));
        let mut entries = self.lock();
        let entry = entries.entry(name.clone()).or_default();
        entry.error = None;
        entry.has_policy = true;
        self.store.publish(&listener(name), published)
    }

    /// Takes a workload's policy away; `error` says why if it should have one.
    pub(crate) fn withdraw(&self, name: &ObjectName, error: Option<String>) {
        let mut entries = self.lock();
        let Some(entry) = (match error {
            Some(_) => Some(entries.entry(name.clone()).or_default()),
            None => entries.get_mut(name),
        }) else {
            return;
        };
        entry.error = error;
        entry.has_policy = false;
        self.store.withdraw(&listener(name));
        if entry.is_unused() {
            entries.remove(name);
        }
    }

    /// Records the stream that now serves a workload, in the place of an earlier one.
    pub(crate) fn connected(&self, name: &ObjectName, follower: SidecarStream) {
        self.lock().entry(name.clone()).or_default().follower = Some(follower);
    }

    /// Changes what is known about a stream, unless a newer one has taken its place.
    pub(crate) fn update(&self, name: &ObjectName, stream: u64, change: impl FnOnce(&mut SidecarStream)) {
        let mut entries = self.lock();
        let follower = entries.get_mut(name).and_then(|entry| entry.follower.as_mut());
        if let Some(follower) = follower.filter(|follower| follower.stream == stream) {
            change(follower);
        }
    }

    /// Workloads that have a policy.
    pub(crate) fn count(&self) -> usize {
        self.lock().values().filter(|entry| entry.has_policy).count()
    }

    /// The policy of a workload, as it is at this moment.
    pub(crate) fn policy(&self, name: &ObjectName) -> Option<Arc<Published>> {
        self.store.value(&listener(name))
    }

    /// Why a workload has no policy although it should have one.
    pub(crate) fn error(&self, name: &ObjectName) -> Option<String> {
        self.lock().get(name).and_then(|entry| entry.error.clone())
    }

    /// Every workload, sorted by namespace and name, each with its whole policy.
    pub(crate) fn view(&self) -> Vec<WorkloadView> {
        self.lock().iter().map(|(name, entry)| entry.view(name, self.policy(name))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectName, WorkloadState>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of a workload's policy on streams.
pub(crate) fn listener(workload: &ObjectName) -> ResourceName {
    ResourceName::Listener { namespace: workload.namespace.clone(), pod: workload.name.clone() }
}

impl WorkloadState {
    /// Whether nothing is left to remember of the workload.
    fn is_unused(&self) -> bool {
        self.error.is_none() && !self.has_policy && self.streams == 0
    }

    fn view(&self, name: &ObjectName, published: Option<Arc<Published>>) -> WorkloadView {
        let policy = published.as_ref().and_then(|published| published.policy());
        WorkloadView {
            workload: name.to_string(),
            identity: policy.map(|policy| policy.identity.to_string()),
            version: published.as_ref().map(|published| published.version.clone()),
            error: self.error.clone(),
            sidecar: self.follower.as_ref().map(SidecarView::new),
            policy: policy.cloned(),
        }
    }
}

impl SidecarView {
    fn new(follower: &SidecarStream) -> Self {
        Self {
            connected: follower.is_connected,
            connected_since: humantime::format_rfc3339_millis(follower.since).to_string(),
            address: follower.peer.to_string(),
            program: follower.program.clone(),
            instance: follower.instance.clone(),
            sent_version: follower.sent.clone(),
            acked_version: follower.acknowledged.clone(),
            rejected: follower.rejected.clone(),
            rejected_resources: follower.rejected_resources.clone(),
            trusted_roots: follower.report.as_ref().map(|report| report.trusted_roots.clone()),
            certificate_not_after: follower
                .report
                .as_ref()
                .map(|report| humantime::format_rfc3339_seconds(report.certificate_not_after).to_string()),
            certificate_roots: follower.report.as_ref().map(|report| report.certificate_roots.clone()),
        }
    }
}
