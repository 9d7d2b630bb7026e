//! Authenticates callers: from a bearer token to an identity that a trusted issuer vouches for.

use std::net::SocketAddr;

use tidegate_core::Identity;

pub mod keys;
pub mod signed_jwt;

/// A caller whose token was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its identity.
    pub identity: Identity,
    /// The pod that the token is bound to, if it is bound to one.
    pub pod: Option<PodReference>,
}

/// A pod as a token names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodReference {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Why a token is not accepted. Never contains any part of the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// No `authorization` metadata.
    #[error("no bearer token: send `authorization: Bearer <service account token>`")]
    Missing,
    /// `authorization` is there twice or is not a bearer token.
    #[error("the authorization metadata is not exactly one bearer token")]
    NotBearer,
    /// Not a signed JWT at all.
    #[error("the token is not a signed JWT")]
    Malformed,
    /// Longer than any service account token.
    #[error("the token is longer than {0} bytes")]
    TooLong(usize),
    /// `none`, an HMAC, or another algorithm that is not allowed.
    #[error("the token's algorithm is not allowed: ES256, RS256 and EdDSA are")]
    Algorithm,
    /// Signed by another issuer, or altered.
    #[error("the token is not signed by a known key")]
    Signature,
    /// `exp` is in the past.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// For another audience.
    #[error("the token's audience is not {0:?}")]
    Audience(String),
    /// From an issuer that is not the trusted one.
    #[error("the token's issuer is not {0:?}")]
    Issuer(String),
    /// A required claim is missing or malformed.
    #[error("the token's claim {0:?} is missing or malformed")]
    Claim(&'static str),
    /// Two claims name different service accounts.
    #[error("the token's claims name different service accounts")]
    Contradiction,
    /// The API server does not accept it.
    #[error("the API server does not accept the token: {0}")]
    Rejected(String),
    /// Valid, but not bound to a Pod, so it would outlive its Pod.
    #[error("the token is not bound to a pod: use a projected service account token")]
    NotBound,
    /// Valid, but of a namespace that is not in the mesh.
    #[error("namespace {0} is not in the mesh: add it (`tidegate namespace add {0}`) and restart the pod")]
    NotInMesh(String),
    /// The service account's name is not valid.
    #[error("the token names no valid service account: {0}")]
    Identity(String),
    /// Tokens cannot be verified at the moment; the caller may try again.
    #[error("tokens cannot be verified at the moment: {0}")]
    Unavailable(String),
}

/// Verifies bearer tokens.
#[tonic::async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// The caller that `token` authenticates. `peer` is the address it came from, for limits per host.
    async fn authenticate(&self, token: &str, peer: Option<SocketAddr>) -> Result<Caller, AuthError>;
}

impl AuthError {
    /// A metric label and the reason in the audit log, one of a fixed set.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing | Self::NotBearer => "no-token",
            Self::Malformed | Self::TooLong(_) | Self::Algorithm | Self::Claim(_) | Self::Contradiction => {
                "malformed-token"
            }
            Self::Identity(_) => "identity",
            Self::Rejected(_) => "rejected",
            Self::NotBound => "not-bound",
            Self::NotInMesh(_) => "not-in-mesh",
            Self::Signature | Self::Issuer(_) => "unknown-signer",
            Self::Expired | Self::NotYetValid => "token-time",
            Self::Audience(_) => "audience",
            Self::Unavailable(_) => "unavailable",
        }
    }
}
