//! Reviews service account tokens by the API server, which has the keys, and checks that Pod and account still exist.
//!
//! A token is accepted only if the API server accepts it for our audience, it is bound to a Pod, and its namespace is in
//! the mesh or the control plane's: policies admit every certificate of the mesh, so others get none. Nothing is cached
//! between requests: a token becomes invalid at once with its Pod (the API server itself may cache a review for ten
//! seconds).

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use base64::Engine;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::Deserialize;
use tidegate_core::{Identity, TrustDomain};
use tokio::sync::Semaphore;

use super::namespaces::Namespaces;
use crate::authenticate::signed_jwt::{MAX_TOKEN_BYTES, service_account};
use crate::authenticate::{AuthError, Authenticator, Caller, PodReference};
use crate::rate_limit::{RateLimit, RateLimiter};

#[cfg(test)]
mod tests;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// Maximum concurrent reviews; others wait for their turn.
const MAX_IN_FLIGHT: usize = 64;
/// Maximum time that a caller waits, including for its turn.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Limit of tokens from one host; Pods of a node may share its address.
const HOST_LIMIT: RateLimit = RateLimit { per_second: 50.0, burst: 250, max_identities: 20_000 };
/// Maximum length of an API server's refusal that is passed on.
const MAX_REASON_CHARS: usize = 200;

/// An [`Authenticator`] that has the API server review each token.
pub(crate) struct TokenReviewer {
    reviews: Api<TokenReview>,
    audience: String,
    trust_domain: TrustDomain,
    namespaces: Namespaces,
    turns: Semaphore,
    /// Reviews per host, so that one that sends garbage does not use up the turns of others.
    limiter: RateLimiter<IpAddr>,
}

impl TokenReviewer {
    /// Accepts tokens for `audience` as identities of `trust_domain` in the mesh's `namespaces`.
    pub(crate) fn new(
        client: Client,
        audience: String,
        trust_domain: TrustDomain,
        namespaces: Namespaces,
    ) -> Self {
        Self {
            reviews: Api::all(client),
            audience,
            trust_domain,
            namespaces,
            turns: Semaphore::new(MAX_IN_FLIGHT),
            limiter: RateLimiter::new(HOST_LIMIT),
        }
    }

    /// Has the API server review a token. Errors are all transient for the caller, and never contain the token.
    async fn review(&self, token: &str) -> Result<TokenReviewStatus, AuthError> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec { audiences: Some(vec![self.audience.clone()]), token: token.to_owned() },
            status: None,
        };
        let asked = async {
            // Never closed.
            let _turn = self.turns.acquire().await;
            self.reviews.create(&PostParams::default(), &review).await
        };
        let unavailable = |reason: String| AuthError::Unavailable(without(token, &reason));
        match tokio::time::timeout(TIMEOUT, asked).await {
            Ok(Ok(review)) => {
                review.status.ok_or_else(|| unavailable("the API server's answer has no status".to_owned()))
            }
            Ok(Err(error)) => Err(unavailable(super::message(&error))),
            Err(_) => Err(unavailable("the API server does not answer".to_owned())),
        }
    }

    /// The caller, if the answer meets every condition for a certificate: authenticated, for our audience, bound to a
    /// Pod, in a namespace of the mesh.
    fn judge(&self, token: &str, status: TokenReviewStatus) -> Result<Caller, AuthError> {
        if status.authenticated != Some(true) {
            let reason = status.error.filter(|reason| !reason.is_empty());
            let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
            return Err(AuthError::Rejected(without(token, &reason)));
        }
        // An API server that does not support audiences answers without any.
        if !status.audiences.unwrap_or_default().contains(&self.audience) {
            return Err(AuthError::Audience(self.audience.clone()));
        }
        let user = status.user.unwrap_or_default();
        let (namespace, name) = service_account(user.username.as_deref().unwrap_or_default())
            .map_err(|_| AuthError::Identity("the token is not a service account's".to_owned()))?;
        let identity = Identity::new(self.trust_domain.clone(), namespace, name)
            .map_err(|error| AuthError::Identity(error.to_string()))?;
        let pod = PodReference {
            name: only_value(&user, POD_NAME).ok_or(AuthError::NotBound)?,
            uid: only_value(&user, POD_UID).ok_or(AuthError::NotBound)?,
        };
        let namespace = identity.namespace().to_string();
        match self.namespaces.find(&namespace) {
            Some(membership) if membership.is_ours => {}
            Some(_) => return Err(AuthError::NotInMesh(namespace)),
            None => {
                let reason = format!("namespace {namespace} is not known yet; try again in a moment");
                return Err(AuthError::Unavailable(reason));
            }
        }
        Ok(Caller { identity, pod: Some(pod) })
    }
}

#[tonic::async_trait]
impl Authenticator for TokenReviewer {
    async fn authenticate(&self, token: &str, peer: Option<SocketAddr>) -> Result<Caller, AuthError> {
        look(token, &self.audience)?;
        if let Some(peer) = peer {
            let host = peer.ip().to_canonical();
            self.limiter.take(&host, Instant::now()).map_err(|_| {
                AuthError::Unavailable(format!("too many tokens from {host}; try again in a moment"))
            })?;
        }
        let status = self.review(token).await?;
        self.judge(token, status)
    }
}

impl std::fmt::Debug for TokenReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenReviewer").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// The claims of a token whose signature is not verified yet.
#[derive(Deserialize)]
struct UnverifiedClaims {
    aud: Option<Audiences>,
    exp: Option<u64>,
}

/// `aud` is a text or a list of texts (RFC 7519 §4.1.3).
#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Several(Vec<String>),
}

/// Refuses tokens that the API server would refuse too, or must not see because they are for another audience. Does not
/// authenticate.
fn look(token: &str, audience: &str) -> Result<(), AuthError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(AuthError::TooLong(MAX_TOKEN_BYTES));
    }
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(AuthError::Malformed);
    };
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims);
    let claims: UnverifiedClaims =
        claims.ok().and_then(|claims| serde_json::from_slice(&claims).ok()).ok_or(AuthError::Malformed)?;
    let is_for_us = match &claims.aud {
        Some(Audiences::One(one)) => one == audience,
        Some(Audiences::Several(several)) => several.iter().any(|one| one == audience),
        None => false,
    };
    if !is_for_us {
        return Err(AuthError::Audience(audience.to_owned()));
    }
    if claims.exp.is_none() {
        return Err(AuthError::Claim("exp"));
    }
    Ok(())
}

/// The value of a user's extra field that must have exactly one.
fn only_value(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

/// A reason for logs and responses: one short line, never with the token.
fn without(token: &str, reason: &str) -> String {
    let reason = reason.replace(token, "…");
    reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect()
}
