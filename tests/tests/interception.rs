//! A pod's connections, redirected through its sidecar by the kernel's real rules. Requires root.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, End, RequestOutcome, Tls};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::netns::{
    self, NetworkNamespace, PEER_IPS, POD_IPS, PodWithPeer, SIDECAR_USER, answer, ask,
};
use tidegate_tests::objects::{backend, https, policy, principal, range};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait;

const BACKENDS: [&str; 2] = ["nft", "legacy"];

fn all(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

fn at(ip: &str, port: u16) -> String {
    SocketAddr::new(ip.parse().unwrap(), port).to_string()
}

/// A pod in which a listener on each of the sidecar's ports reports what was captured; app and peer listen on other
/// ports.
fn pod_with_listeners() -> PodWithPeer {
    let pod = PodWithPeer::new();
    pod.pod.run(|| {
        answer("inbound", all(15003));
        answer("outbound", all(15001));
        for port in [80, 9000, 9019, 15010, 15901, 15904] {
            answer("app", all(port));
        }
    });
    pod.peer.run(|| {
        for port in [80, 443, 8000, 8019] {
            answer("peer", all(port));
        }
    });
    pod
}

/// As the app's user, an ordinary user.
fn app_asks(pod: &NetworkNamespace, address: &str) -> String {
    pod.run(|| ask(address))
}

fn sidecar_asks(pod: &NetworkNamespace, address: &str) -> String {
    pod.run_as(SIDECAR_USER, || ask(address))
}

#[test]
fn what_a_pod_dials_and_what_dials_it_is_captured_in_both_families_by_both_backends() {
    for backend in BACKENDS {
        let PodWithPeer { pod, peer } = &pod_with_listeners();
        pod.intercepted(&["--backend", backend]);
        for (ip, peer_ip) in POD_IPS.into_iter().zip(PEER_IPS) {
            let (own, others) = (|port| at(ip, port), |port| at(peer_ip, port));
            assert_eq!(peer.run(|| ask(&own(80))), format!("inbound {}", own(80)));
            assert_eq!(peer.run(|| ask(&own(4711))), format!("inbound {}", own(4711)));
            assert_eq!(app_asks(pod, &others(80)), format!("outbound {}", others(80)));
            assert_eq!(sidecar_asks(pod, &others(80)), format!("peer {}", others(80)));
            // Loopback and the pod's own address are not intercepted for the app, but are for the sidecar.
            let loopback = if ip.contains(':') { "::1" } else { "127.0.0.1" };
            assert_eq!(app_asks(pod, &at(loopback, 80)), format!("app {}", at(loopback, 80)));
            assert_eq!(app_asks(pod, &own(80)), format!("app {}", own(80)));
            assert_eq!(sidecar_asks(pod, &at(loopback, 80)), format!("app {}", at(loopback, 80)));
            assert_eq!(sidecar_asks(pod, &own(80)), format!("inbound {}", own(80)));
            // Health and probes are reachable without the mesh.
            for port in [15010, 15901, 15904] {
                assert_eq!(peer.run(|| ask(&own(port))), format!("app {}", own(port)));
            }
        }
    }
}

#[test]
fn a_pod_that_its_own_service_leads_back_to_itself_is_dialled_through_its_sidecar() {
    let PodWithPeer { pod, peer } = &pod_with_listeners();
    pod.intercepted(&[]);
    let services = ["10.96.0.10", "fd96::10"];
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        peer.command("sysctl", &["-qw", setting]);
    }
    for ((program, ip), service) in ["iptables", "ip6tables"].into_iter().zip(POD_IPS).zip(services) {
        // Like kube-proxy, for a Service whose only endpoint is the pod.
        let iptables = |rule: &str| peer.command(program, &rule.split(' ').collect::<Vec<_>>());
        iptables(&format!("-t nat -A PREROUTING -d {service} -j DNAT --to-destination {ip}"));
        iptables(&format!("-t nat -A POSTROUTING -d {ip} -j MASQUERADE"));
        assert_eq!(app_asks(pod, &at(service, 80)), format!("outbound {}", at(service, 80)));
        assert_eq!(sidecar_asks(pod, &at(service, 80)), format!("inbound {}", at(ip, 80)));
        // If the sidecar has chosen the endpoint itself, the connection does not leave the pod.
        assert_eq!(sidecar_asks(pod, &at(ip, 80)), format!("inbound {}", at(ip, 80)));
    }
}

#[test]
fn a_packet_of_no_connection_is_dropped() {
    for backend in BACKENDS {
        let PodWithPeer { pod, peer } = &PodWithPeer::new();
        pod.intercepted(&["--backend", backend]);
        peer.run(|| {
            netns::send_unasked_syn_ack(PEER_IPS[0].parse().unwrap(), POD_IPS[0].parse().unwrap(), 80);
        });
        wait::until_true("the packet is counted", wait::SOON, || {
            let listed =
                pod.command(&format!("iptables-{backend}"), &["-t", "mangle", "-nvxL", "TIDEGATE_INVALID"]);
            let dropped = listed.lines().find(|line| line.contains("DROP")).unwrap();
            dropped.split_whitespace().next() == Some("1")
        });
    }
}

#[test]
fn a_pod_of_one_family_is_captured_and_the_other_is_not_missed() {
    for ip in POD_IPS {
        let PodWithPeer { pod, .. } = &PodWithPeer::with(&[ip]);
        let text = pod.intercepted(&["--pod-ips", ip, "--check"]);
        assert_eq!(text.matches("connections are captured").count(), 1, "{text}");
    }
    let PodWithPeer { pod, .. } = &PodWithPeer::with(&POD_IPS[..1]);
    pod.command("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
    let text = pod.intercepted(&["--check"]);
    assert!(text.contains("IPv6 is off here"), "{text}");
    assert!(!pod.rules().contains("ip6tables-nft -A TIDEGATE"), "{}", pod.rules());
}

#[test]
fn ports_ranges_and_interfaces_are_left_alone_on_request() {
    let ports =
        |range: std::ops::Range<u16>| range.map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    for backend in BACKENDS {
        let PodWithPeer { pod, peer } = &pod_with_listeners();
        peer.ip("addr add 198.51.100.1/32 dev lo");
        peer.ip("addr add 198.51.100.2/32 dev lo");
        let (inbound, outbound) = (ports(9000..9020), ports(8000..8020));
        let arguments = ["--exclude-inbound-ports", &inbound, "--exclude-outbound-ports", &outbound];
        let further = ["--exclude-outbound-ranges", "198.51.100.1/32,fd99::/16"];
        pod.intercepted(&[&["--backend", backend][..], &arguments, &further].concat());
        for (ip, peer_ip) in POD_IPS.into_iter().zip(PEER_IPS) {
            for port in [9000, 9019] {
                assert_eq!(peer.run(|| ask(&at(ip, port))), format!("app {}", at(ip, port)));
            }
            for port in [8000, 8019] {
                assert_eq!(app_asks(pod, &at(peer_ip, port)), format!("peer {}", at(peer_ip, port)));
            }
            assert_eq!(app_asks(pod, &at(peer_ip, 443)), format!("outbound {}", at(peer_ip, 443)));
        }
        assert_eq!(app_asks(pod, "198.51.100.1:80"), "peer 198.51.100.1:80");
        assert_eq!(app_asks(pod, "198.51.100.2:80"), "outbound 198.51.100.2:80");

        pod.intercepted(&["--backend", backend, "--include-outbound-ranges", "198.51.100.2/32"]);
        assert_eq!(app_asks(pod, "198.51.100.1:80"), "peer 198.51.100.1:80");
        assert_eq!(app_asks(pod, "198.51.100.2:80"), "outbound 198.51.100.2:80");
        assert_eq!(app_asks(pod, &at(PEER_IPS[1], 80)), format!("peer {}", at(PEER_IPS[1], 80)));

        pod.intercepted(&["--backend", backend, "--exclude-interfaces", "eth0"]);
        for (ip, peer_ip) in POD_IPS.into_iter().zip(PEER_IPS) {
            assert_eq!(peer.run(|| ask(&at(ip, 80))), format!("app {}", at(ip, 80)));
            assert_eq!(app_asks(pod, &at(peer_ip, 80)), format!("peer {}", at(peer_ip, 80)));
        }
    }
}

#[test]
fn rules_are_written_once_repaired_when_lost_and_removed_without_a_trace() {
    for backend in BACKENDS {
        let PodWithPeer { pod, .. } = &PodWithPeer::new();
        // Rules of others stay unchanged.
        pod.command(
            &format!("iptables-{backend}"),
            &["-t", "nat", "-A", "OUTPUT", "-d", "203.0.113.9", "-j", "ACCEPT"],
        );
        for table in ["nat", "mangle", "filter"] {
            for program in [format!("iptables-{backend}"), format!("ip6tables-{backend}")] {
                pod.command(&program, &["-t", table, "-S"]);
            }
        }
        let before = pod.rules();
        // The backend that already has rules is detected.
        let wishes = ["--udp", "refuse", "--local-proxy-mode", "pod-ip", "--pod-ips", "10.77.0.2,fd77::2"];
        let run = |more: &[&str]| pod.intercept(&[&wishes[..], more].concat());
        let (success, text) = run(&["--check"]);
        assert!(success && text.matches("connections are captured").count() == 2, "{text}");
        let written = pod.rules();
        assert!(written.contains(&format!("\niptables-{backend} -A TIDEGATE_OUTBOUND")), "{written}");
        let (success, text) = run(&["--check"]);
        assert!(success && text.matches("every rule is there already").count() == 2, "{text}");
        assert_eq!(pod.rules(), written);
        assert!(run(&["--check-only"]).0);

        let iptables = |arguments: &str| {
            pod.command(&format!("iptables-{backend}"), &arguments.split(' ').collect::<Vec<_>>());
        };
        for (damage, complaint) in [
            ("-t nat -F TIDEGATE_OUTBOUND", "table nat lacks -A TIDEGATE_OUTBOUND"),
            ("-t nat -F OUTPUT", "table nat lacks -A OUTPUT"),
            ("-t filter -A OUTPUT -p udp -j TIDEGATE_UDP", "table filter holds"),
            ("-t nat -I TIDEGATE_OUTBOUND 1 -j RETURN", "table nat holds"),
        ] {
            iptables(damage);
            let (success, text) = run(&["--check-only"]);
            assert!(!success && text.contains(complaint), "{damage}: {text}");
            assert!(run(&["--check"]).0);
            assert!(run(&["--check-only"]).0, "{damage}");
        }
        // Rules for options that are no longer set are removed.
        pod.intercepted(&["--backend", backend]);
        assert!(!pod.rules().contains("TIDEGATE_UDP"), "{}", pod.rules());

        pod.intercepted(&["--clean"]);
        // The damage above also removed the rule of others.
        let others = format!("iptables-{backend} -A OUTPUT -d 203.0.113.9/32 -j ACCEPT\n");
        assert_eq!(pod.rules(), before.replace(&others, ""));
    }
}

/// Connections established before there were rules, in one family.
struct Before {
    /// The sidecar's to its controller, and the controller's end.
    sidecar: (TcpStream, TcpStream),
    /// An outside client's to the app.
    outsider: TcpStream,
    _app: TcpStream,
}

impl Before {
    fn new(pod: &NetworkNamespace, peer: &NetworkNamespace, ip: &str, peer_ip: &str) -> Self {
        let controller = peer.run(|| TcpListener::bind(at(peer_ip, 0)).unwrap());
        let app = pod.run(|| TcpListener::bind(at(ip, 0)).unwrap());
        let connect = |listener: &TcpListener| TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let sidecar = pod.run_as(SIDECAR_USER, || connect(&controller));
        let outsider = peer.run(|| connect(&app));
        for stream in [&sidecar, &outsider] {
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        }
        let sidecar = (sidecar, controller.accept().unwrap().0);
        Self { sidecar, outsider, _app: app.accept().unwrap().0 }
    }

    /// The controller sends first.
    fn assert_controller_is_heard(&mut self) {
        let (sidecar, controller) = &mut self.sidecar;
        controller.write_all(b"policy").unwrap();
        let mut heard = [0; 6];
        sidecar.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"policy");
    }

    fn assert_outsider_is_reset(&mut self) {
        self.outsider.write_all(b"past the sidecar").unwrap();
        assert_eq!(self.outsider.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn connections_of_the_sidecar_outlive_a_change_of_rules_and_those_past_it_end() {
    for backend in BACKENDS {
        let PodWithPeer { pod, peer } = &PodWithPeer::new();
        let iptables = |arguments: &str| {
            for program in ["iptables", "ip6tables"] {
                pod.command(&format!("{program}-{backend}"), &arguments.split(' ').collect::<Vec<_>>());
            }
        };
        let connect = || {
            let families = POD_IPS.into_iter().zip(PEER_IPS);
            families.map(|(ip, peer_ip)| Before::new(pod, peer, ip, peer_ip)).collect::<Vec<_>>()
        };
        let mut first = connect();
        let text = pod.intercepted(&["--backend", backend]);
        assert_eq!(text.matches("connections of the sidecar live on").count(), 2, "{text}");
        for before in &mut first {
            before.assert_controller_is_heard();
            before.assert_outsider_is_reset();
        }
        // Another program flushes the rules; without ours, connection tracking stops. Then ours are repaired.
        for table in ["nat", "mangle"] {
            iptables(&format!("-t {table} -F"));
            iptables(&format!("-t {table} -X"));
        }
        let mut second = connect();
        pod.intercepted(&["--backend", backend]);
        for before in &mut second {
            before.assert_controller_is_heard();
            before.assert_outsider_is_reset();
        }
        for before in &mut first {
            before.assert_controller_is_heard();
        }
    }
}

#[test]
fn a_root_file_system_that_is_read_only_is_enough() {
    for backend in BACKENDS {
        let PodWithPeer { pod, .. } = &PodWithPeer::new();
        let program = tidegate_tests::daemon::ours("tidegate-sidecar");
        let text = pod.run(|| {
            let mut command = std::process::Command::new("unshare");
            let script = "mount --bind /run /run && mount -o remount,bind,ro /run && exec \"$0\" \"$@\"";
            command.args(["--mount", "sh", "-c", script]).arg(program);
            command.args(["intercept", "--check", "--backend", backend]).env_remove("XTABLES_LOCKFILE");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stderr).unwrap()
        });
        assert!(text.contains("rules written"), "{text}");
    }
}

#[test]
fn a_connection_that_is_not_captured_fails_the_check() {
    let PodWithPeer { pod, .. } = &PodWithPeer::new();
    pod.command("iptables-nft", &["-t", "nat", "-A", "OUTPUT", "-d", "192.0.2.0/24", "-j", "ACCEPT"]);
    let (success, text) = pod.intercept(&["--check"]);
    assert!(!success && text.contains("a connection to 192.0.2.1:9 by user 0 was not captured"), "{text}");
}

#[test]
fn beside_a_sidecar_that_runs_the_check_needs_none_of_its_ports() {
    let PodWithPeer { pod, .. } = &PodWithPeer::new();
    pod.run(|| {
        answer("inbound", all(15003));
        answer("outbound", all(15001));
    });
    let text = pod.intercepted(&["--check"]);
    assert_eq!(text.matches("connections are captured").count(), 2, "{text}");
    assert!(pod.intercept(&["--check-only"]).0);
}

#[test]
fn rules_are_written_once_the_sidecar_is_ready() {
    let PodWithPeer { pod, .. } = &PodWithPeer::new();
    let health = pod.run(|| TcpListener::bind(all(15010)).unwrap());
    let sidecar = thread::spawn(move || {
        for answer in
            ["503 Service Unavailable\r\n\r\nnot ready, waiting for: policy\n", "200 OK\r\n\r\nready\n"]
        {
            let (mut stream, _) = health.accept().unwrap();
            // The request is one segment; its content does not matter here.
            assert_ne!(stream.read(&mut [0; 1024]).unwrap(), 0);
            stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).unwrap();
        }
    });
    let text = pod.intercepted(&["--after-sidecar", "--check"]);
    sidecar.join().unwrap();
    let [waiting, written] = ["not ready, waiting for: policy", "rules written"].map(|part| text.find(part));
    assert!(waiting.is_some() && waiting < written, "{text}");
}

#[test]
fn the_wait_for_a_sidecar_that_does_not_come_ends_when_the_pod_does() {
    let PodWithPeer { pod, .. } = &PodWithPeer::new();
    let mut child = pod.run(|| {
        let mut command = std::process::Command::new(tidegate_tests::daemon::ours("tidegate-sidecar"));
        command
            .args(["intercept", "--after-sidecar"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert!(line.contains("waiting for the sidecar") && line.contains("refused"), "{line}");
    let id = Pid::from_child(&child);
    rustix::process::kill_process(id, Signal::TERM).unwrap();
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("ended by SIGTERM while the sidecar was not ready"), "{rest}");
    assert!(!child.wait().unwrap().success());
    assert!(!pod.rules().contains("TIDEGATE"), "{}", pod.rules());
}

#[test]
fn without_root_it_says_what_it_takes() {
    let PodWithPeer { pod, .. } = &PodWithPeer::new();
    let text = pod.run(|| {
        let program = tidegate_tests::daemon::ours("tidegate-sidecar");
        let mut command = std::process::Command::new("setpriv");
        command.args([
            "--reuid=65534",
            "--clear-groups",
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
        ]);
        let output = command.arg("--").arg(program).args(["intercept", "--backend", "nft"]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    });
    assert!(text.contains("root with the capabilities NET_ADMIN and NET_RAW"), "{text}");
}

#[test]
fn udp_is_refused_but_for_dns_loopback_and_answers_and_what_is_refused_is_counted() {
    for backend in BACKENDS {
        let PodWithPeer { pod, peer } = &PodWithPeer::new();
        pod.intercepted(&["--backend", backend, "--udp", "refuse", "--check"]);
        for (index, (ip, peer_ip)) in POD_IPS.into_iter().zip(PEER_IPS).enumerate() {
            let any = if ip.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let receiver = |port| peer.run(|| bound(&at(peer_ip, port)));
            let (dns, quic) = (receiver(53), receiver(443));
            pod.run(|| {
                let socket = bound(any);
                socket.connect(at(peer_ip, 443)).unwrap();
                let refused = socket.send(b"quic").and_then(|_| socket.recv(&mut [0; 8])).unwrap_err();
                assert!(
                    matches!(refused.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied),
                    "{refused}"
                );
                bound(any).send_to(b"question", at(peer_ip, 53)).unwrap();
            });
            assert_eq!(dns.recv(&mut [0; 16]).unwrap(), 8);
            quic.set_nonblocking(true).unwrap();
            assert_eq!(quic.recv(&mut [0; 16]).unwrap_err().kind(), ErrorKind::WouldBlock);

            let server = pod.run(|| bound(&at(ip, 5000)));
            let asking = peer.run(|| bound(any));
            asking.send_to(b"hello", at(ip, 5000)).unwrap();
            let (_, client) = server.recv_from(&mut [0; 8]).unwrap();
            server.send_to(b"answer", client).unwrap();
            assert_eq!(asking.recv(&mut [0; 16]).unwrap(), 6);
            pod.run(|| bound(any).send_to(b"own", at(ip, 5000)).unwrap());
            assert_eq!(server.recv(&mut [0; 8]).unwrap(), 3);

            let program = ["iptables", "ip6tables"][index];
            let listed = pod.command(&format!("{program}-{backend}"), &["-nvxL", "TIDEGATE_UDP"]);
            let rejected = listed.lines().find(|line| line.contains("REJECT")).unwrap();
            assert_eq!(rejected.split_whitespace().next(), Some("1"), "{listed}");
        }
    }
}

fn bound(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// A mesh with its sidecar in a pod, and a policy that admits the peer: port 14001 with the ingress controller's
/// certificate, 14002 in plaintext.
struct Meshed {
    mesh: Mesh,
    sidecar: Daemon,
}

const PLAIN_PORT: u16 = 14002;
const LOCAL_PORT: u16 = 14009;

/// Must be called in the pod's namespace.
fn start_mesh(arguments: &[&str]) -> Meshed {
    let mut mesh = Mesh::with(Options {
        ports: vec![(PLAIN_PORT, "http-plain")],
        starts_sidecar: false,
        ..Options::default()
    });
    let peers = [range("10.77.0.1/32"), range("fd77::1/128")];
    mesh.apply(
        "policies",
        &[
            policy(
                "tls",
                &[https("httpbin", PORT, false, &[])],
                &[&peers[..], &[principal(INGRESS_CLIENT)]].concat(),
            ),
            policy("plain", &[backend("httpbin", PLAIN_PORT, "http")], &peers),
        ],
    );
    let mut sidecar = mesh.transparent_sidecar(SIDECAR_USER, arguments);
    sidecar.start_ready();
    Meshed { mesh, sidecar }
}

/// With one of the pod's addresses, from the peer: the app by what the policy allows, of the sidecar only its health.
fn assert_a_peer_reaches_what_policy_allows(ip: &str, peer_ip: &str, tls: &Tls) {
    let to = |port| Client::to(at(ip, port).parse().unwrap());
    for client in [to(PORT).tls(tls.clone()), to(PLAIN_PORT)] {
        let answer = client.answer("/get");
        assert_eq!(answer.status(), 200);
        let forwarded = format!("{peer_ip:?}");
        assert!(
            answer.text().contains("x-forwarded-for") && answer.text().contains(&forwarded),
            "{}",
            answer.text()
        );
    }
    // Without a certificate, and at a port without a policy: also one on which the app listens on loopback only.
    assert_eq!(to(PORT).get("/get"), RequestOutcome::Refused(End::Reset));
    assert_eq!(to(LOCAL_PORT).get("/get"), RequestOutcome::Refused(End::Reset));
    // The sidecar's own ports, dialled directly.
    for port in [15000, 15001, 15003] {
        assert_eq!(to(port).get("/config"), RequestOutcome::Refused(End::Reset), "{port}");
    }
    let ready = format!("GET /ready HTTP/1.1\r\nhost: {}\r\n\r\n", at(ip, 15010));
    let answer = to(15010).connect().unwrap().request(ready.as_bytes()).unwrap();
    assert_eq!(answer.status(), 200);
}

fn assert_config_shows_redirected_ports(sidecar: &Daemon) {
    let config = sidecar.admin_json("/config");
    assert_eq!(config["transparent"]["inbound"], "[::]:15003");
    let ports: Vec<_> = config["policy"]["ports"].as_object().unwrap().keys().collect();
    let shown = config["inbound"][0]["ports"].as_array().unwrap();
    assert_eq!(
        shown.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ports.iter().map(|port| (*port).clone()).collect::<Vec<_>>()
    );
    assert_eq!(
        (&config["inbound"][0]["listen"], &config["inbound"][0]["redirected"]),
        (&"[::]:15003".into(), &true.into())
    );
}

#[test]
fn a_pods_app_is_reached_through_its_sidecar_alone() {
    let PodWithPeer { pod, peer } = &PodWithPeer::new();
    pod.intercepted(&["--check"]);
    pod.run(|| {
        let Meshed { mesh, sidecar } =
            start_mesh(&["--health-address", "[::]:15010", "--pod-ips", "10.77.0.2"]);
        let apps: Vec<_> = ["127.0.0.1", "::1"]
            .iter()
            .flat_map(|ip| {
                [PORT, PLAIN_PORT, LOCAL_PORT].map(|port| App::echo(at(ip, port).parse().unwrap()))
            })
            .collect();
        let tls = mesh.tls().credentials(mesh.gateway_credentials());
        peer.run(|| {
            for (ip, peer_ip) in POD_IPS.into_iter().zip(PEER_IPS) {
                assert_a_peer_reaches_what_policy_allows(ip, peer_ip, &tls);
            }
        });
        // The same from inside, where nothing is redirected.
        for ip in ["127.0.0.1", "10.77.0.2", "::1", "fd77::2"] {
            for port in [15003, 15001] {
                let outcome = Client::to(at(ip, port).parse().unwrap()).get("/get");
                assert_eq!(outcome, RequestOutcome::Refused(End::Reset), "{ip} {port}");
            }
        }
        let log = sidecar.log();
        assert!(log.contains("is the sidecar's own port"), "{log}");
        // An address of the pod that Kubernetes does not know, and one that no host has.
        pod.ip("addr add 10.77.0.3/24 dev eth0");
        peer.run(|| {
            assert_eq!(
                Client::to(at("10.77.0.3", PLAIN_PORT).parse().unwrap()).get("/get"),
                RequestOutcome::Status(200)
            );
            peer.ip("route add 198.51.100.7/32 via 10.77.0.2");
            let outcome = Client::to(at("198.51.100.7", PLAIN_PORT).parse().unwrap()).get("/get");
            assert_eq!(outcome, RequestOutcome::Refused(End::Reset));
        });
        wait::until_true("the refusal is logged", wait::SOON, || {
            sidecar.log().contains("198.51.100.7:14002 is not an address of this pod")
        });
        assert_config_shows_redirected_ports(&sidecar);
        drop(apps);
    });
}

#[test]
fn an_app_that_listens_on_the_pods_address_only_is_reached_in_pod_ip_mode() {
    for backend in BACKENDS {
        let PodWithPeer { pod, peer } = &PodWithPeer::new();
        let ips = POD_IPS.join(",");
        let arguments = ["--backend", backend, "--check", "--local-proxy-mode", "pod-ip", "--pod-ips", &ips];
        pod.intercepted(&arguments);
        pod.run(|| {
            let Meshed { sidecar, .. } = start_mesh(&["--pod-ips", &ips]);
            let apps = POD_IPS.map(|ip| App::echo(at(ip, PLAIN_PORT).parse().unwrap()));
            peer.run(|| {
                for ip in POD_IPS {
                    let client = Client::to(at(ip, PLAIN_PORT).parse().unwrap());
                    assert_eq!(client.get("/get"), RequestOutcome::Status(200), "{ip} {backend}");
                }
            });
            for app in &apps {
                assert_eq!(app.requests().len(), 1);
            }
            drop(sidecar);
        });
    }
}

#[test]
fn kubelets_probes_pass_while_the_apps_port_refuses_what_is_not_the_meshs() {
    let PodWithPeer { pod, peer } = &PodWithPeer::new();
    pod.intercepted(&["--check"]);
    pod.run(|| {
        let probes = format!(
            r#"[{{"port":15901,"path":"/osm-liveness-probe/app","target":{{"http":{{"port":{PORT},"path":"/get"}}}}}},
                {{"port":15902,"path":"/osm-readiness-probe/app","target":{{"tcp":{{"port":{PORT}}}}}}}]"#
        );
        let Meshed { mut sidecar, .. } = start_mesh(&["--probes", &probes, "--pod-ips", &POD_IPS.join(",")]);
        let apps = ["127.0.0.1", "::1"].map(|ip| App::echo(at(ip, PORT).parse().unwrap()));
        let kubelet = |status| {
            peer.run(|| {
                for ip in POD_IPS {
                    let to = |port| Client::to(at(ip, port).parse().unwrap());
                    assert_eq!(to(15901).get("/osm-liveness-probe/app"), RequestOutcome::Status(status));
                    assert_eq!(to(15902).get("/osm-readiness-probe/app"), RequestOutcome::Status(status));
                    assert_eq!(to(15901).get("/get"), RequestOutcome::Status(404));
                    assert_eq!(to(PORT).get("/get"), RequestOutcome::Refused(End::Reset));
                }
            });
        };
        kubelet(200);
        drop(apps);
        kubelet(503);
        sidecar.signal(Signal::TERM);
        wait::until_true("the sidecar ends", wait::SOON, || sidecar.exited().is_some_and(|status| status.success()));
    });
}
