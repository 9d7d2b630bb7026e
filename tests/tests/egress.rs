//! What an app reaches outside the mesh while `enableEgress` is on, and while it is off.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use tidegate_tests::app::App;
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::mesh::Mesh;
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);

#[test]
fn an_address_that_no_object_has_is_reached_while_egress_is_on_and_refused_with_its_reason_while_it_is_off() {
    let mut mesh = Mesh::start();
    let outside = mesh.block().at(62, 8080);
    let _app = App::echo(outside);
    let mut caller = mesh.caller(&outside.to_string());
    caller.start_ready();
    let get = |mesh: &Mesh| Client::to(mesh.way_out()).get("/get");
    assert_eq!(get(&mesh), OK);

    let mut config = objects::mesh_config(true);
    config["spec"]["traffic"]["enableEgress"] = false.into();
    mesh.apply("config", &[config.clone()]);
    wait::until_true("egress is off", SOON, || get(&mesh) == RequestOutcome::Status(502));
    let answer = Client::to(mesh.way_out())
        .connect()
        .unwrap()
        .request(b"GET /get HTTP/1.1\r\nhost: api.example.com\r\n\r\n")
        .unwrap();
    assert!(answer.status() == 502 && answer.body.is_empty());
    wait::until_true("the log names the host and the reason", SOON, || {
        let log = caller.log();
        log.lines().any(|line| line.contains("api.example.com") && line.contains("spec.traffic.enableEgress"))
    });
    let mut connect = Client::to(mesh.way_out()).connect().unwrap();
    connect.write(b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n");
    assert!(connect.read_until(b"\r\n").is_err(), "it is reset");
    wait::until_true("the log names the host that the app wants a proxy to reach", SOON, || {
        caller.log().contains("www.example.com:443")
    });
    let known = &caller.admin_json("/config")["destinations"][0];
    assert_eq!(known["state"], "unregistered");

    config["spec"]["traffic"]["enableEgress"] = true.into();
    mesh.apply("config", &[config]);
    wait::until_true("egress is on again", SOON, || get(&mesh) == OK);
}
