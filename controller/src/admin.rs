//! What the controller shows at its admin address.
//!
//! `GET /policies`: the status of each IngressBackend and MeshConfig. `GET /problems`: what is wrong with what the
//! source reads. `GET /workloads`: each workload's policy and what its sidecar has of it. `GET /explain`: a question
//! to the policy, as `?backend=<ns>/<service>&port=&source=<address>&sni=&principal=&tls=true|false|mesh`, of which
//! `principal` may be repeated and `backend` and `source` must be there.

use std::sync::PoisonError;

use axum::extract::{Query as Parameters, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use crate::engine::Shared;
use crate::explain::{Query, Speaks, explain};
use crate::object::ObjectName;

pub(crate) fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/policies", get(policies))
        .route("/problems", get(problems))
        .route("/workloads", get(workloads))
        .route("/explain", get(explained))
        .with_state(shared)
}

async fn policies(State(shared): State<Shared>) -> Response {
    Json(shared.statuses.list()).into_response()
}

async fn problems(State(shared): State<Shared>) -> Response {
    let problems = shared.problems.read().unwrap_or_else(PoisonError::into_inner).clone();
    Json(problems).into_response()
}

async fn workloads(State(shared): State<Shared>) -> Response {
    Json(shared.workloads.view()).into_response()
}

async fn explained(
    State(shared): State<Shared>,
    Parameters(parameters): Parameters<Vec<(String, String)>>,
) -> Response {
    let query = match parse(&parameters) {
        Ok(query) => query,
        Err(message) => return (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response(),
    };
    let index = shared.index.read().unwrap_or_else(PoisonError::into_inner);
    match explain(&index, &shared.trust_domain, &query) {
        Ok(explanation) => {
            let workload = ObjectName::parse(&explanation.workload);
            let error = workload.and_then(|workload| shared.workloads.error(&workload));
            Json(match error {
                Some(error) => explanation.without_policy(&error),
                None => explanation,
            })
            .into_response()
        }
        Err(error) => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
    }
}

fn parse(parameters: &[(String, String)]) -> Result<Query, String> {
    let (mut backend, mut source) = (None, None);
    let (mut port, mut server_name, mut principals, mut speaks) = (None, None, Vec::new(), Speaks::Likely);
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        let bad = |expected: &str| format!("{name}: expected {expected}, got {value:?}");
        match name.as_str() {
            "backend" => {
                backend = Some(ObjectName::parse(value).ok_or_else(|| bad("<namespace>/<service>"))?);
            }
            "port" => port = Some(value.parse().map_err(|_| bad("a port"))?),
            "source" => source = Some(value.parse().map_err(|_| bad("an IP address"))?),
            "sni" => server_name = Some(value.clone()),
            "principal" => principals.push(value.clone()),
            "tls" => {
                speaks = match value.as_str() {
                    "true" => Speaks::Tls,
                    "false" => Speaks::Plaintext,
                    "mesh" => Speaks::Mesh,
                    _ => return Err(bad("true, false or mesh")),
                }
            }
            _ => return Err(format!("{name}: no such parameter")),
        }
    }
    Ok(Query {
        backend: backend.ok_or("backend is required: <namespace>/<service>")?,
        port,
        source: source.ok_or("source is required: an IP address")?,
        server_name,
        principals,
        speaks,
    })
}
