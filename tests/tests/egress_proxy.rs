//! An app that knows of no proxy, in a pod with the kernel's rules, reaches servers outside the mesh through a real Squid, and
//! no packet passes the proxy. Requires root, Squid, nginx and curl.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options};
use tidegate_tests::netns::node::{Node, NodePod, bring};
use tidegate_tests::netns::{NetworkNamespace, SIDECAR_USER};
use tidegate_tests::nginx::NginxProcess;
use tidegate_tests::objects;
use tidegate_tests::pki::{Authority, Leaf};
use tidegate_tests::squid::Squid;
use tidegate_tests::wait::{self, SOON};

/// A pod, a server outside the mesh, and Squid between them.
struct World {
    node: Node,
    caller: NodePod,
    origin: NodePod,
    sidecar: Daemon,
    mesh: Mesh,
    folder: TempDir,
    _nginx: NginxProcess,
}

/// Debian's rule for `CONNECT`, and one of a company.
const RULES: &str = "acl tunnel_ports port 443\nhttp_access deny CONNECT !tunnel_ports\nacl denied dstdomain denied.test\n\
                     http_access deny denied\nhttp_access allow all";

/// An authenticator of Squid's: answers `OK` to each line `name password` that is in the file of users.
const CHECK: &str = r#"#!/bin/sh
while read -r line; do grep -qxF "$line" "$1" && echo OK || echo ERR; done
"#;

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::new();
        let (caller, origin) = (node.pod(), node.pod());
        let nginx = serve(origin.namespace(), folder.path());
        let mut mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
        let ips = caller.ips().join(",");
        caller.namespace().intercepted(&["--check", "--pod-ips", &ips]);
        bring(mesh.ca_address(), caller.namespace());
        bring(mesh.discovery_address(), caller.namespace());
        let mut pod = objects::pod("caller", "caller", &mesh.target().ip().to_string(), &[]);
        pod["status"]["podIPs"] = caller.ips().iter().map(|ip| json!({"ip": ip})).collect();
        mesh.apply("pod", &[pod]);
        let further = ["--pod-ips", &ips, "--health-address", "[::]:15010"];
        let mut sidecar = mesh.another_transparent_sidecar("caller", SIDECAR_USER, &further);
        caller.namespace().run(|| sidecar.start_ready());
        let world = Self { node, caller, origin, sidecar, mesh, folder, _nginx: nginx };
        world.count_direct_packets();
        world
    }

    /// The address of a proxy outside the pod.
    fn proxy(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.caller.gateways()[0].parse().unwrap(), port)
    }

    fn squid(&self, port: u16, rules: &str) -> Squid {
        let origin = &self.origin.ips()[0];
        let outside = ["api.test", "other.test", "denied.test"].map(|name| (name, origin.as_str()));
        let hosts: Vec<_> = outside.into_iter().chain([("refused.test", "192.0.2.7")]).collect();
        self.node.namespace().run(|| Squid::start(self.proxy(port), rules, &hosts))
    }

    /// Rules of a Squid that wants Basic credentials, which are the lines `name password` of a file.
    fn authenticated(&self) -> (String, PathBuf) {
        let (check, users) = (self.folder.path().join("check"), self.folder.path().join("users"));
        fs::write(&check, CHECK).unwrap();
        fs::write(&users, "mesh s3cret-1\n").unwrap();
        for (path, mode) in [(self.folder.path(), 0o755), (&check, 0o755), (&users, 0o644)] {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let program = format!("{} {}", check.display(), users.display());
        let rules = format!(
            "auth_param basic program {program}\nauth_param basic children 4\nauth_param basic realm Corp Proxy\n\
             auth_param basic credentialsttl 1 second\nacl known proxy_auth REQUIRED\nhttp_access deny !known\n{RULES}"
        );
        (rules, users)
    }

    /// Applies an EgressProxy to proxies at these ports, and waits until the sidecar has it.
    fn apply(&mut self, ports: &[u16], more: &Value) {
        let address = self.proxy(1).ip();
        let proxies: Vec<_> = ports.iter().map(|port| json!({"address": address, "port": port})).collect();
        let mut object = json!({
            "apiVersion": "tidegate.io/v1alpha1",
            "kind": "EgressProxy",
            "metadata": {"name": "corporate", "namespace": "httpbin"},
            "spec": {"proxies": proxies, "timeouts": {"connect": "1s", "response": "1s"}},
        });
        object["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.mesh.apply("proxy", &[object.clone()]);
        let expected: Vec<_> = ports.iter().map(|port| self.proxy(*port).to_string()).collect();
        wait::until_true("the sidecar has the EgressProxy", SOON, || {
            let rules = &self.config()["policy"]["egressProxies"];
            rules[0]["proxies"] == json!(expected)
        });
    }

    /// Applies the documentation's example, with the addresses of this world.
    fn apply_example(&mut self) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/egress/corporate-proxy.yaml");
        let text = fs::read_to_string(path).unwrap();
        let proxy = self.proxy(1).ip().to_string();
        let text = text.replace("192.0.2.10", &proxy).replace("10.0.0.0/8", "10.96.0.0/12");
        self.mesh.apply_text("proxy", &text);
        wait::until_true("the sidecar has the EgressProxy", SOON, || {
            self.config()["policy"]["egressProxies"][0]["proxies"][0] == self.proxy(3128).to_string()
        });
    }

    fn apply_secret(&mut self, user: &str, password: &str) {
        self.mesh.apply(
            "secret",
            &[json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "corporate-proxy", "namespace": "httpbin"},
                "stringData": {"username": user, "password": password},
            })],
        );
    }

    /// The sidecar's state.
    fn config(&self) -> Value {
        self.caller.namespace().run(|| self.sidecar.admin_json("/config"))
    }

    /// curl as the pod's app, which knows of no proxy: each answer's status.
    fn curl(&self, arguments: &[&str]) -> Vec<String> {
        let ip = &self.origin.ips()[0];
        let output = self.caller.namespace().run(|| {
            let mut command = Command::new("curl");
            command.args(["-s", "-w", "%{http_code}\\n", "--max-time", "120"]);
            command.arg("--cacert").arg(self.root());
            for host in ["api.test", "other.test", "denied.test", "refused.test"] {
                for port in [80, 443] {
                    command.args(["--resolve", &format!("{host}:{port}:{ip}")]);
                }
            }
            for argument in arguments {
                // Of each URL by itself.
                let discards = argument.starts_with("http");
                command.args(discards.then_some(["-o", "/dev/null"]).into_iter().flatten()).arg(argument);
            }
            command.output().unwrap()
        });
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    fn get(&self, url: &str) -> String {
        self.curl(&[url]).pop().unwrap_or_default()
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root.pem")
    }

    /// Counts packets from the pod to the server that do not come from the proxy.
    fn count_direct_packets(&self) {
        let (from, to) = (&self.caller.ips()[0], &self.origin.ips()[0]);
        let rule = format!("-I FORWARD -s {from} -d {to} -j ACCEPT");
        self.node.namespace().command("iptables", &rule.split(' ').collect::<Vec<_>>());
    }

    fn direct_packets(&self) -> u64 {
        let listed = self.node.namespace().command("iptables", &["-nvxL", "FORWARD"]);
        let rule =
            listed.lines().find(|line| line.contains("ACCEPT") && line.contains(&self.origin.ips()[0]));
        rule.unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    /// The access log's record with this text.
    #[track_caller]
    fn record(&self, text: &str) -> Value {
        wait::until(&format!("a record with {text}"), SOON, || {
            let log = self.sidecar.log();
            let line = log.lines().find(|line| line.contains("\"start_time\"") && line.contains(text))?;
            Some(serde_json::from_str(line).unwrap())
        })
    }
}

/// nginx with a page over HTTP and HTTPS, whose root is in `root.pem` of the folder.
fn serve(namespace: &NetworkNamespace, folder: &Path) -> NginxProcess {
    let root = Authority::root("outside");
    let leaf = root.issue(&Leaf::dns("api.test").with_dns("other.test").with_dns("refused.test"));
    fs::write(folder.join("root.pem"), root.pem()).unwrap();
    fs::write(folder.join("tls.pem"), leaf.chain_pem()).unwrap();
    fs::write(folder.join("tls.key"), leaf.key_pem()).unwrap();
    let configuration = "worker_processes 1;\npid nginx.pid;\nerror_log logs/error.log;\ndaemon off;\nuser root;\n\
        events { worker_connections 4096; }\nhttp {\n  access_log off;\n  keepalive_requests 100000;\n\
        server {\n    listen 80;\n    listen 443 ssl;\n    ssl_certificate tls.pem;\n    ssl_certificate_key tls.key;\n\
        location / { return 200 ok; }\n  }\n}\n";
    let front = SocketAddr::from(([127, 0, 0, 1], 443));
    namespace.run(|| NginxProcess::start(folder, front, configuration))
}

/// `currentStatus` and `reason` of the EgressProxy.
fn status(mesh: &Mesh) -> (String, String) {
    let policies = mesh.controller.admin_json("/policies");
    let ours = policies.as_array().unwrap().iter().find(|policy| policy["kind"] == "EgressProxy").unwrap();
    let text = |field: &str| ours[field].as_str().unwrap_or_default().to_owned();
    (text("currentStatus"), text("reason"))
}

/// How many of these are not 200.
fn failures(answers: &[String]) -> usize {
    answers.iter().filter(|status| *status != "200").count()
}

/// Sends 10,000 requests, over connections that are kept and over new ones.
fn ten_thousand(world: &World) {
    let batches: [&[&str]; 4] = [
        &["http://api.test/[1-2500]", "http://other.test/[1-2500]"],
        &["https://api.test/[1-4500]"],
        &["-H", "connection: close", "http://api.test/[1-300]"],
        &["-H", "connection: close", "https://api.test/[1-200]"],
    ];
    let mut count = 0;
    for batch in batches {
        let answers = world.curl(batch);
        assert_eq!(failures(&answers), 0, "{batch:?}: {answers:?}");
        count += answers.len();
    }
    assert_eq!((count, world.direct_packets()), (10_000, 0));
}

#[test]
fn ten_thousand_requests_leave_through_squid_and_no_packet_passes_it() {
    let mut world = World::start();
    assert_eq!(world.get("https://api.test/"), "200", "directly, without an EgressProxy");
    assert!(world.direct_packets() > 0);
    world.node.namespace().command("iptables", &["-Z", "FORWARD"]);
    let squid = world.squid(3128, RULES);
    world.apply(&[3128], &json!({}));
    ten_thousand(&world);
    let log = squid.access_log();
    assert!(log.contains("TCP_TUNNEL/200") && log.contains("CONNECT api.test:443"), "{}", &log[..500]);
    assert!(log.contains("GET http://other.test/2500 "));
    let record = world.record(&format!("\"upstream_host\":\"{}\"", world.proxy(3128)));
    assert!(record["authority"] == "api.test" || record["requested_server_name"] == "api.test", "{record}");
    let known = &world.config()["destinations"];
    let is_proxied =
        |it: &Value| it["state"] == "proxied" && it["rules"][0] == "EgressProxy httpbin/corporate";
    assert!(known.as_array().unwrap().iter().any(is_proxied), "{known}");
}

#[test]
fn basic_credentials_of_a_secret_are_used_and_followed_and_never_shown() {
    let mut world = World::start();
    let (rules, users) = world.authenticated();
    let squid = world.squid(3128, &rules);
    world.apply_example();
    assert_eq!((world.get("http://api.test/"), world.get("https://api.test/")), ("502".into(), "000".into()));
    let wanted = "forward_proxy_authentication{407 X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0, Proxy-Authenticate: Basic";
    assert_eq!(world.record(wanted)["response_code"], 502);
    let (status, reason) = status(&world.mesh);
    assert!(
        status == "error" && reason.contains("Secret httpbin/corporate-proxy: does not exist"),
        "{reason}"
    );
    world.apply_secret("mesh", "s3cret-1");
    let good =
        |world: &World| world.get("http://api.test/") == "200" && world.get("https://api.test/") == "200";
    wait::until_true("the credentials are used", SOON, || good(&world));
    ten_thousand(&world);
    assert!(squid.access_log().contains("CONNECT api.test:443 mesh "));

    fs::write(users, "mesh s3cret-2\n").unwrap();
    wait::until_true("squid refuses the old password", SOON, || world.get("https://api.test/") == "000");
    world.apply_secret("mesh", "s3cret-2");
    wait::until_true("the new credentials are used", SOON, || good(&world));
    let shown = format!("{}{}", world.config(), world.sidecar.log());
    assert!(shown.contains("<redacted>"));
    for secret in ["s3cret", "bWVzaDpzM2NyZXQ"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
    assert_eq!(world.direct_packets(), 0);
}

#[test]
fn a_proxy_that_changes_or_restarts_under_load_is_followed_and_another_takes_over() {
    let mut world = World::start();
    let (mut first, second) = (world.squid(3128, RULES), world.squid(3129, RULES));
    world.apply(&[3128], &json!({}));
    assert_eq!(failures(&world.curl(&["http://api.test/[1-200]"])), 0);
    world.apply(&[3129], &json!({}));
    assert_eq!(failures(&world.curl(&["http://api.test/[201-400]", "https://api.test/"])), 0);
    assert!(second.access_log().contains("GET http://api.test/400 "));
    assert!(!first.access_log().contains("api.test/201"));

    // With another proxy behind it, a restart costs no new connection.
    world.apply(&[3128, 3129], &json!({}));
    let namespace = world.node.namespace();
    let answers = thread::scope(|scope| {
        let load = scope.spawn(|| {
            world.curl(&["-H", "connection: close", "http://api.test/[1-400]", "https://other.test/[1-100]"])
        });
        wait::until_true("the load has begun", SOON, || first.access_log().contains("api.test/20 "));
        namespace.run(|| first.restart(RULES));
        load.join().unwrap()
    });
    assert!(failures(&answers) <= 1, "but for what was in flight: {answers:?}");
    assert_eq!((answers.len(), world.direct_packets()), (500, 0));
}

/// A proxy that answers each connection so, and then closes it, or does not.
fn fake(namespace: &NetworkNamespace, address: SocketAddr, answer: &'static [u8], closes: bool) {
    let listener = namespace.run(|| TcpListener::bind(address)).unwrap();
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = client.read(&mut head);
            let _ = client.write_all(answer);
            if !closes {
                open.push(client);
            }
        }
    });
}

#[test]
fn each_refusal_has_its_reason_with_the_proxys_own_words() {
    let mut world = World::start();
    let _squid = world.squid(3128, RULES);
    world.apply(&[3128], &json!({}));
    for (url, expected, details) in [
        ("https://denied.test/", "000", "forward_proxy_denied"),
        ("http://denied.test/", "403", "forward_proxy_denied{403 X-Squid-Error: ERR_ACCESS_DENIED 0}"),
        (
            "http://refused.test/",
            "503",
            "forward_proxy_target_unreachable{503 X-Squid-Error: ERR_CONNECT_FAIL",
        ),
    ] {
        // Squid waits longer for an address that does not answer.
        if url.contains("refused") {
            world.node.namespace().ip("route add unreachable 192.0.2.7/32");
        }
        assert_eq!(world.get(url), expected, "{url}");
        let host = url.split('/').nth(2).unwrap();
        let text = format!("\"{details}");
        let record = world.record(&text);
        assert!(record["authority"] == host || record["requested_server_name"] == host, "{record}");
    }
    let log = world.sidecar.log();
    let words = "the answer to CONNECT is 403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0";
    assert!(log.lines().any(|line| line.contains(words) && line.contains("denied.test:443")), "{log}");

    let large: &'static [u8] = [b"HTTP/1.1 200 OK\r\na: ", &*vec![b'x'; 70_000]].concat().leak();
    let fakes: [(u16, &'static [u8], bool, &str); 6] = [
        (
            4001,
            b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm=\"Corp\"\r\n\r\n",
            true,
            "authentication",
        ),
        (4002, b"HTTP/1.1 503 Busy\r\n\r\n", true, "target_unreachable"),
        (4003, b"", false, "timeout"),
        (4004, b"\x16\x03\x01garbage", true, "malformed_answer"),
        (4005, large, false, "head_too_large"),
        (4006, b"HTTP/1.1 200 Connect", true, "closed"),
    ];
    for (port, answer, closes, reason) in fakes {
        fake(world.node.namespace(), world.proxy(port), answer, closes);
        world.apply(&[port], &json!({}));
        assert_eq!(world.get("https://api.test/"), "000", "{reason}");
        world.record(&format!("\"forward_proxy_{reason}\""));
    }
    assert_eq!(world.direct_packets(), 0);
}
