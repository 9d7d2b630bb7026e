//! Measures how soon a changed HTTPRoute takes effect among many, and what they cost the sidecar that uses them.
//!
//! - [`RouteBench`] takes the measurements, one number of routes after another. Start reading here.
//! - [`site`] is the namespaces with their objects, [`calls`] makes requests from the client's network.

mod calls;
mod site;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::calls::LoadedSidecar;
use self::site::{AnsweringBackend, RouteSite};
use super::changes::{self, PolicyChange};
use super::prober::{ChangeEffect, ExpectedAnswers, Prober};
use super::results::{Figures, PolicyChangeFigures, RouteChangeFigures, RouteFigures};
use super::site::ClusterSite;
use crate::process::usage;

/// How long requests are checked after each change, which is also the pause before the next one.
const AFTERWARDS: Duration = Duration::from_millis(250);
/// Interval between changes of a route that the client does not use.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// Flags of the measurements with routes.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RouteOptions {
    /// Numbers of HTTPRoutes that one sidecar uses, ascending; 0 skips this.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,5000")]
    pub(super) routes: Vec<usize>,
    /// Changes of a route at each number of routes, once without and once with load.
    #[arg(long, default_value_t = 100)]
    pub(super) route_changes: usize,
    /// Requests a second of the load.
    #[arg(long, default_value_t = 500)]
    pub(super) route_rate: u32,
    /// For how long a route that the client does not use changes every second, in seconds.
    #[arg(long, default_value_t = 30)]
    pub(super) route_seconds: u64,
}

/// The measurements with routes, which share their namespaces.
pub(super) struct RouteBench {
    options: RouteOptions,
    /// Changes of each policy under load.
    policy_changes: usize,
    site: RouteSite,
}

impl RouteOptions {
    /// Whether there is nothing to measure.
    pub(super) fn is_off(&self) -> bool {
        self.routes.iter().all(|count| *count == 0)
    }
}

impl RouteBench {
    /// Prepares the first namespace, still without routes.
    pub(super) fn start(
        cluster: &ClusterSite,
        options: &RouteOptions,
        policy_changes: usize,
    ) -> Result<Self> {
        Ok(Self { options: options.clone(), policy_changes, site: RouteSite::start(cluster)? })
    }

    /// Adds routes up to this number, has the client use all of them, and measures.
    pub(super) fn measure(&mut self, cluster: &ClusterSite, count: usize) -> Result<RouteFigures> {
        self.site.grow_to(cluster, count)?;
        let services = self.site.services().to_vec();
        let network = || self.site.client_network();
        let first = services.first().copied().context("no Service")?;
        let started = Instant::now();
        cluster.block_on(async {
            let called = calls::call_all(network(), services.clone())?;
            called.await.context("the client's thread has ended")?
        })?;
        eprintln!("         each of {count} routes was used after {:.0} s", started.elapsed().as_secs_f64());

        let mut prober = calls::probe(network(), first)?;
        let quiet = cluster.block_on(self.changes(&mut prober)).context("without load")?;
        let load = LoadedSidecar::start(network(), services.clone(), self.options.route_rate)?;
        let loaded = cluster.block_on(self.changes(&mut prober)).context("under load")?;
        drop(prober);
        let policies = self.policy_changes_among_routes(cluster).context("policies under load")?;
        let load = cluster.block_on(load.stop())?;

        let sidecar = self.site.client_sidecar(cluster)?;
        let memory = usage::memory(sidecar)?;
        let cpu = cluster.block_on(self.cpu_of_changes_elsewhere(sidecar))?;
        Ok(RouteFigures {
            routes: count,
            services: services.len(),
            quiet,
            loaded,
            policies,
            load,
            sidecar_kib: memory.resident_kib as f64,
            sidecar_proportional_kib: memory.proportional_kib as f64,
            cpu_of_changes_elsewhere: cpu,
        })
    }

    /// Removes the namespaces.
    pub(super) fn end(self, cluster: &ClusterSite) {
        self.site.end(cluster);
    }

    /// Changes the first route back and forth.
    async fn changes(&self, prober: &mut Prober<RouteAnswer>) -> Result<RouteChangeFigures> {
        prober
            .first(RouteAnswer::From(AnsweringBackend::First), Instant::now())
            .await
            .context("before the changes")?;
        let mut effects = Vec::new();
        for number in 0..self.options.route_changes {
            let [old, new] = match number % 2 {
                0 => [AnsweringBackend::First, AnsweringBackend::Second],
                _ => [AnsweringBackend::Second, AnsweringBackend::First],
            };
            let expected = ExpectedAnswers { old: RouteAnswer::From(old), new: RouteAnswer::From(new) };
            let change = self.site.lead(site::CHANGED, new);
            let effect = prober.observe("route", expected, change, AFTERWARDS).await;
            effects.push(effect.with_context(|| format!("change {} of a route", number + 1))?);
        }
        self.site.lead(site::CHANGED, AnsweringBackend::First).await?;
        prober
            .first(RouteAnswer::From(AnsweringBackend::First), Instant::now())
            .await
            .context("after the changes")?;
        Ok(RouteChangeFigures::of(&effects))
    }

    /// Changes each policy back and forth.
    fn policy_changes_among_routes(
        &self,
        cluster: &ClusterSite,
    ) -> Result<Vec<(PolicyChange, RouteChangeFigures)>> {
        let measure = |change| {
            let measured = changes::measure(cluster, change, self.policy_changes)?;
            Ok((change, RouteChangeFigures::of_policy(measured)))
        };
        PolicyChange::ALL.into_iter().map(measure).collect()
    }

    /// The share of a core that this sidecar uses while a route of a Service that it does not use changes every second.
    async fn cpu_of_changes_elsewhere(&self, sidecar: u32) -> Result<f64> {
        let mut due = tokio::time::interval(ELSEWHERE);
        let (began, before) = (Instant::now(), usage::cpu_seconds(&[sidecar])?);
        for number in 0..self.options.route_seconds {
            due.tick().await;
            let backend = if number % 2 == 0 { AnsweringBackend::Second } else { AnsweringBackend::First };
            self.site.lead(site::ELSEWHERE, backend).await?;
        }
        due.tick().await;
        let used = usage::cpu_seconds(&[sidecar])? - before;
        Ok(used / began.elapsed().as_secs_f64().max(f64::MIN_POSITIVE))
    }
}

/// Where a request was led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteAnswer {
    /// To a Pod of this backend.
    From(AnsweringBackend),
    /// Answered with another status than 200.
    Status(u16),
    /// Answered by something else with status 200.
    Other,
    /// Not answered: the connection was closed or could not be opened.
    Closed,
    /// Not answered in time.
    Silence,
}

impl RouteChangeFigures {
    /// The figures of these changes.
    fn of(effects: &[ChangeEffect]) -> Self {
        Self {
            from_return: effects.iter().map(|effect| effect.from_return.as_secs_f64()).collect::<Figures>(),
            from_start: effects.iter().map(|effect| effect.from_start.as_secs_f64()).collect(),
            probes: effects.iter().map(|effect| effect.probes).sum(),
            wrong: effects.iter().map(|effect| effect.stale + effect.odd + effect.odd_before).sum(),
        }
    }

    /// The figures of a policy.
    fn of_policy(measured: PolicyChangeFigures) -> Self {
        let PolicyChangeFigures { from_return, from_start, probes, stale, odd, .. } = measured;
        Self { from_return, from_start, probes, wrong: stale + odd }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: RouteOptions,
    }

    #[test]
    fn routes_are_measured_unless_their_number_is_0() {
        let options = |arguments: &[&str]| {
            let arguments = ["cluster"].iter().chain(arguments);
            Arguments::try_parse_from(arguments).unwrap().options
        };
        assert_eq!(options(&[]).routes, [10, 1000, 5000]);
        assert!(!options(&[]).is_off() && options(&["--routes", "0"]).is_off());
    }

    #[test]
    fn every_answer_of_neither_backend_and_every_late_one_of_the_old_is_wrong() {
        let effect = |millis, stale, odd, odd_before| ChangeEffect {
            from_return: Duration::from_millis(millis),
            from_start: Duration::from_millis(millis + 5),
            probes: 80,
            stale,
            odd,
            odd_before,
        };
        let figures = RouteChangeFigures::of(&[effect(4, 0, 0, 0), effect(8, 1, 2, 3)]);
        assert_eq!((figures.probes, figures.wrong), (160, 6));
        assert_eq!((figures.from_return.max(), figures.from_start.min()), (Some(0.008), Some(0.009)));
    }
}
