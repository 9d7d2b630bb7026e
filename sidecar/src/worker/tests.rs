use std::io::{BufRead, BufReader, Read};
use std::process::{Command as Program, Stdio};

use rustix::process::{Resource, getrlimit, setrlimit};
use tidegate_runtime::logging::{self, LogOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::start::{max_upstream_requests, place_limits};
use super::*;
use crate::listener::{self, InboundTarget};
use crate::places::PlaceLimits;
use crate::test_mesh::{Mesh, Port, start_app, until};
use crate::test_pki::{GATEWAY, client_config};

async fn get(address: SocketAddr) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        if client.read_buf(&mut answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(client)
}

#[tokio::test]
async fn connections_are_spread_over_the_workers() {
    let mesh = Mesh::with(3, Limits::default()).await;
    let mut clients = Vec::new();
    for _ in 0..9 {
        clients.push(get(mesh.address(Port::Http)).await.unwrap());
    }
    let loads: Vec<_> = mesh.workers.shared.places.loads().collect();
    assert_eq!(loads, [3, 3, 3]);
}

#[tokio::test]
async fn accepted_sockets_have_no_delay_and_are_kept_alive() {
    let listener = TcpListener::from_std(listener::bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
    let (client, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (socket, _) = accepted.unwrap();
    let socket = socket2::SockRef::from(&socket);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    drop(client);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let mesh = Mesh::start().await;
    let address = mesh.address(Port::Http);
    let (_, snapshots) = crate::snapshot::channel();
    let error = Workers::start(WorkersConfig {
        count: 1,
        listeners: vec![Listener::Fixed(InboundTarget { address, port: 1, app: mesh.app })],
        limits: Limits::default(),
        snapshots,
        destinations: Default::default(),
        http_context: Arc::new(|limits, snapshots| {
            Rc::new(HttpContext::new(limits, Rc::default(), snapshots))
        }),
    });
    let error = error.err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
}

/// Address of the app for a test that runs in its own process.
const APP: &str = "TIDEGATE_TEST_APP";

/// Runs an ignored test of this module in its own process, with its app in this one.
fn run_alone(test: &str, app: SocketAddr) -> std::process::Child {
    Program::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("worker::tests::{test}"), "--ignored", "--nocapture"])
        .env(APP, app.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The mesh of a test that runs in its own process.
fn mesh_alone() -> Mesh {
    Mesh::before(std::env::var(APP).unwrap().parse().unwrap(), 1, Limits::default())
}

#[tokio::test]
async fn an_idle_connection_with_mutual_tls_costs_at_most_twelve_kibibytes() {
    let child = run_alone("memory_of_idle_connections", start_app().await);
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = output.split_once("bytes each: ").expect(&output);
    let each: usize = rest.lines().next().unwrap().parse().unwrap();
    assert!((1024..=12 * 1024).contains(&each), "{each} bytes");
}

/// Measures an idle verified connection; the client's TLS state is dropped, its socket kept.
#[tokio::test]
#[ignore = "run by an_idle_connection_with_mutual_tls_costs_at_most_twelve_kibibytes"]
async fn memory_of_idle_connections() {
    let mesh = mesh_alone();
    let gateway = mesh.root.named(GATEWAY);
    let config = client_config(&mesh.root.bundle(), Some(&gateway), &[&rustls::version::TLS13], &[]);
    let connector = tokio_rustls::TlsConnector::from(config);
    let name = rustls_pki_types::ServerName::try_from(crate::test_pki::SERVER).unwrap();
    let mut sockets = Vec::new();
    let mut open = async |count: usize| {
        for _ in 0..count {
            let io = TcpStream::connect(mesh.address(Port::Https)).await.unwrap();
            sockets.push(connector.connect(name.clone(), io).await.unwrap().into_inner().0);
        }
        until(|| mesh.workers.connections() == sockets.len()).await;
    };
    open(100).await;
    let before = resident_bytes();
    open(400).await;
    println!("bytes each: {}", resident_bytes().saturating_sub(before) / 400);
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() * 1024
}

/// Not a test by itself: the sidecar of the next test, in a process with its own limit of files. The app runs
/// elsewhere, because without descriptors it would keep clients waiting forever.
#[tokio::test]
#[ignore = "run by a_sidecar_without_file_descriptors_sheds_and_recovers"]
async fn sidecar_with_few_file_descriptors() {
    let _log = logging::init(&LogOptions::default()).unwrap();
    let mesh = mesh_alone();
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(96);
    setrlimit(Resource::Nofile, limit).unwrap();
    println!("listening at {}", mesh.address(Port::Tcp));
    let wait = tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new()));
    wait.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_sidecar_without_file_descriptors_sheds_and_recovers() {
    let mut sidecar = run_alone("sidecar_with_few_file_descriptors", start_app().await);
    let mut lines = BufReader::new(sidecar.stdout.take().unwrap()).lines();
    let mut line_after = |prefix: &str| loop {
        let line = lines.next().unwrap().unwrap();
        if let Some((_, rest)) = line.split_once(prefix) {
            break rest.to_owned();
        }
    };
    let address: SocketAddr = line_after("listening at ").parse().unwrap();
    // Each connection takes two descriptors: the client's and the app's.
    let mut kept = Vec::new();
    let mut refused = 0;
    for _ in 0..150 {
        match echo(address).await {
            Ok(client) => kept.push(client),
            Err(_) => refused += 1,
        }
    }
    assert!(kept.len() >= 5 && refused > 50, "{} served, {refused} refused", kept.len());
    for client in &mut kept {
        client.write_all(b"hi").await.unwrap();
        client.read_exact(&mut [0; 2]).await.unwrap();
    }
    kept.clear();
    let recovered = async {
        while echo(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), recovered).await.expect("the sidecar did not recover");
    drop(sidecar.stdin.take());
    let output = tokio::task::spawn_blocking(|| sidecar.wait_with_output()).await.unwrap().unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && log.contains("cannot accept connections"), "{log}");
}

async fn echo(address: SocketAddr) -> io::Result<TcpStream> {
    let mut client = TcpStream::connect(address).await?;
    client.write_all(b"hi").await?;
    client.read_exact(&mut [0; 2]).await?;
    Ok(client)
}

/// A client's connection from this loopback address.
async fn from(source: &str, address: SocketAddr) -> TcpStream {
    connect_from(source, address).await.unwrap()
}

async fn connect_from(source: &str, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(address).await
}

async fn ask(client: &mut TcpStream, request: &[u8]) -> String {
    let _ = client.write_all(request).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") && client.read_buf(&mut answer).await.is_ok_and(|count| count > 0) {}
    String::from_utf8(answer).unwrap()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const CROWD: &str = "127.0.0.2";

async fn mesh_of(connections: usize) -> Mesh {
    Mesh::with(1, Limits { connections, ..Limits::default() }).await
}

fn is_ok(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200 ")
}

#[tokio::test]
async fn a_source_that_holds_every_place_makes_room_with_its_longest_idle_connections() {
    let mesh = mesh_of(20).await;
    let address = mesh.address(Port::Http);
    // Two begin a request and stop; the others are idle.
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut client = from(CROWD, address).await;
        client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n").await.unwrap();
        busy.push(client);
    }
    mesh.connections(2).await;
    let mut idle = Vec::new();
    for _ in 0..18 {
        let mut client = from(CROWD, address).await;
        assert!(is_ok(&ask(&mut client, GET).await));
        idle.push(client);
    }
    // The source's own next connection is refused.
    match connect_from(CROWD, address).await {
        Ok(mut client) => assert_eq!(ask(&mut client, GET).await, ""),
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
    }
    assert_eq!(mesh.metrics.total(|totals| &totals.no_place), 1);

    let mut others = Vec::new();
    for index in 0..5 {
        let mut client = from("127.0.0.1", address).await;
        assert!(is_ok(&ask(&mut client, GET).await), "{index}");
        others.push(client);
        // Closed without a response: nothing was in flight.
        assert_eq!(idle.remove(0).read(&mut [0; 1]).await.unwrap(), 0, "{index}");
    }
    for client in idle.iter_mut().chain(&mut others) {
        assert!(is_ok(&ask(client, GET).await));
    }
    assert_eq!((mesh.workers.connections(), mesh.metrics.total(|totals| &totals.no_place)), (20, 1));
}

#[tokio::test]
async fn a_source_that_keeps_every_place_busy_makes_room_for_one_that_holds_few() {
    let mesh = mesh_of(10).await;
    let address = mesh.address(Port::Tcp);
    let mut crowd = Vec::new();
    for _ in 0..10 {
        let mut client = from(CROWD, address).await;
        client.write_all(b"hi").await.unwrap();
        client.read_exact(&mut [0; 2]).await.unwrap();
        crowd.push(client);
    }
    for index in 0..3 {
        let mut client = from("127.0.0.1", mesh.address(Port::Http)).await;
        assert!(is_ok(&ask(&mut client, GET).await), "{index}");
        mesh.connections(10).await;
        crowd.push(client);
    }
}

#[tokio::test]
async fn incomplete_heads_take_places_by_their_bytes() {
    let mesh = mesh_of(100).await;
    let address = mesh.address(Port::Http);
    let half = [&b"GET / HTTP/1.1\r\nhost: a\r\nx: "[..], &[b'a'; 40_000]].concat();
    let mut crowd = Vec::new();
    // Each holds 64 KiB, which is 16 places: six nearly fill a hundred.
    for _ in 0..6 {
        let mut client = from(CROWD, address).await;
        client.write_all(&half).await.unwrap();
        crowd.push(client);
    }
    until(|| mesh.workers.shared.places.taken() == 96).await;
    let answer = ask(&mut from(CROWD, address).await, &half).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\ntoo many unfinished requests"),
        "{answer}"
    );
    // Another client's head, in two pieces.
    let mut client = from("127.0.0.1", address).await;
    client.write_all(&half).await.unwrap();
    until(|| mesh.workers.shared.places.taken() > 100).await;
    assert!(is_ok(&ask(&mut client, b"\r\n\r\n").await));
    assert!(is_ok(&ask(&mut crowd[0], b"\r\n\r\n").await));
    drop(crowd.split_off(1));
    until(|| mesh.workers.shared.places.taken() == 2).await;
}

/// A TLS client that holds back the last byte of its request's only record.
struct HalfRecord {
    io: TcpStream,
    tls: rustls::ClientConnection,
    last: u8,
}

impl HalfRecord {
    async fn open(source: &str, mesh: &Mesh) -> Self {
        let config = client_config(&mesh.root.bundle(), None, &[&rustls::version::TLS13], &[]);
        let name = rustls_pki_types::ServerName::try_from(crate::test_pki::SERVER).unwrap();
        let io = from(source, mesh.address(Port::Skip)).await;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, io).await.unwrap();
        let (mut io, mut tls) = stream.into_inner();
        let request = [&b"GET / HTTP/1.1\r\nhost: a\r\nx: "[..], &[b'a'; 12_500], b"\r\n\r\n"].concat();
        io::Write::write_all(&mut tls.writer(), &request).unwrap();
        let mut wire = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut wire).unwrap();
        }
        let last = wire.pop().unwrap();
        io.write_all(&wire).await.unwrap();
        Self { io, tls, last }
    }

    async fn complete(&mut self) -> String {
        self.io.write_all(&[self.last]).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        let mut wire = [0; 4096];
        while !answer.ends_with(b"ok") {
            let count = self.io.read(&mut wire).await.unwrap_or_default();
            let mut bytes = &wire[..count];
            while !bytes.is_empty() {
                self.tls.read_tls(&mut bytes).unwrap();
                self.tls.process_new_packets().unwrap();
            }
            // The error for a truncated stream.
            let _ = self.tls.reader().read_to_end(&mut answer);
            if count == 0 {
                break;
            }
        }
        String::from_utf8(answer).unwrap()
    }
}

#[tokio::test]
async fn incomplete_tls_records_take_places_by_their_bytes() {
    let mesh = mesh_of(100).await;
    let taken = || mesh.workers.shared.places.taken();
    let mut crowd = Vec::new();
    // Each holds 12.5 KB, which is three places in addition to its own.
    for index in 1..=24 {
        crowd.push(HalfRecord::open(CROWD, &mesh).await);
        until(|| taken() == 4 * index).await;
    }
    let _idle = from(CROWD, mesh.address(Port::Http)).await;
    until(|| taken() == 97).await;
    let answer = HalfRecord::open(CROWD, &mesh).await.answer().await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\ntoo many unfinished requests"),
        "{answer}"
    );
    until(|| taken() == 97).await;
    // Another source completes its record.
    let mut other = HalfRecord::open("127.0.0.1", &mesh).await;
    until(|| taken() == 101).await;
    assert!(is_ok(&other.complete().await));
    assert!(is_ok(&crowd[0].complete().await));
    until(|| taken() == 98 - 3).await;
}

#[tokio::test]
async fn an_idle_http_2_connection_that_makes_room_gets_goaway_without_an_error() {
    const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
    /// GOAWAY with last stream 0 and reason NO_ERROR.
    const GOAWAY: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mesh = mesh_of(10).await;
    let address = mesh.address(Port::Http);
    let mut crowd = Vec::new();
    for _ in 0..10 {
        let mut client = from(CROWD, address).await;
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        let mut greeting = Vec::new();
        while !greeting.windows(SETTINGS_ACK.len()).any(|frame| frame == SETTINGS_ACK) {
            assert_ne!(client.read_buf(&mut greeting).await.unwrap(), 0);
        }
        crowd.push(client);
    }
    let mut client = from("127.0.0.1", address).await;
    assert!(is_ok(&ask(&mut client, GET).await));
    let mut rest = Vec::new();
    crowd[0].read_to_end(&mut rest).await.unwrap();
    assert!(rest.ends_with(GOAWAY), "{rest:?}");
    mesh.connections(10).await;
}

#[test]
fn requests_of_http_2_clients_leave_files_for_connections() {
    assert_eq!(max_upstream_requests(4096, 2, 1 << 20), 4096);
    assert_eq!(max_upstream_requests(4096, 2, 8192), 1024);
    assert_eq!(max_upstream_requests(4096, 4, 0), 1);
    assert_eq!(place_limits(16 * 1024, 1 << 20, 8192).clients, 16 * 1024);
    assert_eq!(place_limits(16 * 1024, 8192, 2048).clients, PlaceLimits::of(16 * 1024, Some(6144)).clients);
}
