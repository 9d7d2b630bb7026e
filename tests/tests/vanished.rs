//! A node vanishes: nothing is closed, and nothing is acknowledged any more. Requires root.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use tidegate_tests::app::{self, App};
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::load::{Load, Shape};
use tidegate_tests::mesh::{Options, PORT};
use tidegate_tests::netns::NetworkNamespace;
use tidegate_tests::wait::{self, SOON};

const SECOND_HOST: u8 = 12;
const SHAPE: Shape =
    Shape { connections: 8, pause: Duration::from_millis(10), requests_per_connection: u64::MAX };

#[test]
fn an_endpoint_whose_node_vanishes_costs_no_request_and_gets_none_after_seconds() {
    let namespace = NetworkNamespace::new();
    namespace.run(|| {
        let mut mesh = CallerMesh::start(Options::default());
        let mut second = mesh.mesh.another_sidecar("second", SECOND_HOST);
        second.start_ready();
        let addresses = [mesh.mesh.target(), mesh.mesh.block().at(SECOND_HOST, PORT)];
        mesh.endpoints(&addresses.map(|address| (address, "httpbin")));
        let _app = App::unrecorded(mesh.mesh.app_address(), app::echo);
        let client = mesh.app();
        let load = Load::start(SHAPE, || 0, move || client.clone());
        mesh.wait_known(&addresses);
        let served = || second.admin_get("/metrics").unwrap().text().matches("response_code=\"200\"").count();
        wait::until_true("both endpoints serve", SOON, || {
            load.wait_for(100);
            served() > 0
        });

        let vanished = addresses[1].ip().to_string();
        for direction in ["-s", "-d"] {
            namespace.command("iptables", &["-A", "INPUT", direction, &vanished, "-p", "tcp", "-j", "DROP"]);
        }
        wait::until_true("the caller's sidecar notices", Duration::from_secs(8), || {
            mesh.caller.log().contains("the endpoint has vanished")
        });
        load.wait_for(2000);
        load.stop().assert_flawless();
    });
}
