//! A ServiceEntry, from a file to what an app reaches while `enableEgress` is off.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::json;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, RequestOutcome};
use tidegate_tests::dns::DnsServer;
use tidegate_tests::mesh::Mesh;
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

const PROXY_PORT: u16 = 3128;
const CONNECT: &[u8] = b"CONNECT en.wikipedia.org:443 HTTP/1.1\r\nHost: en.wikipedia.org:443\r\n\r\n";

/// A mesh in which workloads reach no address that no object has.
fn closed_mesh() -> Mesh {
    let mut mesh = Mesh::start();
    let mut config = objects::mesh_config(true);
    config["spec"]["traffic"]["enableEgress"] = false.into();
    mesh.apply("config", &[config]);
    mesh
}

/// `currentStatus` and `reason` of an entry.
fn status(mesh: &Mesh, name: &str) -> [String; 2] {
    let found = mesh.status_of("ServiceEntry", name);
    [&found["currentStatus"], &found["reason"]].map(|text| text.as_str().unwrap().to_owned())
}

#[test]
fn an_external_proxy_is_reached_by_its_address_with_an_entry_and_refused_with_the_reason_without() {
    let mut mesh = closed_mesh();
    let address = mesh.block().at(62, PROXY_PORT);
    let proxy_app = App::server_first(address, b"HTTP/1.1 200 Connection established\r\n\r\n");
    let mut caller = mesh.caller(&address.to_string());
    caller.start_ready();

    let mut refused = Client::to(mesh.way_out()).connect().unwrap();
    refused.write(CONNECT);
    assert!(refused.read_until(b"\r\n\r\n").is_err());
    wait::until_true("the reason is in the log", SOON, || {
        let log = caller.log();
        log.lines()
            .any(|line| line.contains("en.wikipedia.org:443") && line.contains("spec.traffic.enableEgress"))
    });

    let entry = objects::COMPANY_PROXY.replace("$PROXY_IP", &address.ip().to_string());
    mesh.apply_text("entry", &entry.replace("$PROXY_PORT", &PROXY_PORT.to_string()));
    assert_eq!(status(&mesh, "proxy")[0], "committed");
    let mut connection = None;
    wait::until_true("the proxy is reached", SOON, || {
        let mut attempt = Client::to(mesh.way_out()).connect().unwrap();
        attempt.write(CONNECT);
        let is_open = attempt.read_until(b"\r\n\r\n").is_ok();
        connection = is_open.then_some(attempt);
        is_open
    });
    let mut connection = connection.unwrap();
    connection.finish();
    connection.read_to_end(SOON);
    assert!(proxy_app.received().ends_with(CONNECT), "opaque bytes, not a request of HTTP");
    wait::until_true("the access log names the entry", SOON, || {
        let log = caller.log();
        log.lines().any(|line| line.contains("\"upstream_cluster\":\"outbound|3128||my-company-proxy.com\""))
    });

    mesh.remove("entry");
    wait::until_true("without the entry it is refused again", SOON, || {
        let mut attempt = Client::to(mesh.way_out()).connect().unwrap();
        attempt.write(CONNECT);
        attempt.read_until(b"\r\n\r\n").is_err()
    });
}

#[test]
fn http_to_a_virtual_address_goes_to_the_entry_s_endpoints_and_two_entries_for_it_have_one_winner() {
    let mut mesh = closed_mesh();
    let virtual_address = mesh.block().at(61, 8080);
    let endpoint = mesh.block().at(62, 9090);
    let app = App::echo(endpoint);
    let mut caller = mesh.caller(&virtual_address.to_string());
    caller.start_ready();
    let entry = |name: &str, created: &str, endpoint: &str, port: u16| {
        json!({
            "apiVersion": "networking.istio.io/v1beta1",
            "kind": "ServiceEntry",
            "metadata": {"name": name, "namespace": "httpbin", "creationTimestamp": created},
            "spec": {
                "hosts": ["api.example.com"],
                "addresses": [virtual_address.ip().to_string()],
                "ports": [{"number": 8080, "name": "http", "protocol": "HTTP"}],
                "resolution": "STATIC",
                "endpoints": [{"address": endpoint, "ports": {"http": port}}],
            },
        })
    };
    let ip = endpoint.ip().to_string();
    mesh.apply("new", &[entry("new", "2026-01-02T00:00:00Z", &mesh.block().ip(60).to_string(), 1)]);
    mesh.apply("old", &[entry("old", "2026-01-01T00:00:00Z", &ip, 9090)]);
    let get = |mesh: &Mesh| Client::to(mesh.way_out()).get("/get");
    wait::until_true("the endpoint answers", SOON, || get(&mesh) == RequestOutcome::Status(200));
    assert!(String::from_utf8_lossy(&app.received()).contains("GET /get HTTP/1.1"));
    assert_eq!(status(&mesh, "old")[0], "committed");
    let [current, reason] = status(&mesh, "new");
    assert_eq!(current, "error");
    assert!(reason.ends_with("is ServiceEntry httpbin/old's, which takes precedence"), "{reason}");
    mesh.remove("old");
    wait::until_true("the other one serves", SOON, || get(&mesh) == RequestOutcome::Status(503));
    wait::until_true("its status says so", SOON, || status(&mesh, "new")[0] == "committed");
}

/// An entry for this host at the port of an address, without addresses.
fn host_entry(host: &str, port: u16, protocol: &str) -> serde_json::Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": "api", "namespace": "httpbin"},
        "spec": {
            "hosts": [host],
            "ports": [{"number": port, "name": "api", "protocol": protocol}],
            "resolution": "NONE",
        },
    })
}

/// A ClientHello with this server name.
fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// Whether an echo comes back from where the server name leads.
fn is_passed_on(mesh: &Mesh, name: &str) -> bool {
    let hello = hello(name);
    let mut attempt = Client::to(mesh.way_out()).connect().unwrap();
    attempt.write(&hello);
    attempt.read_until(hello.get(hello.len() - 32..).unwrap()).is_ok()
}

#[test]
fn tls_to_a_host_is_passed_on_with_an_entry_that_lists_no_addresses_and_every_other_host_is_refused_by_name()
{
    let mut mesh = closed_mesh();
    let outside = mesh.block().at(62, 8443);
    let server = App::tcp_echo(outside);
    let mut caller = mesh.caller(&outside.to_string());
    caller.start_ready();
    mesh.apply("api", &[host_entry("*.example.com", 8443, "TLS")]);
    assert_eq!(status(&mesh, "api")[0], "committed");
    wait::until_true("a host of the entry is reached", SOON, || is_passed_on(&mesh, "api.example.com"));
    assert!(!server.received().is_empty());
    assert!(!is_passed_on(&mesh, "www.example.org"));
    wait::until_true("the log names the refused host", SOON, || {
        let log = caller.log();
        log.lines().any(|line| line.contains("www.example.org") && line.contains("spec.traffic.enableEgress"))
    });
    // Plaintext is not for a port of TLS.
    assert_eq!(Client::to(mesh.way_out()).get("/get"), RequestOutcome::Status(502));
    mesh.remove("api");
    wait::until_true("without the entry it is refused", SOON, || !is_passed_on(&mesh, "api.example.com"));
}

#[test]
fn requests_of_one_connection_are_told_apart_by_their_host() {
    let mut mesh = closed_mesh();
    let outside = mesh.block().at(62, 8080);
    let _app = App::echo(outside);
    let mut caller = mesh.caller(&outside.to_string());
    caller.start_ready();
    let request = |host: &str| format!("GET /get HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes();
    let get = |mesh: &Mesh, host: &str| {
        Client::to(mesh.way_out()).connect().unwrap().request(&request(host)).unwrap().status()
    };
    assert_eq!(get(&mesh, "api.example.com"), 502);
    let mut open = Client::to(mesh.way_out()).connect().unwrap();
    assert_eq!(open.request(&request("api.example.com")).unwrap().status(), 502);
    mesh.apply("api", &[host_entry("api.example.com", 8080, "HTTP")]);
    wait::until_true("the host is reached", SOON, || get(&mesh, "api.example.com") == 200);
    for (host, status) in [("api.example.com:8080", 200), ("www.example.org", 502), ("API.example.com", 200)]
    {
        assert_eq!(open.request(&request(host)).unwrap().status(), status, "{host}");
    }
}

#[test]
fn a_forged_server_name_leads_to_the_name_s_own_address_and_the_last_answer_stays_while_dns_is_down() {
    let mut mesh = closed_mesh();
    let [forged, first, second] = [60, 61, 62].map(|host| mesh.block().at(host, 8443));
    let [at_forged, at_first, at_second] = [forged, first, second].map(App::tcp_echo);
    let dns = DnsServer::start();
    let ip = |address: std::net::SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(ip) => panic!("{ip}"),
    };
    dns.set("api.example.com", &[ip(first)]);
    let mut caller = mesh.caller(&forged.to_string());
    caller = caller.with_further(&format!("--dns-server={}", dns.address()));
    caller.start_ready();
    let mut entry = host_entry("api.example.com", 8443, "TLS");
    entry["spec"]["resolution"] = "DNS".into();
    mesh.apply("api", &[entry]);
    assert_eq!(status(&mesh, "api")[0], "committed");
    wait::until_true("the name is reached", SOON, || is_passed_on(&mesh, "api.example.com"));
    assert!(!at_first.received().is_empty() && at_forged.received().is_empty(), "not what was dialled");
    let line = |text: &str| {
        let log = caller.log();
        let found = log.lines().find(|line| line.contains("\"start_time\"") && line.contains(text));
        found.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
    };
    wait::until_true("the log has the connection", SOON, || line("outbound|").is_some());
    let passed = line("outbound|").unwrap();
    assert_eq!(passed["upstream_cluster"], "outbound|8443||api.example.com");
    assert_eq!(
        [&passed["upstream_host"], &passed["downstream_local_address"]],
        [&first.to_string(), &forged.to_string()]
    );
    assert_eq!(passed["requested_server_name"], "api.example.com");

    dns.set("api.example.com", &[ip(second)]);
    wait::until_true("the new address is used", SOON, || {
        assert!(is_passed_on(&mesh, "api.example.com"));
        !at_second.received().is_empty()
    });
    dns.set_silent(true);
    wait::until_true("the log says that DNS is down", SOON, || {
        caller
            .log()
            .lines()
            .any(|line| line.contains("a name cannot be looked up") && line.contains("api.example.com"))
    });
    assert!(is_passed_on(&mesh, "api.example.com"), "the last addresses stay in use");
    assert!(at_forged.received().is_empty());
    let known = caller.admin_json("/config");
    assert!(known["destinations"][1]["dnsFailures"][0].is_string(), "{known}");
}

#[test]
fn a_name_that_does_not_exist_is_refused_with_that_reason_and_wildcards_are_looked_up_as_they_are_named() {
    let mut mesh = closed_mesh();
    let outside = mesh.block().at(62, 8080);
    let _app = App::echo(outside);
    let dns = DnsServer::start();
    let std::net::IpAddr::V4(ip) = outside.ip() else { panic!() };
    dns.set("api.example.com", &[ip]);
    let mut caller = mesh.caller(&mesh.block().at(60, 8080).to_string());
    caller = caller.with_further(&format!("--dns-server={}", dns.address()));
    caller.start_ready();
    let mut entry = host_entry("*.example.com", 8080, "HTTP");
    entry["spec"]["resolution"] = "DYNAMIC_DNS".into();
    mesh.apply("api", &[entry]);
    let get = |mesh: &Mesh, host: &str| {
        let request = format!("GET /get HTTP/1.1\r\nhost: {host}\r\n\r\n");
        Client::to(mesh.way_out()).connect().unwrap().request(request.as_bytes()).unwrap().status()
    };
    wait::until_true("the name is reached", SOON, || get(&mesh, "api.example.com") == 200);
    assert_eq!(get(&mesh, "gone.example.com"), 503);
    assert_eq!(get(&mesh, "example.org"), 502);
    wait::until_true("the log names the reason", SOON, || {
        let log = caller.log();
        let refused = |line: &str| line.contains("dns_resolution_failure") && line.contains("\"DF\"");
        log.lines().any(refused) && log.lines().any(|line| line.contains("no such name"))
    });
}

#[test]
fn a_sidecar_that_uses_three_of_a_thousand_entries_holds_three() {
    let mut mesh = closed_mesh();
    let outside = mesh.block().at(62, 8443);
    let _server = App::tcp_echo(outside);
    let mut caller = mesh.caller(&outside.to_string());
    caller.start_ready();
    let before = caller.resident_bytes();
    let entries: Vec<_> = (0..1000)
        .map(|i| {
            let mut entry = host_entry(&format!("h{i}.example.com"), 8443, "TLS");
            entry["metadata"]["name"] = format!("e{i}").into();
            entry
        })
        .collect();
    mesh.apply("entries", &entries);
    for host in ["h0.example.com", "h500.example.com", "h999.example.com"] {
        wait::until_true(host, SOON, || is_passed_on(&mesh, host));
    }
    assert!(!is_passed_on(&mesh, "h1000.example.com"));
    let references = caller.admin_json("/config")["references"].as_array().unwrap().len();
    assert_eq!(references, 3);
    let more = caller.resident_bytes().saturating_sub(before);
    assert!(more < 4 << 20, "{more} bytes");
}
