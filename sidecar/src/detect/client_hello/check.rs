//! Compares our reading of a ClientHello with that of rustls.

use rustls::server::Acceptor;
use tidegate_core::DnsName;

use super::{Alpn, ClientHello, HANDSHAKE, MAJOR_VERSION, MESH_PROTOCOLS, Malformed};

/// Panics if rustls reads another server name or other protocols in these bytes, if rustls continues while we still
/// wait for more, or if the result depends on how the bytes arrive.
pub(super) fn check_against_rustls(bytes: &[u8]) {
    if !bytes.starts_with(&[HANDSHAKE, MAJOR_VERSION]) {
        return;
    }
    let (ours, theirs) = (ClientHello::parse(bytes), by_rustls(bytes));
    assert!(ours != Ok(None) || theirs.is_none(), "rustls accepts what we consider incomplete");
    // A ClientHello that only one of the two accepts is refused.
    if let (Ok(Some(hello)), Some((name, alpn))) = (&ours, theirs) {
        assert_eq!(hello.server_name, name, "server name");
        assert_eq!(hello.alpn, alpn, "protocols");
    }
    let mut before = Ok(None);
    for end in 2..=bytes.len() {
        let Some(prefix) = bytes.get(..end) else { break };
        let now = ClientHello::parse(prefix);
        assert!(before == Ok(None) || before == now || is_about_more_bytes(&now), "{before:?}, then {now:?}");
        before = now;
    }
}

/// Errors that can only show once more bytes have arrived.
fn is_about_more_bytes(now: &Result<Option<ClientHello>, Malformed>) -> bool {
    matches!(now, Err(Malformed::Trailing))
}

/// Server name and protocols as rustls reads them, if it accepts the ClientHello.
pub(super) fn by_rustls(bytes: &[u8]) -> Option<(Option<DnsName>, Alpn)> {
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    loop {
        acceptor.read_tls(&mut rest).ok()?;
        let accepted = match acceptor.accept() {
            Ok(Some(accepted)) => accepted,
            Ok(None) if !rest.is_empty() => continue,
            Ok(None) | Err(_) => return None,
        };
        let hello = accepted.client_hello();
        let mut alpn = Alpn::default();
        for protocol in hello.alpn().into_iter().flatten() {
            alpn.http1 |= protocol == b"http/1.1";
            alpn.http2 |= protocol == b"h2";
            let mesh = MESH_PROTOCOLS.iter().find(|(name, _)| *name == protocol);
            alpn.mesh = alpn.mesh.or(mesh.map(|(_, protocol)| *protocol));
        }
        return Some((hello.server_name().and_then(|name| DnsName::parse(name).ok()), alpn));
    }
}
