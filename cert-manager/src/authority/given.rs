//! A certificate authority that the user provides, as files or as entries of the store.

use std::path::PathBuf;
use std::time::SystemTime;

use super::state::StateError;
use crate::issuer::{Issuer, IssuerProblems};
use crate::store::NamedValues;

/// The pairs of entries by which a user provides an authority: certificate (with its chain), key, and both for messages.
/// Ours, OSM's, and those of `kubectl create secret tls`.
const FORMS: [(&str, &str, &str); 3] = [
    ("ca.crt", "ca.key", "ca.crt and ca.key"),
    ("ca.crt", "private.key", "ca.crt and private.key"),
    ("tls.crt", "tls.key", "tls.crt and tls.key"),
];

/// The files of a user's own root or intermediate. They are reread every second, so replacing them is enough. The root
/// store keeps a copy of the authority in use, including its key, which outlives files that are broken later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenFiles {
    /// PEM: the issuing certificate, then its intermediates, and its root unless `root` names it.
    pub certificate: PathBuf,
    /// PEM: the issuing certificate's private key.
    pub key: PathBuf,
    /// PEM: the root.
    pub root: Option<PathBuf>,
}

impl GivenFiles {
    /// Reads and checks the files.
    pub(crate) fn read(&self, now: SystemTime) -> Result<Issuer, IssuerProblems> {
        let mut problems = Vec::new();
        let mut read = |path: &PathBuf| {
            std::fs::read(path).unwrap_or_else(|error| {
                problems.push(format!("{}: {error}", path.display()));
                Vec::new()
            })
        };
        let certificate = read(&self.certificate);
        let key = read(&self.key);
        let root = self.root.as_ref().map(&mut read).unwrap_or_default();
        if problems.is_empty() {
            Issuer::from_pem(&certificate, &key, &root, now)
        } else {
            Err(IssuerProblems(problems))
        }
    }
}

/// The authority that a user has put into a store, if any. Beside `tls.crt`, `ca.crt` may contain its root.
pub(super) fn entries_issuer(entries: &NamedValues, now: SystemTime) -> Result<Option<Issuer>, StateError> {
    let mut forms = FORMS.iter().filter(|(_, key, _)| entries.0.contains_key(*key));
    let Some((certificate, key, both)) = forms.next() else { return Ok(None) };
    if let Some((_, other, _)) = forms.next() {
        return Err(StateError::Ambiguous(key, other));
    }
    let entry = |name: &'static str| entries.0.get(name).map(Vec::as_slice).ok_or(StateError::Missing(name));
    let roots = entries.0.get("ca.crt").map(Vec::as_slice).unwrap_or_default();
    Issuer::from_pem(entry(certificate)?, entry(key)?, roots, now)
        .map(Some)
        .map_err(|problems| StateError::Issuer(both, problems))
}
