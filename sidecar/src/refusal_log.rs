//! Log lines about connections that are refused or revoked.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tidegate_core::destination::DestinationKey;
use tracing::{debug, info, warn};

use tidegate_core::backend::{ForwardProxy, ProxyRequest};

use crate::connection_info::ConnectionInfo;
use crate::destinations::{EndpointChoice, Unanswered};
use crate::listener::{Direction, Misdirected};
use crate::places::NoPlace;

/// Logs refusals, rate-limited per source.
#[derive(Default)]
pub(crate) struct RefusalLog {
    sources: RefCell<HashMap<IpAddr, LineAllowance>>,
    /// Shared by sources beyond [`MAX_SOURCES`].
    others: LineAllowance,
    /// For lines about the sidecar's own actions.
    own: LineAllowance,
}

/// Rate limit for the lines about one source.
struct LineAllowance {
    /// Lines that may be written now.
    tokens: Cell<u32>,
    refilled: Cell<Instant>,
    suppressed: Cell<u64>,
}

/// Maximum lines in a burst, and the time after which one more is allowed.
const BURST: u32 = 100;
/// With a burst, this bounds the lines of a flood: ten a second.
const LINE_EVERY: Duration = Duration::from_millis(100);

/// Number of sources with a rate limit of their own.
const MAX_SOURCES: usize = 32;

/// The content of one line.
pub(crate) struct RefusalLine<'a> {
    pub(crate) peer: SocketAddr,
    pub(crate) port: u16,
    pub(crate) server_name: Option<&'a str>,
    pub(crate) certificate: Option<&'a str>,
    pub(crate) reason: &'a dyn fmt::Display,
}

impl RefusalLog {
    /// Logs a refused connection that was not redirected here, or was redirected wrongly.
    pub(crate) fn misdirected(&self, peer: SocketAddr, misdirected: &Misdirected) {
        let port = misdirected.dialled().map_or(0, |dialled| dialled.port());
        self.write(&RefusalLine { peer, port, server_name: None, certificate: None, reason: misdirected });
    }

    /// Logs a connection that was refused because no place was free.
    pub(crate) fn full(&self, peer: SocketAddr, direction: Direction, full: &NoPlace) {
        let port = match direction {
            Direction::Inbound(target) => target.port,
            Direction::Outbound(dialled) => dialled.port(),
        };
        self.write(&RefusalLine { peer, port, server_name: None, certificate: None, reason: full });
    }

    /// Logs a connection that ended because there was no room for the rest of a TLS record.
    pub(crate) fn no_room_for_record(&self, info: &ConnectionInfo) {
        let reason = &"there is no room for the rest of its TLS record: too much is unfinished";
        self.write(&RefusalLine::of(info, reason));
    }

    /// Logs an endpoint of the app's destination that cannot be reached. Outside the mesh that is the app's business.
    pub(crate) fn unreachable(&self, dialled: SocketAddr, choice: &EndpointChoice, error: &dyn fmt::Display) {
        let endpoint = choice.endpoint.address;
        if let Some(proxy) = &choice.endpoint.via {
            return self.proxy_failed(dialled, endpoint, proxy, error);
        }
        match choice.service() {
            Some(service) => self.unless_flooded(|| {
                warn!(%dialled, %service, %endpoint, %error, "an endpoint cannot be reached");
            }),
            None => debug!(%dialled, %error, "no endpoint could be reached"),
        }
    }

    /// Logs that a connection or request of the app's cannot leave through a forward proxy.
    pub(crate) fn proxy_failed(
        &self,
        dialled: SocketAddr,
        address: SocketAddr,
        proxy: &ForwardProxy,
        error: &dyn fmt::Display,
    ) {
        let origin = &proxy.settings.origin;
        let target = match &proxy.request {
            ProxyRequest::Tunnel(target) => Some(&**target),
            ProxyRequest::AbsoluteForm => None,
        };
        self.unless_flooded(|| {
            warn!(%dialled, target, proxy = %address, %origin, %error, "a forward proxy does not take a connection further");
        });
    }

    /// Logs a destination of the app's that the controller, or a resource that cannot be used, blocks.
    pub(crate) fn blocked(&self, dialled: SocketAddr, reason: &str) {
        self.unless_flooded(|| warn!(%dialled, %reason, "the destination is blocked"));
    }

    /// Logs a connection or request of the app's to an address that no object has. `host`: the one that it was for.
    pub(crate) fn unregistered(&self, dialled: SocketAddr, host: Option<&str>, reason: &str) {
        self.unless_flooded(
            || warn!(%dialled, host, %reason, "the destination is outside the mesh, and refused"),
        );
    }

    /// Logs an address, or a host at one, about which the controller has not said anything.
    pub(crate) fn unanswered(&self, key: &DestinationKey, reason: Unanswered) {
        let host = key.host.as_ref().map(|host| host.name.as_str());
        let address = key.address;
        match reason {
            Unanswered::TimedOut => self.unless_flooded(|| {
                warn!(%address, host, "{reason}: it counts as an address that no object has");
            }),
            Unanswered::OutOfReach => {
                debug!(%address, host, "{reason}: it counts as an address that no object has");
            }
        }
    }

    /// Logs what policies in audit mode would refuse.
    pub(crate) fn would_refuse(&self, dialled: SocketAddr, host: Option<&str>, reason: &str) {
        self.unless_flooded(
            || warn!(%dialled, host, %reason, "the destination is outside the mesh, and would be refused without audit mode"),
        );
    }

    /// Writes another line that could become frequent, such as that an endpoint is unreachable.
    pub(crate) fn unless_flooded(&self, write: impl FnOnce()) {
        if self.own.may_write(Instant::now()) {
            write();
        }
    }

    /// Logs an admitted connection that the policy no longer admits.
    pub(crate) fn revoked(&self, info: &ConnectionInfo, reason: &dyn fmt::Display) {
        self.write(&RefusalLine::of(info, &format_args!("no longer admitted: {reason}")));
    }

    /// Writes a line, unless there were too many about its source.
    pub(crate) fn write(&self, line: &RefusalLine<'_>) {
        let Some(suppressed) = self.allowed(line.peer.ip().to_canonical(), Instant::now()) else { return };
        info!(
            target: "refused",
            peer = %line.peer,
            port = line.port,
            server_name = line.server_name,
            certificate = line.certificate,
            suppressed = (suppressed > 0).then_some(suppressed),
            reason = %line.reason,
        );
    }

    /// Whether a line about this source may be written, and how many were suppressed since the last one.
    fn allowed(&self, source: IpAddr, now: Instant) -> Option<u64> {
        let mut sources = self.sources.borrow_mut();
        if sources.len() >= MAX_SOURCES && !sources.contains_key(&source) {
            sources.retain(|_, allowance| !allowance.is_whole(now));
        }
        let has_room = sources.len() < MAX_SOURCES;
        let allowance = match sources.entry(source) {
            Entry::Occupied(entry) => &*entry.into_mut(),
            Entry::Vacant(entry) if has_room => &*entry.insert(LineAllowance::new(now)),
            Entry::Vacant(_) => &self.others,
        };
        if allowance.may_write(now) {
            return Some(allowance.suppressed.take());
        }
        allowance.suppressed.set(allowance.suppressed.get() + 1);
        None
    }
}

impl LineAllowance {
    fn new(now: Instant) -> Self {
        Self { tokens: Cell::new(BURST), refilled: Cell::new(now), suppressed: Cell::new(0) }
    }

    /// Whether it equals a new allowance.
    fn is_whole(&self, now: Instant) -> bool {
        self.suppressed.get() == 0 && now.saturating_duration_since(self.refilled.get()) >= LINE_EVERY * BURST
    }

    /// Takes a line out of the allowance; `false` if it is used up.
    fn may_write(&self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.refilled.get()).as_millis() / LINE_EVERY.as_millis();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(BURST);
            self.tokens.set(self.tokens.get().saturating_add(earned).min(BURST));
            self.refilled.set(now);
        }
        let left = self.tokens.get().checked_sub(1);
        self.tokens.set(left.unwrap_or(0));
        left.is_some()
    }
}

impl Default for LineAllowance {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl<'a> RefusalLine<'a> {
    /// A line about a connection whose handshake is done.
    pub(crate) fn of(info: &'a ConnectionInfo, reason: &'a dyn fmt::Display) -> Self {
        Self {
            peer: info.peer,
            port: info.port,
            server_name: info.server_name.as_deref(),
            certificate: info.client.as_ref().map(|client| &*client.names),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_writes_a_burst_and_then_ten_lines_a_second() {
        let (log, start) = (RefusalLog::default(), Instant::now());
        let source = IpAddr::from([10, 0, 0, 1]);
        let written = |at: Instant| (0..10_000).filter(|_| log.allowed(source, at).is_some()).count();
        assert_eq!(written(start), 100);
        assert_eq!(written(start + Duration::from_secs(1)), 10);
        assert_eq!(written(start + Duration::from_secs(3600)), 100);
    }

    #[test]
    fn a_source_that_floods_the_log_keeps_no_line_of_others_out_and_what_it_lost_is_counted() {
        let (log, start) = (RefusalLog::default(), Instant::now());
        let source = |index: u16| IpAddr::from([10, 0, (index >> 8) as u8, index as u8]);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..150).filter(|_| log.allowed(source(0), start).is_some()).count(), 100);
        assert_eq!(log.allowed(source(1), start), Some(0));
        assert_eq!(log.allowed(source(0), later), Some(50));
        // Many sources are remembered for as long as they write; those beyond share one allowance.
        let written = (2..1000).filter(|index| log.allowed(source(*index), start).is_some()).count();
        assert_eq!(written, MAX_SOURCES - 2 + 100);
        assert_eq!(log.sources.borrow().len(), MAX_SOURCES);
        assert_eq!(log.allowed(source(500), start + Duration::from_secs(60)), Some(0));
        assert!(log.sources.borrow().len() < MAX_SOURCES);
    }
}
