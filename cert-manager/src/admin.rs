//! What operators see and do: `GET /rotation`, `POST /rotation/next[?renewed=true|?force=true][&revoke=true][&without=NAMESPACE,…]`.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use crate::authority::{Advance, Authority, Farewell, NotAllowed, Vouched};

/// The routes, for an admin server to serve beside its own.
pub(crate) fn routes(authority: Authority) -> Router {
    Router::new().route("/rotation", get(status)).route("/rotation/next", post(next)).with_state(authority)
}

#[derive(Deserialize)]
struct NextOptions {
    /// Every certificate in use is known to be valid under the issuing root.
    #[serde(default)]
    renewed: bool,
    /// Do not wait for any workload.
    #[serde(default)]
    force: bool,
    /// Stop trusting the root that the last step drops, and those that were retired before it.
    #[serde(default)]
    revoke: bool,
    /// Namespaces, separated by commas, that the step skips if the trust bundle cannot be published there.
    #[serde(default)]
    without: String,
}

/// `GET /rotation`: a [`RotationStatus`](crate::authority::RotationStatus) as JSON.
async fn status(State(authority): State<Authority>) -> Response {
    Json(authority.status()).into_response()
}

/// `POST /rotation/next`: takes a step and answers with the new status. 409 with the reason if the step is not allowed,
/// 500 if the store or the new root fails.
async fn next(State(authority): State<Authority>, Query(options): Query<NextOptions>) -> Response {
    let vouched = match &options {
        NextOptions { force: true, .. } => Vouched::Everything,
        NextOptions { renewed: true, .. } => Vouched::Renewed,
        NextOptions { .. } => Vouched::Nothing,
    };
    let farewell = if options.revoke { Farewell::Revoke } else { Farewell::Retire };
    let without = options.without.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    match authority.next(Advance { vouched, farewell, without }).await {
        Ok(status) => Json(status).into_response(),
        Err(refused) => {
            let code = match refused {
                NotAllowed::Store(_) | NotAllowed::Successor(_) => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::CONFLICT,
            };
            (code, format!("{refused}\n")).into_response()
        }
    }
}
