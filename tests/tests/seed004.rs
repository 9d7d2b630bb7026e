//! Istio's example "Using an External HTTPS Proxy": a pod reaches a page outside the mesh through a real Squid that the app uses
//! itself, by a ServiceEntry for the proxy's address. Pods, Squid and the page are network namespaces. Requires root.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::{fs, thread};

use serde_json::json;
use tidegate_tests::daemon::Daemon;
use tidegate_tests::mesh::{Mesh, Options};
use tidegate_tests::netns::SIDECAR_USER;
use tidegate_tests::netns::node::{Node, NodePod, bring};
use tidegate_tests::objects;
use tidegate_tests::pki::{Authority, Leaf};
use tidegate_tests::squid::Squid;
use tidegate_tests::wait::{self, SOON};

/// The example's configuration of Squid, without `http_port` and the folders.
const RULES: &str = "\
acl SSL_ports port 443
acl CONNECT method CONNECT
http_access deny CONNECT !SSL_ports
http_access allow localhost manager
http_access deny manager
http_access allow all";

const PORT: u16 = 3128;
const SITE: &str = "en.wikipedia.org";
const TITLE: &str = "<title>Wikipedia, the free encyclopedia</title>";

/// Columns of the access log after `[start] "method path protocol" code flags`, by place: in the line of the example there are
/// three fewer behind the flags and one fewer at the end.
struct Line(Vec<String>);

/// `openssl s_server` with the page.
struct Site(Child);

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Site {
    fn start(pod: &NodePod, root: &Authority, folder: &Path) -> Self {
        fs::create_dir_all(folder.join("wiki")).unwrap();
        fs::write(folder.join("wiki/Main_Page"), TITLE).unwrap();
        let credentials = root.issue(&Leaf::dns(SITE));
        fs::write(folder.join("tls.crt"), credentials.chain_pem()).unwrap();
        fs::write(folder.join("tls.key"), credentials.key_pem()).unwrap();
        let address = SocketAddr::new(pod.ips()[0].parse().unwrap(), 443);
        let child = pod.namespace().run(|| {
            let mut command = Command::new("openssl");
            command.args([
                "s_server",
                "-quiet",
                "-WWW",
                "-cert",
                "tls.crt",
                "-key",
                "tls.key",
                "-accept",
                &address.to_string(),
            ]);
            command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command
                .spawn()
                .unwrap_or_else(|error| panic!("openssl: {error}; on Debian: apt-get install openssl"))
        });
        let site = Self(child);
        pod.namespace().run(|| {
            wait::until_true("the site listens", SOON, || std::net::TcpStream::connect(address).is_ok());
        });
        site
    }
}

/// A meshed pod, Squid and a site, and a mesh whose workloads reach nothing that no object has.
struct World {
    pod: NodePod,
    sidecar: Daemon,
    squid: Squid,
    proxy_ip: String,
    site_ip: String,
    mesh: Mesh,
    _site: Site,
    _node: Node,
    folder: tempfile::TempDir,
}

impl World {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::new();
        let [pod, proxy, outside] = [node.pod(), node.pod(), node.pod()];
        let root = Authority::root("the internet");
        fs::write(folder.path().join("ca.crt"), root.pem()).unwrap();
        let site = Site::start(&outside, &root, folder.path());
        let (proxy_ip, site_ip) = (proxy.ips()[0].clone(), outside.ips()[0].clone());
        let listen = SocketAddr::new(proxy_ip.parse().unwrap(), PORT);
        let squid = proxy.namespace().run(|| Squid::start(listen, RULES, &[(SITE, &site_ip)]));

        let mut mesh = Mesh::with(Options { starts_sidecar: false, ..Options::default() });
        pod.namespace().intercepted(&["--check", "--pod-ips", &pod.ips().join(",")]);
        bring(mesh.ca_address(), pod.namespace());
        bring(mesh.discovery_address(), pod.namespace());
        let local: IpAddr = mesh.target().ip();
        let mut object = objects::pod("caller", "caller", &local.to_string(), &[]);
        object["status"]["podIPs"] = pod.ips().iter().map(|ip| json!({"ip": ip})).collect();
        let mut config = objects::mesh_config(true);
        config["spec"]["traffic"]["enableEgress"] = false.into();
        mesh.apply("config", &[config]);
        mesh.apply("caller", &[object]);
        let ips = pod.ips().join(",");
        let further = ["--pod-ips", &ips, "--health-address", "[::]:15010", "--access-log-format", "text"];
        let mut sidecar = mesh.another_transparent_sidecar("caller", SIDECAR_USER, &further);
        pod.namespace().run(|| sidecar.start_ready());
        Self { pod, sidecar, squid, proxy_ip, site_ip, mesh, _site: site, _node: node, folder }
    }

    /// The example's command, run in the pod.
    fn curl(&self) -> (bool, String) {
        let output = self.pod.namespace().run(|| {
            let mut command = Command::new("curl");
            command.env("HTTPS_PROXY", format!("{}:{PORT}", self.proxy_ip));
            command
                .args(["-sS", "--http1.1", "--max-time", "20", "--cacert"])
                .arg(self.folder.path().join("ca.crt"));
            command.arg(format!("https://{SITE}/wiki/Main_Page"));
            command.output().unwrap_or_else(|error| panic!("curl: {error}; on Debian: apt-get install curl"))
        });
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Lines of the sidecar's access log about the proxy.
    fn lines(&self) -> Vec<Line> {
        let log = self.sidecar.log();
        let at_proxy = format!(" {}:{PORT} ", self.proxy_ip);
        let lines = log.lines().filter(|line| line.starts_with('[') && line.contains(&at_proxy));
        lines.map(Line::parse).collect()
    }
}

impl Line {
    /// The columns: text between brackets or quotation marks is one.
    fn parse(line: &str) -> Self {
        let mut columns = Vec::new();
        let mut rest = line;
        while !rest.is_empty() {
            let end = match rest.as_bytes()[0] {
                b'[' => rest.find(']').unwrap() + 1,
                b'"' => rest[1..].find('"').unwrap() + 2,
                _ => rest.find(' ').unwrap_or(rest.len()),
            };
            columns.push(rest[..end].to_owned());
            rest = rest[end..].trim_start();
        }
        Self(columns)
    }

    fn number(&self, place: usize) -> u64 {
        self.0[place].parse().unwrap_or_else(|_| panic!("{} at {place} of {:?}", self.0[place], self.0))
    }
}

#[test]
fn a_pod_reaches_a_page_through_a_company_s_proxy_with_the_example_s_manifest_and_not_without() {
    let mut world = World::start();
    let (is_reached, output) = world.curl();
    assert!(!is_reached && !output.contains(TITLE), "{output}");
    wait::until_true("the refusal names the host and the reason", SOON, || {
        let log = world.sidecar.log();
        log.lines()
            .any(|line| line.contains(&format!("{SITE}:443")) && line.contains("spec.traffic.enableEgress"))
    });
    assert!(!world.squid.access_log().contains("CONNECT"), "nothing has reached the proxy");

    let entry = objects::COMPANY_PROXY
        .replace("$PROXY_IP", &world.proxy_ip)
        .replace("$PROXY_PORT", &PORT.to_string());
    world.mesh.apply_text("entry", &entry);
    let mut output = String::new();
    wait::until_true("the page is there", SOON, || {
        let (is_reached, text) = world.curl();
        output = text;
        is_reached
    });
    assert!(output.contains(TITLE), "{output}");

    wait::until_true("Squid logs the tunnel", SOON, || world.squid.access_log().contains("CONNECT"));
    let log = world.squid.access_log();
    let line = log.lines().rfind(|line| line.contains("CONNECT")).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    let pod_ip = &world.pod.ips()[0];
    // As in the example: time, duration, client, result, bytes, request, user, way, type.
    assert_eq!([words[2], words[3]], [pod_ip.as_str(), "TCP_TUNNEL/200"], "{log}");
    assert_eq!(words[5..8], ["CONNECT", &format!("{SITE}:443"), "-"], "{log}");
    assert_eq!(words[8..], [&format!("HIER_DIRECT/{}", world.site_ip), "-"], "{log}");

    wait::until_true("the sidecar logs the connection", SOON, || world.lines().len() >= 2);
    check_line(&world);
    world.mesh.remove("entry");
    wait::until_true("without the entry it is refused again", SOON, || !world.curl().0);
}

/// Each column of `[2018-12-07T10:38:02.841Z] "- - -" 0 - 702 87599 92 - "-" "-" "-" "-" "172.30.109.95:3128"
/// outbound|3128||my-company-proxy.com 172.30.230.52:44478 172.30.109.95:3128 172.30.230.52:44476 -`.
fn check_line(world: &World) {
    let lines = world.lines();
    let refused = &lines.first().unwrap().0;
    assert_eq!(refused[3], "UH", "{refused:?}");
    let line = lines.last().unwrap();
    let columns = &line.0;
    let proxy = format!("{}:{PORT}", world.proxy_ip);
    assert_eq!(columns[1..4], ["\"- - -\"", "0", "-"], "request, code, flags: {columns:?}");
    // Behind the flags: response code details, connection termination details, the reason of a transport failure.
    assert_eq!(columns[5..7], ["-", "\"-\""], "{columns:?}");
    let [received, sent] = [7, 8].map(|place| line.number(place));
    assert!((300..10_000).contains(&received) && (800..100_000).contains(&sent), "bytes: {columns:?}");
    assert!(line.number(9) < 20_000, "milliseconds: {columns:?}");
    assert_eq!(columns[10], "-", "time of the upstream: {columns:?}");
    // x-forwarded-for, user agent, request id, authority.
    assert_eq!(columns[11..15], ["\"-\"", "\"-\"", "\"-\"", "\"-\""], "{columns:?}");
    assert_eq!(columns[15], format!("\"{proxy}\""), "upstream host: {columns:?}");
    assert_eq!(columns[16], "outbound|3128||my-company-proxy.com");
    let own = |place: usize| {
        columns[place].parse::<SocketAddr>().unwrap_or_else(|_| panic!("{place}: {columns:?}"))
    };
    let pod_ip: IpAddr = world.pod.ips()[0].parse().unwrap();
    assert_eq!(own(17).ip(), pod_ip, "the sidecar's end of the connection to the proxy: {columns:?}");
    assert_eq!(columns[18], proxy, "what the app has dialled: {columns:?}");
    assert_eq!(own(19).ip(), pod_ip, "the app's end: {columns:?}");
    assert_ne!(own(17).port(), own(19).port(), "two connections: {columns:?}");
    // The example has `-`: what the app wants the proxy to reach comes on top.
    assert_eq!(columns[20..22], [&format!("{SITE}:443"), "-"], "host and route: {columns:?}");
}

#[test]
fn a_hundred_tunnels_at_once_get_through() {
    let mut world = World::start();
    let entry = objects::COMPANY_PROXY
        .replace("$PROXY_IP", &world.proxy_ip)
        .replace("$PROXY_PORT", &PORT.to_string());
    world.mesh.apply_text("entry", &entry);
    wait::until_true("the page is there", SOON, || world.curl().0);
    let world = &world;
    thread::scope(|scope| {
        let runs: Vec<_> =
            (0..10).map(|_| scope.spawn(move || (0..10).filter(|_| world.curl().0).count())).collect();
        assert_eq!(runs.into_iter().map(|run| run.join().unwrap()).sum::<usize>(), 100);
    });
}
