//! The pages of the controller's admin server.
//!
//! `GET /policies`: the status of each policy and MeshConfig. `GET /problems`: errors and warnings about what
//! the source reads. `GET /workloads`: each workload's policy and the version that its sidecar has applied. `GET
//! /explain`: what a workload's policy decides about a connection, as
//! `?backend=<ns>/<service>&port=&source=<address>&sni=&principal=&tls=true|false|mesh|mesh-tcp&method=&path=&header=`.
//! `backend` and `source` are required; `principal` and `header` (`<name>: <value>`) may be repeated.
//!
//! All pages are JSON, except errors: `400` for a parameter that cannot be parsed and `404` for a question without an
//! answer, each with one line of plain text. They are computed on request from what the engine has published and
//! change nothing. The health server has none of them: it listens for kubelet and Prometheus, also from other hosts,
//! and policies are not for every reader.

use std::net::SocketAddr;
use std::sync::PoisonError;

use axum::extract::{Query as Parameters, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tidegate_core::contract::names;
use tidegate_runtime::admin::{AdminServer, AdminServerError, BoundAdmin, ProcessName};
use tidegate_runtime::drain;
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;

use crate::ControllerConfig;
use crate::engine::ControllerState;
use crate::explain::{
    ExternalQuery, HttpRequest, OutboundQuery, OutboundView, Query, Speaks, explain, explain_external,
    explain_outbound,
};
use crate::object::ObjectName;

/// The admin server, and the health server if it is configured.
pub(crate) struct AdminServers {
    admin: BoundAdmin,
    health: Option<BoundAdmin>,
}

impl AdminServers {
    /// Binds both; the admin server with these routes.
    pub(crate) async fn bind(
        config: &ControllerConfig,
        routes: Router,
        metrics: Metrics,
        readiness: Readiness,
        log: LogHandle,
    ) -> Result<Self, AdminServerError> {
        let name = ProcessName(names::CONTROLLER);
        let health = match config.health {
            Some(address) => {
                let server = AdminServer::health(name, metrics.clone(), readiness.clone(), log.clone());
                Some(server.bind(address).await?)
            }
            None => None,
        };
        let admin = AdminServer::new(name, metrics, readiness, log).merge(routes).bind(config.admin).await?;
        Ok(Self { admin, health })
    }

    /// Where they listen.
    pub(crate) fn addresses(&self) -> (SocketAddr, Option<SocketAddr>) {
        (self.admin.local_addr(), self.health.as_ref().map(BoundAdmin::local_addr))
    }

    /// Starts both.
    pub(crate) fn serve(self, drain: &drain::Watch) {
        if let Some(health) = self.health {
            tokio::spawn(health.serve(drain.clone()));
        }
        tokio::spawn(self.admin.serve(drain.clone()));
    }
}

/// The controller's own pages, to be merged with those that every daemon has.
pub(crate) fn routes(shared: ControllerState) -> Router {
    Router::new()
        .route("/policies", get(policies))
        .route("/problems", get(problems))
        .route("/workloads", get(workloads))
        .route("/explain", get(explained))
        .with_state(shared)
}

/// `/policies`: each object with its status.
async fn policies(State(shared): State<ControllerState>) -> Response {
    Json(shared.statuses.list()).into_response()
}

/// `/problems`: what keeps objects from being read.
async fn problems(State(shared): State<ControllerState>) -> Response {
    let problems = shared.problems.read().unwrap_or_else(PoisonError::into_inner).clone();
    Json(problems).into_response()
}

/// `/workloads`: each workload with its policy and its sidecar.
async fn workloads(State(shared): State<ControllerState>) -> Response {
    Json(shared.workloads.view()).into_response()
}

/// Answers from the index of this moment. If the workload has no policy although objects would compile to one (its
/// namespace's share is used up), the answer is what its sidecar does without a policy: it denies.
async fn explained(
    State(shared): State<ControllerState>,
    Parameters(parameters): Parameters<Vec<(String, String)>>,
) -> Response {
    let query = match parse(&parameters) {
        Ok(query) => query,
        Err(message) => return (StatusCode::BAD_REQUEST, format!("{message}\n")).into_response(),
    };
    let index = shared.index.read().unwrap_or_else(PoisonError::into_inner);
    let query = match query {
        Question::Inbound(query) => query,
        Question::Outbound(query) => {
            let view = OutboundView {
                index: &index,
                trust_domain: &shared.trust_domain,
                is_workload: shared.is_workload,
                missing_policy: &|workload| shared.workloads.error(workload),
            };
            return match explain_outbound(view, &query) {
                Ok(explanation) => Json(explanation).into_response(),
                Err(error) => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
            };
        }
        Question::External(query) => {
            return match explain_external(&index, &shared.trust_domain, shared.is_workload, &query) {
                Ok(explanation) => Json(explanation).into_response(),
                Err(error) => (StatusCode::NOT_FOUND, format!("{error}\n")).into_response(),
            };
        }
    };
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

/// What `/explain` is asked.
enum Question {
    /// About a connection to a workload.
    Inbound(Query),
    /// About a request of a workload's app: with `from`.
    Outbound(OutboundQuery),
    /// About its connection to a server outside the mesh: with `from`, and `host` or `address` instead of a backend.
    External(ExternalQuery),
}

/// Parses the query string of `/explain`. Parameters with an empty value count as absent, so that a form can be
/// submitted as it is; an unknown one is an error, because a misspelled restriction would otherwise be ignored.
fn parse(parameters: &[(String, String)]) -> Result<Question, String> {
    let (mut backend, mut source, mut from, mut host, mut address) = (None, None, None, None, None);
    let (mut port, mut server_name, mut principals, mut speaks) = (None, None, Vec::new(), Speaks::Likely);
    let mut request = HttpRequest::default();
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        let bad = |expected: &str| format!("{name}: expected {expected}, got {value:?}");
        match name.as_str() {
            "backend" => {
                backend = Some(ObjectName::parse(value).ok_or_else(|| bad("<namespace>/<service>"))?);
            }
            "port" => port = Some(value.parse().map_err(|_| bad("a port"))?),
            "from" => from = Some(ObjectName::parse(value).ok_or_else(|| bad("<namespace>/<workload>"))?),
            "host" => host = Some(value.clone()),
            "address" => address = Some(value.parse().map_err(|_| bad("an IP address"))?),
            "source" => source = Some(value.parse().map_err(|_| bad("an IP address"))?),
            "sni" => server_name = Some(value.clone()),
            "principal" => principals.push(value.clone()),
            "tls" => {
                speaks = match value.as_str() {
                    "true" => Speaks::Tls,
                    "false" => Speaks::Plaintext,
                    "mesh" => Speaks::Mesh,
                    "mesh-tcp" => Speaks::MeshTcp,
                    _ => return Err(bad("true, false, mesh or mesh-tcp")),
                }
            }
            "method" => request.method.clone_from(value),
            "path" => request.path.clone_from(value),
            "header" => {
                request.headers.push(HttpRequest::header(value).ok_or_else(|| bad("<name>: <value>"))?);
            }
            _ => return Err(format!("{name}: no such parameter")),
        }
    }
    if host.is_some() || address.is_some() {
        if backend.is_some() {
            return Err("host and address are for servers outside the mesh: leave out backend".to_owned());
        }
        let caller = from.ok_or("from is required: <namespace>/<pod>")?;
        let port = port.ok_or("port is required")?;
        return Ok(Question::External(ExternalQuery { caller, host, address, port }));
    }
    let backend = backend.ok_or("backend is required: <namespace>/<service>")?;
    if let Some(caller) = from {
        return Ok(Question::Outbound(OutboundQuery { caller, service: backend, port, request }));
    }
    let source = source.ok_or("source is required: an IP address")?;
    Ok(Question::Inbound(Query { backend, port, source, server_name, principals, speaks, request }))
}
