//! `tidegate egress learn`: what an app has reached outside the mesh becomes the objects that let it go on once
//! `enableEgress` is off.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, Output};

use serde_json::Value;
use tidegate_tests::app::App;
use tidegate_tests::client::RequestOutcome;
use tidegate_tests::daemon::{self, Daemon};
use tidegate_tests::mesh::Mesh;
use tidegate_tests::objects;
use tidegate_tests::outside::{http, is_greeted, tls_is_echoed, way_out, ways_out};
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
        let ways = ways_out(&mesh, &[tls, http, database, foreign]);
        let mut sidecar = mesh.caller(&tls.to_string()).with_argument("--outbound", &ways);
        sidecar.start_ready();
        Self { mesh, sidecar, _apps: apps }
    }

    /// Does all that the app usually does.
    fn replay(&self) {
        assert!(tls_is_echoed(way_out(&self.mesh, 0), "www.example.com"));
        let answer = http(way_out(&self.mesh, 1), "GET", "/get", "api.example.com:8080");
        assert_eq!(answer, RequestOutcome::Status(200));
        assert!(is_greeted(way_out(&self.mesh, 2), b"ready\n"));
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
        rows.iter().map(|row| row.2).sum::<u64>() == 12 && rows.iter().all(|row| row.4 == "allowed")
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

    assert!(!tls_is_echoed(way_out(&caller.mesh, 3), "foreign.example.org"));
    wait::until_true("the sidecar has recorded the refusal", SOON, || {
        caller.reached().contains(&row("foreign.example.org:443", "tls", 1, 1, "refused"))
    });
    assert!(caller.sidecar.log().contains("host=\"foreign.example.org\""));
    let table = text(&caller.learn(&["-o", "table"]));
    let line = table.lines().find(|line| line.contains("foreign.example.org:443")).unwrap();
    assert!(line.ends_with("is refused"), "{table}");
    assert_eq!(refused(&caller), 1);
}

#[test]
fn learned_egresses_let_the_service_account_go_on_as_well() {
    let mut caller = Caller::start();
    caller.replay();
    let learned = ["--kind", "egress"];
    wait::until_true("the sidecar has recorded each server", SOON, || caller.reached().len() == 3);
    let manifests = String::from_utf8(caller.learn(&learned).stdout).unwrap();
    assert!(manifests.contains("name: learned-caller-https-443\n"), "{manifests}");
    caller.mesh.apply_text("learned", &manifests);
    caller.set_egress(false);
    caller.replay();
    wait::until_true("the policies allow it", SOON, || {
        let rows = caller.reached();
        rows.iter().map(|row| row.2).sum::<u64>() == 6
            && rows.iter().all(|row| row.3 == 0 && row.4 == "allowed")
    });
    assert!(!tls_is_echoed(way_out(&caller.mesh, 3), "foreign.example.org"));
}
