//! Keeps this process's authority equal to the store's and its bundle published, and takes the steps of a rotation.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use tidegate_runtime::trust_bundle::{TrustBundle, TrustBundleError, fingerprint};
use tidegate_runtime::{drain, tls};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::given::GivenFiles;
use super::state::{
    AuthorityState, Farewell, NotAllowed, RotationStep, RotationTiming, StateError, StoredAuthority, Vouched,
};
use crate::check_schedule::CheckSchedule;
use crate::issuer::{Issuer, IssuerProblems, RequiredNames};
use crate::store::{BundlePublisher, RootStore, StoreError, StoredValues, UnpublishedNamespace, enumerate};
use crate::x509::WriteError;

#[cfg(test)]
mod tests;

/// The certificate authority of this process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Authority(Arc<SharedAuthority>);

/// What all clones share. Readers take the current state from a watch channel and never wait for a change in progress.
struct SharedAuthority {
    store: Arc<dyn RootStore>,
    given: Option<GivenFiles>,
    publishers: Vec<Arc<dyn BundlePublisher>>,
    timing: RotationTiming,
    /// Names that a given authority must be able to sign.
    names: RequiredNames,
    state: watch::Sender<Arc<AuthorityState>>,
    bundle: watch::Sender<Arc<TrustBundle>>,
    /// Revision of the current state. Locked during a change, so that changes happen one at a time.
    revision: tokio::sync::Mutex<String>,
    publication: Mutex<Publication>,
    /// Why the stored or given authority is unusable; kept so that the same problem is not logged every second.
    problem: watch::Sender<Option<String>>,
}

/// The outcome of publishing the bundle.
struct Publication {
    /// Why publishing failed altogether, for a reason that does not concern a single namespace.
    error: Option<String>,
    /// Namespaces where it cannot be published; it is published everywhere else.
    unreached: Vec<UnpublishedNamespace>,
    /// When publishing last recovered.
    works_since: SystemTime,
}

/// Why the certificate authority could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The store is unusable.
    #[error("the store of the certificate authority: {0}")]
    Store(#[from] StoreError),
    /// The store's content is not an authority.
    #[error("the stored certificate authority: {0}")]
    State(#[from] StateError),
    /// The user's files are not an authority.
    #[error(transparent)]
    Given(#[from] IssuerProblems),
    /// No authority is stored, but a trust bundle is published, whose holders would not trust a new root.
    #[error(
        "{store} holds no certificate authority, but {bundle} holds the trust bundle of one (root {roots}): put the store \
         back. Only if it is gone for good, start once with --new-root: then a new root is made, and what trusts just the \
         old one has to be restarted"
    )]
    RootGone {
        /// The store.
        store: String,
        /// Where the bundle is published.
        bundle: String,
        /// Fingerprints of its roots.
        roots: String,
    },
    /// A root could not be generated.
    #[error("a root certificate could not be made: {0}")]
    Create(#[from] WriteError),
    /// A root cannot be a trust anchor.
    #[error("the trust bundle {0}")]
    Bundle(#[from] TrustBundleError),
}

/// Options of a rotation's next step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advance {
    /// What the caller has verified.
    pub vouched: Vouched,
    /// What happens to the root that the last step drops.
    pub farewell: Farewell,
    /// Namespaces that the step skips if the trust bundle cannot be published there.
    pub without: BTreeSet<String>,
}

impl From<Vouched> for Advance {
    fn from(vouched: Vouched) -> Self {
        Self { vouched, ..Self::default() }
    }
}

/// Whether a root may be generated if none is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NewRoot {
    /// Only if there never was one.
    #[default]
    WhereNoneWas,
    /// Even if a trust bundle shows that there was one, because the operator requested it.
    Wanted,
}

/// The state of a rotation, for `GET /rotation`.
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
    /// Fingerprints of the roots that were retired and not revoked, oldest first.
    pub retired_roots: Vec<String>,
    /// How long certificates still chain to the root that was retired last, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge_ends: Option<String>,
    /// Namespaces where the trust bundle cannot be published. A step that skips them has to name them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unreached: Vec<UnpublishedNamespace>,
    /// The latest expiry of a certificate under a root that the next step drops, RFC 3339; the next step waits for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old_certificates_end: Option<String>,
    /// Whether `POST /rotation/next` would succeed now, `unreached` aside.
    pub next_allowed: bool,
    /// Whether `POST /rotation/next?renewed=true` would succeed now, `unreached` aside.
    pub next_allowed_once_renewed: bool,
    /// Why the next step is not allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why the stored or given authority is unusable, if it is; the previous one stays in use.
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
    /// Loads the authority from the store. If there is none, stores the given one or, if `new_root` allows, a new root.
    /// Publishes the bundle once before it returns.
    pub(crate) async fn open(
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
        let found = StoredAuthority::read(&stored.entries, now)?;
        found.check_names(&names, now)?;
        let state = match (found.state, &found.given) {
            // The first refresh checks what was given beside it.
            (Some(state), _) => state,
            (None, Some(given)) => AuthorityState::steady(given.clone(), now),
            (None, None) => return Err(StateError::Missing("state.json").into()),
        };
        // No store has an empty revision, so the first refresh reads the entries again.
        let is_given = given.is_some() || found.given.is_some();
        let revision = if found.given.is_some() { String::new() } else { stored.revision };
        info!(step = state.step.name(), root = %fingerprint(state.issuer.root()), "certificate authority loaded");
        let bundle = bundle_of(&state)?;
        let authority = Self(Arc::new(SharedAuthority {
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
            // Before the replaced authority issues anything.
            authority.refresh().await;
        }
        authority.publish().await;
        Ok(authority)
    }

    /// Checks store and files and publishes, as often as `checks` says, until the drain starts.
    pub(crate) async fn run(self, checks: CheckSchedule, mut drain: drain::Watch) {
        let mut ticks = checks.ticks();
        loop {
            tokio::select! {
                () = drain.started() => return,
                () = checks.wake.notified() => {}
                _ = ticks.tick() => {}
            }
            self.refresh().await;
            self.publish().await;
        }
    }

    /// The current state and each later one.
    pub(crate) fn states(&self) -> watch::Receiver<Arc<AuthorityState>> {
        self.0.state.subscribe()
    }

    /// Why the stored or given authority is unusable, if it is; the previous one stays in use.
    pub(crate) fn problems(&self) -> watch::Receiver<Option<String>> {
        self.0.problem.subscribe()
    }

    /// The trusted roots now and after each change.
    pub(crate) fn bundle(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.0.bundle.subscribe()
    }

    /// Takes the rotation's next step and publishes the roots that are trusted afterwards.
    pub(crate) async fn next(&self, advance: impl Into<Advance>) -> Result<RotationStatus, NotAllowed> {
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

    /// The state of the rotation.
    pub(crate) fn status(&self) -> RotationStatus {
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
            old_certificates_end: matches!(state.step, RotationStep::IssueNew { .. })
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

    fn unreached(&self) -> Vec<UnpublishedNamespace> {
        self.0.publication.lock().unwrap_or_else(PoisonError::into_inner).unreached.clone()
    }

    /// An error unless the bundle is published in all namespaces but these.
    fn is_reached(&self, without: &BTreeSet<String>) -> Result<(), NotAllowed> {
        let mut unreached = self.unreached();
        unreached.retain(|one| !without.contains(&one.namespace));
        if unreached.is_empty() { Ok(()) } else { Err(NotAllowed::NotPublished(enumerate(&unreached))) }
    }

    /// Whether the next step may be taken now; see [`AuthorityState::may_advance`] for its conditions.
    fn may_advance(
        &self,
        state: &AuthorityState,
        now: SystemTime,
        vouched: Vouched,
    ) -> Result<(), NotAllowed> {
        if matches!(state.step, RotationStep::Steady) && self.0.given.is_some() {
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

    /// Writes a state to the store, unless another client has changed it, and applies it.
    async fn save(&self, revision: &mut String, next: AuthorityState) -> Result<(), NotAllowed> {
        let stored = self.0.store.update(revision, next.to_entries()).await.map_err(|error| match error {
            StoreError::Conflict => NotAllowed::Conflict,
            other => NotAllowed::Store(other.to_string()),
        })?;
        *revision = stored.revision;
        self.put_in_force(next).map_err(|error| NotAllowed::Successor(error.to_string()))
    }

    /// Issues from a state from now on, and publishes its bundle inside the process.
    fn put_in_force(&self, state: AuthorityState) -> Result<(), TrustBundleError> {
        let bundle = bundle_of(&state)?;
        info!(
            step = state.step.name(),
            issuing_root = %fingerprint(state.issuer.root()),
            trusted_roots = ?bundle.fingerprints(),
            retired_roots = ?bundle.retired(),
            "certificate authority changed"
        );
        // The bundle first, so that it always contains the root of every certificate.
        self.0.bundle.send_replace(Arc::new(bundle));
        self.0.state.send_replace(Arc::new(state));
        Ok(())
    }

    /// Applies changes that others made to the store or the given files.
    pub(crate) async fn refresh(&self) {
        let mut revision = self.0.revision.lock().await;
        let result = match self.refresh_from_store(&mut revision).await {
            Ok(()) => self.refresh_from_files(&mut revision).await,
            Err(error) => Err(error),
        };
        drop(revision);
        self.report(result.err());
    }

    /// Takes over a revision that another replica or an operator has written, and puts a store that has lost its
    /// content back. The error is a sentence for the log; the state in force stays.
    async fn refresh_from_store(&self, revision: &mut String) -> Result<(), String> {
        let stored: StoredValues = match self.0.store.load().await.map_err(|error| error.to_string())? {
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
        let found = StoredAuthority::read(&stored.entries, now).map_err(|error| {
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
            // The rotation's step must outlive this process.
            refused if is_replaced && !matches!(current.step, RotationStep::Steady) => {
                let saved = self.save(revision, AuthorityState::clone(&current)).await;
                refused.and(saved).map_err(|error| error.to_string())
            }
            refused => refused.map(|_| ()).map_err(|error| error.to_string()),
        }
    }

    /// If the files contain another authority than the current one, starts its succession: at once under the same root,
    /// by the first step of a rotation under another one.
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

    /// Publishes the bundle everywhere. Each publisher and each namespace fails on its own; a problem is logged when it
    /// appears and when it ends, not every second.
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
        for UnpublishedNamespace { namespace, reason } in unreached.iter().filter(|one| !last.contains(one)) {
            error!(namespace, reason, "the trust bundle cannot be published here; tried again");
        }
        let is_here = |all: &[UnpublishedNamespace], one: &UnpublishedNamespace| {
            all.iter().any(|other| other.namespace == one.namespace)
        };
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

    /// Logs a problem once, and its end.
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

/// Stores the first authority.
async fn first(
    store: &dyn RootStore,
    given: Option<&GivenFiles>,
    publishers: &[Arc<dyn BundlePublisher>],
    names: &RequiredNames,
    new_root: NewRoot,
    now: SystemTime,
) -> Result<StoredValues, AuthorityError> {
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
                // Another process may have created and published the root since the store was read.
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

/// Where a bundle with roots is already published, and those roots.
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

/// The bundle that belongs to a state: trusted roots, and the fingerprints of retired ones.
fn bundle_of(state: &AuthorityState) -> Result<TrustBundle, TrustBundleError> {
    Ok(TrustBundle::from_certificates(state.trusted())?.with_retired(state.retired.iter().cloned()))
}
