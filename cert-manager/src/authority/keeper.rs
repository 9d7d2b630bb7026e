//! Keeps the authority of this process equal to the store's, the bundle published, and takes rotation's steps.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tidegate_runtime::trust_bundle::{TrustBundle, TrustBundleError, fingerprint};
use tidegate_runtime::{drain, tls};
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use super::given::GivenFiles;
use super::state::{AuthorityState, Farewell, Found, NotAllowed, RotationTiming, StateError, Step, Vouched};
use crate::issuer::{Issuer, IssuerProblems, RequiredNames};
use crate::store::{BundlePublisher, RootStore, StoreError, Stored, Unreached, enumerate};
use crate::x509::WriteError;

#[cfg(test)]
mod tests;

/// How often the store and the files of a given authority are looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// The certificate authority of this process. Cheap to clone.
#[derive(Clone)]
pub struct Authority(Arc<Shared>);

struct Shared {
    store: Arc<dyn RootStore>,
    given: Option<GivenFiles>,
    publishers: Vec<Arc<dyn BundlePublisher>>,
    timing: RotationTiming,
    /// What a given authority must be able to sign.
    names: RequiredNames,
    state: watch::Sender<Arc<AuthorityState>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    /// Revision of the state in force. Held while the state is changed, so that changes come one after the other.
    revision: tokio::sync::Mutex<String>,
    publication: Mutex<Publication>,
    /// Why what is stored or given cannot be used; the same problem is not logged each second.
    problem: watch::Sender<Option<String>>,
}

/// How publishing the bundle goes.
struct Publication {
    /// Why publishing failed as a whole, for a reason that does not belong to a single namespace.
    error: Option<String>,
    /// Where it cannot be published; it is everywhere else.
    unreached: Vec<Unreached>,
    /// When it last began to work again.
    works_since: SystemTime,
}

/// Why the certificate authority cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The store cannot be used.
    #[error("the store of the certificate authority: {0}")]
    Store(#[from] StoreError),
    /// What the store holds is not an authority.
    #[error("the stored certificate authority: {0}")]
    State(#[from] StateError),
    /// What the user has given is not an authority.
    #[error(transparent)]
    Given(#[from] IssuerProblems),
    /// No authority is stored, but a trust bundle of one is published: its holders would not trust a new root.
    #[error(
        "{store} holds no certificate authority, but {bundle} holds the trust bundle of one (root {roots}): put the store \
         back. Only if it is gone for good, start once with --new-root: then a new root is made, and what trusts just the \
         old one has to be started anew"
    )]
    RootGone {
        /// The store's place.
        store: String,
        /// Where the bundle is.
        bundle: String,
        /// Fingerprints of its roots.
        roots: String,
    },
    /// A root could not be made.
    #[error("a root certificate could not be made: {0}")]
    Create(#[from] WriteError),
    /// A root cannot be a trust anchor.
    #[error("the trust bundle {0}")]
    Bundle(#[from] TrustBundleError),
}

/// What is asked of a rotation's next step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advance {
    /// What the caller has verified.
    pub vouched: Vouched,
    /// What becomes of the root that the last step drops.
    pub farewell: Farewell,
    /// Namespaces that the step does without, should the trust bundle not be published there.
    pub without: BTreeSet<String>,
}

impl From<Vouched> for Advance {
    fn from(vouched: Vouched) -> Self {
        Self { vouched, ..Self::default() }
    }
}

/// Whether a root may be made where none is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NewRoot {
    /// Only where there never was one.
    #[default]
    WhereNoneWas,
    /// Also where a trust bundle shows that there was one: the operator has asked for it.
    Wanted,
}

/// Where a rotation is, for `GET /rotation`.
#[derive(Debug, Clone, Serialize)]
pub struct RotationStatus {
    /// `steady`, `trust-both` or `issue-new`.
    pub step: &'static str,
    /// RFC 3339.
    pub since: String,
    /// SHA-256 of the root that issues.
    pub issuing_root: String,
    /// Every trusted root.
    pub trusted_roots: Vec<RootStatus>,
    /// Fingerprints of the roots that every workload must trust before the next step.
    pub required_roots: Vec<String>,
    /// Fingerprints of the roots that were retired and not revoked, the first of them first.
    pub retired_roots: Vec<String>,
    /// How long certificates go on leading to the root that was retired last, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge_ends: Option<String>,
    /// Namespaces that the trust bundle cannot be published in. A step that is to do without them names them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<Unreached>,
    /// When the last certificate under a root that the next step drops is over at the latest, RFC 3339; the next step
    /// waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_certificates_end: Option<String>,
    /// Whether `POST /rotation/next` would be taken now, `unreached` aside.
    pub next_allowed: bool,
    /// Whether `POST /rotation/next?renewed=true` would be taken now, `unreached` aside.
    pub next_allowed_once_renewed: bool,
    /// Why not, if not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why what is stored or given cannot be used, while that is so: what was in force before stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One trusted root.
#[derive(Debug, Clone, Serialize)]
pub struct RootStatus {
    /// SHA-256 of its DER in lower-case hex.
    pub fingerprint: String,
    /// RFC 3339.
    pub not_after: String,
}

impl Authority {
    /// Loads the authority from the store; where there is none, puts the given one there or makes a root, if it may.
    /// Publishes the bundle once before it returns.
    pub async fn open(
        store: Arc<dyn RootStore>,
        given: Option<GivenFiles>,
        publishers: Vec<Arc<dyn BundlePublisher>>,
        timing: RotationTiming,
        names: RequiredNames,
        new_root: NewRoot,
    ) -> Result<Self, AuthorityError> {
        let now = SystemTime::now();
        let stored = match store.load().await? {
            Some(stored) => stored,
            None => first(&*store, given.as_ref(), &publishers, &names, new_root, now).await?,
        };
        let found = Found::read(&stored.entries, now)?;
        found.check_names(&names, now)?;
        let state = match (found.state, &found.given) {
            // What was given beside it is looked at by the first refresh.
            (Some(state), _) => state,
            (None, Some(given)) => AuthorityState::steady(given.clone(), now),
            (None, None) => return Err(StateError::Missing("state.json").into()),
        };
        // A revision that no store has: then the first refresh looks at it.
        let is_given = given.is_some() || found.given.is_some();
        let revision = if found.given.is_some() { String::new() } else { stored.revision };
        info!(step = state.step.name(), root = %fingerprint(state.issuer.root()), "certificate authority loaded");
        let bundle = bundle_of(&state)?;
        let authority = Self(Arc::new(Shared {
            store,
            given,
            publishers,
            timing,
            names,
            state: watch::channel(Arc::new(state)).0,
            bundle: watch::channel(Arc::new(bundle)).0,
            revision: tokio::sync::Mutex::new(revision),
            publication: Mutex::new(Publication {
                error: None,
                unreached: Vec::new(),
                works_since: SystemTime::UNIX_EPOCH,
            }),
            problem: watch::channel(None).0,
        }));
        if is_given {
            // Before anything is issued by what was replaced.
            authority.refresh().await;
        }
        authority.publish().await;
        Ok(authority)
    }

    /// Looks after store, files and publication each second, and when it is woken, until the drain starts.
    pub async fn run(self, wake: Arc<Notify>, mut drain: drain::Watch) {
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = drain.started() => return,
                () = wake.notified() => {}
                _ = interval.tick() => {}
            }
            self.refresh().await;
            self.publish().await;
        }
    }

    /// The state in force and each one after it.
    pub fn states(&self) -> watch::Receiver<Arc<AuthorityState>> {
        self.0.state.subscribe()
    }

    /// Why what is stored or given cannot be used, while that is so: what was in force before stays.
    pub fn problems(&self) -> watch::Receiver<Option<String>> {
        self.0.problem.subscribe()
    }

    /// The trusted roots now and after each change.
    pub fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.0.bundle.subscribe()
    }

    /// Takes rotation's next step and publishes the roots that are trusted then.
    pub async fn next(&self, advance: impl Into<Advance>) -> Result<RotationStatus, NotAllowed> {
        let Advance { vouched, farewell, without } = advance.into();
        self.publish().await;
        let mut revision = self.0.revision.lock().await;
        let current = self.current();
        let now = SystemTime::now();
        if vouched != Vouched::Everything {
            self.is_reached(&without)?;
        }
        self.may_advance(&current, now, vouched)?;
        let next = match current.advanced(now, farewell) {
            Some(next) => next,
            None => {
                let root = Issuer::create_root(now).map_err(|e| NotAllowed::Successor(e.to_string()))?;
                current.trust_both(root, now)
            }
        };
        self.save(&mut revision, next).await?;
        drop(revision);
        self.publish().await;
        Ok(self.status())
    }

    /// Where the rotation is.
    pub fn status(&self) -> RotationStatus {
        let (state, now) = (self.current(), SystemTime::now());
        let refused = self.may_advance(&state, now, Vouched::Nothing).err();
        let rfc3339 = |time| humantime::format_rfc3339_seconds(time).to_string();
        let not_after = |certificate: &CertificateDer<'static>| {
            tidegate_core::PeerCertificate::from_der(certificate)
                .map_or_else(|_| "unknown".to_owned(), |read| rfc3339(read.not_after))
        };
        RotationStatus {
            step: state.step.name(),
            since: rfc3339(state.since),
            issuing_root: fingerprint(state.issuer.root()),
            trusted_roots: state
                .trusted()
                .iter()
                .map(|root| RootStatus { fingerprint: fingerprint(root), not_after: not_after(root) })
                .collect(),
            retired_roots: state.retired.clone(),
            bridge_ends: state.bridge.first().map(not_after),
            required_roots: state.required().iter().map(|root| fingerprint(root)).collect(),
            old_certificates_end: matches!(state.step, Step::IssueNew { .. })
                .then(|| rfc3339(state.since + self.0.timing.propagation + self.0.timing.max_life)),
            unreached: self.unreached(),
            problem: self.0.problem.borrow().clone(),
            next_allowed: refused.is_none(),
            next_allowed_once_renewed: self.may_advance(&state, now, Vouched::Renewed).is_ok(),
            reason: refused.map(|reason| reason.to_string()),
        }
    }

    fn current(&self) -> Arc<AuthorityState> {
        self.0.state.borrow().clone()
    }

    fn unreached(&self) -> Vec<Unreached> {
        self.0.publication.lock().unwrap_or_else(PoisonError::into_inner).unreached.clone()
    }

    /// Whether the bundle is published everywhere but in these namespaces.
    fn is_reached(&self, without: &BTreeSet<String>) -> Result<(), NotAllowed> {
        let mut unreached = self.unreached();
        unreached.retain(|one| !without.contains(&one.namespace));
        if unreached.is_empty() { Ok(()) } else { Err(NotAllowed::NotPublished(enumerate(&unreached))) }
    }

    fn may_advance(
        &self,
        state: &AuthorityState,
        now: SystemTime,
        vouched: Vouched,
    ) -> Result<(), NotAllowed> {
        if matches!(state.step, Step::Steady) && self.0.given.is_some() {
            return Err(NotAllowed::Given);
        }
        if vouched == Vouched::Everything {
            return Ok(());
        }
        let publication = self.0.publication.lock().unwrap_or_else(PoisonError::into_inner);
        match &publication.error {
            Some(error) => Err(NotAllowed::NotPublished(error.clone())),
            None => state.may_advance(now, publication.works_since, self.0.timing, vouched),
        }
    }

    /// Writes a state to the store, unless another client has changed it, and puts it in force.
    async fn save(&self, revision: &mut String, next: AuthorityState) -> Result<(), NotAllowed> {
        let stored = self.0.store.update(revision, next.to_entries()).await.map_err(|error| match error {
            StoreError::Conflict => NotAllowed::Conflict,
            other => NotAllowed::Store(other.to_string()),
        })?;
        *revision = stored.revision;
        self.put_in_force(next).map_err(|error| NotAllowed::Successor(error.to_string()))
    }

    fn put_in_force(&self, state: AuthorityState) -> Result<(), TrustBundleError> {
        let bundle = bundle_of(&state)?;
        info!(
            step = state.step.name(),
            issuing_root = %fingerprint(state.issuer.root()),
            trusted_roots = ?bundle.fingerprints(),
            retired_roots = ?bundle.retired(),
            "certificate authority changed"
        );
        // The bundle first, so that no certificate is seen under a root that it does not hold.
        self.0.bundle.send_replace(Arc::new(bundle));
        self.0.state.send_replace(Arc::new(state));
        Ok(())
    }

    /// Takes over what others have changed in the store or in the given files.
    pub(crate) async fn refresh(&self) {
        let mut revision = self.0.revision.lock().await;
        let result = match self.refresh_from_store(&mut revision).await {
            Ok(()) => self.refresh_from_files(&mut revision).await,
            Err(error) => Err(error),
        };
        drop(revision);
        self.report(result.err());
    }

    async fn refresh_from_store(&self, revision: &mut String) -> Result<(), String> {
        let stored: Stored = match self.0.store.load().await.map_err(|error| error.to_string())? {
            Some(stored) => stored,
            None => {
                warn!("the stored certificate authority is gone; putting back the one in force");
                let entries = self.current().to_entries();
                self.0.store.create_if_absent(entries).await.map_err(|error| error.to_string())?
            }
        };
        if stored.revision == *revision {
            return Ok(());
        }
        let now = SystemTime::now();
        let found = Found::read(&stored.entries, now).map_err(|error| {
            format!("the stored certificate authority was changed and cannot be used: {error}")
        })?;
        found.check_names(&self.0.names, now).map_err(|error| error.to_string())?;
        *revision = stored.revision;
        let is_replaced = found.state.is_none();
        if let Some(state) = found.state
            && state.to_entries() != self.current().to_entries()
        {
            self.put_in_force(state).map_err(|error| error.to_string())?;
        }
        let Some(given) = found.given else { return Ok(()) };
        let current = self.current();
        match current.succeeded_by(&given, now) {
            Ok(Some(next)) => self.save(revision, next).await.map_err(|error| error.to_string()),
            // The step that a rotation is at must outlive this process.
            refused if is_replaced && !matches!(current.step, Step::Steady) => {
                let saved = self.save(revision, AuthorityState::clone(&current)).await;
                refused.and(saved).map_err(|error| error.to_string())
            }
            refused => refused.map(|_| ()).map_err(|error| error.to_string()),
        }
    }

    /// Files that hold another authority than the one in force begin its succession: under the same root at once,
    /// under another by rotation's first step.
    async fn refresh_from_files(&self, revision: &mut String) -> Result<(), String> {
        let Some(files) = self.0.given.clone() else { return Ok(()) };
        let now = SystemTime::now();
        let given = tokio::task::spawn_blocking(move || files.read(now)).await.map_err(|e| e.to_string())?;
        let given = given.map_err(|problems| problems.to_string())?;
        match self.current().succeeded_by(&given, now).map_err(|error| error.to_string())? {
            Some(next) => {
                given.check_names(&self.0.names, now).map_err(|problems| problems.to_string())?;
                self.save(revision, next).await.map_err(|error| error.to_string())
            }
            None => Ok(()),
        }
    }

    async fn publish(&self) {
        let pem = self.0.bundle.borrow().to_text();
        let (mut failed, mut unreached) = (None, Vec::new());
        for publisher in &self.0.publishers {
            match publisher.publish(&pem).await {
                Ok(()) => {}
                Err(StoreError::Unreached(namespaces)) => unreached.extend(namespaces),
                Err(error) => failed = Some(error.to_string()),
            }
        }
        let mut publication = self.0.publication.lock().unwrap_or_else(PoisonError::into_inner);
        let last = &publication.unreached;
        for Unreached { namespace, reason } in unreached.iter().filter(|one| !last.contains(one)) {
            error!(namespace, reason, "the trust bundle cannot be published here; tried again");
        }
        let is_here =
            |all: &[Unreached], one: &Unreached| all.iter().any(|other| other.namespace == one.namespace);
        let reached = last.iter().filter(|one| !is_here(&unreached, one)).count();
        match (&failed, &publication.error) {
            (Some(error), last) if last.as_ref() != Some(error) => {
                error!(%error, "the trust bundle cannot be published");
            }
            (None, Some(_)) => {
                info!("the trust bundle is published again");
                publication.works_since = SystemTime::now();
            }
            (None, None) if reached > 0 => {
                info!(namespaces = reached, "the trust bundle is published in namespaces where it was not");
                publication.works_since = SystemTime::now();
            }
            _ => {}
        }
        publication.error = failed;
        publication.unreached = unreached;
    }

    /// Logs a problem once, and once more when it is over.
    fn report(&self, problem: Option<String>) {
        self.0.problem.send_if_modified(|last| {
            if *last == problem {
                return false;
            }
            match &problem {
                Some(problem) => error!(%problem, "the certificate authority stays as it is"),
                None => info!("the certificate authority's store and files are fine again"),
            }
            *last = problem;
            true
        });
    }
}

/// The first authority of a store that holds none.
async fn first(
    store: &dyn RootStore,
    given: Option<&GivenFiles>,
    publishers: &[Arc<dyn BundlePublisher>],
    names: &RequiredNames,
    new_root: NewRoot,
    now: SystemTime,
) -> Result<Stored, AuthorityError> {
    let issuer = match given {
        Some(files) => {
            let issuer = files.read(now)?;
            issuer.check_names(names, now)?;
            issuer
        }
        None => {
            if new_root == NewRoot::WhereNoneWas
                && let Some((bundle, roots)) = published_roots(publishers).await?
            {
                // Another process may have made the root, and published it, since the store was read.
                let Some(stored) = store.load().await? else {
                    return Err(AuthorityError::RootGone { store: store.place(), bundle, roots });
                };
                return Ok(stored);
            }
            Issuer::create_root(now)?
        }
    };
    let root = fingerprint(issuer.root());
    let entries = AuthorityState::steady(issuer, now).to_entries();
    let stored = store.create_if_absent(entries.clone()).await?;
    if stored.entries == entries {
        info!(%root, place = store.place(), given = given.is_some(), "certificate authority stored for the first time");
    }
    Ok(stored)
}

/// Where a bundle is published already, and the roots that it holds; nothing where it holds none.
async fn published_roots(
    publishers: &[Arc<dyn BundlePublisher>],
) -> Result<Option<(String, String)>, AuthorityError> {
    for publisher in publishers {
        let Some(bundle) = publisher.published().await? else { continue };
        let roots = tls::load_pem_certificates(bundle.pem.as_bytes()).unwrap_or_default();
        if !roots.is_empty() {
            let roots: Vec<_> = roots.iter().map(|root| fingerprint(root)).collect();
            return Ok(Some((bundle.place, roots.join(", "))));
        }
    }
    Ok(None)
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("step", &self.current().step.name()).finish_non_exhaustive()
    }
}

fn bundle_of(state: &AuthorityState) -> Result<TrustBundle, TrustBundleError> {
    Ok(TrustBundle::from_certificates(state.trusted())?.with_retired(state.retired.iter().cloned()))
}
