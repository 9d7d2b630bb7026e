//! The sidecar's own workload, as far as it decides where its connections go.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_core::backend::Locality;
use tidegate_core::{EgressMode, ServiceRetry};

use super::attempt_limits::AttemptLimits;
use super::egress_proxies::ProxyRules;
use super::egress_usages::EgressUsages;
use crate::remotes::Remotes;

/// The workload whose connections are balanced.
#[derive(Clone, Debug)]
pub(super) struct ClientWorkload {
    /// `<namespace>/<name>` of the pod.
    pub(super) workload: Box<str>,
    /// Where it runs; `None`: the controller has not said so.
    pub(super) locality: Option<Locality>,
    /// Names the workloads that it reaches.
    pub(super) remotes: Remotes,
    /// Where its connections to addresses that no object has go.
    pub(super) egress: EgressMode,
    /// What it has open by its egress policies.
    pub(super) egress_usages: EgressUsages,
    /// Through which proxies.
    pub(super) proxies: Arc<ProxyRules>,
    /// How its requests to Services are retried.
    pub(super) retries: CallerRetries,
}

/// How the workload's requests to Services are retried, and their time is limited.
#[derive(Clone, Debug, Default)]
pub(super) struct CallerRetries {
    written: Vec<Arc<ServiceRetry>>,
    /// By Service, `<namespace>/<name>`.
    by_service: HashMap<Arc<str>, Arc<AttemptLimits>>,
}

impl CallerRetries {
    pub(super) fn new(written: &[Arc<ServiceRetry>]) -> Self {
        let limits = |retry: &Arc<ServiceRetry>| (retry.service.clone(), AttemptLimits::of_service(retry));
        Self { by_service: written.iter().map(limits).collect(), written: written.to_vec() }
    }

    /// Whether they are these.
    pub(super) fn are(&self, written: &[Arc<ServiceRetry>]) -> bool {
        self.written == written
    }

    /// Those of requests to a Service, `<namespace>/<name>`.
    pub(super) fn of(&self, service: &str) -> Option<&Arc<AttemptLimits>> {
        self.by_service.get(service)
    }
}

impl Default for ClientWorkload {
    /// Before the controller has said anything, the sidecar lets nothing through.
    fn default() -> Self {
        let egress =
            EgressMode::RegistryOnly(Arc::from("this workload has no policy from the controller yet"));
        let retries = CallerRetries::default();
        Self {
            workload: Box::default(),
            locality: None,
            remotes: Remotes::default(),
            egress,
            egress_usages: EgressUsages::default(),
            retries,
            proxies: Arc::default(),
        }
    }
}
