//! What one client, or many, can use up: files, memory, series of metrics, the admin pages.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use socket2::SockRef;
use tidegate_tests::app::App;
use tidegate_tests::client::{self, Client, Connection, End, RequestOutcome};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, gateway, https, policy, principal};
use tidegate_tests::pki::{INGRESS_CLIENT, Leaf};
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const MIB: u64 = 1 << 20;

fn mesh(options: Options) -> Mesh {
    let mut mesh = Mesh::with(options);
    mesh.apply("policy", &[policy("httpbin", &[backend("httpbin", PORT, "http")], &[gateway()])]);
    mesh
}

#[test]
fn admin_pages_answer_only_who_names_this_host_and_change_nothing_by_get() {
    let mesh = Mesh::start();
    for daemon in [&mesh.sidecar, &mesh.controller, &mesh.ca] {
        let address = daemon.admin_address();
        let send = |method: &str, path: &str, fields: &str| {
            let request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n{fields}\r\n\r\n");
            Client::to(address).connect().unwrap().request(request.as_bytes()).unwrap()
        };
        let port = address.port();
        for host in
            ["evil.example".to_owned(), format!("evil.example:{port}"), "localhost.evil.example".to_owned()]
        {
            for path in ["/ready", "/metrics", "/config", "/log"] {
                assert_eq!(send("GET", path, &format!("host: {host}")).status(), 403, "{host}{path}");
            }
        }
        for host in [address.to_string(), format!("localhost:{port}"), "[::1]:1".to_owned()] {
            let answer = send("GET", "/ready", &format!("host: {host}"));
            assert_eq!(answer.status(), 200, "{host}");
            let cors =
                answer.fields.iter().find(|(name, _)| name.to_lowercase().starts_with("access-control"));
            assert_eq!(cors, None);
        }
        let host = format!("host: {address}");
        let answer = send(
            "POST",
            "/log",
            &format!("{host}\r\norigin: http://evil.example\r\ncontent-length: 5\r\n\r\ndebug"),
        );
        assert_eq!(answer.status(), 403, "a page of another origin");
        assert!(!send("GET", "/log", &host).text().contains("debug"));
        for path in ["/shutdown", "/quitquitquit", "/drain", "/rotation/next"] {
            assert!(matches!(send("GET", path, &host).status(), 404 | 405), "{path}");
        }
    }
    let (mut ca, mut sidecar) = (mesh.ca, mesh.sidecar);
    assert!(ca.exited().is_none() && sidecar.exited().is_none());
    assert_eq!(ca.admin_json("/rotation")["step"], "steady");
}

#[test]
fn no_page_and_no_log_holds_a_key_or_a_token() {
    let mut mesh = mesh(Options::default());
    let _app = App::echo(mesh.app_address());
    assert_eq!(mesh.client().get("/get"), OK);
    let tokens: Vec<_> = ["controller", "httpbin"]
        .map(|name| std::fs::read_to_string(mesh.path().join("tokens").join(name)).unwrap())
        .to_vec();
    for daemon in [&mesh.sidecar, &mesh.controller, &mesh.ca] {
        let answer = daemon.admin_post("/log", "trace").unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text());
    }
    // Changes that are logged at every level: policies, certificates.
    mesh.apply(
        "policy",
        &[policy("httpbin", &[https("httpbin", PORT, false, &[])], &[principal(INGRESS_CLIENT)])],
    );
    assert_eq!(mesh.tls_client().get("/get"), OK);
    mesh.sidecar.kill();
    mesh.sidecar.start_ready();
    let pages = ["/", "/config", "/metrics", "/workloads", "/policies", "/problems", "/rotation", "/log"];
    for daemon in [&mesh.sidecar, &mesh.controller, &mesh.ca] {
        let pages = pages.map(|page| daemon.admin_get(page).unwrap().text()).concat();
        for text in [pages, daemon.log()] {
            assert!(!text.contains("PRIVATE KEY"));
            assert!(!tokens.iter().any(|token| text.contains(token.trim())), "a token");
        }
    }
}

#[test]
fn with_few_files_left_connections_are_shed_and_the_rest_is_served_on() {
    let mesh = mesh(Options { sidecar_file_limit: Some(256), ..Options::default() });
    let _app = App::echo(mesh.app_address());
    let mut first = mesh.client().connect().unwrap();
    assert_eq!(first.get("/get").unwrap().status(), 200);
    for round in 0..2 {
        let crowd: Vec<TcpStream> =
            (0..300).filter_map(|_| client::connect(Some(mesh.gateway()), mesh.target()).ok()).collect();
        assert_eq!(
            first.get("/get").unwrap().status(),
            200,
            "round {round}: the one that was there is served"
        );
        assert!(mesh.sidecar.open_files().len() <= 256);
        drop(crowd);
        wait::until_true("new connections are served again", SOON, || mesh.client().get("/get") == OK);
        assert!(mesh.sidecar.is_ready());
    }
}

#[test]
fn clients_that_have_left_an_app_that_does_not_answer_give_their_files_back() {
    let mesh = mesh(Options {
        // A quarter of them is reserved for HTTP/2 requests.
        sidecar_file_limit: Some(384),
        sidecar_arguments: ["--half-close-timeout", "1s"].map(str::to_owned).to_vec(),
        ..Options::default()
    });
    let app = App::echo(mesh.app_address());
    assert_eq!(mesh.client().get("/get"), OK);
    let before = mesh.sidecar.open_files().len();
    let ask = || {
        let mut client = client::connect(Some(mesh.gateway()), mesh.target()).unwrap();
        client.write_all(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        client
    };
    for round in 1..=2 {
        let clients: Vec<TcpStream> = (0..80).map(|_| ask()).collect();
        app.wait_for_requests(1 + 80 * round + (round - 1));
        assert!(mesh.sidecar.open_files().len() >= before + 150);
        for (number, client) in clients.into_iter().enumerate() {
            if number % 2 == 0 {
                SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(client);
        }
        wait::until_true("their files are given back", SOON, || mesh.sidecar.open_files().len() <= before);
        assert_eq!(mesh.client().get("/get"), OK);
    }
    app.release();
}

#[test]
fn more_connections_than_allowed_are_closed_at_once() {
    let arguments = ["--max-connections", "10"].map(str::to_owned).to_vec();
    let mesh = mesh(Options { sidecar_arguments: arguments, ..Options::default() });
    let _app = App::echo(mesh.app_address());
    let mut crowd: Vec<Connection> = (0..10).map(|_| mesh.client().connect().unwrap()).collect();
    for connection in &mut crowd {
        assert_eq!(connection.get("/get").unwrap().status(), 200);
    }
    for _ in 0..5 {
        assert_ne!(mesh.client().get("/get"), OK);
    }
    for connection in &mut crowd {
        assert_eq!(connection.get("/get").unwrap().status(), 200);
    }
    drop(crowd.split_off(5));
    wait::until_true("there is room again", SOON, || mesh.client().get("/get") == OK);
}

#[test]
fn slow_readers_of_large_answers_hold_little_memory() {
    let mesh = mesh(Options::default());
    let _app = App::echo(mesh.app_address());
    assert_eq!(mesh.client().get("/get"), OK);
    let before = mesh.sidecar.resident_bytes();
    let readers: Vec<Connection> = (0..100)
        .map(|_| {
            let mut connection = mesh.client().connect().unwrap();
            connection.write(format!("GET /bytes/{} HTTP/1.1\r\nHost: a\r\n\r\n", 1 << 30).as_bytes());
            connection.read(SOON).unwrap();
            connection
        })
        .collect();
    // Memory is at its maximum once the app can send no more.
    let mut last = 0;
    wait::until_true("memory is steady", SOON, || {
        let now = mesh.sidecar.resident_bytes();
        let is_steady = now <= last;
        last = now;
        is_steady
    });
    let each = mesh.sidecar.resident_bytes().saturating_sub(before) / readers.len() as u64;
    assert!(each < 128 * 1024, "{each} bytes for each reader");
    assert_eq!(mesh.client().get("/get"), OK);
}

#[test]
fn a_fast_sender_to_a_stalled_app_is_stopped() {
    let mesh = mesh(Options::default());
    let _app = App::stalled(mesh.app_address());
    let before = mesh.sidecar.resident_bytes();
    let mut connection = mesh.client().connect().unwrap();
    connection.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1073741824\r\n\r\n");
    let block = vec![b'x'; 1 << 20];
    let mut sent = 0;
    loop {
        match connection.write_some(&block, Duration::from_millis(500)) {
            0 => break,
            count => sent += count,
        }
        assert!(sent < 200 << 20, "the sender is not stopped");
    }
    let grown = mesh.sidecar.resident_bytes().saturating_sub(before);
    assert!(grown < 4 * MIB, "{grown} bytes after {sent}");
}

/// Names with labels of every series.
fn series(mesh: &Mesh) -> BTreeSet<String> {
    let text = mesh.sidecar.admin_get("/metrics").unwrap().text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn what_clients_choose_makes_no_series_and_takes_no_memory() {
    let mut mesh = mesh(Options { ports: vec![(14002, "http-open")], ..Options::default() });
    let _apps =
        [PORT, 14002].map(|port| App::answering(mesh.app_port(port), b"HTTP/1.1 204 No Content\r\n\r\n"));
    mesh.apply("tls", &[policy("tls", &[https("httpbin", 14002, false, &[])], &[principal("*")])]);
    let tls_client = |mesh: &Mesh, i: usize| {
        let tls = mesh
            .tls()
            .server_name(&format!("n{i}.example"))
            .credentials(mesh.sign(&Leaf::dns(&format!("c{i}.example"))));
        Client::to(mesh.target_port(14002)).from(mesh.gateway()).tls(tls)
    };
    let load = |mesh: &Mesh, from: usize, count: usize| {
        let mut connection = mesh.client().connect().unwrap();
        let mut bytes = Vec::new();
        for i in from..from + count {
            bytes.extend(
                format!("M{i} /p{i} HTTP/1.1\r\nHost: h{i}.example\r\nUser-Agent: u{i}\r\nX-Forwarded-For: f{i}\r\n\r\n").bytes(),
            );
            if bytes.len() > 30_000 || i + 1 == from + count {
                let sent = bytes.windows(4).filter(|window| window == b"\r\n\r\n").count();
                connection.write(&std::mem::take(&mut bytes));
                for _ in 0..sent {
                    assert_eq!(
                        connection.response(tidegate_tests::http1::MessageKind::Response).unwrap().status(),
                        204
                    );
                }
            }
        }
        for i in from..from + 50 {
            assert_eq!(tls_client(mesh, i).get(&format!("/{i}")), RequestOutcome::Status(204));
        }
    };
    load(&mesh, 0, 1_000);
    let (before, memory) = (series(&mesh), mesh.sidecar.resident_bytes());
    load(&mesh, 1_000, 20_000);
    let after = series(&mesh);
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert!(after.len() < 500, "{} series", after.len());
    let grown = mesh.sidecar.resident_bytes().saturating_sub(memory);
    assert!(grown < 8 * MIB, "{grown} bytes");
}

#[test]
fn a_log_that_cannot_be_written_stops_no_traffic() {
    let arguments = ["--access-log-file", "/dev/full"].map(str::to_owned).to_vec();
    let mesh = mesh(Options { sidecar_arguments: arguments, ..Options::default() });
    let _app = App::echo(mesh.app_address());
    let memory = mesh.sidecar.resident_bytes();
    let mut connection = mesh.client().connect().unwrap();
    for _ in 0..5_000 {
        assert_eq!(connection.get("/get").unwrap().status(), 200);
    }
    assert!(mesh.sidecar.is_ready());
    let grown = mesh.sidecar.resident_bytes().saturating_sub(memory);
    assert!(grown < 16 * MIB, "{grown} bytes");
}

#[test]
fn a_flood_of_key_updates_ends_the_connection() {
    let mut mesh = Mesh::start();
    let _app = App::echo(mesh.app_address());
    mesh.apply("policy", &[policy("httpbin", &[https("httpbin", PORT, true, &[])], &[])]);
    let mut connection = mesh.client().tls(mesh.tls()).connect().unwrap();
    assert_eq!(connection.get("/get").unwrap().status(), 200);
    let sent = connection.update_keys(10_000);
    let end = connection.end(SOON);
    assert!(sent < 10_000 && end != End::StillOpen, "{end:?} after {sent}");
    assert_eq!(mesh.client().tls(mesh.tls()).get("/get"), OK);
}

#[test]
fn clients_that_dawdle_are_ended_in_each_phase() {
    let arguments = [
        ("--detect-timeout", "700ms"),
        ("--handshake-timeout", "700ms"),
        ("--headers-timeout", "700ms"),
        ("--idle-timeout", "700ms"),
        ("--body-timeout", "700ms"),
    ];
    let mut mesh = mesh(Options {
        ports: vec![(14002, "http-tls")],
        sidecar_arguments: arguments
            .iter()
            .flat_map(|(flag, value)| [(*flag).to_owned(), (*value).to_owned()])
            .collect(),
        ..Options::default()
    });
    let _apps = [PORT, 14002].map(|port| App::echo(mesh.app_port(port)));
    mesh.apply("tls", &[policy("tls", &[https("httpbin", 14002, true, &[])], &[])]);
    let mut hello = Vec::new();
    mesh.tls().connection().write_tls(&mut hello).unwrap();
    let tls = Client::to(mesh.target_port(14002)).from(mesh.gateway());
    let plain = mesh.client();
    let cases: Vec<(&str, &Client, Vec<u8>)> = vec![
        ("nothing", &plain, Vec::new()),
        ("half a ClientHello", &tls, hello[..hello.len() / 2].to_vec()),
        ("a ClientHello and no more", &tls, hello),
        ("half a head", &plain, b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec()),
        ("half a body", &plain, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf".to_vec()),
        ("nothing after a request", &plain, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
    ];
    for (what, client, bytes) in cases {
        let (_, end) = client.exchange(&bytes, SOON);
        assert!(matches!(end, End::Closed | End::Reset), "{what}: {end:?}");
    }
    assert_eq!(mesh.client().get("/get"), OK);
}
