//! Measures the time from a policy's change to its effect.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidegate_crds::IngressBackend;

use super::node::{self, ConnectionOutcome};
use super::prober::ExpectedAnswers;
use super::results::PolicyChangeFigures;
use super::site::ClusterSite;

/// How long new connections are checked after each change, which is also the pause before the next change.
const AFTERWARDS: Duration = Duration::from_millis(700);

/// What to change back and forth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PolicyChange {
    /// An `http` backend's only source: the client's address, or another one.
    Address,
    /// An `https` backend's only principal: the client's, or another one.
    Principal,
}

/// Changes the policy `count` times, each time after the previous change has settled.
pub(super) fn measure(site: &ClusterSite, change: PolicyChange, count: usize) -> Result<PolicyChangeFigures> {
    let endpoint = site.endpoint(change)?;
    let mut prober = node::probe_connections(site.cluster(), endpoint)?;
    let api = site.policies();
    site.block_on(async {
        apply(&api, change, &site.source(change, true)).await?;
        prober.first(change.outcome(true), Instant::now()).await.context("before the first change")?;
        let mut effects = Vec::new();
        for number in 0..count {
            let is_allowed = number % 2 == 1;
            let source = site.source(change, is_allowed);
            let expected =
                ExpectedAnswers { old: change.outcome(!is_allowed), new: change.outcome(is_allowed) };
            let effect = prober
                .observe(&change.to_string(), expected, apply(&api, change, &source), AFTERWARDS)
                .await
                .with_context(|| format!("change {} of {count}", number + 1))?;
            effects.push(effect);
        }
        // Restore the initial state.
        apply(&api, change, &site.source(change, true)).await?;
        Ok(PolicyChangeFigures {
            change,
            from_return: effects.iter().map(|effect| effect.from_return.as_secs_f64()).collect(),
            from_start: effects.iter().map(|effect| effect.from_start.as_secs_f64()).collect(),
            probes: effects.iter().map(|effect| effect.probes).sum(),
            stale: effects.iter().map(|effect| effect.stale).sum(),
            odd: effects.iter().map(|effect| effect.odd).sum(),
        })
    })
}

/// Sets the policy's only source.
async fn apply(api: &Api<IngressBackend>, change: PolicyChange, source: &Value) -> Result<()> {
    let patch = json!({"spec": {"sources": [source]}});
    api.patch(change.policy(), &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("cannot change the policy {}", change.policy()))?;
    Ok(())
}

impl PolicyChange {
    /// Both kinds.
    pub(crate) const ALL: [Self; 2] = [Self::Address, Self::Principal];

    /// Name of the changed object.
    pub(crate) fn policy(self) -> &'static str {
        match self {
            Self::Address => "by-address",
            Self::Principal => "by-principal",
        }
    }

    /// The expected outcome of a new connection.
    fn outcome(self, is_allowed: bool) -> ConnectionOutcome {
        match (self, is_allowed) {
            (_, true) => ConnectionOutcome::Status(200),
            (Self::Address, false) => ConnectionOutcome::Refused,
            (Self::Principal, false) => ConnectionOutcome::Status(403),
        }
    }
}

impl fmt::Display for PolicyChange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Address => "http source address, 200 ↔ reset",
            Self::Principal => "https principal, 200 ↔ 403",
        })
    }
}
