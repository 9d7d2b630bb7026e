//! Compares each attack with its bounds.

use std::fmt;
use std::time::Duration;

use crate::cost::Spent;
use crate::sent::AttackSent;
use crate::victim::TimeSpan;

/// The limit of the healthy client's 99th percentile, relative to that beside an innocuous load that keeps the daemon
/// as busy.
const MOST_DELAY: f64 = 2.0;
/// A percentile below this is always acceptable: two turns of the scheduler.
const UNNOTICED: Duration = Duration::from_millis(10);
/// Memory that each byte from the attacker may cost.
const MOST_MEMORY: f64 = 10.0;
/// Memory that a connection held by the attacker may cost, whatever it has sent: one TLS record (RFC 8446 §5.1), which
/// any TLS library must buffer.
const MEMORY_OF_CONNECTION: u64 = 16 << 10;
/// Memory that a stream may cost: one buffer for the head of its request to the app, of a page like nginx's
/// `proxy_buffer_size`.
const MEMORY_OF_STREAM: u64 = 4 << 10;
/// How much an allocator's memory varies from one second to the next without an attack.
const NOISE: u64 = 4 << 20;
/// Bytes of log that each byte from the attacker may cost, beyond [`LOG_NOISE`].
const MOST_LOG: f64 = 1.0;
/// Bytes of log that each request from the attacker may cost: one line of the access log.
const LOG_OF_REQUEST: u64 = 1 << 10;
/// Bytes of log within the limit of lines per second.
const LOG_NOISE: u64 = 256 << 10;

/// The criteria, for the program's help.
pub(crate) const JUDGEMENT: &str = "\
How it is judged:

The mesh has one processor; attacker, healthy client and apps share another, where the attacker and the apps that serve it \
get what the others leave. Each target has its own healthy client: an ingress controller, kubelet, a client of the CA, a second sidecar, an \
API server. It must lose no request. Its 99th percentile must stay below twice its value while more such clients, instead \
of the attacker, keep the daemon as busy as the attack did (\"busy\"); \"idle\" is the value before. Less than 10 ms, two \
turns of the scheduler, is always acceptable. A result that is late is repeated twice, and the median of the three counts: \
the machine has pauses of its own.

Peak memory may grow by 10 bytes for each byte from the attacker, by 16 KiB (one TLS record) for each connection that it \
holds, by 4 KiB (one buffer for a head) for each stream that it holds, and by 4 MiB of an allocator's noise. The log may \
grow by a byte for each byte from the attacker, by 1 KiB (one line of the access log) for each of its requests, and by \
256 KiB; lines of the healthy client's requests, as measured before, are not counted. CPU time is reported.";

/// The result of every attack.
#[derive(Default)]
pub(crate) struct HostileReport(pub(crate) Vec<AttackFinding>);

/// The result of one attack.
pub(crate) struct AttackFinding {
    pub(crate) attack: &'static str,
    /// The healthy client before the attack, ...
    pub(crate) idle: TimeSpan,
    /// ... and bytes of the log meanwhile, ...
    pub(crate) idle_log: u64,
    /// ... beside the innocuous load, ...
    pub(crate) busy: TimeSpan,
    /// ... and beside the attack.
    pub(crate) during: TimeSpan,
    pub(crate) cost: Spent,
    pub(crate) sent: AttackSent,
}

impl HostileReport {
    pub(crate) fn is_well(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|finding| finding.faults().is_empty())
    }
}

impl AttackFinding {
    /// Whether the healthy client had to wait for the attack.
    pub(crate) fn is_late(&self) -> bool {
        let allowed = MOST_DELAY * self.busy.p99.as_secs_f64();
        self.during.p99.as_secs_f64() >= allowed && self.during.p99 >= UNNOTICED
    }

    /// Each failed criterion, in a few words.
    fn faults(&self) -> Vec<&'static str> {
        let Self { during, cost, sent, .. } = self;
        let lines = sent.requests * LOG_OF_REQUEST;
        let most_log = sent.bytes as f64 * MOST_LOG + (lines + LOG_NOISE) as f64;
        let faults = [
            (during.requests == 0 || during.failed > 0, "lost"),
            (self.is_late(), "late"),
            (cost.memory as f64 > self.most_memory(), "memory"),
            (self.log() as f64 > most_log, "log"),
        ];
        faults.into_iter().filter(|(is_fault, _)| *is_fault).map(|(_, word)| word).collect()
    }

    /// Bytes of log because of the attack: without those of the healthy client's requests.
    fn log(&self) -> u64 {
        let (before, during) = (self.idle.requests.max(1) as u64, self.during.requests as u64);
        self.cost.log.saturating_sub(self.idle_log * during / before)
    }

    fn most_memory(&self) -> f64 {
        let AttackSent { bytes, connections, streams, .. } = self.sent;
        let held = connections * MEMORY_OF_CONNECTION + streams * MEMORY_OF_STREAM + NOISE;
        bytes as f64 * MOST_MEMORY + held as f64
    }
}

impl fmt::Display for HostileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| attack | healthy client: p99 idle, busy → attacked (ms) | failed of requests | sent (MB) | \
             held: connections, streams | memory of allowed (MB) | processor (s) | processor per MB (ms) | log (kB) | |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|---|"
        )?;
        for finding in &self.0 {
            let AttackFinding { attack, idle, busy, during, cost, sent, .. } = finding;
            let ms = |span: &TimeSpan| span.p99.as_secs_f64() * 1000.0;
            let (sent_mb, memory_mb) = (sent.bytes as f64 / 1e6, cost.memory as f64 / 1e6);
            let processor = cost.processor.as_secs_f64();
            let faults = finding.faults();
            writeln!(
                f,
                "| {attack} | {:.1}, {:.1} → {:.1} | {} of {} | {sent_mb:.2} | {}, {} | {memory_mb:.1} of {:.1} | \
                 {processor:.1} | {:.0} | {} | {} |",
                ms(idle),
                ms(busy),
                ms(during),
                during.failed,
                during.requests,
                sent.connections,
                sent.streams,
                finding.most_memory() / 1e6,
                processor * 1000.0 / sent_mb.max(1e-3),
                finding.log() / 1000,
                if faults.is_empty() {
                    String::new()
                } else {
                    format!("**not well: {}**", faults.join(", "))
                }
            )?;
        }
        writeln!(f, "\n{}", if self.is_well() { "All is well." } else { "Not well." })
    }
}

#[cfg(test)]
mod tests;
