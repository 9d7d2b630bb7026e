//! Telemetry of the certificate authority: an audit line per certificate and refusal, and metrics.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Instant, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use tidegate_core::Identity;
use tidegate_runtime::drain;
use tidegate_runtime::logging::{LogRate, LogThrottle};
use tidegate_runtime::metrics::Metrics;
use tracing::{info, warn};

use crate::authority::AuthorityState;
use crate::rules::Issued;

/// Log target of audit lines: one for each issued certificate and each refused request. They contain identities, names
/// and serial numbers, never a key or a token.
pub(crate) const AUDIT: &str = "audit";

/// Writes and counts audit lines. Clones share their counters.
#[derive(Clone, Debug)]
pub(crate) struct CaTelemetry {
    issued: Family<PurposeLabel, Counter>,
    refused: Family<RefusalLabel, Counter>,
    root_expiry: Gauge<f64, AtomicU64>,
    issuer_expiry: Gauge<f64, AtomicU64>,
    trusted_roots: Gauge,
    rotation_step: Gauge,
    authority_problem: Gauge,
    /// Limits audit lines of refusals, which any client can cause.
    refusals: Arc<LogThrottle<RefusedSource>>,
}

/// The source by which audit lines are limited: an identity, or an address without one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum RefusedSource {
    Identity(String),
    Address(IpAddr),
    Unknown,
}

/// A certificate's purpose: `workload`, `serving` or `ingress-gateway`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PurposeLabel {
    purpose: &'static str,
}

/// The class of a refusal, such as `rate`: a fixed set of words, so that clients cannot make series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    reason: &'static str,
}

impl CaTelemetry {
    /// Registers the metrics. Called once per process.
    pub(crate) fn register(metrics: &Metrics) -> Arc<Self> {
        Arc::new(Self {
            issued: metrics.register(
                "tidegate_certificates_issued",
                "Certificates issued, by purpose: workload, serving or ingress-gateway",
            ),
            refused: metrics
                .register("tidegate_certificate_requests_refused", "Certificate requests refused, by reason"),
            root_expiry: metrics
                .register("tidegate_root_expiry_timestamp_seconds", "When the issuing root expires"),
            issuer_expiry: metrics.register(
                "tidegate_issuer_expiry_timestamp_seconds",
                "When the first certificate between the issuer and its root expires",
            ),
            trusted_roots: metrics.register("tidegate_trusted_roots", "Roots in the trust bundle"),
            rotation_step: metrics.register(
                "tidegate_root_rotation_step",
                "Steps taken of the current root rotation; 0 without one",
            ),
            authority_problem: metrics.register(
                "tidegate_certificate_authority_problem",
                "1 while the stored or given certificate authority is unusable and the previous one stays in \
                 use",
            ),
            refusals: Arc::new(LogThrottle::new(LogRate::default())),
        })
    }

    /// Updates the gauges of the authority.
    pub(crate) fn authority(&self, state: &AuthorityState, has_problem: bool) {
        self.root_expiry.set(seconds(state.issuer.root_not_after()));
        self.issuer_expiry.set(seconds(state.issuer.not_after()));
        self.trusted_roots.set(i64::try_from(state.trusted().len()).unwrap_or(i64::MAX));
        self.rotation_step.set(i64::from(state.step.number()));
        self.authority_problem.set(i64::from(has_problem));
    }

    /// A workload's certificate.
    pub(crate) fn workload(
        &self,
        identity: &Identity,
        pod: Option<&str>,
        peer: Option<SocketAddr>,
        issued: &Issued,
    ) {
        self.issued.get_or_create(&PurposeLabel { purpose: "workload" }).inc();
        info!(
            target: AUDIT,
            %identity,
            pod = pod.unwrap_or("-"),
            peer = %LoggedPeer(peer),
            serial = %issued.serial,
            sans = %issued.names(),
            not_after = %humantime::format_rfc3339_seconds(issued.not_after),
            "certificate issued"
        );
    }

    /// A certificate that was not requested over the network: our own, or the ingress controller's.
    pub(crate) fn own(&self, purpose: &'static str, issued: &Issued) {
        self.issued.get_or_create(&PurposeLabel { purpose }).inc();
        info!(
            target: AUDIT,
            purpose,
            serial = %issued.serial,
            sans = %issued.names(),
            not_after = %humantime::format_rfc3339_seconds(issued.not_after),
            "certificate issued"
        );
    }

    /// A refused request, with what is known about the caller. Counted always; its audit line may be left out, see
    /// [`CaTelemetry::summarize`].
    pub(crate) fn refused(
        &self,
        identity: Option<&Identity>,
        peer: Option<SocketAddr>,
        kind: &'static str,
        reason: &dyn std::fmt::Display,
    ) {
        self.refused.get_or_create(&RefusalLabel { reason: kind }).inc();
        let source = match (identity, peer) {
            (Some(identity), _) => RefusedSource::Identity(identity.to_string()),
            (None, Some(peer)) => RefusedSource::Address(peer.ip().to_canonical()),
            (None, None) => RefusedSource::Unknown,
        };
        if !self.refusals.admits(&source, Instant::now()) {
            return;
        }
        let identity = identity.map_or_else(|| "unknown".to_owned(), ToString::to_string);
        warn!(target: AUDIT, %identity, peer = %LoggedPeer(peer), kind, %reason, "certificate refused");
    }
}

impl CaTelemetry {
    /// Logs from time to time how many refusals were not logged individually, until the drain starts.
    pub(crate) async fn summarize(self: Arc<Self>, drain: drain::Watch) {
        let say =
            |suppressed| warn!(target: AUDIT, by_source = %suppressed, "more certificates were refused");
        self.refusals.summarize(drain, say).await;
    }
}

impl std::fmt::Display for RefusedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity(identity) => f.write_str(identity),
            Self::Address(address) => address.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// An address in an audit line.
struct LoggedPeer(Option<SocketAddr>);

impl std::fmt::Display for LoggedPeer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}

/// Seconds since 1970, as Prometheus has times.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
