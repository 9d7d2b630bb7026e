//! What operators see and do: `GET /rotation`, `POST /rotation/next[?renewed=true|?force=true]`.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use crate::authority::{Authority, NotAllowed, Vouched};

/// The routes, for an admin server to serve beside its own.
pub fn routes(authority: Authority) -> Router {
    Router::new().route("/rotation", get(status)).route("/rotation/next", post(next)).with_state(authority)
}

#[derive(Deserialize)]
struct NextOptions {
    /// Everyone's certificate is known to be good under the issuing root.
    #[serde(default)]
    renewed: bool,
    /// Waits for nobody.
    #[serde(default)]
    force: bool,
}

async fn status(State(authority): State<Authority>) -> Response {
    Json(authority.status()).into_response()
}

async fn next(State(authority): State<Authority>, Query(options): Query<NextOptions>) -> Response {
    let vouched = match options {
        NextOptions { force: true, .. } => Vouched::Everything,
        NextOptions { renewed: true, .. } => Vouched::Renewed,
        NextOptions { .. } => Vouched::Nothing,
    };
    match authority.next(vouched).await {
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
