//! Tunnels through HTTP forward proxies. The codec of `CONNECT` is core's ([`connect`]).

use std::io;

use tidegate_core::forward_proxy::ProxySettings;
use tidegate_core::forward_proxy::connect::{
    self, ConnectAnswer, ConnectDecoder, InvalidConnectTarget, MalformedAnswer, ProxyRefusal,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connect_error::ConnectError;
use super::stream::UpstreamTls;
use crate::stream::MaybeTls;

/// Why there is no connection through a forward proxy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    /// There is no connection to the proxy, or no TLS with it.
    #[error("{0}")]
    NotConnected(Box<ConnectError>),
    /// The proxy does not answer in time, by the object's `timeouts.response`.
    #[error("no answer to CONNECT in time")]
    NoAnswer,
    /// The connection has ended before the answer was complete.
    #[error("the connection ended before the answer to CONNECT was complete: {0}")]
    Closed(#[from] io::Error),
    /// It answers, and opens no tunnel.
    #[error("the answer to CONNECT is {0}")]
    Refused(ProxyRefusal),
    /// Its answer cannot be read.
    #[error("CONNECT: {0}")]
    Malformed(#[from] MalformedAnswer),
    /// `host:port` of the target has a character that an authority cannot have.
    #[error(transparent)]
    Target(#[from] InvalidConnectTarget),
    /// TLS that the sidecar originates does not go through TLS to a proxy.
    #[error("TLS origination through a proxy with TLS is not supported")]
    TwoLayers,
}

/// A [`ProxyError`] as it is counted and named in the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProxyFailure {
    Unreachable,
    Tls,
    NoAnswer,
    Closed,
    /// 403.
    Denied,
    /// 407.
    Authentication,
    /// 502, 503, 504.
    TargetUnreachable,
    /// Another status.
    Refused,
    Malformed,
    HeadTooLarge,
    Invalid,
}

impl ProxyError {
    pub(crate) fn failure(&self) -> ProxyFailure {
        match self {
            Self::NotConnected(error) => match **error {
                ConnectError::Refused(_) | ConnectError::Timeout => ProxyFailure::Unreachable,
                _ => ProxyFailure::Tls,
            },
            Self::NoAnswer => ProxyFailure::NoAnswer,
            Self::Closed(_) => ProxyFailure::Closed,
            Self::Refused(refusal) => ProxyFailure::of_status(refusal.status),
            Self::Malformed(MalformedAnswer::NotHttp) => ProxyFailure::Malformed,
            Self::Malformed(MalformedAnswer::TooLarge) => ProxyFailure::HeadTooLarge,
            Self::Target(_) | Self::TwoLayers => ProxyFailure::Invalid,
        }
    }
}

impl ProxyFailure {
    /// Of a proxy's own answer.
    pub(crate) fn of_status(status: u16) -> Self {
        match status {
            403 => Self::Denied,
            407 => Self::Authentication,
            502..=504 => Self::TargetUnreachable,
            _ => Self::Refused,
        }
    }

    /// A stable word for logs.
    pub(crate) fn details(self) -> &'static str {
        match self {
            Self::Unreachable => "forward_proxy_unreachable",
            Self::Tls => "forward_proxy_tls_failure",
            Self::NoAnswer => "forward_proxy_timeout",
            Self::Closed => "forward_proxy_closed",
            Self::Denied => "forward_proxy_denied",
            Self::Authentication => "forward_proxy_authentication",
            Self::TargetUnreachable => "forward_proxy_target_unreachable",
            Self::Refused => "forward_proxy_refused",
            Self::Malformed => "forward_proxy_malformed_answer",
            Self::HeadTooLarge => "forward_proxy_head_too_large",
            Self::Invalid => "forward_proxy_invalid",
        }
    }

    /// Whether another proxy of the same object may do better. One that answers has decided; one that does not answer is
    /// not asked again elsewhere, because the app would wait twice.
    pub(crate) fn is_of_this_proxy(self) -> bool {
        matches!(self, Self::Unreachable | Self::Tls | Self::Closed | Self::Malformed | Self::HeadTooLarge)
    }
}

/// Has a proxy connect us to `host:port`. Nothing is read of what the target says.
pub(super) async fn open(
    io: &mut MaybeTls<UpstreamTls>,
    target: &str,
    settings: &ProxySettings,
) -> Result<(), ProxyError> {
    let request = connect::connect_request(target, settings.credentials.as_ref())?;
    io.write_all(&request).await?;
    io.flush().await?;
    let mut decoder = ConnectDecoder::default();
    loop {
        match read_answer(io, &mut decoder).await? {
            None => {}
            Some(ConnectAnswer::Tunnel) => return Ok(()),
            Some(ConnectAnswer::Refused(refusal)) => return Err(ProxyError::Refused(refusal)),
        }
    }
}

/// Reads some of the answer's head, and nothing behind it.
async fn read_answer(
    io: &mut MaybeTls<UpstreamTls>,
    decoder: &mut ConnectDecoder,
) -> Result<Option<ConnectAnswer>, ProxyError> {
    let mut piece = [0; 1024];
    let (fed, is_peeked) = match io {
        MaybeTls::Plain(tcp) => {
            let seen = tcp.peek(&mut piece).await?;
            (decoder.feed(not_empty(piece.get(..seen))?)?, true)
        }
        // TLS cannot be peeked; its records are decrypted already.
        MaybeTls::Tls(_) => {
            let count = io.read(&mut piece[..1]).await?;
            (decoder.feed(not_empty(piece.get(..count))?)?, false)
        }
    };
    if is_peeked {
        io.read_exact(piece.get_mut(..fed.consumed).unwrap_or_default()).await?;
    }
    Ok(fed.answer)
}

/// What was read, unless it is the end.
fn not_empty(bytes: Option<&[u8]>) -> io::Result<&[u8]> {
    bytes.filter(|bytes| !bytes.is_empty()).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests;
