//! A certificate authority that the user gives as files.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::issuer::{Issuer, IssuerProblems};

/// Where a user's own root or intermediate lies. The files are read again and again, so replacing them is enough.
/// The root store keeps a copy of what is in force, key included: it outlives files that are broken later.
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
