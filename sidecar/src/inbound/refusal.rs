//! Connections that are not let in: what their clients see, and what is logged about them.

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
use crate::http::clock::Clock;
use crate::lifeline::{Lifeline, Wait};
use crate::refusal_log::RefusalLine;
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
            Self::Denied(denial) => ResponseFlag::of_refusal(&denial.reason),
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

impl InboundConnection<'_> {
    /// A connection was refused of which little is known.
    pub(super) fn refused(&self, hello: Option<&ClientHello>, refusal: &Refusal) {
        let target = self.downstream.target;
        let server_name = hello.and_then(|hello| hello.server_name.as_ref()).map(|name| name.as_str());
        let certificate = match refusal {
            Refusal::Certificate(presented) => Some(presented.names.as_str()),
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
            accepted: self.accepted,
        };
        let decision = match refusal {
            Refusal::Denied(denial) => Some(Decision::Deny(denial.clone())),
            _ => None,
        };
        self.record_refusal(&info, decision.as_ref(), refusal.flag(), refusal.details());
    }

    /// A connection was refused once all of it was known.
    pub(super) fn refused_connection(&self, info: &ConnectionInfo, denial: &Denial) {
        self.context.refusals.write(&RefusalLine::of(info, denial));
        let decision = Decision::Deny(denial.clone());
        let flag = ResponseFlag::of_refusal(&denial.reason);
        self.record_refusal(info, Some(&decision), flag, denial.reason.code());
    }

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
