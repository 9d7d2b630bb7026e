//! Service account tokens as a Kubernetes API server issues them.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};

/// `iss` of the tokens.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// `aud` that the CA requires.
pub const AUDIENCE: &str = "tidegate-ca";

/// The key that signs tokens: ECDSA P-256.
#[derive(Debug)]
pub struct TokenKey(KeyPair);

impl TokenKey {
    /// A new key.
    pub fn generate() -> Self {
        Self(KeyPair::generate().unwrap())
    }

    /// PEM of the public half, for the CA.
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// A token of a service account, valid for an hour.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        self.sign(&claims(namespace, account))
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        let key = EncodingKey::from_ec_pem(self.0.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
    }
}

/// The claims of a bound token, for tests to modify.
pub fn claims(namespace: &str, account: &str) -> Value {
    let now = now();
    json!({
        "aud": [AUDIENCE],
        "exp": now + 3600,
        "iat": now,
        "nbf": now,
        "iss": ISSUER,
        "jti": format!("{namespace}-{account}-{now}"),
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "node", "uid": "5d0b5a8b-6a3c-4a55-8c52-000000000001"},
            "pod": {"name": account, "uid": "5d0b5a8b-6a3c-4a55-8c52-000000000002"},
            "serviceaccount": {"name": account, "uid": "5d0b5a8b-6a3c-4a55-8c52-000000000003"},
        },
        "sub": format!("system:serviceaccount:{namespace}:{account}"),
    })
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
