//! Connections that are not let in: what their clients see, and what is told about them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use rustls::Error as TlsError;
use tidegate_core::certificate::CertificateError;
use tidegate_core::policy::{Decision, Denial, Reason, Terms};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tracing::info;

use super::Story;
use crate::detect::{ClientHello, Malformed};
use crate::http::clock::Clock;
use crate::lifeline::{Lifeline, Wait};
use crate::listener::Way;
use crate::places::Full;
use crate::redirected::Misdirected;
use crate::session::ConnectionInfo;
use crate::telemetry::{Record, ResponseFlag};
use crate::tls::stream::HandshakeFailure;
use crate::tls::{Presented, take_refused};

/// How long a client has to take note of what it was told.
const LINGER: Duration = Duration::from_secs(1);

/// And the most bytes that are read meanwhile, only to be thrown away.
const LINGER_BYTES: usize = 64 * 1024;

/// Why a connection is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// By the policy.
    Denied(Denial),
    /// The first bytes begin as TLS and are none that may go on.
    Malformed(Malformed),
    /// There is no certificate yet.
    NotReady,
    /// The client's newest TLS version, such as 0x0302, is one that is not spoken any more.
    OldVersion(u16),
    /// The client certificate is not good.
    Certificate(Presented),
    /// The handshake came to nothing for another reason.
    Handshake(HandshakeFailure),
}

/// Tells of refusals, but not more of each source than a log can bear.
#[derive(Default)]
pub(crate) struct RefusalLog {
    sources: RefCell<HashMap<IpAddr, Allowance>>,
    /// Of sources beyond [`MOST_SOURCES`], together.
    others: Allowance,
    /// Of what the sidecar does itself.
    own: Allowance,
}

/// The lines that may be written about one source.
struct Allowance {
    /// Lines that may still be written in this moment.
    tokens: Cell<u32>,
    refilled: Cell<Instant>,
    suppressed: Cell<u64>,
}

/// Lines in a burst, and how long it takes to earn another.
const BURST: u32 = 100;
const LINE_EVERY: Duration = Duration::from_millis(100);

/// Sources that have an allowance of their own.
const MOST_SOURCES: usize = 32;

/// What one line says.
struct Line<'a> {
    peer: SocketAddr,
    port: u16,
    server_name: Option<&'a str>,
    certificate: Option<&'a str>,
    reason: &'a dyn fmt::Display,
}

/// Answers TLS at a port that speaks plaintext HTTP.
pub(super) async fn bad_request(mut io: TcpStream, line: &Lifeline, clock: &Clock) {
    let mut answer = Vec::with_capacity(160);
    answer.extend_from_slice(
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 11\r\ncontent-type: text/plain\r\ndate: ",
    );
    answer.extend_from_slice(&clock.date());
    answer.extend_from_slice(b"\r\nconnection: close\r\n\r\nBad Request");
    line.within(LINGER, Wait::Idle);
    if matches!(line.guard(io.write_all(&answer)).await, Ok(Ok(()))) {
        linger(io, line).await;
    }
}

/// Tells a client that its TLS is too old (RFC 8446 §6.2: protocol_version). rustls finds fault with other things in
/// the hello of such a client first.
pub(super) async fn alert_protocol_version(mut io: TcpStream, line: &Lifeline) {
    line.within(LINGER, Wait::Idle);
    if matches!(line.guard(io.write_all(&[0x15, 3, 1, 0, 2, 2, 70])).await, Ok(Ok(()))) {
        linger(io, line).await;
    }
}

/// Closes a connection whose client is still to read what was sent: what it sends meanwhile must not turn the end
/// into a RST, which would take the last word with it.
pub(super) async fn linger(mut io: TcpStream, line: &Lifeline) {
    line.within(LINGER, Wait::Idle);
    let _ = line
        .guard(async {
            io.shutdown().await?;
            let mut rest = (&mut io).take(LINGER_BYTES as u64);
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await
        })
        .await;
}

impl Refusal {
    pub(super) fn handshake(cause: HandshakeFailure) -> Self {
        match (take_refused(), cause) {
            (Some(presented), HandshakeFailure::Tls(TlsError::InvalidCertificate(_))) => {
                Self::Certificate(presented)
            }
            (_, HandshakeFailure::Tls(TlsError::NoCertificatesPresented)) => {
                Self::Denied(Denial::new(Reason::ClientCertificateRequired))
            }
            (_, cause) => Self::Handshake(cause),
        }
    }

    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(denial) => flag(denial),
            Self::Handshake(HandshakeFailure::NoRoom) => ResponseFlag::Overload,
            Self::Malformed(_) | Self::OldVersion(_) | Self::Handshake(_) => {
                ResponseFlag::DownstreamProtocolError
            }
            Self::NotReady => ResponseFlag::NoRoute,
            Self::Certificate(_) => ResponseFlag::Refused,
        }
    }

    /// A stable word for logs.
    fn details(&self) -> &'static str {
        match self {
            Self::Denied(denial) => denial.reason.code(),
            Self::Malformed(_) => "malformed_client_hello",
            Self::NotReady => "no_certificate",
            Self::OldVersion(_) => "tls_version",
            Self::Certificate(_) => "client_certificate_refused",
            Self::Handshake(HandshakeFailure::NoRoom) => "overload{unfinished_handshakes}",
            Self::Handshake(_) => "tls_handshake_failed",
        }
    }
}

impl RefusalLog {
    /// A connection was refused of which little is known.
    pub(super) fn refused(&self, story: &Story<'_>, hello: Option<&ClientHello>, refusal: &Refusal) {
        let listen = story.route.listen;
        let server_name = hello.and_then(|hello| hello.server_name.as_ref()).map(|name| name.as_str());
        let certificate = match refusal {
            Refusal::Certificate(presented) => Some(presented.names.as_str()),
            _ => None,
        };
        self.write(&Line {
            peer: story.route.peer,
            port: listen.port,
            server_name,
            certificate,
            reason: refusal,
        });
        let info = ConnectionInfo {
            peer: story.route.peer,
            local: listen.address,
            port: listen.port,
            app: listen.app,
            terms: Terms::Opaque,
            tls: false,
            server_name: server_name.map(Into::into),
            client: None,
            identity: Default::default(),
            accepted: story.accepted,
        };
        let decision = match refusal {
            Refusal::Denied(denial) => Some(Decision::Deny(denial.clone())),
            _ => None,
        };
        self.record(story, &info, decision.as_ref(), refusal.flag(), refusal.details());
    }

    /// A connection was refused that nobody redirected here, or that was redirected wrongly.
    pub(crate) fn misdirected(&self, peer: SocketAddr, misdirected: &Misdirected) {
        let port = misdirected.dialled().map_or(0, |dialled| dialled.port());
        self.write(&Line { peer, port, server_name: None, certificate: None, reason: misdirected });
    }

    /// A connection was refused for which there was no place.
    pub(crate) fn full(&self, peer: SocketAddr, way: Way, full: &Full) {
        let port = match way {
            Way::Inbound(listen) => listen.port,
            Way::Outbound(dialled) => dialled.port(),
        };
        self.write(&Line { peer, port, server_name: None, certificate: None, reason: full });
    }

    /// A connection has ended because there was no room for the rest of a TLS record.
    pub(crate) fn no_room_for_record(&self, info: &ConnectionInfo) {
        let reason = &"there is no room for the rest of its TLS record: too much is unfinished";
        self.write(&Line::of(info, reason));
    }

    /// Says something else that could become too much, such as that an endpoint cannot be reached.
    pub(crate) fn unless_flooded(&self, say: impl FnOnce()) {
        if self.own.may_write(Instant::now()) {
            say();
        }
    }

    /// A connection was refused once all of it was known.
    pub(super) fn refused_connection(&self, story: &Story<'_>, info: &ConnectionInfo, denial: &Denial) {
        self.write(&Line::of(info, denial));
        let decision = Decision::Deny(denial.clone());
        self.record(story, info, Some(&decision), flag(denial), denial.reason.code());
    }

    /// A connection that was let in is no longer.
    pub(crate) fn revoked(&self, info: &ConnectionInfo, reason: &dyn fmt::Display) {
        self.write(&Line::of(info, &format_args!("no longer let in: {reason}")));
    }

    fn record(
        &self,
        story: &Story<'_>,
        connection: &ConnectionInfo,
        decision: Option<&Decision>,
        flag: ResponseFlag,
        details: &str,
    ) {
        story.worker.env.telemetry.record(&Record {
            connection: Some(connection),
            decision,
            start: Some(story.accepted),
            duration: SystemTime::now().duration_since(story.accepted).unwrap_or_default(),
            flag,
            details,
            ..Record::default()
        });
    }

    fn write(&self, line: &Line<'_>) {
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

    /// Whether a line about this source may be written, and how many were not since the last one.
    fn allowed(&self, source: IpAddr, now: Instant) -> Option<u64> {
        let mut sources = self.sources.borrow_mut();
        if sources.len() >= MOST_SOURCES && !sources.contains_key(&source) {
            sources.retain(|_, allowance| !allowance.is_whole(now));
        }
        let has_room = sources.len() < MOST_SOURCES;
        let allowance = match sources.entry(source) {
            Entry::Occupied(entry) => &*entry.into_mut(),
            Entry::Vacant(entry) if has_room => &*entry.insert(Allowance::new(now)),
            Entry::Vacant(_) => &self.others,
        };
        match allowance.may_write(now) {
            true => Some(allowance.suppressed.take()),
            false => {
                allowance.suppressed.set(allowance.suppressed.get() + 1);
                None
            }
        }
    }
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self { tokens: Cell::new(BURST), refilled: Cell::new(now), suppressed: Cell::new(0) }
    }

    /// Whether nothing sets it apart from a new one.
    fn is_whole(&self, now: Instant) -> bool {
        self.suppressed.get() == 0 && now.saturating_duration_since(self.refilled.get()) >= LINE_EVERY * BURST
    }

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

impl Default for Allowance {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl<'a> Line<'a> {
    fn of(info: &'a ConnectionInfo, reason: &'a dyn fmt::Display) -> Self {
        Self {
            peer: info.peer,
            port: info.port,
            server_name: info.server_name.as_deref(),
            certificate: info.client.as_ref().map(|client| &*client.names),
            reason,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(denial) => denial.fmt(f),
            Self::Malformed(malformed) => malformed.fmt(f),
            Self::NotReady => f.write_str("the sidecar has no certificate yet"),
            Self::OldVersion(version) => write!(f, "TLS version {version:#06x} is older than TLS 1.2"),
            Self::Certificate(presented) => write!(f, "client certificate: {}", presented.reason),
            Self::Handshake(failure) => write!(f, "TLS handshake: {failure}"),
        }
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        Self::Handshake(error.into())
    }
}

impl From<HandshakeFailure> for Refusal {
    fn from(failure: HandshakeFailure) -> Self {
        Self::Handshake(failure)
    }
}

impl From<CertificateError> for Refusal {
    fn from(error: CertificateError) -> Self {
        Self::Certificate(Presented { names: String::new(), reason: error.to_string() })
    }
}

fn flag(denial: &Denial) -> ResponseFlag {
    match denial.reason {
        Reason::NoPolicy | Reason::NoSuchPort | Reason::NoIngressBackend => ResponseFlag::NoRoute,
        _ => ResponseFlag::Refused,
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
        // Many sources are remembered for as long as they write; those beyond share what one has.
        let written = (2..1000).filter(|index| log.allowed(source(*index), start).is_some()).count();
        assert_eq!(written, MOST_SOURCES - 2 + 100);
        assert_eq!(log.sources.borrow().len(), MOST_SOURCES);
        assert_eq!(log.allowed(source(500), start + Duration::from_secs(60)), Some(0));
        assert!(log.sources.borrow().len() < MOST_SOURCES);
    }
}
