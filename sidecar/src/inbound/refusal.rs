//! Refused connections: what their clients receive, and what is logged.

use std::fmt;
use std::time::{Duration, SystemTime};

use rustls::Error as TlsError;
use tidegate_core::certificate::CertificateError;
use tidegate_core::policy::{Decision, Denial, Reason, Terms};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::InboundConnection;
use crate::connection_info::ConnectionInfo;
use crate::detect::{ClientHello, Malformed};
use crate::http::clock::DateClock;
use crate::lifeline::{Lifeline, Wait};
use crate::refusal_log::RefusalLine;
use crate::remotes::RemoteId;
use crate::telemetry::{Record, ResponseFlag};
use crate::tls::stream::HandshakeFailure;
use crate::tls::{Presented, take_refused};

/// How long a client may take to read what it was sent.
const LINGER: Duration = Duration::from_secs(1);

/// Maximum bytes that are read and discarded meanwhile.
const LINGER_BYTES: usize = 64 * 1024;

/// Why a connection is refused.
#[derive(Debug)]
pub(super) enum ConnectionRefusal {
    /// The policy denies the connection.
    Denied(Denial),
    /// The first bytes begin like TLS, but are malformed.
    Malformed(Malformed),
    /// The sidecar has no certificate yet.
    NotReady,
    /// The sidecar supports none of the client's TLS versions; the newest of them, such as 0x0302.
    OldVersion(u16),
    /// The client certificate is invalid.
    Certificate(Presented),
    /// The handshake failed for another reason.
    Handshake(HandshakeFailure),
}

/// Responds to plaintext on a port that requires TLS, or to TLS on a port of plaintext HTTP.
pub(super) async fn bad_request(mut io: TcpStream, line: &Lifeline, clock: &DateClock) {
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

/// Sends the alert protocol_version to a client whose TLS is too old (RFC 8446 §6.2). rustls would report another
/// problem of such a ClientHello first.
pub(super) async fn alert_protocol_version(mut io: TcpStream, line: &Lifeline) {
    line.within(LINGER, Wait::Idle);
    if matches!(line.guard(io.write_all(&[0x15, 3, 1, 0, 2, 2, 70])).await, Ok(Ok(()))) {
        linger(io, line).await;
    }
}

/// Closes a connection whose client must still read what was sent. Reads meanwhile, because unread data would turn the
/// close into a RST, which could discard the response.
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

impl ConnectionRefusal {
    /// The refusal for a failed handshake.
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

    /// Response flag in the access log.
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(denial) => ResponseFlag::of_refusal(&denial.reason),
            Self::Handshake(HandshakeFailure::NoRoom) => ResponseFlag::Overload,
            Self::Malformed(_) | Self::OldVersion(_) | Self::Handshake(_) => {
                ResponseFlag::DownstreamProtocolError
            }
            Self::NotReady => ResponseFlag::NoRoute,
            Self::Certificate(_) => ResponseFlag::Refused,
        }
    }

    /// Response code details in the access log.
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

impl InboundConnection<'_> {
    /// Logs a connection that was refused before its handshake was done.
    pub(super) fn refused(&self, hello: Option<&ClientHello>, refusal: &ConnectionRefusal) {
        let target = self.downstream.target;
        let server_name = hello.and_then(|hello| hello.server_name.as_ref()).map(|name| name.as_str());
        let certificate = match refusal {
            ConnectionRefusal::Certificate(presented) => Some(presented.names.as_str()),
            _ => None,
        };
        self.context.refusals.write(&RefusalLine {
            peer: self.downstream.peer,
            port: target.port,
            server_name,
            certificate,
            reason: refusal,
        });
        let info = ConnectionInfo {
            peer: self.downstream.peer,
            local: target.address,
            port: target.port,
            app: target.app,
            terms: Terms::Opaque,
            tls: false,
            server_name: server_name.map(Into::into),
            client: None,
            identity: Default::default(),
            remote: RemoteId::UNKNOWN,
            accepted: self.accepted,
        };
        let decision = match refusal {
            ConnectionRefusal::Denied(denial) => Some(Decision::Deny(denial.clone())),
            _ => None,
        };
        self.record_refusal(&info, decision.as_ref(), refusal.flag(), refusal.details());
    }

    /// Logs a connection that was refused after its handshake.
    pub(super) fn refused_connection(&self, info: &ConnectionInfo, denial: &Denial) {
        self.context.refusals.write(&RefusalLine::of(info, denial));
        let decision = Decision::Deny(denial.clone());
        let flag = ResponseFlag::of_refusal(&denial.reason);
        self.record_refusal(info, Some(&decision), flag, denial.reason.code());
    }

    /// Logs a connection that would have been refused after its handshake.
    pub(super) fn reported_connection(&self, info: &ConnectionInfo, decision: &Decision) {
        self.record_refusal(info, Some(decision), ResponseFlag::None, "audit_mode");
    }

    /// Writes the access log record of a connection that carried no request.
    fn record_refusal(
        &self,
        connection: &ConnectionInfo,
        decision: Option<&Decision>,
        flag: ResponseFlag,
        details: &str,
    ) {
        self.context.http.telemetry.record(&Record {
            connection: Some(connection),
            decision,
            start: Some(self.accepted),
            duration: SystemTime::now().duration_since(self.accepted).unwrap_or_default(),
            flag,
            details,
            ..Record::default()
        });
    }
}

impl fmt::Display for ConnectionRefusal {
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

impl From<Denial> for ConnectionRefusal {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

impl From<Malformed> for ConnectionRefusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<TlsError> for ConnectionRefusal {
    fn from(error: TlsError) -> Self {
        Self::Handshake(error.into())
    }
}

impl From<HandshakeFailure> for ConnectionRefusal {
    fn from(failure: HandshakeFailure) -> Self {
        Self::Handshake(failure)
    }
}

impl From<CertificateError> for ConnectionRefusal {
    fn from(error: CertificateError) -> Self {
        Self::Certificate(Presented { names: String::new(), reason: error.to_string() })
    }
}
