//! Besides plain HTTP/1: gRPC, WebSockets, opaque bytes, large bodies.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use tidegate_proto::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tidegate_proto::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;
use tidegate_tests::client::h2::H2Connection;
use tidegate_tests::client::{Client, End, RequestOutcome};
use tidegate_tests::mesh::{Mesh, Options, PORT};
use tidegate_tests::objects::{backend, gateway, https, policy, principal};
use tidegate_tests::pki::INGRESS_CLIENT;
use tidegate_tests::wait::SOON;
use tokio_stream::wrappers::TcpListenerStream;

const GRPC_PORT: u16 = 14002;
const TCP_PORT: u16 = 14003;
const GREETING_PORT: u16 = 14004;
const API_PORT: u16 = 14005;
const WEB_PORT: u16 = 14006;

fn mesh() -> Mesh {
    let mut mesh = Mesh::with(Options {
        ports: vec![(GRPC_PORT, "grpc-api"), (TCP_PORT, "tcp-echo"), (GREETING_PORT, "tcp-server-first")],
        ..Options::default()
    });
    mesh.apply(
        "policies",
        &[
            policy("http", &[backend("httpbin", PORT, "http")], &[gateway()]),
            policy(
                "grpc",
                &[https("httpbin", GRPC_PORT, false, &[])],
                &[gateway(), principal(INGRESS_CLIENT)],
            ),
            policy(
                "tcp",
                &[backend("httpbin", TCP_PORT, "tcp"), backend("httpbin", GREETING_PORT, "tcp")],
                &[gateway()],
            ),
        ],
    );
    mesh
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_keeps_its_trailers_at_every_size_of_body() {
    let mesh = mesh();
    let app = H2cApp::start(mesh.app_port(GRPC_PORT));
    let tls = mesh.tls().protocols(&["h2"]).credentials(mesh.gateway_credentials());
    let client = Client::to(mesh.target_port(GRPC_PORT)).from(mesh.gateway()).tls(tls);
    let connection = H2Connection::open(&client).await.unwrap();
    for size in [0, 1, 16_383, 16_384, 65_534, 65_535, 65_536, 65_537, 1 << 20] {
        let request = http::Request::post("https://httpbin.test/svc/Method")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
        let body = vec![b'x'; size];
        let answer =
            connection.exchange(request, &body).await.unwrap_or_else(|error| panic!("{size}: {error}"));
        assert_eq!(answer.head.status(), 200, "{size}");
        assert_eq!(answer.head.headers()["content-type"], "application/grpc");
        assert!(answer.body == body, "{size}");
        assert_eq!(answer.trailers.unwrap()["grpc-status"], "0", "{size}");
    }
    let last = app.requests().pop().unwrap();
    assert_eq!(last.head.uri().path(), "/svc/Method");
    assert_eq!(last.head.headers()["te"], "trailers");
    assert!(last.head.headers().contains_key("x-forwarded-client-cert"));
}

/// A gRPC server as users write them.
struct Calls;

#[tonic::async_trait]
impl IstioCertificateService for Calls {
    async fn create_certificate(
        &self,
        request: tonic::Request<IstioCertificateRequest>,
    ) -> Result<tonic::Response<IstioCertificateResponse>, tonic::Status> {
        let cert_chain = vec![request.into_inner().csr];
        Ok(tonic::Response::new(IstioCertificateResponse { cert_chain }))
    }
}

async fn serve_grpc(address: SocketAddr) {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let server = tonic::transport::Server::builder().add_service(IstioCertificateServiceServer::new(Calls));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
}

async fn assert_grpc_is_answered(connection: &H2Connection) {
    let request =
        http::Request::post("https://httpbin.test/istio.v1.auth.IstioCertificateService/CreateCertificate")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .unwrap();
    // One message, not compressed, of five bytes: field 1 with the text "abc".
    let message = [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'b', b'c'];
    let answer = connection.exchange(request, &message).await.unwrap();
    assert_eq!((answer.head.status().as_u16(), &answer.body[..]), (200, &message[..]));
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_which_nothing_is_declared_serves_grpc_http_1_and_websockets_whatever_clients_offer() {
    let mut mesh = Mesh::with(Options {
        ports: vec![(API_PORT, "api"), (WEB_PORT, "web")],
        port_name: "http",
        ..Options::default()
    });
    mesh.apply(
        "policies",
        &[policy(
            "any",
            &[
                https("httpbin", API_PORT, false, &[]),
                https("httpbin", WEB_PORT, false, &[]),
                https("httpbin", PORT, false, &[]),
            ],
            &[gateway(), principal(INGRESS_CLIENT)],
        )],
    );
    serve_grpc(mesh.app_port(API_PORT)).await;
    let web = App::echo(mesh.app_port(WEB_PORT));
    let declared = App::echo(mesh.app_address());
    let client = |port: u16, offers: &[&str]| {
        let tls = mesh.tls().protocols(offers).credentials(mesh.gateway_credentials());
        Client::to(mesh.target_port(port)).from(mesh.gateway()).tls(tls)
    };

    // Traefik; Contour with protocol h2.
    for offers in [&["h2", "http/1.1"][..], &["http/1.1", "h2"], &["h2"]] {
        let connection = H2Connection::open(&client(API_PORT, offers)).await.unwrap();
        assert_eq!(connection.protocol, b"h2", "{offers:?}");
        assert_grpc_is_answered(&connection).await;

        // Requests that are not gRPC reach an app that speaks HTTP/1.1.
        let connection = H2Connection::open(&client(WEB_PORT, offers)).await.unwrap();
        assert_eq!(connection.get("/get").await.unwrap().head.status(), 200, "{offers:?}");
        assert!(web.requests().pop().unwrap().raw.starts_with(b"GET /get HTTP/1.1\r\n"), "{offers:?}");
    }

    // Contour with protocol tls; nginx.
    for offers in [&["http/1.1"][..], &[]] {
        assert_eq!(client(WEB_PORT, offers).get("/get"), RequestOutcome::Status(200), "{offers:?}");
        let mut connection = client(WEB_PORT, offers).connect().unwrap();
        connection.write(
            b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly",
        );
        let head = connection.read_until(b"\r\n\r\n").unwrap();
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
        connection.read_until(b"early").unwrap();
    }

    // A port declared as HTTP/1 receives HTTP/2 only if the client offers nothing else.
    let tls_client = client(PORT, &["h2", "http/1.1"]);
    assert_eq!(tls_client.get("/get"), RequestOutcome::Status(200));
    assert!(declared.requests().pop().unwrap().raw.starts_with(b"GET /get HTTP/1.1\r\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_small_calls_at_a_time_on_one_connection_are_honest_traffic() {
    let mesh = mesh();
    let _app = H2cApp::start(mesh.app_port(GRPC_PORT));
    let tls = mesh.tls().protocols(&["h2"]).credentials(mesh.gateway_credentials());
    let client = Client::to(mesh.target_port(GRPC_PORT)).from(mesh.gateway()).tls(tls);
    let connection = std::sync::Arc::new(H2Connection::open(&client).await.unwrap());
    for _ in 0..10 {
        let calls: Vec<_> = (0..200)
            .map(|_| {
                let connection = connection.clone();
                tokio::spawn(async move {
                    let request = http::Request::post("https://a.test/svc/Method").body(()).unwrap();
                    connection.exchange(request, b"twenty bytes of data").await
                })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().head.status(), 200);
        }
    }
    assert!(!connection.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_only_the_connection_that_they_come_from() {
    let mesh = mesh();
    let _apps = (App::echo(mesh.app_address()), H2cApp::start(mesh.app_port(GRPC_PORT)));
    let tls = mesh.tls().protocols(&["h2"]).credentials(mesh.gateway_credentials());
    let client = Client::to(mesh.target_port(GRPC_PORT)).from(mesh.gateway()).tls(tls);
    let before = mesh.sidecar.resident_bytes();
    let flood = H2Connection::open(&client).await.unwrap();
    let mut sent = 0;
    for _ in 0..10_000 {
        let Ok(mut requests) = flood.requests.clone().ready().await else { break };
        let request = http::Request::post("https://a.test/svc/Method").body(()).unwrap();
        let Ok((_, mut stream)) = requests.send_request(request, false) else { break };
        stream.send_reset(h2::Reason::CANCEL);
        sent += 1;
        tokio::task::yield_now().await;
    }
    let ended = tokio::time::timeout(SOON, flood.closed()).await;
    assert!(ended.is_ok_and(|result| result.is_err()), "GOAWAY after {sent}");
    assert!(sent < 10_000, "{sent}");
    let grown = mesh.sidecar.resident_bytes().saturating_sub(before);
    assert!(grown < 20 << 20, "{grown} bytes");
    assert_eq!(mesh.client().get("/get"), RequestOutcome::Status(200));
}

#[test]
fn websockets_pass_and_end_from_either_side() {
    let mesh = mesh();
    let app = App::echo(mesh.app_address());
    let mut connection = mesh.client().connect().unwrap();
    connection
        .write(b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly");
    let head = connection.read_until(b"\r\n\r\n").unwrap();
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    connection.read_until(b"early").unwrap();
    for size in [1, 1000, 100_000] {
        let message = vec![b'm'; size];
        connection.write(&message);
        connection.write(b"!");
        assert_eq!(connection.read_until(b"!").unwrap().len(), size + 1);
    }
    connection.finish();
    assert_eq!(connection.read_to_end(SOON), (Vec::new(), End::Closed));
    assert!(String::from_utf8_lossy(&app.received()).to_lowercase().contains("connection: upgrade"));
}

#[test]
fn an_unknown_upgrade_is_a_request_like_any_other() {
    let mesh = mesh();
    let _app = App::echo(mesh.app_address());
    for protocol in ["TLS/1.2", "h2c", "made-up"] {
        let request =
            format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n");
        let answer = mesh.client().connect().unwrap().request(request.as_bytes()).unwrap();
        assert_eq!(answer.status(), 200, "{protocol}");
    }
}

#[test]
fn an_upgrade_that_names_its_protocol_twice_is_the_apps_to_grant() {
    let mesh = mesh();
    let _app = App::start(mesh.app_address(), |conversation| {
        let request = conversation.head()?.unwrap();
        assert_eq!(request.values("upgrade").join(",").replace(' ', ""), "websocket,websocket");
        conversation.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
        )
    });
    for upgrade in ["Upgrade: websocket,websocket", "Upgrade: websocket\r\nUpgrade: websocket"] {
        let mut connection = mesh.client().connect().unwrap();
        let request = format!("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n{upgrade}\r\n\r\n");
        connection.write(request.as_bytes());
        let answer = String::from_utf8(connection.read_until(b"hello").unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{upgrade}: {answer}");
    }
}

#[test]
fn opaque_bytes_pass_as_they_are_and_each_direction_ends_by_itself() {
    let mesh = mesh();
    let app = App::start(mesh.app_port(TCP_PORT), |conversation| {
        // Answers only after it has received everything.
        let mut all = Vec::new();
        loop {
            let bytes = conversation.bytes()?;
            if bytes.is_empty() {
                break;
            }
            all.extend(bytes);
        }
        conversation.write(&all)
    });
    let client = Client::to(mesh.target_port(TCP_PORT)).from(mesh.gateway());
    for bytes in [&b"\x00\x01binary\xff"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x17"] {
        app.forget();
        let mut connection = client.connect().unwrap();
        connection.write(bytes);
        connection.finish();
        assert_eq!(connection.read_to_end(SOON), (bytes.to_vec(), End::Closed), "{bytes:?}");
        assert_eq!(app.received(), bytes);
    }
    // The app's own TLS.
    let mut hello = Vec::new();
    mesh.tls().server_name("app.example").connection().write_tls(&mut hello).unwrap();
    let mut connection = client.connect().unwrap();
    connection.write(&hello);
    connection.finish();
    assert_eq!(connection.read_to_end(SOON).0, hello);
}

#[test]
fn bytes_that_look_like_broken_tls_pass_where_the_port_is_tcp() {
    let mesh = mesh();
    let _app = App::tcp_echo(mesh.app_port(TCP_PORT));
    for bytes in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16"] {
        let mut connection = Client::to(mesh.target_port(TCP_PORT)).from(mesh.gateway()).connect().unwrap();
        connection.write(bytes);
        connection.finish();
        assert_eq!(connection.read_to_end(SOON), (bytes.to_vec(), End::Closed));
    }
}

#[test]
fn a_server_that_speaks_first_is_not_waited_for() {
    let mesh = mesh();
    let _app = App::server_first(mesh.app_port(GREETING_PORT), b"220 hello\r\n");
    let mut connection = Client::to(mesh.target_port(GREETING_PORT)).from(mesh.gateway()).connect().unwrap();
    assert_eq!(connection.read(Duration::from_secs(1)).unwrap(), b"220 hello\r\n");
    connection.write(b"EHLO");
    connection.read_until(b"EHLO").unwrap();
    let stranger = Client::to(mesh.target_port(GREETING_PORT)).from(mesh.stranger());
    assert_eq!(stranger.exchange(b"EHLO", SOON), (Vec::new(), End::Reset));
}

#[test]
fn large_bodies_arrive_whole_in_both_directions() {
    let mesh = mesh();
    let app = App::echo(mesh.app_address());
    let size = 20 << 20;
    let answer = mesh.client().answer(&format!("/bytes/{size}"));
    assert_eq!(answer.body.len(), size);
    let body = "y".repeat(5 << 20);
    let request = format!("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer = mesh.client().connect().unwrap().request(request.as_bytes()).unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(app.requests().pop().unwrap().body.len(), body.len());
}

#[test]
fn an_answer_that_comes_before_the_body_is_passed_on() {
    let mesh = mesh();
    let _app = App::start(mesh.app_address(), |conversation| {
        conversation.head()?;
        conversation
            .write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
    });
    let mut connection = mesh.client().connect().unwrap();
    connection.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nsome");
    let answer = connection.response(tidegate_tests::http1::MessageKind::Response).unwrap();
    assert_eq!((answer.status(), answer.text()), (413, "no".to_owned()));
}
