//! Service account tokens without a Kubernetes API server: the same claims, signed by a key of this process.
//!
//! A token is an ES256 JWT (RFC 7519, RFC 7518 §3.4) with the claims of a projected service account token, as far as
//! the CA reads them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;
use tidegate_core::contract::names::TOKEN_AUDIENCE;

/// Issuer of the tokens.
pub(crate) const ISSUER: &str = "tidegate-standalone";
/// Minimum lifetime of a token: its claims count in whole seconds.
const SHORTEST_LIFE: Duration = Duration::from_secs(4);
/// Maximum lifetime. A sidecar requests certificates far more often.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Signs tokens. The key exists only in memory, so tokens of an earlier run are invalid.
pub(crate) struct TokenIssuer {
    key: EncodingKey,
    /// Where tokens are written, a folder for each namespace.
    folder: PathBuf,
    /// Lifetime of each token, from [`SHORTEST_LIFE`] to [`LONGEST_LIFE`].
    life: Duration,
    /// By token file. Locked while files change, so that no file has two writers at once.
    subjects: Mutex<BTreeMap<PathBuf, TokenSubject>>,
}

/// The subject of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenSubject {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its service account.
    pub(crate) service_account: String,
    /// The pod's name, or the daemon's.
    pub(crate) name: String,
}

impl TokenIssuer {
    /// Generates a key, and writes its public half to `public_key_file` for the CA. Tokens live for `life`.
    pub(crate) fn new(folder: PathBuf, public_key_file: &Path, life: Duration) -> anyhow::Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
        write_private(public_key_file, pair.public_key_pem().as_bytes())?;
        Ok(Self { key, folder, life, subjects: Mutex::default() })
    }

    /// How often to call [`TokenIssuer::renew`]: much shorter than a token's lifetime.
    pub(crate) fn renewal_interval(&self) -> Duration {
        self.life / 4
    }

    /// Writes a fresh token and returns its file. The token is renewed from then on.
    pub(crate) fn write(&self, subject: &TokenSubject) -> anyhow::Result<PathBuf> {
        let file = self.file(&subject.namespace, &subject.name);
        let mut subjects = self.lock();
        self.write_file(subject, &file)?;
        subjects.insert(file.clone(), subject.clone());
        Ok(file)
    }

    /// Writes a fresh token for each subject; the errors of those that failed.
    pub(crate) fn renew(&self) -> Vec<anyhow::Error> {
        let subjects = self.lock();
        subjects.iter().filter_map(|(file, subject)| self.write_file(subject, file).err()).collect()
    }

    /// Removes the token of a deleted Pod.
    pub(crate) fn forget(&self, namespace: &str, name: &str) {
        let file = self.file(namespace, name);
        let mut subjects = self.lock();
        if subjects.remove(&file).is_some() {
            // A file that remains expires by itself.
            let _ = fs::remove_file(file);
        }
    }

    /// Signs a new token and replaces the file.
    fn write_file(&self, subject: &TokenSubject, file: &Path) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the system clock is before 1970")?;
        let claims = json!({
            "iss": ISSUER,
            "aud": [TOKEN_AUDIENCE],
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account),
            "iat": now.as_secs(),
            "nbf": now.as_secs(),
            "exp": (now + self.life).as_secs(),
            "kubernetes.io": {
                "namespace": subject.namespace,
                "serviceaccount": {"name": subject.service_account, "uid": ""},
                "pod": {"name": subject.name, "uid": ""},
            },
        });
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)?;
        write_private(file, token.as_bytes())
    }

    /// `<folder>/<namespace>/<name>`.
    fn file(&self, namespace: &str, name: &str) -> PathBuf {
        self.folder.join(namespace).join(name)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, TokenSubject>> {
        self.subjects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parses the lifetime of a token, such as `1h`.
pub(crate) fn parse_life(text: &str) -> Result<Duration, String> {
    let life = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life) {
        return Err("must be from 4s to 24h".to_owned());
    }
    Ok(life)
}

/// Replaces a file atomically; only its owner may read it.
fn write_private(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || file.display().to_string();
    fs::create_dir_all(file.parent().unwrap_or(Path::new("."))).with_context(context)?;
    // A name that no Pod can have, because each Pod's file has the Pod's name.
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(".new");
    let temporary = file.with_file_name(name);
    let mut options = fs::OpenOptions::new();
    let mut out =
        options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).with_context(context)?;
    out.write_all(bytes).with_context(context)?;
    fs::rename(&temporary, file).with_context(context)
}

#[cfg(test)]
mod tests;
