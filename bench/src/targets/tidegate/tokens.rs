//! Service account tokens as a Kubernetes API server issues them, signed by a key of this run.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::json;

/// Issuer of the tokens.
pub(super) const ISSUER: &str = "https://kubernetes.default.svc";
/// Audience of the tokens, as the CA requires it.
pub(super) const AUDIENCE: &str = "tidegate-ca";
/// Longer than any measurement of a target.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The key that signs tokens: ECDSA P-256.
pub(super) struct TokenKey(KeyPair);

impl TokenKey {
    /// A new key.
    pub(super) fn generate() -> Result<Self> {
        Ok(Self(KeyPair::generate()?))
    }

    /// PEM of the public half, for the CA.
    pub(super) fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// A token of a service account whose pod has its name.
    pub(super) fn token(&self, namespace: &str, account: &str) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the system clock is before 1970")?;
        let claims = json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": now.as_secs(),
            "nbf": now.as_secs(),
            "exp": (now + LIFETIME).as_secs(),
            "kubernetes.io": {
                "namespace": namespace,
                "pod": {"name": account, "uid": ""},
                "serviceaccount": {"name": account, "uid": ""},
            },
        });
        let key = EncodingKey::from_ec_pem(self.0.serialize_pem().as_bytes())?;
        Ok(jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key)?)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_token_verifies_with_the_public_key_and_names_its_service_account() {
        let key = TokenKey::generate().unwrap();
        let token = key.token("httpbin", "app").unwrap();
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        let verify = |key: &TokenKey| {
            let public = DecodingKey::from_ec_pem(key.public_pem().as_bytes()).unwrap();
            jsonwebtoken::decode::<Value>(&token, &public, &validation)
        };
        let claims = verify(&key).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:httpbin:app");
        assert_eq!(claims["kubernetes.io"]["namespace"], "httpbin");
        assert_eq!(claims["kubernetes.io"]["serviceaccount"]["name"], "app");
        assert!(verify(&TokenKey::generate().unwrap()).is_err(), "another key");
    }
}
