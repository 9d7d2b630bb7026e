//! Leader election with a Lease: selects the replica that performs singleton tasks.
//!
//! A replica leads while it renews the Lease. Others take it over once it has not changed for its whole duration *by
//! their own observation and clock*: the times in the Lease are never compared with local time, so clocks may differ. A
//! replica that cannot renew stops leading before any other may start. `coordination.k8s.io/v1`, wire-compatible with
//! client-go's election: <https://kubernetes.io/docs/concepts/architecture/leases/>.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// The Lease, and this replica's identity.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// The Lease's namespace.
    pub namespace: String,
    /// The Lease's name.
    pub name: String,
    /// Distinguishes this replica from the others: the pod's name.
    pub holder: String,
    /// Timing of the election.
    pub timing: LeaseTiming,
}

/// Timing of a Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTiming {
    /// How long a Lease must be unchanged before another replica may take it. Whole seconds.
    pub duration: Duration,
    /// How long after its last renewal a leader still leads; shorter than `duration`, so that there are never two
    /// leaders.
    pub deadline: Duration,
    /// Interval of renewals, and of the checks by waiting replicas.
    pub interval: Duration,
}

/// A participant in the election.
#[derive(Debug)]
pub struct Elector {
    leases: Api<Lease>,
    config: LeaseConfig,
    is_leader: watch::Sender<bool>,
    /// The Lease as last seen, and since when it has been unchanged.
    seen: Option<(LeaseSpec, Instant)>,
    /// When the last successful renewal was started.
    renewed: Option<Instant>,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            interval: Duration::from_secs(2),
        }
    }
}

impl Elector {
    /// A replica that does not lead yet; call [`Elector::run`] to participate.
    pub fn new(client: Client, config: LeaseConfig) -> Self {
        let leases = Api::namespaced(client, &config.namespace);
        Self { leases, config, is_leader: watch::Sender::new(false), seen: None, renewed: None }
    }

    /// Whether this replica leads. Only work that was started while it is true may continue, and it must finish soon:
    /// another replica may lead `duration - deadline` after it has become false.
    pub fn is_leader(&self) -> watch::Receiver<bool> {
        self.is_leader.subscribe()
    }

    /// Participates until `stop`, then releases the Lease so that another replica need not wait.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                () = &mut stop => break,
                () = self.turn() => {}
            }
        }
        let was_leader = self.is_leader.send_replace(false);
        if was_leader {
            match timeout(self.config.timing.interval, self.release()).await {
                Ok(Ok(())) => info!(lease = self.config.name, "lease given back"),
                Ok(Err(error)) => warn!(lease = self.config.name, %error, "lease not given back"),
                Err(_) => warn!(lease = self.config.name, "lease not given back in time"),
            }
        }
    }

    /// One attempt and the pause after it.
    async fn turn(&mut self) {
        let timing = self.config.timing;
        let begun = Instant::now();
        // A leader must know before its deadline that it could not renew.
        let patience = match self.renewed {
            Some(renewed) => (renewed + timing.deadline).saturating_duration_since(begun),
            None => timing.deadline,
        };
        match timeout(patience, self.try_hold()).await {
            Ok(Ok(true)) => {
                self.renewed = Some(begun);
                self.lead(true);
            }
            Ok(Ok(false)) => {
                self.renewed = None;
                self.lead(false);
            }
            Ok(Err(error)) => {
                warn!(lease = self.config.name, %error, "lease cannot be renewed or taken");
                self.give_up_at_deadline();
            }
            Err(_) => self.give_up_at_deadline(),
        }
        let mut pause = timing.interval.mul_f64(rand::random_range(0.8..1.2));
        if let Some(renewed) = self.renewed {
            pause = pause.min((renewed + timing.deadline).saturating_duration_since(Instant::now()));
        }
        sleep(pause).await;
        self.give_up_at_deadline();
    }

    /// Stops leading once the last renewal is older than the deadline, whether or not the API server answers.
    fn give_up_at_deadline(&mut self) {
        let is_over = |renewed: Instant| renewed.elapsed() >= self.config.timing.deadline;
        if self.renewed.is_some_and(is_over) {
            self.renewed = None;
            self.lead(false);
        }
    }

    /// Publishes whether this replica leads, and logs a change.
    fn lead(&self, leads: bool) {
        let is_news = self.is_leader.send_if_modified(|current| std::mem::replace(current, leads) != leads);
        match (is_news, leads) {
            (true, true) => info!(lease = self.config.name, holder = self.config.holder, "leading"),
            (true, false) => info!(lease = self.config.name, holder = self.config.holder, "leading no more"),
            _ => {}
        }
    }

    /// Whether this replica now holds the Lease. On a concurrent write the API server refuses ours.
    async fn try_hold(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.leases.get_opt(&self.config.name).await? else {
            let metadata = ObjectMeta { name: Some(self.config.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.held_spec(None)) };
            return match self.leases.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(error) if is_conflict(&error) => Ok(false),
                Err(error) => Err(error),
            };
        };
        let spec = lease.spec.take().unwrap_or_default();
        if !self.may_take(&spec) {
            return Ok(false);
        }
        lease.spec = Some(self.held_spec(Some(&spec)));
        match self.leases.replace(&self.config.name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the Lease is ours, free, or unchanged for its duration.
    fn may_take(&mut self, spec: &LeaseSpec) -> bool {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.config.holder {
            return true;
        }
        match &self.seen {
            Some((seen, since)) if seen == spec => {
                let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                since.elapsed() >= seconds.map_or(self.config.timing.duration, Duration::from_secs)
            }
            _ => {
                self.seen = Some((spec.clone(), Instant::now()));
                false
            }
        }
    }

    /// The spec of a Lease that this replica holds from now on. As in client-go, a renewal keeps `acquireTime`, and a
    /// take-over counts a transition.
    fn held_spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let is_ours = before.is_some_and(|spec| spec.holder_identity.as_ref() == Some(&self.config.holder));
        let acquired = before.filter(|_| is_ours).and_then(|spec| spec.acquire_time.clone());
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.config.holder.clone()),
            lease_duration_seconds: i32::try_from(self.config.timing.duration.as_secs()).ok(),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if is_ours || before.is_none() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    /// Clears the holder, as client-go's `ReleaseOnCancel` does, unless another replica has taken the Lease since.
    async fn release(&self) -> kube::Result<()> {
        let Some(mut lease) = self.leases.get_opt(&self.config.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_ref() != Some(&self.config.holder) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        self.leases.replace(&self.config.name, &PostParams::default(), &lease).await.map(drop)
    }
}

/// Another replica was faster: it has created the Lease, or changed it since it was read.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

#[cfg(test)]
mod tests;
