//! Verifies service account tokens, which are JWTs, by their signature, with keys from files.
//!
//! The tokens are Kubernetes' own (`system:serviceaccount:<namespace>:<name>`), so a cluster's projected tokens and
//! those that a script signs on a laptop are read in the same way.

use std::net::SocketAddr;
use std::path::PathBuf;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation};
use serde::Deserialize;
use tidegate_core::{Identity, TrustDomain};

use super::keys::{KeyFileError, KeyFiles, VerificationKey};
use super::{AuthError, Authenticator, Caller, PodReference};

#[cfg(test)]
mod tests;

/// Maximum bytes of a token; Kubernetes' tokens have about 1,200.
pub(crate) const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Tolerated clock difference, seconds.
const LEEWAY_SECONDS: u64 = 5;

/// Requirements for tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedJwtOptions {
    /// PEM files of public keys or JWKS files; at least one.
    pub key_files: Vec<PathBuf>,
    /// The required audience.
    pub audience: String,
    /// The required issuer; `None` accepts any.
    pub issuer: Option<String>,
    /// The trust domain of the callers' identities.
    pub trust_domain: TrustDomain,
}

/// An [`Authenticator`] that needs no other service.
pub struct SignedJwt {
    keys: KeyFiles,
    options: SignedJwtOptions,
}

/// The claims that are read, besides those that `jsonwebtoken` checks: `exp`, `nbf`, `aud`, `iss`.
#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaim>,
}

/// The private claim of Kubernetes' projected tokens.
#[derive(Deserialize)]
struct KubernetesClaim {
    namespace: Option<String>,
    serviceaccount: Option<ObjectClaim>,
    pod: Option<ObjectClaim>,
}

/// A reference to an object at the time when the token was issued.
#[derive(Deserialize)]
struct ObjectClaim {
    name: String,
    #[serde(default)]
    uid: String,
}

impl SignedJwt {
    /// Reads the keys for the first time. Fails if the file is missing, unreadable or holds no keys.
    pub fn open(options: SignedJwtOptions) -> Result<Self, KeyFileError> {
        Ok(Self { keys: KeyFiles::open(options.key_files.clone())?, options })
    }

    /// Verifies a token with the current keys, and once more with reread ones if no key fits.
    fn verify(&self, token: &str) -> Result<Caller, AuthError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(AuthError::TooLong(MAX_TOKEN_BYTES));
        }
        let header = header(token)?;
        let claims = match self.decode(token, &header, &self.keys.current()) {
            // The key may have been added since the last check of the files.
            Err(AuthError::Signature) => self.decode(token, &header, &self.keys.afresh()),
            decided => decided,
        }?;
        self.caller(claims)
    }

    /// The claims of a token that one of the keys has signed. A `kid` selects keys with that ID and those without one.
    fn decode(&self, token: &str, header: &Header, keys: &[VerificationKey]) -> Result<Claims, AuthError> {
        for key in keys.iter().filter(|key| may_verify(key, header)) {
            let mut validation = Validation::new(key.algorithm);
            validation.leeway = LEEWAY_SECONDS;
            validation.validate_nbf = true;
            validation.set_audience(&[&self.options.audience]);
            validation.set_required_spec_claims(&["exp", "aud"]);
            if let Some(issuer) = &self.options.issuer {
                validation.set_issuer(&[issuer]);
                validation.set_required_spec_claims(&["exp", "aud", "iss"]);
            }
            match jsonwebtoken::decode::<Claims>(token, &key.key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(error) => return Err(self.refusal(error.kind())),
            }
        }
        Err(AuthError::Signature)
    }

    fn refusal(&self, kind: &ErrorKind) -> AuthError {
        match kind {
            ErrorKind::ExpiredSignature => AuthError::Expired,
            ErrorKind::ImmatureSignature => AuthError::NotYetValid,
            ErrorKind::InvalidAudience => AuthError::Audience(self.options.audience.clone()),
            ErrorKind::InvalidIssuer => AuthError::Issuer(self.options.issuer.clone().unwrap_or_default()),
            ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
                AuthError::Claim(match claim.as_str() {
                    "exp" => "exp",
                    "aud" => "aud",
                    "iss" => "iss",
                    "nbf" => "nbf",
                    _ => "sub",
                })
            }
            ErrorKind::Base64(_) | ErrorKind::Json(_) | ErrorKind::Utf8(_) => AuthError::Malformed,
            _ => AuthError::Signature,
        }
    }

    /// The identity in the subject, which must be the same as in Kubernetes' claim if there is one.
    fn caller(&self, claims: Claims) -> Result<Caller, AuthError> {
        let from_sub = claims.sub.as_deref().map(service_account).transpose()?;
        let kubernetes = claims.kubernetes;
        let from_claim = kubernetes.as_ref().and_then(|claim| {
            Some((claim.namespace.as_deref()?, claim.serviceaccount.as_ref()?.name.as_str()))
        });
        let (namespace, name) = match (from_sub, from_claim) {
            (Some(sub), Some(claim)) if sub != claim => return Err(AuthError::Contradiction),
            (Some(account), _) | (None, Some(account)) => account,
            (None, None) => return Err(AuthError::Claim("sub")),
        };
        let identity = Identity::new(self.options.trust_domain.clone(), namespace, name)
            .map_err(|error| AuthError::Identity(error.to_string()))?;
        let pod = kubernetes.as_ref().and_then(|claim| claim.pod.as_ref());
        Ok(Caller {
            identity,
            pod: pod.map(|pod| PodReference { name: pod.name.clone(), uid: pod.uid.clone() }),
        })
    }
}

#[tonic::async_trait]
impl Authenticator for SignedJwt {
    async fn authenticate(&self, token: &str, _peer: Option<SocketAddr>) -> Result<Caller, AuthError> {
        self.verify(token)
    }
}

impl std::fmt::Debug for SignedJwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedJwt").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The header of a token. Only its algorithm and key ID count: keys come from files, never from `jku`, `jwk` or `x5c`.
fn header(token: &str) -> Result<Header, AuthError> {
    if token.split('.').count() != 3 {
        return Err(AuthError::Malformed);
    }
    let header = jsonwebtoken::decode_header(token).map_err(|error| match error.kind() {
        // The header's algorithm is not supported here; `none` is among those.
        ErrorKind::Json(error) if error.is_data() => AuthError::Algorithm,
        _ => AuthError::Malformed,
    })?;
    use jsonwebtoken::Algorithm::{ES256, EdDSA, RS256};
    if !matches!(header.alg, ES256 | EdDSA | RS256) {
        return Err(AuthError::Algorithm);
    }
    // RFC 7515 §4.1.11: extensions that must be understood, and are not.
    if header.crit.is_some() {
        return Err(AuthError::Malformed);
    }
    Ok(header)
}

/// A key verifies only its own algorithm. A key with an ID verifies tokens that have this ID or none.
fn may_verify(key: &VerificationKey, header: &Header) -> bool {
    let ids_agree = match (&key.id, &header.kid) {
        (Some(key), Some(token)) => key == token,
        _ => true,
    };
    key.algorithm == header.alg && ids_agree
}

/// Namespace and name of `system:serviceaccount:<namespace>:<name>`.
pub(crate) fn service_account(sub: &str) -> Result<(&str, &str), AuthError> {
    let rest = sub.strip_prefix("system:serviceaccount:").ok_or(AuthError::Claim("sub"))?;
    rest.split_once(':').filter(|(_, name)| !name.contains(':')).ok_or(AuthError::Claim("sub"))
}
