//! Pages of the admin port. `/config`: the configuration that this sidecar enforces at this moment, without private keys.
//! `/egress`: what the workload has reached outside the mesh. `/requests?id=`: recent requests by their `x-request-id`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tidegate_core::backend::Endpoint;
use tidegate_core::contract::names::EGRESS_PATH;
use tidegate_core::destination::DestinationKey;
use tidegate_runtime::trust_bundle::fingerprint;

use crate::destinations::{
    BalancedEndpoint, Destinations, ReferencedView, ResolvedDestination, ResolvedTarget, TopologyView,
};
use crate::options::InboundListener;
use crate::snapshot::Publisher;
use crate::telemetry::egress::{EgressReport, EgressUsage};
use crate::telemetry::recent::RecentRequests;

/// State of the handlers.
#[derive(Clone)]
struct Pages {
    view: ConfigView,
    egress: EgressUsage,
}

/// What `/config` shows.
#[derive(Clone)]
pub(crate) struct ConfigView {
    /// `<namespace>/<name>` of the workload.
    pub(crate) workload: Arc<str>,
    /// Fixed listeners: the address that is bound, and the app's address.
    pub(crate) inbound: Arc<[InboundListener]>,
    /// Address of the listener for connections that the kernel redirects.
    pub(crate) transparent: Option<SocketAddr>,
    /// Addresses of the listeners for the app's outbound connections.
    pub(crate) outbound: Arc<[SocketAddr]>,
    /// Destinations that the app has dialled.
    pub(crate) destinations: Arc<Destinations>,
    /// Source of the current snapshot.
    pub(crate) publisher: Arc<Publisher>,
}

/// The sidecar's own routes of the admin server.
pub(crate) fn routes(view: ConfigView, egress: EgressUsage, recent: RecentRequests) -> Router {
    let pages = Pages { view, egress };
    let own = Router::new().route("/config", get(config)).route(EGRESS_PATH, get(reached)).with_state(pages);
    own.merge(Router::new().route("/requests", get(requests)).with_state(recent))
}

/// `/egress`: servers outside the mesh, as JSON for people and for `tidegate egress learn`.
async fn reached(State(Pages { view, egress }): State<Pages>) -> Json<EgressReport> {
    let snapshot = view.publisher.current();
    let account = snapshot.policy.as_ref().map(|policy| policy.identity.service_account());
    Json(egress.report(&view.workload, account))
}

/// `/requests`: the records of recent requests with an `x-request-id`, as the access log has them, the oldest first.
async fn requests(
    State(recent): State<RecentRequests>,
    Query(parameters): Query<BTreeMap<String, String>>,
) -> Response {
    match parameters.get("id") {
        Some(id) => Json(recent.find(id)).into_response(),
        None => (StatusCode::BAD_REQUEST, "id is required\n").into_response(),
    }
}

/// `/config`: the policy, the certificate and the destinations in force, as JSON for people and for `tidegate`.
async fn config(State(Pages { view, .. }): State<Pages>) -> Json<Value> {
    let snapshot = view.publisher.current();
    let mut inbound: Vec<Value> =
        view.inbound.iter().map(|inbound| json!({"listen": inbound.listen, "app": inbound.app})).collect();
    // A redirected connection goes to the port that the client dialled, if the policy has that port.
    inbound.extend(view.transparent.map(|listen| {
        let ports = snapshot.policy.as_ref().map(|policy| policy.ports.keys().collect::<Vec<_>>());
        json!({"listen": listen, "redirected": true, "ports": ports.unwrap_or_default()})
    }));
    let tls = snapshot.tls.as_ref().map(|tls| {
        let leaf = &tls.credentials.leaf;
        json!({
            "certificate": {
                "names": leaf.sans.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "serial": leaf.serial,
                "notBefore": time(leaf.not_before),
                "notAfter": time(leaf.not_after),
                "chain": tls.credentials.chain.iter().map(fingerprint).collect::<Vec<_>>(),
            },
            "trustBundle": tls.bundle.fingerprints(),
        })
    });
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "workload": view.workload,
        "inbound": inbound,
        "transparent": view.transparent.map(|inbound| json!({"inbound": inbound})),
        "generation": snapshot.generation,
        "tls": tls,
        "policy": snapshot.policy,
        "outbound": view.outbound,
        "destinations": view.destinations.view().iter().map(destination).collect::<Vec<_>>(),
        "references": view.destinations.view_references().iter().map(reference).collect::<Vec<_>>(),
    }))
}

/// A destination: its state, and in the mesh its service and endpoints, with the connections that this sidecar has to
/// each.
fn destination((key, version, target): &(DestinationKey, String, Option<Arc<ResolvedDestination>>)) -> Value {
    let mut shown = destination_at(key.address, version, target.as_deref());
    if let Some(host) = &key.host {
        shown["host"] = host.name.as_str().into();
    }
    shown
}

fn destination_at(address: SocketAddr, version: &str, target: Option<&ResolvedDestination>) -> Value {
    let Some(target) = target else { return json!({"address": address, "state": "asked"}) };
    let endpoint = |choice: &BalancedEndpoint| {
        let Endpoint { address, transport, .. } = &*choice.endpoint;
        let identity = match transport.identities() {
            [] => Value::Null,
            [identity] => json!(identity),
            several => json!(several),
        };
        json!({"address": address, "identity": identity, "connections": choice.open()})
    };
    let refused = |state: &str, reason: &str| json!({"address": address, "version": version, "state": state, "reason": reason});
    let routes = match target.target() {
        ResolvedTarget::Blocked(reason) => return refused("blocked", reason),
        ResolvedTarget::Unregistered(reason) => return refused("unregistered", reason),
        ResolvedTarget::ByHost(_) => {
            return json!({"address": address, "version": version, "state": "byHost"});
        }
        ResolvedTarget::Policies(address) => return refused("policed", &address.policies.reason),
        ResolvedTarget::Routes(routes) => Some(routes.name()),
        ResolvedTarget::Proxied(proxied) => {
            let origins: Vec<_> = proxied.origins().collect();
            return json!({"address": address, "version": version, "state": "proxied", "rules": origins});
        }
        ResolvedTarget::Backend(_) => None,
    };
    match target.name() {
        None => json!({"address": address, "version": version, "state": "passthrough"}),
        Some(name) => json!({
            "address": address,
            "version": version,
            "state": "mesh",
            "service": name,
            "protocol": target.protocol(),
            "routes": routes,
            "endpoints": target.endpoints().map(endpoint).collect::<Vec<_>>(),
            "dnsFailures": target.lookup_failures().collect::<Vec<_>>(),
            "topology": target.topologies().iter().map(topology).collect::<Vec<_>>(),
        }),
    }
}

fn topology(TopologyView { rule, fallback, unused }: &TopologyView) -> Value {
    json!({"rule": rule, "fallback": fallback, "unused": unused})
}

/// A backend or routes that destinations refer to.
fn reference(view: &ReferencedView) -> Value {
    let mut shown = json!({"name": view.name.to_string(), "version": view.version});
    if let Some(usage) = &view.usage {
        shown["limits"] = json!(usage.limits());
        shown["inUse"] = json!(usage.counts());
    }
    if let Some(routes) = &view.routes {
        shown["routes"] = json!(routes.table());
    }
    shown
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
