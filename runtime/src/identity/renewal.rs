//! Decides when to request a certificate, and how to retry.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use rustls_pki_types::CertificateDer;
use tidegate_core::Identity;
use tokio::sync::watch;
use tracing::{info, warn};

use super::CaOptions;
use super::request::{IssuedCertificate, RequestError, request};
use crate::backoff::ExponentialBackoff;
use crate::chain::{chains_to, leads_to};
use crate::credentials::Credentials;
use crate::metrics::Metrics;
use crate::trust_bundle::TrustBundle;

/// The task that renews the credentials.
pub(super) struct Renewal {
    options: CaOptions,
    expected: Option<Identity>,
    trust_bundle: watch::Receiver<Arc<TrustBundle>>,
    counters: RenewalMetrics,
    sender: Arc<watch::Sender<Option<Arc<Credentials>>>>,
    /// The issuing root because of which a certificate was last renewed early.
    hastened_for: Option<CertificateDer<'static>>,
    pub(super) clock: WallClock,
    pub(super) timing: RenewalTiming,
}

/// The wall clock. Certificates expire by it, so it determines renewal, not the monotonic clock.
pub(super) type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// All configurable durations.
#[derive(Clone, Copy)]
pub(super) struct RenewalTiming {
    /// Maximum sleep between two checks of the wall clock, which may jump meanwhile.
    pub(super) longest_sleep: Duration,
    /// Timeout of a whole attempt: connecting, requesting, answering.
    pub(super) request_timeout: Duration,
    /// The ceiling of the delay after the first failure.
    pub(super) first_retry: Duration,
    /// The maximum ceiling.
    pub(super) slowest_retry: Duration,
    /// Maximum delay of an early renewal, so that a mesh does not renew all at once.
    pub(super) haste: Duration,
}

#[derive(Clone, Default)]
struct RenewalMetrics {
    renewals: Family<[(&'static str, &'static str); 1], Counter>,
    expiry: Gauge,
}

/// When to renew the current certificate.
#[derive(Clone, Copy)]
struct Schedule {
    not_before: SystemTime,
    renew_at: SystemTime,
}

impl Renewal {
    pub(super) fn new(
        options: CaOptions,
        expected: Option<Identity>,
        trust_bundle: watch::Receiver<Arc<TrustBundle>>,
        metrics: &Metrics,
        sender: watch::Sender<Option<Arc<Credentials>>>,
    ) -> Self {
        Self {
            options,
            expected,
            trust_bundle,
            counters: RenewalMetrics::register(metrics),
            sender: Arc::new(sender),
            hastened_for: None,
            clock: Arc::new(SystemTime::now),
            timing: RenewalTiming::default(),
        }
    }

    /// Runs until all receivers are dropped.
    pub(super) async fn run(self) {
        let sender = self.sender.clone();
        let (clock, longest_sleep) = (self.clock.clone(), self.timing.longest_sleep);
        tokio::select! {
            () = sender.closed() => {}
            () = self.renew() => {}
            () = announce_expiry(&sender, &clock, longest_sleep) => {}
        }
    }

    async fn renew(mut self) {
        loop {
            let credentials = Arc::new(self.obtain().await);
            let now = (self.clock)();
            let schedule = Schedule::new(&credentials, now);
            let expiry =
                credentials.leaf.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.counters.expiry.set(i64::try_from(expiry.as_secs()).unwrap_or(i64::MAX));
            info!(
                names = credentials.leaf.display_names(),
                serial = credentials.leaf.serial,
                not_after = %humantime::format_rfc3339_seconds(credentials.leaf.not_after),
                renewal = %humantime::format_rfc3339_seconds(schedule.renew_at),
                "certificate received"
            );
            self.sender.send_replace(Some(credentials.clone()));
            self.wait_until_due(&credentials, schedule).await;
        }
    }

    /// Retries until it succeeds.
    async fn obtain(&mut self) -> Credentials {
        let RenewalTiming { first_retry, slowest_retry, request_timeout, .. } = self.timing;
        let mut backoff = ExponentialBackoff::new(first_retry, slowest_retry);
        loop {
            let bundle = self.trust_bundle.borrow_and_update().clone();
            let answer =
                request(&self.options, self.expected.as_ref(), &bundle, request_timeout, &*self.clock).await;
            match answer {
                Ok(IssuedCertificate { chain, key, leaf }) => {
                    self.counters.count("success");
                    let generation = self.sender.borrow().as_ref().map_or(0, |last| last.generation) + 1;
                    return Credentials { chain, key, leaf, generation };
                }
                Err(error) => {
                    self.counters.count(error.class());
                    let delay = backoff.next_delay();
                    self.complain(&error, delay);
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        // The old bundle may have been the cause of the failures.
                        () = changed(&mut self.trust_bundle) => backoff.reset(),
                    }
                }
            }
        }
    }

    fn complain(&self, error: &RequestError, delay: Duration) {
        let time_left = self.sender.borrow().as_ref().map(|last| last.time_left((self.clock)()));
        match time_left {
            None => warn!(%error, retry_in = ?delay, "no certificate yet"),
            Some(Duration::ZERO) => {
                warn!(%error, retry_in = ?delay, "the certificate has expired and could not be renewed");
            }
            Some(left) => {
                warn!(%error, retry_in = ?delay, valid_for = ?left, "the certificate could not be renewed");
            }
        }
    }

    /// The last step of a rotation waits for certificates that do not chain to the current issuing root, so they are
    /// renewed early. At most once per issuing root, in case a CA issues under another root than the bundle says.
    fn hasten(&mut self, credentials: &Credentials, schedule: &mut Schedule) {
        let (bundle, now) = (self.trust_bundle.borrow().clone(), (self.clock)());
        let issuing = bundle.issuing();
        if self.hastened_for.as_ref() == Some(issuing) || leads_to(&credentials.chain, issuing, now) {
            return;
        }
        self.hastened_for = Some(issuing.clone());
        let soon = now + self.timing.haste.mul_f64(rand::random());
        schedule.renew_at = schedule.renew_at.min(soon);
        info!(
            renewal = %humantime::format_rfc3339_seconds(schedule.renew_at),
            "another root issues certificates now; ours is renewed soon"
        );
    }

    async fn wait_until_due(&mut self, credentials: &Credentials, mut schedule: Schedule) {
        self.hasten(credentials, &mut schedule);
        loop {
            let now = (self.clock)();
            let Some(left) = schedule.time_left(now) else { return };
            tokio::select! {
                () = tokio::time::sleep(left.min(self.timing.longest_sleep)) => {}
                () = changed(&mut self.trust_bundle) => {
                    let bundle = self.trust_bundle.borrow_and_update().clone();
                    if let Err(reason) = chains_to(&credentials.chain, &bundle, (self.clock)()) {
                        info!(%reason, "the trust bundle no longer covers our certificate; renewing it now");
                        return;
                    }
                    self.hasten(credentials, &mut schedule);
                }
            }
        }
    }
}

impl Schedule {
    /// Half of the lifetime left at `now`, plus or minus a tenth, so that processes started together do not renew
    /// together. The time before `now` does not count, because certificates are backdated.
    fn new(credentials: &Credentials, now: SystemTime) -> Self {
        let share = 0.4 + 0.2 * rand::random::<f64>();
        let renew_at = now + credentials.time_left(now).mul_f64(share);
        Self { not_before: credentials.leaf.not_before, renew_at }
    }

    /// `None` when renewal is due, which includes a clock that was set back before the certificate's start.
    fn time_left(&self, now: SystemTime) -> Option<Duration> {
        if now < self.not_before {
            return None;
        }
        self.renew_at.duration_since(now).ok().filter(|left| !left.is_zero())
    }
}

impl RenewalMetrics {
    fn register(metrics: &Metrics) -> Self {
        Self {
            renewals: metrics.register(
                "tidegate_certificate_renewals",
                "Tries to get a certificate from the CA, by result",
            ),
            expiry: metrics.register(
                "tidegate_certificate_expiry_timestamp_seconds",
                "When the current certificate expires, in seconds since 1970; 0 while there is none",
            ),
        }
    }

    fn count(&self, result: &'static str) {
        self.renewals.get_or_create(&[("result", result)]).inc();
    }
}

impl Default for RenewalTiming {
    fn default() -> Self {
        Self {
            longest_sleep: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            first_retry: Duration::from_millis(100),
            slowest_retry: Duration::from_secs(30),
            haste: Duration::from_secs(60),
        }
    }
}

/// Wakes the watchers once when the current credentials expire.
async fn announce_expiry(
    sender: &watch::Sender<Option<Arc<Credentials>>>,
    clock: &WallClock,
    longest_sleep: Duration,
) {
    let mut announced = 0;
    loop {
        let now = clock();
        let current = sender.borrow().as_ref().map(|current| (current.generation, current.time_left(now)));
        let sleep = match current {
            Some((generation, Duration::ZERO)) if generation != announced => {
                announced = generation;
                sender.send_modify(|_| ());
                longest_sleep
            }
            Some((_, left)) if !left.is_zero() => left.min(longest_sleep),
            _ => longest_sleep,
        };
        tokio::time::sleep(sleep).await;
    }
}

/// Returns when the bundle has changed; never, if it can no longer change.
async fn changed(bundle: &mut watch::Receiver<Arc<TrustBundle>>) {
    if bundle.changed().await.is_err() {
        pending::<()>().await;
    }
}
