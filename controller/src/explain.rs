//! What would happen to a connection, and why: the policy that sidecars get, asked a question.
//!
//! It calls the same `open`, `admit` and `authorize` in the same order as a sidecar (`core/src/policy/evaluate.rs`),
//! on a policy that is compiled for the question. So the answer is right also where no sidecar runs yet, and needs no
//! connection to one; what it cannot see is a sidecar that still has an older policy, for which `tidegate proxy
//! status` compares versions.

mod external;
mod far_side;
mod outbound;
mod request;

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use tidegate_core::path::PathError;
use tidegate_core::policy::{
    Decision, Denial, ExternalAuthorizationState, Grant, InboundPolicy, IngressTransport, MeshProtocol,
    Opening, Reason, RuleState, Session, Terms,
};
use tidegate_core::{DnsName, Identity, ObjectRef, San, TrustDomain};

use crate::compile::{self, NamespaceRules, Targets, imagined_pod};
use crate::index::Index;
use crate::object::ObjectName;

pub use external::{ExternalExplanation, ExternalQuery, explain_external};
pub use far_side::FarSideDecision;
pub use outbound::{BackendShare, OutboundExplanation, OutboundQuery, OutboundView, explain_outbound};
pub use request::HttpRequest;

/// A connection, as its client would make it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The Service that is dialled.
    pub backend: ObjectName,
    /// Its `targetPort`; may be left out where the Service has but one.
    pub port: Option<u16>,
    /// The client's address.
    pub source: IpAddr,
    /// The server name that it sends.
    pub server_name: Option<String>,
    /// The names in its certificate; none: it has none.
    pub principals: Vec<String>,
    /// What it speaks.
    pub speaks: Speaks,
    /// The request that a mesh peer sends.
    pub request: HttpRequest,
}

/// What a client speaks first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speaks {
    /// TLS if it has a server name or a certificate, or if only TLS is admitted; else plaintext.
    #[default]
    Likely,
    /// TLS, as an ingress controller does.
    Tls,
    /// No TLS.
    Plaintext,
    /// TLS between sidecars, with what the port's protocol is inside: HTTP, unless bytes are declared.
    Mesh,
    /// TLS between sidecars, with bytes inside that are not parsed.
    MeshTcp,
}

/// The decision, and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// Why, in a sentence.
    pub reason: String,
    /// A stable word for the reason of a denial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// `<namespace>/<name>` of the object that lets it in, or that came closest to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The request that was decided about, if rules distinguish requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The rate limits that apply to what is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// The server that also decides about each request, and what its failure means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorizer: Option<String>,
    /// How the connection would go on after its first bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terms: Option<&'static str>,
    /// The workload whose policy was asked. One that stands behind the backend, if there is any.
    pub workload: String,
    /// The name that the client must expect in the server's certificate.
    pub server_identity: String,
    /// The port that was asked about.
    pub port: u16,
}

/// A question that has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// The backend is not a known Service.
    #[error("there is no service {0}")]
    NoService(ObjectName),
    /// A host is the name of a Service, not a server outside the mesh.
    #[error("{0} is service {1}: ask about {1}")]
    IsService(String, ObjectName),
    /// The backend is in a namespace of another mesh, whose controller knows.
    #[error("{0}; ask that one's controller (--mesh-name, --tidegate-namespace)")]
    AnotherMesh(String),
    /// The Service has several ports, or none.
    #[error("service {0} has the target ports {1:?}: say which")]
    WhichPort(ObjectName, Vec<u16>),
    /// The Service has several ports, or not the one that was named.
    #[error("service {0} has the ports {1:?}: say which")]
    WhichServicePort(ObjectName, Vec<u16>),
    /// Kubernetes would not accept the name of a Pod's service account or namespace.
    #[error("workload {0} has no identity: {1}")]
    NoIdentity(ObjectName, String),
    /// The client's Pod has no sidecar.
    #[error("pod {0} has no sidecar: its requests are those of a client outside the mesh")]
    NoSidecar(ObjectName),
    /// A path that sidecars answer with 400 where rules distinguish paths.
    #[error("{0} is answered with 400: its path {1}")]
    NoPath(String, PathError),
    /// The routes of a Service contradict each other.
    #[error("the routes of service {0} cannot be used: {1}")]
    NoRoutes(ObjectName, String),
    /// A name that no certificate can hold.
    #[error("{0:?} is neither a DNS name nor a URI, so no certificate can hold it")]
    NoName(String),
}

impl Explanation {
    /// The answer where the workload has no policy, for this reason, and so its sidecar lets nothing in.
    pub(crate) fn without_policy(self, error: &str) -> Self {
        let reason = format!("workload {} has no policy: {error}", self.workload);
        Self {
            decision: "deny",
            reason,
            code: Some(Reason::NoPolicy.code()),
            rule: None,
            request: None,
            limits: Vec::new(),
            authorizer: None,
            terms: None,
            ..self
        }
    }
}

/// Answers a question from the objects alone: the same for a running controller and for a folder that is only read.
pub fn explain(
    index: &Index,
    trust_domain: &TrustDomain,
    query: &Query,
) -> Result<Explanation, ExplainError> {
    let service =
        index.service(&query.backend).ok_or_else(|| ExplainError::NoService(query.backend.clone()))?;
    let port = match query.port {
        Some(port) => port,
        None => match Targets::new(index, &query.backend.namespace).of(&query.backend).as_slice() {
            [port] => *port,
            ports => return Err(ExplainError::WhichPort(query.backend.clone(), ports.to_vec())),
        },
    };
    let imagined = imagined_pod(&query.backend, service);
    let pod = match workload_behind(index, trust_domain, &query.backend, port) {
        Some(pod) => pod,
        // Pods that started before the namespace changed hands may still be ours; new ones will not be.
        None if index.is_of_another_mesh(&query.backend.namespace) => {
            return Err(ExplainError::AnotherMesh(
                index.outside_mesh(&query.backend.namespace).unwrap_or_default(),
            ));
        }
        None => &imagined,
    };
    let policy = compile::workload(index, pod, trust_domain)
        .map_err(|error| ExplainError::NoIdentity(ObjectName::of(&pod.metadata), error.to_string()))?;
    ask(&policy, port, query)
}

/// Runs the decisions of one connection and its first request. The names of a certificate count only where the
/// sidecar would request one.
fn ask(policy: &InboundPolicy, port: u16, query: &Query) -> Result<Explanation, ExplainError> {
    let opening = opening(policy, port, query);
    let names = names(policy.identity.trust_domain(), query, opening)?;
    let terms = policy.open(port, query.source, opening).ok();
    // A sidecar sees a certificate only if it asks for one.
    let is_asked = matches!(terms, Some(Terms::IngressMutualTls | Terms::MeshTls(_)));
    let client = (is_asked && !names.is_empty()).then_some(names.as_slice());
    let session = Session { port, source: query.source, opening, client };
    let decision = admit(policy, &session);
    let (decision, request) = match policy.request_rules(&session) {
        Some(rules) => {
            let request = query.request.to_string();
            let decision =
                query.request.decide(&rules).map_err(|error| ExplainError::NoPath(request.clone(), error))?;
            (decision, Some(request))
        }
        None => (decision, None),
    };
    let external = policy.external_authorization.as_ref().filter(|_| terms.is_some_and(is_http));
    let decision = match (decision, external.map(|external| (external, &external.state))) {
        (Decision::Allow(_), Some((external, ExternalAuthorizationState::Invalid(why)))) => {
            let reason = Reason::ExternalAuthorizationInvalid(why.clone());
            Decision::Deny(Denial { reason, origin: Some(external.origin.clone()) })
        }
        (decision, _) => decision,
    };
    let (word, reason, code, rule) = match decision {
        Decision::Allow(grant) => {
            let rule = match &grant {
                Grant::Ingress(origin, _) | Grant::Peer(origin, _) => Some(in_namespace(origin)),
                Grant::Audit(denial) => denial.origin.as_ref().map(in_namespace),
                Grant::AnyPeer => None,
            };
            ("allow", grant.to_string(), None, rule)
        }
        Decision::Deny(denial) => {
            ("deny", denial.to_string(), Some(denial.reason.code()), denial.origin.as_ref().map(in_namespace))
        }
    };
    let limits = match (word, opening) {
        ("allow", Opening::Mesh(protocol)) => limits(policy, port, protocol, query)?,
        _ => Vec::new(),
    };
    Ok(Explanation {
        decision: word,
        reason,
        code,
        rule,
        request,
        limits,
        authorizer: external.map(ToString::to_string),
        terms: terms.map(describe),
        workload: policy.workload.to_string(),
        server_identity: policy.identity.to_string(),
        port,
    })
}

/// What is decided about a connection.
fn admit(policy: &InboundPolicy, session: &Session<'_>) -> Decision {
    let Session { port, source, opening, .. } = *session;
    match policy.admit(port, source) {
        Ok(()) => policy.authorize(session),
        // If the port lets no client in, a mesh peer gets the reason that keeps mesh peers out.
        Err(denial) => Decision::Deny(match opening {
            Opening::Mesh(_) => policy.open(port, source, opening).err().unwrap_or(denial),
            _ => denial,
        }),
    }
}

/// The rate limits of a mesh peer's connection and of its request.
fn limits(
    policy: &InboundPolicy,
    port: u16,
    protocol: MeshProtocol,
    Query { request, source, .. }: &Query,
) -> Result<Vec<String>, ExplainError> {
    let mut all = Vec::new();
    for limits in policy.ports.get(&port).into_iter().flat_map(|port| &port.rate_limits) {
        let audit = if limits.is_audit { ", audit mode" } else { "" };
        let origin = &limits.origin;
        all.extend(limits.connections.map(|rate| format!("connections: {rate} ({origin}{audit})")));
        let global = limits.global.connections.as_ref();
        all.extend(global.map(|limit| format!("connections: {limit} ({origin}{audit})")));
        if protocol == MeshProtocol::Tcp {
            continue;
        }
        let limit =
            request.limit(limits).map_err(|error| ExplainError::NoPath(request.to_string(), error))?;
        all.extend(limit.map(|limit| {
            let of = if limit.bucket.is_empty() { String::new() } else { format!(" for {:?}", limit.bucket) };
            format!("requests{of}: {} ({origin}{audit})", limit.rate)
        }));
        let global = request
            .global(limits, *source)
            .map_err(|error| ExplainError::NoPath(request.to_string(), error))?;
        all.extend(global.map(|limit| format!("requests{limit} ({origin}{audit})")));
    }
    Ok(all)
}

/// `rule` of an explanation: a namespace and a name without the kind.
fn in_namespace(ObjectRef { namespace, name, .. }: &ObjectRef) -> String {
    format!("{namespace}/{name}")
}

/// A Pod behind the backend at this port, if there is one.
fn workload_behind<'i>(
    index: &'i Index,
    trust_domain: &TrustDomain,
    backend: &ObjectName,
    port: u16,
) -> Option<&'i Pod> {
    let service = backend.to_string();
    let rules = NamespaceRules::new(index, &backend.namespace, trust_domain);
    let stands_behind = |pod: &&Pod| {
        let compiled = compile::workload_by(&rules, pod).ok();
        let port = compiled.as_ref().and_then(|compiled| compiled.policy.ports.get(&port));
        port.is_some_and(|port| port.services.iter().any(|name| **name == *service))
    };
    index.pods_in(&backend.namespace).map(|(_, pod)| &**pod).find(stands_behind)
}

/// What the client would send first. For [`Speaks::Likely`] a server name, a certificate, or a port that admits TLS
/// alone means TLS.
fn opening<'q>(policy: &InboundPolicy, port: u16, query: &'q Query) -> Opening<'q> {
    let tls = Opening::Tls { server_name: query.server_name.as_deref() };
    match query.speaks {
        Speaks::Tls => tls,
        Speaks::Plaintext => Opening::Plaintext,
        Speaks::Mesh if policy.ports.get(&port).is_some_and(|port| port.protocol.is_opaque()) => {
            Opening::Mesh(MeshProtocol::Tcp)
        }
        Speaks::Mesh => Opening::Mesh(MeshProtocol::Http1),
        Speaks::MeshTcp => Opening::Mesh(MeshProtocol::Tcp),
        Speaks::Likely if query.server_name.is_some() || !query.principals.is_empty() => tls,
        Speaks::Likely if is_tls_only(policy, port) => tls,
        Speaks::Likely => Opening::Plaintext,
    }
}

/// Whether every active rule of the port is an `https` one, so that a client in plaintext could only be refused.
fn is_tls_only(policy: &InboundPolicy, port: u16) -> bool {
    let rules = policy.ports.get(&port).into_iter().flat_map(|port| &port.ingress);
    let active = rules.filter_map(|rule| match &rule.state {
        RuleState::Active(active) => Some(&active.transport),
        RuleState::Invalid(_) => None,
    });
    let kinds: BTreeSet<_> =
        active.map(|transport| matches!(transport, IngressTransport::Https { .. })).collect();
    kinds.into_iter().eq([true])
}

/// The names in the client's certificate. A mesh peer's holds both spellings of its identity, so one stands for both.
fn names(domain: &TrustDomain, query: &Query, opening: Opening<'_>) -> Result<Vec<San>, ExplainError> {
    let parse = |text: &String| {
        if text.contains("://") {
            return Ok(San::Uri(text.as_str().into()));
        }
        DnsName::parse(text).map(San::Dns).map_err(|_| ExplainError::NoName(text.clone()))
    };
    let mut names: Vec<_> = query.principals.iter().map(parse).collect::<Result<_, _>>()?;
    let spelled = |san: &San| match san {
        San::Uri(uri) => Identity::from_spiffe_uri(uri).ok(),
        San::Dns(name) => Identity::from_dns_name(name, domain),
        _ => None,
    };
    if let (Opening::Mesh(_), Some(identity)) = (opening, names.iter().find_map(spelled)) {
        let spellings = [
            Some(San::Uri(identity.spiffe_uri().into())),
            DnsName::parse(&identity.dns_name()).ok().map(San::Dns),
        ];
        for spelling in spellings.into_iter().flatten() {
            if !names.contains(&spelling) {
                names.push(spelling);
            }
        }
    }
    Ok(names)
}

/// Whether requests are parsed.
fn is_http(terms: Terms) -> bool {
    !matches!(terms, Terms::Opaque | Terms::BadRequest | Terms::MeshTls(MeshProtocol::Tcp))
}

/// The terms of a permission in words.
fn describe(terms: Terms) -> &'static str {
    match terms {
        Terms::IngressPlaintext => "plaintext HTTP",
        Terms::IngressTls => "TLS, no client certificate asked for",
        Terms::IngressMutualTls => "TLS, client certificate demanded",
        Terms::MeshTls(_) => "TLS between sidecars",
        Terms::BadRequest => "answered with 400 Bad Request",
        Terms::Opaque => "bytes passed on as they are",
    }
}

#[cfg(test)]
mod tests;
