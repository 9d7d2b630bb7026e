//! gRPC through sidecars: grpc-go's interoperability cases, which its client and its server pass without a mesh.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};
use tidegate_tests::go;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, policy, range};
use tidegate_tests::wait::{self, SOON};

/// The cases that need no special server.
const CASES: [&str; 16] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
];
/// The address of the Service in front of the server.
const CLUSTER_IP: &str = "10.96.0.10:80";

/// The interoperability server; killed when dropped.
struct Server(Child);

impl Server {
    /// Starts it, and forwards connections to `address`: its only setting is the port, of all addresses.
    fn start(address: SocketAddr) -> Self {
        let program = go::build("grpc", "google.golang.org/grpc/interop/server");
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().local_addr().unwrap();
        let port = free.port().to_string();
        let child =
            Command::new(program).args(["-use_tls=false", "-port", &port]).stderr(Stdio::null()).spawn();
        let server = Self(child.unwrap());
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, free.port()));
        wait::until_true("the gRPC server listens", SOON, || TcpStream::connect(target).is_ok());
        let listener = TcpListener::bind(address).unwrap();
        thread::spawn(move || {
            for near in listener.incoming() {
                let (near, far) = (near.unwrap(), TcpStream::connect(target).unwrap());
                forward(near.try_clone().unwrap(), far.try_clone().unwrap());
                forward(far, near);
            }
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Copies one direction; when it ends, both end.
fn forward(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
        let _ = from.shutdown(std::net::Shutdown::Both);
    });
}

/// Runs every case against a server, and fails with the names and the output of those that fail.
#[track_caller]
fn pass_all(client: &PathBuf, target: SocketAddr) {
    let mut failed = String::new();
    for case in CASES {
        let (host, port) = (target.ip().to_string(), target.port().to_string());
        let mut command = Command::new(client);
        command.args(["-use_tls=false", "-server_host", &host, "-server_port", &port, "-test_case", case]);
        let output = command.output().unwrap();
        if !output.status.success() {
            failed += &format!("{case}: {}\n", String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(failed.is_empty(), "through {target}:\n{failed}");
}

/// The Service in front of the server.
fn service(app_protocol: Option<&str>, pod: SocketAddr) -> [Value; 2] {
    [
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "called", "namespace": "httpbin"},
            "spec": {
                "clusterIP": "10.96.0.10",
                "ports": [{"name": "rpc", "port": 80, "targetPort": PORT, "appProtocol": app_protocol}],
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "called-1",
                "namespace": "httpbin",
                "labels": {"kubernetes.io/service-name": "called"},
            },
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": [pod.ip().to_string()],
                "targetRef": {"kind": "Pod", "name": "httpbin", "namespace": "httpbin"},
            }],
            "ports": [{"name": "rpc", "port": pod.port()}],
        }),
    ]
}

#[test]
fn every_case_passes_through_one_sidecar_and_through_two() {
    let client = go::build("grpc", "google.golang.org/grpc/interop/client");
    let mut mesh = Mesh::with(Options::default());
    let pod = mesh.target();
    let _server = Server::start(mesh.app_address());
    pass_all(&client, mesh.app_address());

    mesh.apply("policies", &[policy("grpc", &[backend("httpbin", PORT, "http")], &[range("127.0.0.0/8")])]);
    pass_all(&client, pod);

    let mut caller = mesh.caller(CLUSTER_IP);
    mesh.apply("service", &service(None, pod));
    caller.start_ready();
    for app_protocol in [None, Some("grpc"), Some("kubernetes.io/h2c")] {
        mesh.apply("service", &service(app_protocol, pod));
        pass_all(&client, mesh.way_out());
    }
}
