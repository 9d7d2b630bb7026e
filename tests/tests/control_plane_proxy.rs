//! A sidecar whose control plane is on the other side of a company's proxy: a real Squid that allows `CONNECT` to two ports
//! and nothing else.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;

use serde_json::json;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::helm;
use tidegate_tests::mesh::{Mesh, Options};
use tidegate_tests::netns::{PEER_IPS, PodWithPeer};
use tidegate_tests::squid::Squid;
use tidegate_tests::wait::{self, SOON};
use tidegate_tests::walkthrough::{commands, section};

/// Names that only Squid resolves, those of docs/egress.md.
const CONTROLLER: &str = "controller.example.com";
const CA: &str = "ca.example.com";

/// Allows tunnels to these ports.
fn tunnels_to(ports: [u16; 2]) -> String {
    let [controller, ca] = ports;
    format!(
        "acl tunnel method CONNECT\nacl control_plane port {controller} {ca}\nhttp_access allow tunnel control_plane"
    )
}

/// A sidecar with the flags of docs/egress.md, and the addresses of this test.
fn sidecar_of_the_page(mesh: &Mesh, squid: SocketAddr) -> Daemon {
    let (controller, ca) = (mesh.discovery_address(), mesh.ca_address());
    let page = helm::read("docs/egress.md");
    let commands = commands(section(&page, "### A control plane on the other side of a proxy"));
    let [command] = commands[..] else { panic!("not one command: {commands:?}") };
    let command = [
        ("proxy.example.com:3128", squid.to_string()),
        ("controller.example.com:15128", format!("{CONTROLLER}:{}", controller.port())),
        ("ca.example.com:15012", format!("{CA}:{}", ca.port())),
        // The name in the certificate of this mesh's CA, which is not the one that Squid resolves.
        ("tidegate-cert-manager.tidegate-system.svc", ca.ip().to_string()),
    ]
    .into_iter()
    .fold(command.to_owned(), |command, (of_page, here)| {
        assert!(command.contains(of_page), "{command}");
        command.replace(of_page, &here)
    });
    let words: Vec<_> = command.split_whitespace().filter(|word| *word != "\\").collect();
    let (program, flags) = words.split_first().unwrap();
    assert_eq!((*program, flags.len()), ("tidegate-sidecar", 10), "{command}");
    flags.chunks(2).fold(mesh.another_sidecar("outside", 12), |sidecar, flag| match flag {
        [flag @ ("--discovery-address" | "--ca-address"), value] => sidecar.with_argument(flag, value),
        [flag, value] => sidecar.with_further(&format!("{flag}={value}")),
        _ => unreachable!(),
    })
}

#[test]
fn a_sidecar_reaches_its_control_plane_by_connect_and_in_no_other_way() {
    let PodWithPeer { pod, peer } = &PodWithPeer::new();
    let squid_at = SocketAddr::new(PEER_IPS[0].parse().unwrap(), 3128);
    // The control plane listens on the peer's loopback addresses, which the pod cannot reach.
    let mut mesh = peer.run(|| Mesh::with(Options { starts_sidecar: false, ..Options::default() }));
    let (controller, ca) = (mesh.discovery_address(), mesh.ca_address());
    let rules = tunnels_to([controller.port(), ca.port()]);
    let (controller_ip, ca_ip) = (controller.ip().to_string(), ca.ip().to_string());
    let hosts = [(CONTROLLER, controller_ip.as_str()), (CA, ca_ip.as_str())];
    let mut squid = peer.run(|| Squid::start(squid_at, "", &hosts));
    let mut sidecar = sidecar_of_the_page(&mesh, squid_at);

    pod.run(|| sidecar.start());
    wait::until_true("the log has Squid's own words", SOON, || {
        sidecar.log().contains(&format!("answers CONNECT {CA}:{} with 403 Forbidden", ca.port()))
            && sidecar.log().contains("X-Squid-Error: ERR_ACCESS_DENIED")
    });
    pod.run(|| assert!(!sidecar.is_ready()));

    peer.run(|| squid.restart(&rules));
    pod.run(|| sidecar.wait_ready());
    // A change arrives through the tunnel that is open.
    peer.run(|| {
        let backend = json!({
            "apiVersion": "policy.openservicemesh.io/v1alpha1",
            "kind": "IngressBackend",
            "metadata": {"name": "more", "namespace": "httpbin"},
            "spec": {
                "backends": [{"name": "httpbin", "port": {"number": 14001, "protocol": "http"}}],
                "sources": [{"kind": "IPRange", "name": "10.0.0.0/8"}],
            },
        });
        mesh.apply("more.json", &[backend]);
        mesh.wait_acknowledged();
    });

    // Squid logs tunnels when they end.
    pod.run(|| sidecar.kill());
    let connects = |name: &str, at: SocketAddr| {
        let line = format!("CONNECT {name}:{}", at.port());
        squid.access_log().lines().any(|logged| logged.contains("TCP_TUNNEL/200") && logged.contains(&line))
    };
    wait::until_true("Squid has seen both tunnels", SOON, || {
        connects(CONTROLLER, controller) && connects(CA, ca)
    });
}
