//! The public keys that verify tokens: from PEM or JWKS files, reread when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use tracing::{error, info};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::csr::KeyKind;

/// Minimum time between two checks of the files.
const INTERVAL: Duration = Duration::from_millis(500);
/// Maximum bytes of a file of keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A key and the only algorithm that it verifies.
#[derive(Clone)]
pub(crate) struct VerificationKey {
    pub(crate) id: Option<String>,
    pub(crate) algorithm: Algorithm,
    pub(crate) key: DecodingKey,
}

/// Why a file has no usable keys.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct KeyFileError {
    /// The file.
    file: PathBuf,
    /// What is wrong with it.
    problem: String,
}

/// Keys from files. A file that cannot be read at startup is an error; later ones are logged, and the last good keys
/// stay.
pub(crate) struct KeyFiles {
    paths: Vec<PathBuf>,
    loaded: Mutex<LoadedKeys>,
}

/// The keys of all files at the last check.
struct LoadedKeys {
    keys: Arc<[VerificationKey]>,
    stamps: Vec<Option<KeyFileStamp>>,
    checked: Instant,
}

/// Changes when a file is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyFileStamp {
    modified: SystemTime,
    length: u64,
    inode: u64,
}

impl KeyFiles {
    /// Reads all files; an error names the one that has no usable keys.
    pub(crate) fn open(paths: Vec<PathBuf>) -> Result<Self, KeyFileError> {
        let stamps = stamps(&paths);
        let keys = read_all(&paths)?;
        Ok(Self { paths, loaded: Mutex::new(LoadedKeys { keys, stamps, checked: Instant::now() }) })
    }

    /// The current keys, after a check of the files unless that was just done.
    pub(crate) fn current(&self) -> Arc<[VerificationKey]> {
        self.reload(INTERVAL)
    }

    /// The keys after a check of the files now, because a token was signed with an unknown key.
    pub(crate) fn afresh(&self) -> Arc<[VerificationKey]> {
        self.reload(Duration::ZERO)
    }

    /// The keys, after a check of the files unless the last one is less than `interval` ago. Blocks for a few file
    /// operations.
    fn reload(&self, interval: Duration) -> Arc<[VerificationKey]> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.checked.elapsed() >= interval {
            loaded.checked = Instant::now();
            let stamps = stamps(&self.paths);
            if stamps != loaded.stamps {
                match read_all(&self.paths) {
                    Ok(keys) => {
                        info!(keys = keys.len(), "token verification keys changed");
                        loaded.keys = keys;
                    }
                    Err(error) => error!(%error, "token verification keys stay as they were"),
                }
                loaded.stamps = stamps;
            }
        }
        loaded.keys.clone()
    }
}

/// The stamps of all files in order; `None` for one that cannot be read.
fn stamps(paths: &[PathBuf]) -> Vec<Option<KeyFileStamp>> {
    use std::os::unix::fs::MetadataExt;
    let stamp = |path: &PathBuf| {
        let metadata = fs::metadata(path).ok()?;
        Some(KeyFileStamp {
            modified: metadata.modified().ok()?,
            length: metadata.len(),
            inode: metadata.ino(),
        })
    };
    paths.iter().map(stamp).collect()
}

/// The keys of all files, which must each hold at least one: an empty file is a mistake, not a policy.
fn read_all(paths: &[PathBuf]) -> Result<Arc<[VerificationKey]>, KeyFileError> {
    let mut keys = Vec::new();
    for path in paths {
        let problem = |problem: String| KeyFileError { file: path.clone(), problem };
        let found = read(path).and_then(|text| parse(&text)).map_err(problem)?;
        if found.is_empty() {
            return Err(problem("holds no public key".to_owned()));
        }
        keys.extend(found);
    }
    Ok(keys.into())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => Err(format!("larger than {MAX_FILE_BYTES} bytes")),
        Ok(_) => fs::read(path).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// JWKS (RFC 7517) if the text begins with `{`, otherwise PEM.
fn parse(text: &[u8]) -> Result<Vec<VerificationKey>, String> {
    if text.trim_ascii_start().first() == Some(&b'{') { parse_jwks(text) } else { parse_pem(text) }
}

/// Every `PUBLIC KEY` block. They have no key ID, so a token's `kid` does not select among them.
fn parse_pem(text: &[u8]) -> Result<Vec<VerificationKey>, String> {
    let mut keys = Vec::new();
    for (index, block) in SubjectPublicKeyInfoDer::pem_slice_iter(text).enumerate() {
        let block = block.map_err(|error| format!("is not PEM: {error}"))?;
        keys.push(public_key(&block).map_err(|problem| format!("key {}: {problem}", index + 1))?);
    }
    Ok(keys)
}

/// From DER of a SubjectPublicKeyInfo, checked as strictly as a CSR's key.
fn public_key(der: &[u8]) -> Result<VerificationKey, String> {
    const ED25519: &str = "1.3.101.112";
    let (_, info) = SubjectPublicKeyInfo::from_der(der).map_err(|_| "is not a public key".to_owned())?;
    let bits = &info.subject_public_key.data;
    let (algorithm, key) = if info.algorithm.algorithm.to_id_string() == ED25519 && bits.len() == 32 {
        (Algorithm::EdDSA, DecodingKey::from_ed_der(bits))
    } else {
        match crate::csr::check_key(&info).map_err(|error| error.to_string())? {
            KeyKind::P256 => (Algorithm::ES256, DecodingKey::from_ec_der(bits)),
            KeyKind::Rsa => (Algorithm::RS256, DecodingKey::from_rsa_der(bits)),
            KeyKind::P384 => return Err("P-384 keys sign no tokens that are taken here".to_owned()),
        }
    };
    Ok(VerificationKey { id: None, algorithm, key })
}

/// Every key of a set but those for encryption. One key that cannot be used makes the whole set an error.
fn parse_jwks(text: &[u8]) -> Result<Vec<VerificationKey>, String> {
    let set: JwkSet = serde_json::from_slice(text).map_err(|error| format!("is not a JWKS: {error}"))?;
    let mut keys = Vec::new();
    for (index, jwk) in set.keys.iter().enumerate() {
        if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
            continue;
        }
        keys.push(json_web_key(jwk).map_err(|problem| format!("key {}: {problem}", index + 1))?);
    }
    Ok(keys)
}

/// A key with the only algorithm for which it is accepted; an `alg` that says otherwise is an error (RFC 8725 §3.1).
fn json_web_key(jwk: &Jwk) -> Result<VerificationKey, String> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(parameters) => {
            // Base64 without padding: 4 characters hold 3 bytes.
            if parameters.n.len() * 3 / 4 < 256 {
                return Err("RSA of less than 2048 bits is not allowed".to_owned());
            }
            Algorithm::RS256
        }
        AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => {
            Algorithm::ES256
        }
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDSA
        }
        AlgorithmParameters::OctetKey(_) => {
            return Err("a symmetric key would let everyone who can verify also sign".to_owned());
        }
        _ => return Err("keys of this kind sign no tokens that are taken here".to_owned()),
    };
    if let Some(stated) = jwk.common.key_algorithm
        && stated.to_string() != format!("{algorithm:?}")
    {
        return Err(format!("algorithm {stated} is not allowed: ES256, RS256 and EdDSA are"));
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|error| error.to_string())?;
    Ok(VerificationKey { id: jwk.common.key_id.clone(), algorithm, key })
}
