//! gRPC through sidecars: grpc-go's interoperability cases, which its client and its server pass without a mesh.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};
use tidegate_tests::app::h2_faults::{FaultyGrpcServer, H2Fault};
use tidegate_tests::go;
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, policy, range};

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
/// The cases of the negative HTTP/2 client, and what its server does.
const NEGATIVE_CASES: [(&str, H2Fault); 6] = [
    ("goaway", H2Fault::GoAway),
    ("rst_after_header", H2Fault::ResetAfterHead),
    ("rst_during_data", H2Fault::ResetDuringData),
    ("rst_after_data", H2Fault::ResetAfterData),
    ("ping", H2Fault::Pings),
    ("max_streams", H2Fault::OneStream),
];
/// Bounds on each call of the soak cases, and on all of them, that no machine reaches. The client's own, a second and ten, would
/// fail on a busy one.
const NO_HURRY: [&str; 2] =
    ["-soak_per_iteration_max_acceptable_latency_ms=600000", "-soak_overall_timeout_seconds=600"];
/// The address of the Service in front of the server.
const CLUSTER_IP: &str = "10.96.0.10:80";

/// The interoperability server; killed when dropped.
struct Server(Child);

impl Server {
    /// Starts it at a free port, and forwards connections to `address`: all that it can be given is a port of all addresses.
    fn start(address: SocketAddr) -> Self {
        let program = go::build("grpc", "google.golang.org/grpc/interop/server");
        let mut command = Command::new(program);
        command.args(["-use_tls=false", "-port=0"]).env("GRPC_GO_LOG_SEVERITY_LEVEL", "info");
        let mut server = Self(command.stderr(Stdio::piped()).spawn().unwrap());
        let mut log = BufReader::new(server.0.stderr.take().unwrap()).lines().map_while(Result::ok);
        let port = log.find_map(|line| port_in(&line)).expect("the gRPC server logs where it listens");
        // A process whose log cannot be written ends.
        thread::spawn(move || log.for_each(drop));
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
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

/// The port in a line such as `… interop server listening on [::]:39041`.
fn port_in(line: &str) -> Option<u16> {
    line.split_once(" listening on ")?.1.rsplit_once(':')?.1.parse().ok()
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
fn pass_all(client: &Path, target: SocketAddr) {
    let mut failed = String::new();
    for case in CASES {
        let arguments = ["-use_tls=false", NO_HURRY[0], NO_HURRY[1]];
        if let Err(error) = passes(client, &arguments, target, case) {
            failed += &format!("{case}: {error}\n");
        }
    }
    assert!(failed.is_empty(), "through {target}:\n{failed}");
}

/// Whether a client passes a case; its output if not.
fn passes(client: &Path, arguments: &[&str], target: SocketAddr, case: &str) -> Result<(), String> {
    let (host, port) = (target.ip().to_string(), target.port().to_string());
    let mut command = Command::new(client);
    command.args(arguments).args(["-server_host", &host, "-server_port", &port, "-test_case", case]);
    let output = command.output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// The error of the client in `rst_during_data`: it expects a status that grpc-go has not given for long, with or without a mesh.
const OF_RESET_DURING_DATA: &str = "UnaryCall() = _, Internal, want _, Unknown";

/// Runs every negative case through `target`, each against a server of its own at `app`, and fails with the names and the output
/// of those whose outcome is another than without a mesh. A server that has said GOAWAY gets no further call on that connection,
/// and each PING is acknowledged.
#[track_caller]
fn pass_all_negative(client: &Path, app: SocketAddr, target: SocketAddr) {
    let mut failed = String::new();
    for (case, fault) in NEGATIVE_CASES {
        let server = FaultyGrpcServer::start(app, fault);
        match passes(client, &[], target, case) {
            Ok(()) => {}
            Err(error) if fault == H2Fault::ResetDuringData && error.contains(OF_RESET_DURING_DATA) => {}
            Err(error) => failed += &format!("{case}: {error}\n"),
        }
        let calls = server.calls();
        let is_met = match fault {
            H2Fault::GoAway => calls.len() == 2 && calls[0] != calls[1],
            H2Fault::OneStream => calls.len() == 16,
            H2Fault::Pings => calls.len() == 1 && server.acknowledged() > 10,
            // None of them is sent again.
            H2Fault::ResetAfterHead | H2Fault::ResetDuringData | H2Fault::ResetAfterData => calls.len() == 1,
        };
        if !is_met {
            failed += &format!("{case}: calls on connections {calls:?}, {} PINGs\n", server.acknowledged());
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

#[test]
fn clients_see_the_same_of_a_server_that_breaks_off_calls_and_connections() {
    let client = go::build("grpc", "google.golang.org/grpc/interop/http2");
    let mut mesh = Mesh::with(Options::default());
    let (app, pod) = (mesh.app_address(), mesh.target());
    pass_all_negative(&client, app, app);

    mesh.apply("policies", &[policy("grpc", &[backend("httpbin", PORT, "http")], &[range("127.0.0.0/8")])]);
    pass_all_negative(&client, app, pod);

    let mut caller = mesh.caller(CLUSTER_IP);
    mesh.apply("service", &service(Some("grpc"), pod));
    caller.start_ready();
    pass_all_negative(&client, app, mesh.way_out());
}
