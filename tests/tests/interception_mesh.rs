//! Two pods as network namespaces, each with a sidecar and the kernel's rules: connections of their apps pass both
//! sidecars and cannot bypass them. Requires root.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use tidegate_tests::app::App;
use tidegate_tests::capture::{CapturedFrames, capture};
use tidegate_tests::client::{Client, End, RequestOutcome};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::netns::SIDECAR_USER;
use tidegate_tests::netns::node::{Node, NodePod, bring};
use tidegate_tests::objects;
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const RESET: RequestOutcome = RequestOutcome::Refused(End::Reset);

const TCP_PORT: u16 = 14003;
/// The app listens here, on loopback; no object mentions this port.
const LOCAL_PORT: u16 = 14009;
/// The Service's addresses; no host has them.
const SERVICE_IPS: [&str; 2] = ["10.96.0.20", "fd96::20"];
const MARK: &str = "tidegate-plaintext-mark";

/// The pods `httpbin/caller` and `httpbin/httpbin`.
struct CallerAndServer {
    node: Node,
    caller: InterceptedPod,
    server: InterceptedPod,
    _mesh: Mesh,
}

struct InterceptedPod {
    pod: NodePod,
    sidecar: Daemon,
}

impl CallerAndServer {
    fn start() -> Self {
        Self::with_server(Node::pod)
    }

    fn with_server(server: impl FnOnce(&Node) -> NodePod) -> Self {
        let node = Node::new();
        let (caller, server) = (node.pod(), server(&node));
        let mut mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
        for pod in [&caller, &server] {
            pod.namespace().intercepted(&["--check", "--pod-ips", &pod.ips().join(",")]);
            bring(mesh.ca_address(), pod.namespace());
            bring(mesh.discovery_address(), pod.namespace());
        }
        let local = mesh.target().ip();
        let pods = [pod("caller", local, &caller), pod("httpbin", local, &server)];
        mesh.apply("mesh", &[&pods[..], &services(), &slices(&server)].concat());
        let caller = InterceptedPod::start(&mesh, "caller", caller);
        let server = InterceptedPod::start(&mesh, "httpbin", server);
        Self { node, caller, server, _mesh: mesh }
    }

    /// Each address of the server with the app's port, and each address of its Service with the Service's port.
    fn addresses(&self, port: u16, service_port: u16) -> Vec<SocketAddr> {
        let own = self.server.pod.ips().map(|ip| (ip, port));
        let service = SERVICE_IPS.map(|ip| (ip.to_owned(), service_port));
        own.into_iter().chain(service).map(|(ip, port)| at(&ip, port)).collect()
    }

    /// Captures what passes the node while something happens.
    fn capture(&self, of: &str, exchange: impl FnOnce()) -> CapturedFrames {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.node.namespace().name())).arg("--");
        capture(command, MARK, of, exchange)
    }
}

impl InterceptedPod {
    fn start(mesh: &Mesh, name: &str, pod: NodePod) -> Self {
        let ips = pod.ips().join(",");
        let probes = r#"[{"port":15901,"path":"/osm-liveness-probe/app","target":{"tcp":{"port":14001}}},
            {"port":15902,"path":"/osm-readiness-probe/app","target":{"tcp":{"port":14001}}},
            {"port":15903,"path":"/osm-startup-probe/app","target":{"tcp":{"port":14001}}}]"#;
        let further = ["--pod-ips", &ips, "--health-address", "[::]:15010", "--probes", probes];
        let mut sidecar = mesh.another_transparent_sidecar(name, SIDECAR_USER, &further);
        pod.namespace().run(|| sidecar.start_ready());
        Self { pod, sidecar }
    }

    /// As the pod's app.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pod.namespace().run(work)
    }

    fn get(&self, address: SocketAddr) -> RequestOutcome {
        self.run(|| Client::to(address).get("/get"))
    }

    fn http(&self) -> App {
        self.run(|| App::echo((Ipv6Addr::UNSPECIFIED, PORT).into()))
    }

    /// Access log lines that contain this text.
    fn records(&self, text: &str) -> Vec<Value> {
        let log = self.sidecar.log();
        let lines = log.lines().filter(|line| line.contains("\"start_time\"") && line.contains(text));
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until this many access log lines contain this text.
    #[track_caller]
    fn wait_for_records(&self, text: &str, count: usize) {
        wait::until_true(&format!("{count} log lines with {text}"), SOON, || {
            self.records(text).len() >= count
        });
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// `local`: a loopback address marks a Pod of a folder as running on this machine.
fn pod(name: &str, local: IpAddr, pod: &NodePod) -> Value {
    let mut object = objects::pod(name, name, &local.to_string(), &[]);
    object["status"]["podIPs"] = pod.ips().iter().map(|ip| json!({"ip": ip})).collect();
    object
}

/// One Service with addresses of both families, and a headless one.
fn services() -> Vec<Value> {
    let ports = json!([
        {"name": "http", "port": 80, "targetPort": PORT},
        {"name": "tcp-echo", "port": 90, "targetPort": TCP_PORT},
    ]);
    let service = |name: &str, ips: &[&str]| {
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "httpbin"},
            "spec": {"clusterIP": ips[0], "clusterIPs": ips, "selector": {"app": "httpbin"}, "ports": ports},
        })
    };
    vec![service("httpbin", &SERVICE_IPS), service("members", &["None"])]
}

fn slices(server: &NodePod) -> Vec<Value> {
    let slice = |service: &str, ip: &str| {
        let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{}", family.to_lowercase()),
                "namespace": "httpbin",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family,
            "endpoints": [{
                "addresses": [ip],
                "targetRef": {"kind": "Pod", "name": "httpbin", "namespace": "httpbin"},
            }],
            "ports": [{"name": "http", "port": PORT}, {"name": "tcp-echo", "port": TCP_PORT}],
        })
    };
    let ips = server.ips();
    ["httpbin", "members"].iter().flat_map(|service| ips.iter().map(move |ip| slice(service, ip))).collect()
}

#[test]
fn what_an_app_dials_by_pod_or_service_travels_as_mutual_tls_in_both_families() {
    let scene = CallerAndServer::start();
    let app = scene.server.http();
    let addresses = scene.addresses(PORT, 80);
    let path = format!("/get?mark={MARK}");
    for ip in scene.caller.pod.ips() {
        let seen = scene.capture(&ip, || {
            for address in addresses.iter().filter(|address| address.is_ipv6() == ip.contains(':')) {
                let answer = scene.caller.run(|| Client::to(*address).answer(&path));
                assert_eq!(answer.status(), 200, "{address}");
            }
        });
        assert!(seen.frames > 20 && seen.found == 0, "plaintext between the pods: {seen:?}");
    }
    assert_eq!(app.requests().len(), addresses.len());
    let (caller, server) = (&scene.caller, &scene.server);
    server.wait_for_records("spiffe://cluster.local/ns/httpbin/sa/caller", addresses.len());
    for address in addresses {
        caller.wait_for_records(&format!("\"downstream_local_address\":\"{address}\""), 1);
    }
    for record in caller.records("outbound") {
        assert_eq!(record["connection_security_policy"], "mutual_tls", "{record}");
    }

    // To show that the capture works: an app outside the mesh, on the node.
    let [outside, _] = scene.caller.pod.gateways();
    let outside = at(&outside, 8080);
    let _app = scene.node.namespace().run(|| App::echo(outside));
    let seen = scene.capture(&outside.ip().to_string(), || {
        assert_eq!(caller.run(|| Client::to(outside).answer(&path)).status(), 200);
    });
    assert!(seen.found > 0, "the capture misses what is there: {seen:?}");
}

#[test]
fn an_app_reaches_itself_by_every_address_and_others_reach_only_what_it_serves() {
    let scene = CallerAndServer::start();
    let server = &scene.server;
    let _app = server.http();
    let local: Vec<_> = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
        .map(|ip| server.run(|| App::echo(SocketAddr::new(ip, LOCAL_PORT))))
        .into();
    for ip in ["127.0.0.1", "::1"].map(str::to_owned).iter().chain(&server.pod.ips()) {
        assert_eq!(server.get(at(ip, PORT)), OK, "{ip}");
    }
    assert_eq!(server.get(at("127.0.0.1", LOCAL_PORT)), OK);
    assert!(server.records("").is_empty(), "no sidecar is needed for that");
    for ip in SERVICE_IPS {
        assert_eq!(server.get(at(ip, 80)), OK, "{ip}");
    }
    // Once through the sidecar outbound, once inbound.
    server.wait_for_records("\"direction\":\"outbound\"", 2);
    server.wait_for_records("spiffe://cluster.local/ns/httpbin/sa/httpbin", 2);
    assert_eq!(server.records("").len(), 4);

    for app in &local {
        app.forget();
    }
    for ip in server.pod.ips() {
        assert_eq!(scene.caller.get(at(&ip, PORT)), OK);
        let refused = RequestOutcome::Status(503);
        assert_eq!(scene.caller.get(at(&ip, LOCAL_PORT)), refused, "a peer, at loopback's port");
        let outsider = |port| scene.node.namespace().run(|| Client::to(at(&ip, port)).get("/get"));
        assert_eq!((outsider(PORT), outsider(LOCAL_PORT)), (RESET, RESET));
    }
    assert!(local.iter().all(|app| app.received().is_empty()));
}

#[test]
fn a_sidecars_own_ports_lead_nowhere() {
    let scene = CallerAndServer::start();
    let app = scene.server.http();
    let files = |meshed: &InterceptedPod| meshed.sidecar.open_files().len();
    let before = (files(&scene.caller), files(&scene.server));
    let time = scene.server.sidecar.processor_time();
    let proxied = b"GET http://127.0.0.1:15000/config HTTP/1.1\r\nhost: 127.0.0.1:15000\r\n\r\n";
    let connect = b"CONNECT 127.0.0.1:14001 HTTP/1.1\r\nhost: 127.0.0.1:14001\r\n\r\n";
    for ip in scene.server.pod.ips() {
        for port in [15000, 15001, 15003] {
            for bytes in [&proxied[..], connect] {
                let exchange = || Client::to(at(&ip, port)).exchange(bytes, SOON);
                let peer = scene.caller.run(exchange);
                assert_eq!(peer, (Vec::new(), End::Reset), "a peer at {ip} {port}");
                let outsider = scene.node.namespace().run(exchange);
                assert_eq!(outsider, (Vec::new(), End::Reset), "an outsider at {ip} {port}");
            }
        }
    }
    for ip in ["127.0.0.1", "::1"].map(str::to_owned).iter().chain(&scene.server.pod.ips()) {
        for port in [15001, 15003] {
            assert_eq!(scene.server.get(at(ip, port)), RESET, "the app itself at {ip} {port}");
        }
    }
    assert!(app.received().is_empty());
    wait::until_true("no connection stays", SOON, || {
        let now = (files(&scene.caller), files(&scene.server));
        // A pool to the control plane may have been opened meanwhile; it does not grow with the attempts.
        now.0 <= before.0 + 4 && now.1 <= before.1 + 4
    });
    let took = scene.server.sidecar.processor_time() - time;
    assert!(took < SOON / 10, "no loop: {took:?}");
    assert_eq!(scene.caller.get(scene.addresses(PORT, 80)[0]), OK);
}

#[test]
fn what_the_rules_leave_alone_is_ours_and_only_reads() {
    let scene = CallerAndServer::start();
    let server = &scene.server;
    let app = server.http();
    let rules = server.pod.namespace().rules();
    let excluded: BTreeSet<u16> = rules
        .lines()
        .filter(|line| line.contains("-A TIDEGATE_INBOUND ") && line.ends_with("-j RETURN"))
        .flat_map(|line| {
            line.split(' ').skip_while(|word| !word.starts_with("--dport")).nth(1).unwrap().split(',')
        })
        .flat_map(|ports| {
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            first.parse::<u16>().unwrap()..=last.parse().unwrap()
        })
        .collect();
    assert_eq!(excluded, BTreeSet::from([15010, 15901, 15902, 15903, 15904]), "{rules}");
    for port in excluded {
        for ip in server.pod.ips() {
            let to = Client::to(at(&ip, port));
            let ask = |method: &str, path: &str| {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 5\r\n\r\ndebug",
                    at(&ip, port)
                );
                let answer = scene.node.namespace().run(|| to.connect()?.request(request.as_bytes()));
                answer.map_or(0, |answer| answer.status())
            };
            // One of the probe ports is reserved; nothing listens there.
            let good = if port == 15010 { "/ready" } else { "/osm-liveness-probe/app" };
            let is_read = matches!(port, 15010 | 15901);
            assert_eq!(ask("GET", good) == 200, is_read, "{port}");
            for method in ["POST", "PUT", "DELETE", "PATCH", "CONNECT"] {
                for path in ["/log", "/config", "/drain", good] {
                    let status = ask(method, path);
                    assert!(matches!(status, 0 | 400..=499), "{method} {path} at {port}: {status}");
                }
            }
            for path in ["/config", "/log", "/get", "/"] {
                assert!(matches!(ask("GET", path), 0 | 404), "{path} at {port}");
            }
        }
    }
    assert!(app.requests().is_empty(), "a probe of TCP says nothing");
    assert_eq!(server.run(|| server.sidecar.admin_get("/log").unwrap().text()), "info\n");
}

/// Sends and receives at the same time; returns what was received.
fn talk(stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        (&stream).read_to_end(&mut answer).unwrap();
        answer
    })
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn each_direction_ends_by_itself_in_either_order() {
    let scene = CallerAndServer::start();
    let hears_all = |conversation: &mut tidegate_tests::app::Conversation| {
        let mut all = Vec::new();
        loop {
            match conversation.bytes()? {
                bytes if bytes.is_empty() => return conversation.write(&all),
                bytes => all.extend(bytes),
            }
        }
    };
    let sent = bytes(300_000);
    {
        let _app = scene.server.run(|| App::start((Ipv6Addr::UNSPECIFIED, TCP_PORT).into(), hears_all));
        for address in scene.addresses(TCP_PORT, 90) {
            let answer = scene.caller.run(|| talk(TcpStream::connect(address).unwrap(), &sent));
            assert!(answer == sent, "{address}: {} bytes", answer.len());
        }
    }
    // The server sends everything and ends its direction; then the client sends.
    let download = sent.clone();
    let app = scene.server.run(|| {
        App::start((Ipv6Addr::UNSPECIFIED, TCP_PORT).into(), move |conversation| {
            conversation.write(&download)?;
            conversation.finish()?;
            while !conversation.bytes()?.is_empty() {}
            Ok(())
        })
    });
    for address in scene.addresses(TCP_PORT, 90) {
        app.forget();
        scene.caller.run(|| {
            let mut stream = TcpStream::connect(address).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            assert!(all == sent, "{address}: {} bytes", all.len());
            stream.write_all(b"thanks").unwrap();
        });
        wait::until_true("the server hears the client", SOON, || app.received() == b"thanks");
    }
}

#[test]
fn much_data_crosses_a_link_that_loses_and_reorders_without_a_reset() {
    let scene = CallerAndServer::with_server(Node::pod_far_away);
    let _app = scene.server.run(|| App::tcp_echo((Ipv6Addr::UNSPECIFIED, TCP_PORT).into()));
    let sent = bytes(8 << 20);
    thread::scope(|scope| {
        for address in scene.addresses(TCP_PORT, 90) {
            let (scene, sent) = (&scene, &sent);
            scope.spawn(move || {
                let answer = scene.caller.run(|| talk(TcpStream::connect(address).unwrap(), sent));
                assert!(answer == *sent, "{address}: {} bytes", answer.len());
            });
        }
    });
    let (lost, late) = scene.server.pod.rough_link().unwrap().lost_and_late();
    assert!(lost > 20 && late > 500, "{lost} packets were lost, {late} late");
}

#[test]
fn a_wait_in_a_pod_ends_once_the_server_answers_and_must_not_pass_the_sidecar_by() {
    let scene = CallerAndServer::start();
    let address = at(SERVICE_IPS[0], 90);
    let start = |name: &str, user: u32| {
        let arguments = ["wait", "--for", &format!("tcp://{address}")].map(str::to_owned).to_vec();
        let mut program =
            Daemon::new("tidegate-sidecar", name, scene._mesh.path(), arguments, None).with_user(user);
        scene.caller.run(|| program.start());
        program
    };
    let mut bypass = start("bypass", SIDECAR_USER);
    let status = wait::until("it ends at once", SOON, || bypass.exited());
    assert!(!status.success() && bypass.log().contains("must not run as user 1500"), "{}", bypass.log());

    assert!(scene.caller.run(|| TcpStream::connect(address)).is_ok(), "no server is needed to connect");
    let mut waiting = start("waiting", 65_532);
    wait::until_true("it says what it waits for", SOON, || {
        waiting.log().contains("the connection was reset: no server is there")
    });
    assert_eq!(waiting.exited(), None);
    let _app = scene.server.run(|| App::tcp_echo((Ipv6Addr::UNSPECIFIED, TCP_PORT).into()));
    let status = wait::until("the server answers", SOON, || waiting.exited());
    assert!(status.success(), "{}", waiting.log());
}
