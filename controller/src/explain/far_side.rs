//! What the endpoints of a backend decide about a request that another workload's sidecar sends them.
//!
//! The same question as about any connection, with the client's identity, the port that is dialled and the request as the
//! client's sidecar would send it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use tidegate_core::backend::{Backend, BackendRef, Endpoint};
use tidegate_core::{Identity, ServiceRetry};

use super::{ExplainError, Explanation, HttpRequest, OutboundView, Query, Speaks, ask};
use crate::compile::destination::Resolver;
use crate::compile::retry::service_retry;
use crate::compile::{self, NamespaceRules};
use crate::index::pod_addresses;
use crate::object::ObjectName;
use crate::object::pod::service_account;

/// The decision of endpoints about a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FarSideDecision {
    /// The endpoints that decide so.
    pub endpoints: Vec<String>,
    /// `allow` or `deny`.
    pub decision: &'static str,
    /// Why, in a sentence.
    pub reason: String,
    /// A stable word for the reason of a denial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    /// `<namespace>/<name>` of the object that allows it, or that came closest to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The request as these endpoints get it, if their rules distinguish requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The rate limits that apply to what is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<String>,
    /// The server that also decides about each request, and what its failure means.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorizer: Option<String>,
}

impl FarSideDecision {
    /// Whether the request reaches the app.
    pub fn is_allowed(&self) -> bool {
        self.decision == "allow"
    }

    /// The decision of an endpoint without a sidecar.
    fn outside_the_mesh() -> Self {
        Self {
            endpoints: Vec::new(),
            decision: "allow",
            reason: "it has no sidecar; no rule of the mesh applies there".to_owned(),
            code: None,
            rule: None,
            request: None,
            limits: Vec::new(),
            authorizer: None,
        }
    }

    /// What is shown of an explanation.
    fn of(explanation: Explanation) -> Self {
        let Explanation { decision, reason, code, rule, request, limits, authorizer, .. } = explanation;
        Self { endpoints: Vec::new(), decision, reason, code, rule, request, limits, authorizer }
    }
}

/// Answers for the endpoints that one client's requests go to.
pub(super) struct FarSide<'i> {
    view: OutboundView<'i>,
    resolver: Resolver<'i>,
    client: Identity,
    /// Where the client's connections come from.
    source: IpAddr,
    /// The rules of each namespace that has been looked at.
    rules: RefCell<BTreeMap<Arc<str>, Arc<NamespaceRules<'i>>>>,
}

impl<'i> FarSide<'i> {
    /// For a client's Pod; where no Pod has the name, for the service account with it.
    pub(super) fn new(
        view: OutboundView<'i>,
        resolver: Resolver<'i>,
        caller: &ObjectName,
    ) -> Result<Self, ExplainError> {
        let pod = view.index.pod(caller);
        if pod.is_some_and(|pod| !(view.is_workload)(pod)) {
            return Err(ExplainError::NoSidecar(caller.clone()));
        }
        let account = pod.map_or(&*caller.name, |pod| service_account(pod));
        let client = Identity::new(view.trust_domain.clone(), &caller.namespace, account)
            .map_err(|error| ExplainError::NoIdentity(caller.clone(), error.to_string()))?;
        let source = pod.and_then(|pod| pod_addresses(pod).next());
        let source = source.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Ok(Self { view, resolver, client, source, rules: RefCell::default() })
    }

    /// The name in the client's certificate.
    pub(super) fn client_identity(&self) -> String {
        self.client.to_string()
    }

    /// How the client's requests to a Service are retried, where no rule says so itself.
    pub(super) fn retry(&self, service: &ObjectName) -> Option<Arc<ServiceRetry>> {
        service_retry(self.view.index, &self.client, service)
    }

    /// A backend as sidecars get it.
    pub(super) fn backend(&self, name: &BackendRef) -> Option<Backend> {
        self.resolver.backend(name).value
    }

    /// What the endpoints decide about a request. Those that decide the same are one entry.
    pub(super) fn decisions(
        &self,
        endpoints: &[Endpoint],
        request: &HttpRequest,
    ) -> Result<Vec<FarSideDecision>, ExplainError> {
        let mut decisions: Vec<FarSideDecision> = Vec::new();
        for endpoint in endpoints {
            let decision = self.decision(endpoint, request)?;
            let is_same = |known: &&mut FarSideDecision| {
                FarSideDecision { endpoints: Vec::new(), ..(**known).clone() } == decision
            };
            let address = endpoint.address.to_string();
            match decisions.iter_mut().find(is_same) {
                Some(known) => known.endpoints.push(address),
                None => decisions.push(FarSideDecision { endpoints: vec![address], ..decision }),
            }
        }
        Ok(decisions)
    }

    /// What the sidecar of an endpoint decides about a request.
    fn decision(&self, endpoint: &Endpoint, request: &HttpRequest) -> Result<FarSideDecision, ExplainError> {
        let servers = endpoint.transport.identities();
        if servers.is_empty() {
            return Ok(FarSideDecision::outside_the_mesh());
        }
        let port = endpoint.address.port();
        let is_it = |(name, pod): &(&ObjectName, &Arc<Pod>)| {
            self.resolver.workload(name, pod, port).is_some_and(|identity| servers.contains(&identity))
        };
        let found = self.view.index.pods_at(endpoint.address.ip()).find(is_it);
        // The backend was compiled from the same objects, so the Pod is there.
        let Some((name, pod)) = found else { return Ok(FarSideDecision::outside_the_mesh()) };
        let rules = self.rules(&name.namespace);
        let policy = compile::workload_by(&rules, pod)
            .map_err(|error| ExplainError::NoIdentity(name.clone(), error.to_string()))?
            .policy;
        let query = Query {
            backend: name.clone(),
            port: Some(port),
            source: self.source,
            server_name: None,
            principals: vec![self.client.spiffe_uri()],
            speaks: Speaks::Mesh,
            request: request.clone(),
        };
        let explanation = ask(&policy, port, &query)?;
        Ok(FarSideDecision::of(match (self.view.missing_policy)(name) {
            Some(error) => explanation.without_policy(&error),
            None => explanation,
        }))
    }

    /// The rules of a namespace, compiled once.
    fn rules(&self, namespace: &Arc<str>) -> Arc<NamespaceRules<'i>> {
        let compile = || {
            let OutboundView { index, trust_domain, .. } = self.view;
            Arc::new(NamespaceRules::new(index, namespace, trust_domain))
        };
        self.rules.borrow_mut().entry(namespace.clone()).or_insert_with(compile).clone()
    }
}
