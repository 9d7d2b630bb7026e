//! What operators see and do: `GET /rotation`, `POST /rotation/next[?renewed=true|?force=true][&revoke=true][&without=NAMESPACE,…]`.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use crate::authority::{Advance, Authority, Farewell, NotAllowed, Vouched};

/// The routes, for an admin server to serve beside its own.
pub fn routes(authority: Authority) -> Router {
    Router::new().route("/rotation", get(status)).route("/rotation/next", post(next)).with_state(authority)
}

#[derive(Deserialize)]
struct NextOptions {
    /// Everyone's certificate is known to be good under the issuing root.
    #[serde(default)]
    renewed: bool,
    /// Waits for no workload.
    #[serde(default)]
    force: bool,
    /// The root that the last step drops is not trusted any more, nor is any that was retired before.
    #[serde(default)]
    revoke: bool,
    /// Namespaces, with commas between, that the step does without if the trust bundle cannot be published there.
    #[serde(default)]
    without: String,
}

async fn status(State(authority): State<Authority>) -> Response {
    Json(authority.status()).into_response()
}

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
