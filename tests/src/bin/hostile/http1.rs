//! Attacks over HTTP/1, and by connections that never become HTTP.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use tidegate_tests::client::{self, Client};

use crate::sent::{AttackSent, hold, repeat};
use crate::site::HostileSite;

/// Clients that leave together.
const CROWD: usize = 600;
/// `--half-close-timeout` of the sidecar.
const HALF_CLOSED: Duration = Duration::from_secs(10);
/// Requests per second to kubelet's port for probes.
const PROBES: u32 = 200;

/// 600 clients request what never arrives, and leave; repeatedly.
pub(crate) fn leave(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    let mut all = 0;
    let bytes = repeat(time, || {
        let mut held = Vec::new();
        let mut sent = 0;
        for _ in 0..CROWD {
            let (stream, bytes) = send(&client, b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")?;
            held.push(stream);
            sent += bytes;
        }
        all += held.len();
        Ok(sent)
    });
    // Half-closed, each may wait for its answer as long as the sidecar's documentation says.
    let kept = (HALF_CLOSED.as_secs_f64() / time.as_secs_f64()).min(1.0);
    AttackSent::new(bytes, (all as f64 * kept) as usize).with_requests(all as u64)
}

/// Requests a megabyte and reads none of it.
pub(crate) fn slow_readers(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    hold(1500, time, || send(&client, b"GET /bytes/1000000 HTTP/1.1\r\nhost: a\r\n\r\n"))
}

/// Heads that never end.
pub(crate) fn half_heads(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    let head = [&b"GET / HTTP/1.1\r\nhost: a\r\nx: "[..], &[b'x'; 60_000]].concat();
    hold(4000, time, || send(&client, &head))
}

/// Requests whose bodies are announced and never sent.
pub(crate) fn bodies_that_do_not_come(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    hold(3000, time, || send(&client, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"))
}

/// As many connections as allowed, without a byte.
pub(crate) fn silent(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    // The size of a SYN, an ACK and a FIN on the wire.
    hold(9000, time, || send(&client, b"").map(|(stream, _)| (stream, 160)))
}

/// Connections that are opened and closed.
pub(crate) fn churn(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker();
    AttackSent::new(repeat(time, || send(&client, b"GET / HTTP/1.1\r\n").map(|(_, bytes)| bytes + 160)), 0)
}

/// Complete requests to kubelet's port for probes, each on its own connection, which is kept for a second.
pub(crate) fn probes(site: &HostileSite, time: Duration) -> AttackSent {
    let client = site.attacker_of_probes();
    let mut held = VecDeque::new();
    let bytes = repeat(time, || {
        thread::park_timeout(Duration::from_secs(1) / PROBES);
        let (stream, bytes) = send(&client, b"GET /probe HTTP/1.1\r\nhost: a\r\n\r\n")?;
        held.push_back(stream);
        if held.len() > PROBES as usize {
            held.pop_front();
        }
        Ok(bytes)
    });
    AttackSent::new(bytes, held.len())
}

fn send(client: &Client, bytes: &[u8]) -> io::Result<(TcpStream, u64)> {
    let mut stream = client::connect(client.source, client.target)?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(bytes)?;
    Ok((stream, bytes.len() as u64))
}
