//! Authenticates a call by its token before any of its body is read.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use tidegate_runtime::grpc::Peer;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

use crate::authenticate::{AuthError, Authenticator, Caller};
use crate::telemetry::CaTelemetry;

/// A service whose calls carry the authenticated [`Caller`] in their extensions. Other calls are refused.
#[derive(Clone)]
pub(crate) struct TokenFirst<S> {
    pub(crate) inner: S,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) telemetry: Arc<CaTelemetry>,
}

impl<S: NamedService> NamedService for TokenFirst<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for TokenFirst<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let next = self.inner.clone();
        // The call must go to the instance that was polled ready.
        let mut inner = std::mem::replace(&mut self.inner, next);
        let (authenticator, telemetry) = (self.authenticator.clone(), self.telemetry.clone());
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>().cloned();
            let address = peer.as_ref().map(|peer| peer.address);
            match authenticate(&*authenticator, request.headers(), address).await {
                Ok(caller) => {
                    if let Some(peer) = peer {
                        peer.has_proven();
                    }
                    request.extensions_mut().insert(caller);
                    inner.call(request).await
                }
                Err(error) => {
                    telemetry.refused(None, address, error.kind(), &error);
                    Ok(status_of(&error).into_http())
                }
            }
        })
    }
}

/// Authenticates a call by its `authorization` header. `peer` is the address that the token came from, for limits.
async fn authenticate(
    authenticator: &dyn Authenticator,
    head: &HeaderMap,
    peer: Option<SocketAddr>,
) -> Result<Caller, AuthError> {
    authenticator.authenticate(bearer_token(head)?, peer).await
}

/// The only token of the call. With two, different readers could choose different ones.
fn bearer_token(head: &HeaderMap) -> Result<&str, AuthError> {
    let mut values = head.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(AuthError::Missing)?;
    if values.next().is_some() {
        return Err(AuthError::NotBearer);
    }
    let text = value.to_str().map_err(|_| AuthError::NotBearer)?;
    match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(token.trim())
        }
        _ => Err(AuthError::NotBearer),
    }
}

/// UNAVAILABLE where trying again helps, PERMISSION_DENIED for a valid token of a namespace outside the mesh, otherwise
/// UNAUTHENTICATED. The message never contains the token.
fn status_of(error: &AuthError) -> Status {
    match error {
        AuthError::Unavailable(_) => Status::unavailable(error.to_string()),
        AuthError::NotInMesh(_) => Status::permission_denied(error.to_string()),
        _ => Status::unauthenticated(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, value.parse().unwrap())).collect()
    }

    #[test]
    fn exactly_one_bearer_token_is_read() {
        assert_eq!(bearer_token(&head(&["Bearer abc"])), Ok("abc"));
        assert_eq!(bearer_token(&head(&["bearer abc"])), Ok("abc"));
        assert_eq!(bearer_token(&head(&[])), Err(AuthError::Missing));
        for values in
            [&["Bearer a", "Bearer b"][..], &["Bearer a", "Basic b"], &["Basic abc"], &["Bearer "], &["abc"]]
        {
            assert_eq!(bearer_token(&head(values)), Err(AuthError::NotBearer), "{values:?}");
        }
    }
}
