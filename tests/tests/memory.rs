//! The sidecar within a memory limit, with the settings that docs/injection.md recommends for it, while one source
//! takes all that it can get.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use tidegate_tests::app::App;
use tidegate_tests::client::{self, Client, RequestOutcome};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, gateway, https, policy, principal, range};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait::{self, SOON};

/// `openservicemesh.io/sidecar-resource-limits-memory`.
const MEMORY: u64 = 256 << 20;
/// `max-connections` of `tidegate.io/sidecar-limits`.
const CONNECTIONS: usize = 1500;
/// `max-upstream-requests` of the same.
const REQUESTS: usize = 500;
/// Plaintext HTTP for the attacker.
const OPEN: u16 = PORT;
/// TLS without client certificates for the attacker.
const TLS: u16 = 14002;
/// Mutual TLS for the healthy client.
const MUTUAL: u16 = 14003;

struct LimitedSidecar {
    mesh: Mesh,
    /// The listener for what the app dials.
    way_out: SocketAddr,
    _apps: Vec<App>,
}

/// What one source repeats.
struct RepeatedConnection {
    name: &'static str,
    /// Opens one connection.
    open: fn(&LimitedSidecar) -> io::Result<TcpStream>,
}

impl LimitedSidecar {
    fn start() -> Self {
        let outside = App::tcp_echo("127.0.0.1:0".parse().unwrap());
        let outbound = format!("127.0.0.1:0={}", outside.address());
        let (connections, requests) = (CONNECTIONS.to_string(), REQUESTS.to_string());
        let limits = ["--max-connections", &connections, "--max-upstream-requests", &requests];
        let arguments = [&limits[..], &["--outbound", &outbound]].concat();
        let mut mesh = Mesh::with(Options {
            ports: vec![(TLS, "http-tls"), (MUTUAL, "http-mutual")],
            sidecar_arguments: arguments.into_iter().map(str::to_owned).collect(),
            ..Options::default()
        });
        let attacker = range(&format!("{}/32", mesh.block().ip(97)));
        mesh.apply(
            "policies",
            &[
                policy("open", &[backend("httpbin", OPEN, "http")], std::slice::from_ref(&attacker)),
                policy("tls", &[https("httpbin", TLS, true, &[])], &[attacker]),
                policy(
                    "mutual",
                    &[https("httpbin", MUTUAL, false, &[])],
                    &[principal(INGRESS_CLIENT), gateway()],
                ),
            ],
        );
        let mut apps: Vec<_> = [OPEN, TLS, MUTUAL].map(|port| App::echo(mesh.app_port(port))).into();
        apps.push(outside);
        let log = mesh.sidecar.log();
        let line = log.lines().find(|line| line.contains("listening for the app")).unwrap();
        let address = line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
        let way_out = address.parse().unwrap();
        Self { mesh, way_out, _apps: apps }
    }

    fn attacker(&self) -> IpAddr {
        self.mesh.block().ip(97)
    }

    /// A connection of the attacker's to a port, on which this was sent.
    fn sent(&self, port: u16, bytes: &[u8]) -> io::Result<TcpStream> {
        let mut stream = client::connect(Some(self.attacker()), self.mesh.target_port(port))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(bytes)?;
        Ok(stream)
    }

    fn half_head(&self) -> io::Result<TcpStream> {
        self.sent(OPEN, &[&b"GET / HTTP/1.1\r\nhost: a\r\nx: "[..], &[b'x'; 60_000]].concat())
    }

    /// An incomplete ClientHello of 16 KiB.
    fn half_handshake(&self) -> io::Result<TcpStream> {
        let head = [0x16, 3, 1, 0x3f, 0xf0, 1, 0, 0x3f, 0xf0];
        self.sent(TLS, &[&head[..], &[0; 0x3fe0]].concat())
    }

    /// A connection after its handshake, on which most of a record was sent.
    fn half_record(&self) -> io::Result<TcpStream> {
        let mut stream = self.sent(TLS, b"")?;
        stream.set_read_timeout(Some(SOON))?;
        let mut tls = self.mesh.tls().connection();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        tls.writer().write_all(&[b'a'; 16 * 1024])?;
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire)?;
        }
        wire.pop();
        stream.write_all(&wire)?;
        Ok(stream)
    }

    /// Other clients meanwhile: one at another address, and the app's own connections.
    fn others_are_served(&self, attack: &str) {
        let tls = self.mesh.tls().credentials(self.mesh.gateway_credentials());
        let healthy = Client::to(self.mesh.target_port(MUTUAL)).from(self.mesh.gateway()).tls(tls);
        for number in 0..10 {
            assert_eq!(healthy.get("/get"), RequestOutcome::Status(200), "{attack}: request {number}");
            let mut own = TcpStream::connect(self.way_out).unwrap();
            own.set_read_timeout(Some(SOON)).unwrap();
            own.write_all(b"hello").unwrap();
            let mut echo = [0; 5];
            own.read_exact(&mut echo).unwrap_or_else(|error| panic!("{attack}: {number}: {error}"));
        }
    }
}

#[test]
fn within_the_limit_of_the_docs_a_sidecar_lives_and_serves_others_whatever_one_source_takes() {
    let mut site = LimitedSidecar::start();
    site.mesh.sidecar.limit_memory(MEMORY);
    let attacks = [
        RepeatedConnection { name: "silent connections", open: |site| site.sent(OPEN, b"") },
        RepeatedConnection { name: "half heads", open: LimitedSidecar::half_head },
        RepeatedConnection { name: "half handshakes", open: LimitedSidecar::half_handshake },
        RepeatedConnection { name: "half TLS records", open: LimitedSidecar::half_record },
        RepeatedConnection {
            name: "slow readers",
            open: |site| site.sent(OPEN, b"GET /bytes/10000000 HTTP/1.1\r\nhost: a\r\n\r\n"),
        },
        RepeatedConnection {
            name: "bodies that do not come",
            open: |site| site.sent(OPEN, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\nx"),
        },
    ];
    for RepeatedConnection { name, open } in attacks {
        let crowd: Vec<_> = (0..CONNECTIONS + 100).filter_map(|_| open(&site).ok()).collect();
        site.others_are_served(name);
        assert_eq!(site.mesh.sidecar.exited(), None, "{name}");
        eprintln!("{name}: {} connections, {} MB", crowd.len(), site.mesh.sidecar.resident_bytes() >> 20);
        drop(crowd);
        wait::until_true("the sidecar has let go of the attacker", 3 * SOON, || {
            site.mesh.sidecar.open_files().len() < 100
        });
    }
}
