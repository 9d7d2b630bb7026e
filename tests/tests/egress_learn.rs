//! `tidegate egress learn`: what an app has reached outside the mesh becomes the objects that let it go on once
//! `enableEgress` is off.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::process::{Command, Output};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::Value;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::daemon::{self, Daemon};
use tidegate_tests::mesh::Mesh;
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

/// The server in front of which the app's library speaks TLS, one of plain HTTP, a database, and one that comes later.
const SERVERS: [(u8, u16); 4] = [(62, 443), (63, 8080), (64, 5432), (65, 443)];

/// An app whose sidecar takes its connections to [`SERVERS`].
struct Caller {
    mesh: Mesh,
    sidecar: Daemon,
    _apps: [App; 4],
}

impl Caller {
    fn start() -> Self {
        let mut mesh = Mesh::start();
        let [tls, http, database, foreign] = SERVERS.map(|(host, port)| mesh.block().at(host, port));
        let apps = [
            App::tcp_echo(tls),
            App::echo(http),
            App::server_first(database, b"ready\n"),
            App::tcp_echo(foreign),
        ];
        let pairs: Vec<_> = (0..SERVERS.len())
            .map(|i| format!("{}={}", way_out(&mesh, i), [tls, http, database, foreign][i]))
            .collect();
        let mut sidecar = mesh.caller(&tls.to_string()).with_argument("--outbound", &pairs.join(","));
        sidecar.start_ready();
        Self { mesh, sidecar, _apps: apps }
    }

    /// Whether the server answers a ClientHello for this name, which is sent in two pieces.
    fn tls(&self, server: usize, name: &'static str) -> bool {
        let hello = client_hello(name);
        let mut connection = Client::to(way_out(&self.mesh, server)).connect().unwrap();
        connection.write(&hello[..100]);
        connection.write(&hello[100..]);
        let is_echoed = connection.read_until(&hello[hello.len() - 20..]).is_ok();
        connection.finish();
        connection.end(SOON);
        is_echoed
    }

    fn http(&self) -> RequestOutcome {
        let request = b"GET /get HTTP/1.1\r\nhost: api.example.com:8080\r\nconnection: close\r\n\r\n";
        let mut connection = Client::to(way_out(&self.mesh, 1)).connect().unwrap();
        let answer = connection.request(request);
        connection.finish();
        connection.end(SOON);
        answer.map_or_else(RequestOutcome::Refused, |answer| RequestOutcome::Status(answer.status()))
    }

    fn database(&self) -> bool {
        let mut connection = Client::to(way_out(&self.mesh, 2)).connect().unwrap();
        let is_greeted = connection.read_until(b"ready\n").is_ok();
        connection.finish();
        connection.end(SOON);
        is_greeted
    }

    /// Does all that the app usually does.
    fn replay(&self) {
        assert!(self.tls(0, "www.example.com"));
        assert_eq!(self.http(), RequestOutcome::Status(200));
        assert!(self.database());
    }

    fn set_egress(&mut self, is_on: bool) {
        let mut config = objects::mesh_config(true);
        config["spec"]["traffic"]["enableEgress"] = is_on.into();
        self.mesh.apply("config", &[config]);
    }

    /// What the sidecar has recorded: server, protocol, count, refused, outcome.
    fn reached(&self) -> Vec<(String, String, u64, u64, String)> {
        let page = self.sidecar.admin_json("/egress");
        assert_eq!(
            (&page["workload"], &page["serviceAccount"]),
            (&"httpbin/caller".into(), &"caller".into())
        );
        let row = |row: &Value| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let server = match &row["host"] {
                Value::String(host) => format!("{host}:{}", row["port"]),
                _ => format!("{}:{}", text(&row["addresses"][0]), row["port"]),
            };
            let count = |field: &str| row[field].as_u64().unwrap();
            (server, text(&row["protocol"]), count("count"), count("refused"), text(&row["outcome"]))
        };
        page["reached"].as_array().unwrap().iter().map(row).collect()
    }

    fn learn(&self, further: &[&str]) -> Output {
        let admin = self.sidecar.admin_address().to_string();
        let mut command = Command::new(daemon::ours("tidegate"));
        command.args(["egress", "learn", "--admin-address", &admin]).args(further);
        command.output().unwrap()
    }
}

/// Where the app dials one of [`SERVERS`].
fn way_out(mesh: &Mesh, server: usize) -> SocketAddr {
    let first = mesh.way_out();
    SocketAddr::new(first.ip(), first.port() + 100 * u16::try_from(server).unwrap())
}

fn client_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn what_was_learned_is_not_refused_once_egress_is_off_and_a_foreign_host_is_refused_by_its_name() {
    let mut caller = Caller::start();
    caller.replay();
    let database = format!("{}:5432", caller.mesh.block().ip(64));
    let row = |server: &str, protocol: &str, count, refused, outcome: &str| {
        (server.to_owned(), protocol.to_owned(), count, refused, outcome.to_owned())
    };
    wait::until_true("the sidecar has recorded each server", SOON, || {
        let expected = [
            row("api.example.com:8080", "http", 1, 0, "enableEgress"),
            row("www.example.com:443", "tls", 1, 0, "enableEgress"),
            row(&database, "tcp", 1, 0, "enableEgress"),
        ];
        caller.reached() == expected
    });
    let learned = caller.learn(&[]);
    assert!(learned.status.success(), "{}", text(&learned));
    assert!(
        text(&learned).contains("3 servers would be refused if enableEgress was false"),
        "{}",
        text(&learned)
    );
    let manifests = String::from_utf8(learned.stdout).unwrap();
    assert!(
        manifests.contains("# Service accounts: caller\n# api.example.com:8080 (HTTP): 1 times"),
        "{manifests}"
    );

    caller.mesh.apply_text("learned", &manifests);
    caller.set_egress(false);
    for _ in 0..3 {
        caller.replay();
    }
    let refused = |caller: &Caller| caller.reached().iter().map(|row| row.3).sum::<u64>();
    wait::until_true("the sidecar has recorded the replay", SOON, || {
        let rows = caller.reached();
        rows.iter().map(|row| row.2).sum::<u64>() == 12 && rows.iter().all(|row| row.4 == "serviceEntry")
    });
    assert_eq!(refused(&caller), 0);
    let learned = text(&caller.learn(&["--namespace", "httpbin", "--service-account", "caller"]));
    assert!(learned.contains("0 servers would be refused"), "{learned}");
    assert!(
        learned.contains(
            "# www.example.com:443: allowed by ServiceEntry httpbin/learned-www.example.com (httpbin/caller)"
        ),
        "{learned}"
    );

    assert!(!caller.tls(3, "foreign.example.org"));
    wait::until_true("the sidecar has recorded the refusal", SOON, || {
        caller.reached().contains(&row("foreign.example.org:443", "tls", 1, 1, "refused"))
    });
    assert!(caller.sidecar.log().contains("host=\"foreign.example.org\""));
    let table = text(&caller.learn(&["-o", "table"]));
    let line = table.lines().find(|line| line.contains("foreign.example.org:443")).unwrap();
    assert!(line.ends_with("is refused"), "{table}");
    assert_eq!(refused(&caller), 1);
}
