//! The state of the certificate authority at one moment, and the three steps that replace its root.
//!
//! ```text
//! steady ──1──▶ trust-both ──2──▶ issue-new ──3──▶ steady
//! old            old + new         old + new         new      trusted
//! old            old               new               new      issues
//! ```
//!
//! Each step waits until the mesh has caught up with the state before it: the second one until every workload had time to
//! read the bundle with both roots, the third one until every certificate under the old root has expired, or until the
//! caller vouches that every workload has a new one: workloads renew early once another root issues.
//!
//! The third step *retires* the old root: it verifies no new connections, but open ones continue. Or the step *revokes* it
//! ([`Farewell::Revoke`]), together with all roots that were retired before, and those connections end. A retired root's
//! *bridge* stays: certificates still chain to it as well, so that a client outside the mesh with a copy of it can verify
//! them until it expires.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tidegate_runtime::trust_bundle::{MOST_RETIRED, fingerprint};

use crate::authority::given::entries_issuer;
use crate::issuer::{Issuer, IssuerProblems, RequiredNames, pem};
use crate::store::NamedValues;

#[cfg(test)]
mod tests;

/// The certificate authority at one moment.
#[derive(Debug, Clone)]
pub(crate) struct AuthorityState {
    /// Signs new certificates.
    pub(crate) issuer: Issuer,
    /// The step of a rotation.
    pub(crate) step: RotationStep,
    /// When this step began.
    pub(crate) since: SystemTime,
    /// The chain from the issuer's name and key to earlier roots, newest first: each certificate is signed by the key of
    /// the next one, and the last one by that of a root.
    pub(crate) bridge: Vec<CertificateDer<'static>>,
    /// Fingerprints of the roots that were retired and not revoked since, oldest first.
    pub(crate) retired: Vec<String>,
}

/// What happens to the root that a rotation drops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Farewell {
    /// It verifies no new connections; open ones continue.
    #[default]
    Retire,
    /// Neither it nor any root that was retired before is trusted any more: their connections end.
    Revoke,
}

/// The step of a rotation.
#[derive(Debug, Clone)]
pub(crate) enum RotationStep {
    /// One root, no rotation in progress.
    Steady,
    /// The successor is trusted and does not issue yet.
    TrustBoth {
        /// The successor.
        next: Issuer,
    },
    /// The successor issues; certificates of its predecessor are still trusted.
    IssueNew {
        /// The predecessor's root.
        retiring: CertificateDer<'static>,
    },
}

/// Maximum certificates between a leaf and a root: rustls' verifier follows no longer path.
const MOST_INTERMEDIATES: usize = 6;

/// The content of a store.
#[derive(Debug, Clone)]
pub(crate) struct StoredAuthority {
    /// What [`AuthorityState::to_entries`] wrote, if present.
    pub(crate) state: Option<AuthorityState>,
    /// What an operator put there by hand, instead of it or beside it.
    pub(crate) given: Option<Issuer>,
}

/// Minimum durations of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RotationTiming {
    /// Until every workload has read a published bundle.
    pub(crate) propagation: Duration,
    /// Maximum lifetime of a certificate.
    pub(crate) max_life: Duration,
}

/// What the caller has verified before the next step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Vouched {
    /// Nothing: the step waits long enough in any case.
    #[default]
    Nothing,
    /// Every holder's certificate is valid under the issuing root.
    Renewed,
    /// Everything: the step does not wait for any workload, and peers that have not caught up will refuse each other.
    Everything,
}

/// Why the next step may not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// Certificates have to expire first, or the bundle has to arrive.
    #[error("{what}; wait {} more", humantime::format_duration(Duration::from_secs(left.as_secs() + 1)))]
    TooEarly {
        /// What the step waits for.
        what: &'static str,
        /// How long it takes at most.
        left: Duration,
    },
    /// A given root is replaced by providing another one.
    #[error(
        "the certificate authority was given by files; put its successor into those files to begin a rotation"
    )]
    Given,
    /// Some workloads cannot receive the roots.
    #[error("the trust bundle is not published: {0}")]
    NotPublished(String),
    /// The successor could not be generated or is unusable.
    #[error("no successor: {0}")]
    Successor(String),
    /// The user provided an authority that is neither of the two in a rotation.
    #[error(
        "the given certificate authority is neither of the two that a rotation is about; finish the rotation before \
         giving a third one"
    )]
    Third,
    /// Another process took a step at the same moment.
    #[error("another client has changed the certificate authority in the meantime; check its state again")]
    Conflict,
    /// The store failed.
    #[error("the store of the certificate authority: {0}")]
    Store(String),
}

/// Why stored entries are not a certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// An entry is missing.
    #[error("entry {0} is missing")]
    Missing(&'static str),
    /// An entry cannot be read.
    #[error("entry {0} cannot be read: {1}")]
    Malformed(&'static str, String),
    /// Two authorities at once.
    #[error("entries {0} and {1} are both there; keep one of them")]
    Ambiguous(&'static str, &'static str),
    /// Certificates and key do not make an authority.
    #[error("entries {0}: {1}")]
    Issuer(&'static str, IssuerProblems),
}

/// The step as `state.json` has it.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StoredStep {
    Steady,
    TrustBoth,
    IssueNew,
}

/// `state.json`, the entry beside certificates and keys. Earlier versions wrote no `retired`.
#[derive(Serialize, Deserialize)]
struct StoredState {
    step: StoredStep,
    /// Seconds since the Unix epoch.
    since: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retired: Vec<String>,
}

impl AuthorityState {
    /// One root and no rotation.
    pub(crate) fn steady(issuer: Issuer, now: SystemTime) -> Self {
        Self { issuer, step: RotationStep::Steady, since: now, bridge: Vec::new(), retired: Vec::new() }
    }

    /// Every trusted root, the issuing one first.
    pub(crate) fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = vec![self.issuer.root().clone()];
        let other = match &self.step {
            RotationStep::Steady => None,
            RotationStep::TrustBoth { next } => Some(next.root()),
            RotationStep::IssueNew { retiring } => Some(retiring),
        };
        roots.extend(other.filter(|other| *other != self.issuer.root()).cloned());
        roots
    }

    /// The roots that every workload must trust before the next step: one of them issues afterwards.
    pub(crate) fn required(&self) -> Vec<CertificateDer<'static>> {
        match &self.step {
            RotationStep::TrustBoth { .. } => self.trusted(),
            RotationStep::Steady | RotationStep::IssueNew { .. } => vec![self.issuer.root().clone()],
        }
    }

    /// Every trusted root as PEM.
    pub(crate) fn trusted_pem(&self) -> String {
        self.trusted().iter().map(|root| pem("CERTIFICATE", root)).collect()
    }

    /// The intermediates between a leaf that expires at `end` and a root. A bridge that expires before the leaf is left
    /// out: peers take the earliest expiry in a chain for the leaf's own.
    pub(crate) fn intermediates(&self, end: SystemTime) -> Vec<CertificateDer<'static>> {
        let lives = |der: &&CertificateDer<'_>| {
            tidegate_core::PeerCertificate::from_der(der).is_ok_and(|read| read.not_after >= end)
        };
        self.issuer.intermediates().iter().chain(self.bridge.iter().take_while(lives)).cloned().collect()
    }

    /// The leaf, which expires at `end`, its intermediates, and the root.
    pub(crate) fn full_chain(
        &self,
        leaf: CertificateDer<'static>,
        end: SystemTime,
    ) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![leaf];
        chain.extend(self.intermediates(end));
        chain.push(self.issuer.root().clone());
        chain
    }

    /// Whether the next step may be taken now. A rotation may start at any time; the other steps wait, counted from the
    /// start of the current one or, if that is later, from the bundle's publication.
    pub(crate) fn may_advance(
        &self,
        now: SystemTime,
        published: SystemTime,
        timing: RotationTiming,
        vouched: Vouched,
    ) -> Result<(), NotAllowed> {
        let (needed, what) = match (&self.step, vouched) {
            (RotationStep::Steady, _) | (_, Vouched::Everything) => return Ok(()),
            (RotationStep::TrustBoth { .. }, _) => {
                (timing.propagation, "the bundle with the new root may not have reached every workload")
            }
            // Another replica may continue to issue under the old root for a moment.
            (RotationStep::IssueNew { .. }, Vouched::Renewed) => {
                (timing.propagation, "certificates under the old root may still be issued")
            }
            (RotationStep::IssueNew { .. }, Vouched::Nothing) => {
                (timing.propagation + timing.max_life, "certificates under the old root may still be in use")
            }
        };
        let elapsed = now.duration_since(self.since.max(published)).unwrap_or_default();
        match needed.checked_sub(elapsed) {
            Some(left) if !left.is_zero() => Err(NotAllowed::TooEarly { what, left }),
            _ => Ok(()),
        }
    }

    /// Step 1: trust `next` as well.
    pub(crate) fn trust_both(&self, next: Issuer, now: SystemTime) -> Self {
        Self { step: RotationStep::TrustBoth { next }, since: now, ..self.clone() }
    }

    /// Step 2 or 3, whichever is next; `None` without a rotation in progress.
    pub(crate) fn advanced(&self, now: SystemTime, farewell: Farewell) -> Option<Self> {
        match (&self.step, farewell) {
            (RotationStep::Steady, _) => None,
            (RotationStep::TrustBoth { next }, _) => {
                let retiring = self.issuer.root().clone();
                Some(Self {
                    issuer: next.clone(),
                    step: RotationStep::IssueNew { retiring },
                    since: now,
                    bridge: self.bridge_to(next, now),
                    retired: self.retired.clone(),
                })
            }
            (RotationStep::IssueNew { retiring }, Farewell::Retire) => {
                let mut next = Self { step: RotationStep::Steady, since: now, ..self.clone() };
                next.retired.push(fingerprint(retiring));
                next.retired.drain(..next.retired.len().saturating_sub(MOST_RETIRED));
                Some(next)
            }
            (RotationStep::IssueNew { .. }, Farewell::Revoke) => Some(Self::steady(self.issuer.clone(), now)),
        }
    }

    /// A successor's bridge: to our root, and as far back as ours unless the chain becomes too long.
    fn bridge_to(&self, next: &Issuer, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let Some(cross) = self.issuer.cross_sign(next, now) else { return Vec::new() };
        let mut bridge = vec![cross];
        bridge.extend(self.issuer.intermediates().iter().cloned());
        let most = MOST_INTERMEDIATES.saturating_sub(next.intermediates().len()).max(bridge.len());
        bridge.extend(self.bridge.iter().take(most - bridge.len()).cloned());
        bridge
    }

    /// The state after the user provided another authority: under the same root it issues at once, under another one it is
    /// trusted first. `None` if nothing changes.
    pub(crate) fn succeeded_by(&self, given: &Issuer, now: SystemTime) -> Result<Option<Self>, NotAllowed> {
        let next = match &self.step {
            _ if self.issuer.same_as(given) => None,
            RotationStep::TrustBoth { next } if next.same_as(given) => None,
            // The bridge chains from the previous key.
            RotationStep::Steady if self.issuer.root() == given.root() => {
                Some(Self { retired: self.retired.clone(), ..Self::steady(given.clone(), now) })
            }
            RotationStep::Steady => Some(self.trust_both(given.clone(), now)),
            RotationStep::TrustBoth { .. } | RotationStep::IssueNew { .. } => return Err(NotAllowed::Third),
        };
        Ok(next)
    }

    /// The entries for a store. `ca.crt` is for people; it is never read back.
    pub(crate) fn to_entries(&self) -> NamedValues {
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut entries = vec![
            ("ca.crt", self.trusted_pem()),
            ("issuer.crt", self.issuer.chain_pem()),
            ("issuer.key", self.issuer.key_pem()),
        ];
        let step = match &self.step {
            RotationStep::Steady => StoredStep::Steady,
            RotationStep::TrustBoth { next } => {
                entries.push(("next.crt", next.chain_pem()));
                entries.push(("next.key", next.key_pem()));
                StoredStep::TrustBoth
            }
            RotationStep::IssueNew { retiring } => {
                entries.push(("retiring.crt", pem("CERTIFICATE", retiring)));
                StoredStep::IssueNew
            }
        };
        if !self.bridge.is_empty() || matches!(step, StoredStep::IssueNew) {
            entries.push(("bridge.crt", self.bridge.iter().map(|der| pem("CERTIFICATE", der)).collect()));
        }
        let state = StoredState { step, since, retired: self.retired.clone() };
        let state = serde_json::to_string(&state).unwrap_or_default();
        entries.push(("state.json", state));
        NamedValues(entries.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect())
    }

    /// Parses what [`Self::to_entries`] wrote, and checks it at `now`.
    pub(crate) fn from_entries(entries: &NamedValues, now: SystemTime) -> Result<Self, StateError> {
        let entry =
            |name: &'static str| entries.0.get(name).map(Vec::as_slice).ok_or(StateError::Missing(name));
        let issuer = |certificate, key, names| {
            Issuer::from_pem(entry(certificate)?, entry(key)?, b"", now)
                .map_err(|problems| StateError::Issuer(names, problems))
        };
        let state: StoredState = serde_json::from_slice(entry("state.json")?)
            .map_err(|error| StateError::Malformed("state.json", error.to_string()))?;
        let step = match state.step {
            StoredStep::Steady => RotationStep::Steady,
            StoredStep::TrustBoth => {
                RotationStep::TrustBoth { next: issuer("next.crt", "next.key", "next.crt and next.key")? }
            }
            StoredStep::IssueNew => {
                let mut retiring = certificates("retiring.crt", entry("retiring.crt")?)?;
                let (Some(retiring), true) = (retiring.pop(), retiring.is_empty()) else {
                    return Err(StateError::Malformed(
                        "retiring.crt",
                        "not exactly one certificate".to_owned(),
                    ));
                };
                RotationStep::IssueNew { retiring }
            }
        };
        let bridge = match (&step, entry("bridge.crt")) {
            (_, Ok(bridge)) => certificates("bridge.crt", bridge)?,
            (RotationStep::IssueNew { .. }, Err(missing)) => return Err(missing),
            (_, Err(_)) => Vec::new(),
        };
        Ok(Self {
            issuer: issuer("issuer.crt", "issuer.key", "issuer.crt and issuer.key")?,
            step,
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(state.since.min(253_402_300_799)),
            bridge,
            retired: state.retired,
        })
    }
}

impl StoredAuthority {
    /// Parses the content of a store, by any author, and checks it at `now`.
    pub(crate) fn read(entries: &NamedValues, now: SystemTime) -> Result<Self, StateError> {
        let given = entries_issuer(entries, now)?;
        let state = match given {
            // A file of the user's instead of ours.
            Some(_) if !entries.0.contains_key("state.json") => None,
            _ => Some(AuthorityState::from_entries(entries, now)?),
        };
        Ok(Self { state, given })
    }
}

impl StoredAuthority {
    /// An error unless each authority may sign the required names.
    pub(crate) fn check_names(&self, names: &RequiredNames, now: SystemTime) -> Result<(), IssuerProblems> {
        let mut all: Vec<&Issuer> = self.given.iter().collect();
        if let Some(state) = &self.state {
            all.push(&state.issuer);
            if let RotationStep::TrustBoth { next } = &state.step {
                all.push(next);
            }
        }
        all.into_iter().try_for_each(|issuer| issuer.check_names(names, now))
    }
}

impl RotationStep {
    /// `steady`, `trust-both` or `issue-new`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::TrustBoth { .. } => "trust-both",
            Self::IssueNew { .. } => "issue-new",
        }
    }

    /// Steps taken of the current rotation: 0, 1 or 2.
    pub(crate) fn number(&self) -> u8 {
        match self {
            Self::Steady => 0,
            Self::TrustBoth { .. } => 1,
            Self::IssueNew { .. } => 2,
        }
    }
}

/// The certificates of an entry in PEM.
fn certificates(name: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, StateError> {
    tidegate_runtime::tls::load_pem_certificates(text)
        .map_err(|error| StateError::Malformed(name, format!("{error:?}")))
}
