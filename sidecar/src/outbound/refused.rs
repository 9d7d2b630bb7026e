//! A connection to an address that no object has, where such connections are refused. The log says which host it was for,
//! as far as its first bytes tell.

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::OutboundConnection;
use super::opaque::Told;
use crate::destinations::{NoEndpoint, ResolvedDestination};
use crate::detect::{self, FirstBytes, MAX_FIRST_BYTES};
use crate::first_bytes;
use crate::stream::Abort;
use crate::telemetry::{ConnectionSecurity, ResponseFlag};

/// Maximum bytes of a host that a request for a forward proxy names; longer ones are not shown.
const MOST_HOST: usize = 256;

impl OutboundConnection<'_> {
    /// Logs the refusal and resets the connection. `received`: what was already read from the app.
    pub(super) async fn refuse(
        &self,
        io: TcpStream,
        received: BytesMut,
        target: &ResolvedDestination,
        reason: &str,
    ) {
        let host = Box::pin(self.requested_host(&io, received)).await;
        self.context.refusals.unregistered(self.dialled.address, host.as_deref(), reason);
        let tcp =
            self.context.http.telemetry.tcp(true, self.remote(target), ConnectionSecurity::outbound(None));
        let told = Told { outbound: self, target, endpoint: None, tcp, server_name: host.as_deref() };
        told.record(ResponseFlag::NoHealthyUpstream, NoEndpoint::Unregistered.details(), 0, 0);
        io.abort();
    }

    /// The server name of a ClientHello, or the host that a request for a forward proxy names.
    async fn requested_host(&self, io: &TcpStream, mut received: BytesMut) -> Option<String> {
        let deadline = Instant::now() + self.context.http.limits.outbound_detect;
        loop {
            match detect::first_bytes(&received) {
                FirstBytes::Tls(hello) => return hello.server_name.map(|name| name.as_str().to_owned()),
                FirstBytes::Plaintext => return host_for_proxy(&received).map(str::to_owned),
                FirstBytes::Incomplete if received.len() <= MAX_FIRST_BYTES => {}
                FirstBytes::Incomplete | FirstBytes::Malformed(_) => return None,
            }
            let more = first_bytes::read_more(io, self.line, &mut received);
            if !matches!(timeout_at(deadline, more).await, Ok(true)) || !self.line.hold(received.capacity()) {
                return None;
            }
        }
    }
}

/// The authority in the request line of a request for a forward proxy: `CONNECT a:443` or `GET http://a/`.
fn host_for_proxy(bytes: &[u8]) -> Option<&str> {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    words.next().filter(|version| version.starts_with(b"HTTP/"))?;
    let target = std::str::from_utf8(target).ok()?;
    let authority = match target.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?']).next()?,
        None if method == b"CONNECT" => target,
        None => return None,
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    (authority.len() <= MOST_HOST && authority.bytes().all(is_host)).then_some(authority)
}

#[cfg(test)]
mod tests {
    use super::host_for_proxy;

    #[test]
    fn a_request_for_a_forward_proxy_names_its_host() {
        for (line, host) in [
            ("CONNECT a.example:443 HTTP/1.1\r\nHost: b\r\n\r\n", Some("a.example:443")),
            ("GET http://a.example:8080/x HTTP/1.1\r\n", Some("a.example:8080")),
            ("CONNECT [fd00::1]:443 HTTP/1.1\r\n", Some("[fd00::1]:443")),
            ("GET http://user:secret@a.example/ HTTP/1.1\r\n", None),
            ("CONNECT a.example:443", None),
            ("EHLO a.example\r\n", None),
            ("\0\0\0", None),
        ] {
            assert_eq!(host_for_proxy(line.as_bytes()), host, "{line}");
        }
    }
}
