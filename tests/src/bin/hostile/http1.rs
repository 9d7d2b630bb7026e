//! Attacks by HTTP/1, and by connections that never become HTTP.

use std::io::{self, Write};
use std::net::TcpStream;
use std::time::Duration;

use tidegate_tests::client::{self, Client};

use crate::attacks::{hold, repeat};
use crate::site::Site;

/// Asks for what does not come, and leaves, 600 times over and over.
pub(crate) fn leave(site: &Site, time: Duration) -> u64 {
    let client = site.attacker();
    repeat(time, || {
        let mut held = Vec::new();
        let mut sent = 0;
        for _ in 0..600 {
            let (stream, bytes) = send(&client, b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")?;
            held.push(stream);
            sent += bytes;
        }
        Ok(sent)
    })
}

/// Asks for a megabyte and reads nothing of it.
pub(crate) fn slow_readers(site: &Site, time: Duration) -> u64 {
    let client = site.attacker();
    hold(1500, time, || send(&client, b"GET /bytes/1000000 HTTP/1.1\r\nhost: a\r\n\r\n"))
}

/// Heads that never end.
pub(crate) fn half_heads(site: &Site, time: Duration) -> u64 {
    let client = site.attacker();
    let head = [&b"GET / HTTP/1.1\r\nhost: a\r\nx: "[..], &[b'x'; 60_000]].concat();
    hold(4000, time, || send(&client, &head))
}

/// Requests whose bodies are announced and not sent.
pub(crate) fn bodies_that_do_not_come(site: &Site, time: Duration) -> u64 {
    let client = site.attacker();
    hold(3000, time, || send(&client, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n"))
}

/// As many connections as there may be, without a byte.
pub(crate) fn silent(site: &Site, time: Duration) -> u64 {
    let client = site.attacker();
    // What a SYN, an ACK and a FIN take on the wire.
    hold(9000, time, || send(&client, b"").map(|(stream, _)| (stream, 160)))
}

/// Connections that come and go.
pub(crate) fn churn(site: &Site, time: Duration) -> u64 {
    let client = site.attacker();
    repeat(time, || send(&client, b"GET / HTTP/1.1\r\n").map(|(_, bytes)| bytes + 160))
}

fn send(client: &Client, bytes: &[u8]) -> io::Result<(TcpStream, u64)> {
    let mut stream = client::connect(client.source, client.target)?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(bytes)?;
    Ok((stream, bytes.len() as u64))
}
