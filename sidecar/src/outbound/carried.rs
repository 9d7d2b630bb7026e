//! What a connection of the app carries: as its destination declares, and as its first bytes show.
//!
//! Where HTTP is declared, the first bytes only tell its versions apart, and from TLS of the app's own. Where nothing is
//! declared, bytes that begin as HTTP are HTTP. An app that does not send them soon speaks something else, or waits for
//! its server to speak first. Where the name of the server decides where a connection goes, its ClientHello is read; where hosts
//! tell all connections to an address apart, TLS, HTTP and neither may come.

use std::time::Duration;

use bytes::BytesMut;
use tidegate_core::policy::AppProtocol;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::destinations::ResolvedDestination;
use crate::detect::{self, FirstBytes, HttpStart, MAX_FIRST_BYTES, Preface};
use crate::first_bytes::{self, Received};
use crate::lifeline::{Lifeline, Phase, Wait};
use crate::limits::Limits;

/// Ports of protocols in which clients speak first (IANA: `http`, `https`): where the host in the first bytes decides, these
/// are waited for as long as for a head.
const CLIENT_FIRST: [u16; 2] = [80, 443];

/// What a connection carries, and what was read of it.
pub(super) enum Carried {
    Http1(BytesMut),
    Http2(BytesMut),
    /// Bytes that are not parsed.
    Opaque(BytesMut),
}

/// What a connection to a destination carries; `None` if it has ended.
pub(super) async fn carried(
    io: &TcpStream,
    line: &Lifeline,
    limits: &Limits,
    destination: &ResolvedDestination,
) -> Option<Carried> {
    let carried = match destination.protocol() {
        _ if destination.is_proxied() || destination.told_apart_by_host().is_some() => {
            let patience = if CLIENT_FIRST.contains(&destination.port()) {
                limits.headers
            } else {
                limits.outbound_detect
            };
            told_apart(io, line, limits, patience).await?
        }
        _ if destination.needs_server_name() => named(io, line, limits).await?,
        AppProtocol::Tcp | AppProtocol::TcpServerFirst => Carried::Opaque(BytesMut::new()),
        AppProtocol::Http | AppProtocol::H2c => declared(io, line, limits).await?,
        AppProtocol::Undeclared if destination.is_closed_but_for_servers() => {
            detected(io, line, limits.headers).await?
        }
        AppProtocol::Undeclared => detected(io, line, limits.outbound_detect).await?,
    };
    line.at_ease();
    if matches!(carried, Carried::Opaque(_)) {
        // Nothing of it is a head that is unfinished.
        let _ = line.hold(0);
    }
    Some(carried)
}

/// HTTP, unless the app speaks TLS, or half-closes without a request: it only wants to see whether there is a server,
/// which its connection to an endpoint shows.
async fn declared(io: &TcpStream, line: &Lifeline, limits: &Limits) -> Option<Carried> {
    line.within(limits.idle, Wait::Idle);
    match first_bytes::receive(io, line).await {
        Received::Bytes(FirstBytes::Plaintext, bytes) => {
            line.within(limits.headers, Wait::Headers);
            let (preface, bytes) = first_bytes::preface(io, line, bytes).await?;
            Some(if preface == Preface::Http2 { Carried::Http2(bytes) } else { Carried::Http1(bytes) })
        }
        Received::Bytes(_, bytes) => Some(Carried::Opaque(bytes)),
        Received::Nothing if line.phase() == Phase::Open => Some(Carried::Opaque(BytesMut::new())),
        Received::Nothing | Received::NoRoom => None,
    }
}

/// Bytes that begin with a ClientHello, or should.
async fn named(io: &TcpStream, line: &Lifeline, limits: &Limits) -> Option<Carried> {
    line.within(limits.headers, Wait::Headers);
    match first_bytes::receive(io, line).await {
        Received::Bytes(_, bytes) => Some(Carried::Opaque(bytes)),
        Received::Nothing | Received::NoRoom => None,
    }
}

/// HTTP, or bytes that begin with the whole of a ClientHello if they begin as TLS, if they come in time.
async fn told_apart(io: &TcpStream, line: &Lifeline, limits: &Limits, patience: Duration) -> Option<Carried> {
    let mut bytes = match detected(io, line, patience).await? {
        Carried::Opaque(bytes) => bytes,
        http => return Some(http),
    };
    line.within(limits.headers, Wait::Headers);
    while !bytes.is_empty()
        && bytes.len() <= MAX_FIRST_BYTES
        && detect::first_bytes(&bytes) == FirstBytes::Incomplete
    {
        let has_more = first_bytes::read_more(io, line, &mut bytes).await && line.hold(bytes.capacity());
        if !has_more {
            return None;
        }
    }
    Some(Carried::Opaque(bytes))
}

/// HTTP if the first bytes are, and come in time.
async fn detected(io: &TcpStream, line: &Lifeline, patience: Duration) -> Option<Carried> {
    let deadline = Instant::now() + patience;
    let mut bytes = BytesMut::new();
    loop {
        match detect::http_start(&bytes) {
            HttpStart::Http1 => return Some(Carried::Http1(bytes)),
            HttpStart::Http2 => return Some(Carried::Http2(bytes)),
            HttpStart::Other => return Some(Carried::Opaque(bytes)),
            HttpStart::Incomplete => {}
        }
        match timeout_at(deadline, first_bytes::read_more(io, line, &mut bytes)).await {
            Ok(true) => {}
            Ok(false) if line.phase() != Phase::Open => return None,
            Ok(false) | Err(_) => return Some(Carried::Opaque(bytes)),
        }
    }
}
