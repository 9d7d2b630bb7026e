//! Service account tokens without a Kubernetes API server: the same claims, signed by a key of this process's own.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;
use tokio::sync::watch;

/// Who the tokens say they are for; what the CA demands.
pub(crate) const AUDIENCE: &str = "tidegate-ca";
/// Who the tokens say they are from.
pub(crate) const ISSUER: &str = "tidegate-standalone";
/// Life of a token.
const LIFETIME: Duration = Duration::from_secs(3600);
/// How often tokens are written anew; far more often than they end.
pub(crate) const REFRESH: Duration = Duration::from_secs(900);

/// Signs tokens. The key lives in memory only: tokens of an earlier run are worth nothing.
pub(crate) struct TokenIssuer {
    key: EncodingKey,
    folder: PathBuf,
    subjects: watch::Sender<BTreeSet<TokenSubject>>,
}

/// Whom a token is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenSubject {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its service account.
    pub(crate) service_account: String,
    /// The pod's name, or the daemon's.
    pub(crate) name: String,
}

impl TokenIssuer {
    /// Makes a key, and writes its public half to `public_key_file` for the CA.
    pub(crate) fn new(folder: PathBuf, public_key_file: &Path) -> anyhow::Result<Self> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
        write_private(public_key_file, pair.public_key_pem().as_bytes())?;
        Ok(Self { key, folder, subjects: watch::Sender::default() })
    }

    /// Everybody that a token was ever written for.
    pub(crate) fn subjects(&self) -> watch::Receiver<BTreeSet<TokenSubject>> {
        self.subjects.subscribe()
    }

    /// Writes a fresh token and returns its file.
    pub(crate) fn write(&self, subject: &TokenSubject) -> anyhow::Result<PathBuf> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
        let claims = json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account),
            "iat": now.as_secs(),
            "nbf": now.as_secs(),
            "exp": (now + LIFETIME).as_secs(),
            "kubernetes.io": {
                "namespace": subject.namespace,
                "serviceaccount": {"name": subject.service_account, "uid": ""},
                "pod": {"name": subject.name, "uid": ""},
            },
        });
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)?;
        let file = self.folder.join(&subject.namespace).join(&subject.name);
        write_private(&file, token.as_bytes())?;
        self.subjects.send_if_modified(|subjects| subjects.insert(subject.clone()));
        Ok(file)
    }
}

/// Replaces a file as a whole; nobody but its owner may read it.
fn write_private(file: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let context = || file.display().to_string();
    fs::create_dir_all(file.parent().unwrap_or(Path::new("."))).with_context(context)?;
    let temporary = file.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut out =
        options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).with_context(context)?;
    out.write_all(bytes).with_context(context)?;
    fs::rename(&temporary, file).with_context(context)
}
