//! What the certificate authority is at one moment, and the three steps that replace its root.
//!
//! ```text
//! steady ──1──▶ trust-both ──2──▶ issue-new ──3──▶ steady
//! old            old + new         old + new         new      trusted
//! old            old               new               new      issues
//! ```
//!
//! Each arrow waits until the mesh has caught up with the state before it: the second until everybody had the time
//! to read the bundle with both roots, the third until every certificate under the old root is over, or until the caller
//! vouches that every workload has a new one: a workload that sees another root issue renews early.
//!
//! The old root is *retired* by the third step: new connections are not verified by it, those that are open live on. Or it
//! is *revoked* ([`Farewell::Revoke`]), with all that were retired before, and those connections end. A retired root's
//! *bridge* stays: certificates go on leading to it, too, so that a client outside the mesh with a copy of it verifies
//! them for as long as it lives.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tidegate_runtime::trust_bundle::{MOST_RETIRED, fingerprint};

use crate::authority::given::entries_issuer;
use crate::issuer::{Issuer, IssuerProblems, RequiredNames, pem};
use crate::store::Entries;

#[cfg(test)]
mod tests;

/// The certificate authority at one moment.
#[derive(Debug, Clone)]
pub struct AuthorityState {
    /// Signs what is issued now.
    pub issuer: Issuer,
    /// Where a rotation is.
    pub step: Step,
    /// When this step began.
    pub since: SystemTime,
    /// Leads from the issuer's name and key to the roots before its own, the last of them first: each certificate is
    /// signed by the key of the next one, and the last one by that of a root.
    pub bridge: Vec<CertificateDer<'static>>,
    /// Fingerprints of the roots that were retired and not revoked since, the first of them first.
    pub retired: Vec<String>,
}

/// What becomes of the root that a rotation drops.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Farewell {
    /// Nothing new is verified by it; connections that are open live on.
    #[default]
    Retire,
    /// It is not trusted any more, nor is any that was retired before: their connections end.
    Revoke,
}

/// Where a rotation is.
#[derive(Debug, Clone)]
pub enum Step {
    /// One root: no rotation is going on.
    Steady,
    /// The successor is trusted and does not issue yet.
    TrustBoth {
        /// The successor.
        next: Issuer,
    },
    /// The successor issues; what its predecessor has issued is still trusted.
    IssueNew {
        /// The predecessor's root.
        retiring: CertificateDer<'static>,
    },
}

/// The most certificates between a leaf and a root: rustls' verifier follows no longer path.
const MOST_INTERMEDIATES: usize = 6;

/// What a store holds.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// What [`AuthorityState::to_entries`] wrote, if that is there.
    pub(crate) state: Option<AuthorityState>,
    /// What an operator has put there by hand, in place of it or beside it.
    pub(crate) given: Option<Issuer>,
}

/// How long a step has to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationTiming {
    /// Until everybody has read a bundle that was published.
    pub propagation: Duration,
    /// Longest life of a certificate.
    pub max_life: Duration,
}

/// What the caller has made sure of before the next step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Vouched {
    /// Nothing: time has to tell.
    #[default]
    Nothing,
    /// Everyone who holds a certificate holds one that is good under the issuing root.
    Renewed,
    /// Everything: the step waits for no workload, and peers that have not caught up will refuse each other.
    Everything,
}

/// Why the next step may not be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// Something that was issued or published has to end or arrive first.
    #[error("{what}; wait {} more", humantime::format_duration(Duration::from_secs(left.as_secs() + 1)))]
    TooEarly {
        /// What is waited for.
        what: &'static str,
        /// How long it takes at most.
        left: Duration,
    },
    /// A root that the user has given is replaced by giving another one.
    #[error(
        "the certificate authority was given by files; put its successor into those files to begin a rotation"
    )]
    Given,
    /// Not everybody can know the roots.
    #[error("the trust bundle is not published: {0}")]
    NotPublished(String),
    /// The successor cannot be made or used.
    #[error("no successor: {0}")]
    Successor(String),
    /// The user gives an authority that is neither of the two that a rotation is about.
    #[error(
        "the given certificate authority is neither of the two that a rotation is about; finish the rotation before \
         giving a third one"
    )]
    Third,
    /// Another process took a step at the same moment.
    #[error("the certificate authority was changed by another client meanwhile; look at its state again")]
    Conflict,
    /// The store refuses.
    #[error("the store of the certificate authority: {0}")]
    Store(String),
}

/// Why stored entries are not a certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// An entry is not there.
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

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum StoredStep {
    Steady,
    TrustBoth,
    IssueNew,
}

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
    pub fn steady(issuer: Issuer, now: SystemTime) -> Self {
        Self { issuer, step: Step::Steady, since: now, bridge: Vec::new(), retired: Vec::new() }
    }

    /// Every root that is trusted, the issuing one first.
    pub fn trusted(&self) -> Vec<CertificateDer<'static>> {
        let mut roots = vec![self.issuer.root().clone()];
        let other = match &self.step {
            Step::Steady => None,
            Step::TrustBoth { next } => Some(next.root()),
            Step::IssueNew { retiring } => Some(retiring),
        };
        roots.extend(other.filter(|other| *other != self.issuer.root()).cloned());
        roots
    }

    /// The roots that everybody must trust before the next step: what is issued after it is under one of them.
    pub fn required(&self) -> Vec<CertificateDer<'static>> {
        match &self.step {
            Step::TrustBoth { .. } => self.trusted(),
            Step::Steady | Step::IssueNew { .. } => vec![self.issuer.root().clone()],
        }
    }

    /// Every trusted root as PEM.
    pub fn trusted_pem(&self) -> String {
        self.trusted().iter().map(|root| pem("CERTIFICATE", root)).collect()
    }

    /// The intermediates between a leaf that expires at `end` and a root. A bridge that expires before the leaf is left
    /// out: peers take the earliest expiry in a chain for the leaf's own.
    pub fn intermediates(&self, end: SystemTime) -> Vec<CertificateDer<'static>> {
        let lives = |der: &&CertificateDer<'_>| {
            tidegate_core::PeerCertificate::from_der(der).is_ok_and(|read| read.not_after >= end)
        };
        self.issuer.intermediates().iter().chain(self.bridge.iter().take_while(lives)).cloned().collect()
    }

    /// Leaf, which ends then, intermediates, root last.
    pub fn full_chain(&self, leaf: CertificateDer<'static>, end: SystemTime) -> Vec<CertificateDer<'static>> {
        let mut chain = vec![leaf];
        chain.extend(self.intermediates(end));
        chain.push(self.issuer.root().clone());
        chain
    }

    /// Whether a next step may be taken now. Beginning a rotation is always possible by time; the other steps wait,
    /// counted from this one's beginning or, if that is later, from when the bundle was published.
    pub fn may_advance(
        &self,
        now: SystemTime,
        published: SystemTime,
        timing: RotationTiming,
        vouched: Vouched,
    ) -> Result<(), NotAllowed> {
        let (needed, what) = match (&self.step, vouched) {
            (Step::Steady, _) | (_, Vouched::Everything) => return Ok(()),
            (Step::TrustBoth { .. }, _) => {
                (timing.propagation, "the bundle with the new root may not have reached everybody")
            }
            // Another replica may go on issuing under the old root for a moment.
            (Step::IssueNew { .. }, Vouched::Renewed) => {
                (timing.propagation, "certificates under the old root may still be issued")
            }
            (Step::IssueNew { .. }, Vouched::Nothing) => {
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
    pub fn trust_both(&self, next: Issuer, now: SystemTime) -> Self {
        Self { step: Step::TrustBoth { next }, since: now, ..self.clone() }
    }

    /// Step 2 or 3, whichever follows; `None` when no rotation is going on.
    pub fn advanced(&self, now: SystemTime, farewell: Farewell) -> Option<Self> {
        match (&self.step, farewell) {
            (Step::Steady, _) => None,
            (Step::TrustBoth { next }, _) => {
                let retiring = self.issuer.root().clone();
                Some(Self {
                    issuer: next.clone(),
                    step: Step::IssueNew { retiring },
                    since: now,
                    bridge: self.bridge_to(next, now),
                    retired: self.retired.clone(),
                })
            }
            (Step::IssueNew { retiring }, Farewell::Retire) => {
                let mut next = Self { step: Step::Steady, since: now, ..self.clone() };
                next.retired.push(fingerprint(retiring));
                next.retired.drain(..next.retired.len().saturating_sub(MOST_RETIRED));
                Some(next)
            }
            (Step::IssueNew { .. }, Farewell::Revoke) => Some(Self::steady(self.issuer.clone(), now)),
        }
    }

    /// The bridge of a successor: to our root, and as far back as ours if the chain does not become too long.
    fn bridge_to(&self, next: &Issuer, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let Some(cross) = self.issuer.cross_sign(next, now) else { return Vec::new() };
        let mut bridge = vec![cross];
        bridge.extend(self.issuer.intermediates().iter().cloned());
        let most = MOST_INTERMEDIATES.saturating_sub(next.intermediates().len()).max(bridge.len());
        bridge.extend(self.bridge.iter().take(most - bridge.len()).cloned());
        bridge
    }

    /// What follows when the user gives another authority than the one in force: under the same root it issues at
    /// once, under another one it is trusted first. `None` where nothing changes.
    pub(crate) fn succeeded_by(&self, given: &Issuer, now: SystemTime) -> Result<Option<Self>, NotAllowed> {
        let next = match &self.step {
            _ if self.issuer.same_as(given) => None,
            Step::TrustBoth { next } if next.same_as(given) => None,
            // A bridge leads from the key before.
            Step::Steady if self.issuer.root() == given.root() => {
                Some(Self { retired: self.retired.clone(), ..Self::steady(given.clone(), now) })
            }
            Step::Steady => Some(self.trust_both(given.clone(), now)),
            Step::TrustBoth { .. } | Step::IssueNew { .. } => return Err(NotAllowed::Third),
        };
        Ok(next)
    }

    /// What a store keeps. `ca.crt` is there for people; it is never read back.
    pub fn to_entries(&self) -> Entries {
        let since = self.since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut entries = vec![
            ("ca.crt", self.trusted_pem()),
            ("issuer.crt", self.issuer.chain_pem()),
            ("issuer.key", self.issuer.key_pem()),
        ];
        let step = match &self.step {
            Step::Steady => StoredStep::Steady,
            Step::TrustBoth { next } => {
                entries.push(("next.crt", next.chain_pem()));
                entries.push(("next.key", next.key_pem()));
                StoredStep::TrustBoth
            }
            Step::IssueNew { retiring } => {
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
        Entries(entries.into_iter().map(|(name, text)| (name.to_owned(), text.into_bytes())).collect())
    }

    /// Reads what [`Self::to_entries`] wrote; checks all of it at `now`.
    pub fn from_entries(entries: &Entries, now: SystemTime) -> Result<Self, StateError> {
        let entry =
            |name: &'static str| entries.0.get(name).map(Vec::as_slice).ok_or(StateError::Missing(name));
        let issuer = |certificate, key, names| {
            Issuer::from_pem(entry(certificate)?, entry(key)?, b"", now)
                .map_err(|problems| StateError::Issuer(names, problems))
        };
        let state: StoredState = serde_json::from_slice(entry("state.json")?)
            .map_err(|error| StateError::Malformed("state.json", error.to_string()))?;
        let step = match state.step {
            StoredStep::Steady => Step::Steady,
            StoredStep::TrustBoth => {
                Step::TrustBoth { next: issuer("next.crt", "next.key", "next.crt and next.key")? }
            }
            StoredStep::IssueNew => {
                let mut retiring = certificates("retiring.crt", entry("retiring.crt")?)?;
                let (Some(retiring), true) = (retiring.pop(), retiring.is_empty()) else {
                    return Err(StateError::Malformed(
                        "retiring.crt",
                        "not exactly one certificate".to_owned(),
                    ));
                };
                Step::IssueNew { retiring }
            }
        };
        let bridge = match (&step, entry("bridge.crt")) {
            (_, Ok(bridge)) => certificates("bridge.crt", bridge)?,
            (Step::IssueNew { .. }, Err(missing)) => return Err(missing),
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

impl Found {
    /// Reads what a store holds, from any author; checks all of it at `now`.
    pub(crate) fn read(entries: &Entries, now: SystemTime) -> Result<Self, StateError> {
        let given = entries_issuer(entries, now)?;
        let state = match given {
            // A file of the user's in place of ours.
            Some(_) if !entries.0.contains_key("state.json") => None,
            _ => Some(AuthorityState::from_entries(entries, now)?),
        };
        Ok(Self { state, given })
    }
}

impl Found {
    /// Whether each authority in it may sign the names that it is there for.
    pub(crate) fn check_names(&self, names: &RequiredNames, now: SystemTime) -> Result<(), IssuerProblems> {
        let mut all: Vec<&Issuer> = self.given.iter().collect();
        if let Some(state) = &self.state {
            all.push(&state.issuer);
            if let Step::TrustBoth { next } = &state.step {
                all.push(next);
            }
        }
        all.into_iter().try_for_each(|issuer| issuer.check_names(names, now))
    }
}

impl Step {
    /// `steady`, `trust-both` or `issue-new`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::TrustBoth { .. } => "trust-both",
            Self::IssueNew { .. } => "issue-new",
        }
    }

    /// Steps taken of the rotation going on: 0, 1 or 2.
    pub fn number(&self) -> u8 {
        match self {
            Self::Steady => 0,
            Self::TrustBoth { .. } => 1,
            Self::IssueNew { .. } => 2,
        }
    }
}

fn certificates(name: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, StateError> {
    tidegate_runtime::tls::load_pem_certificates(text)
        .map_err(|error| StateError::Malformed(name, format!("{error:?}")))
}
