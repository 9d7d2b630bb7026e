use std::net::SocketAddr;
use std::time::SystemTime;

use tidegate_core::policy::Terms;
use tidegate_proto::external_authorization::authorization_server::{Authorization, AuthorizationServer};
use tidegate_proto::external_authorization::{CheckRequest, CheckResponse, Status};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::connection_info::ConnectionInfo;
use crate::limits::Limits;
use crate::snapshot;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

/// Answers with this many bytes, fails with a status, or does not answer.
#[derive(Clone, Copy)]
enum Server {
    Bytes(usize),
    Fails,
    Waits,
}

#[tonic::async_trait]
impl Authorization for Server {
    async fn check(
        &self,
        request: tonic::Request<CheckRequest>,
    ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        assert_eq!(request.metadata().get("grpc-timeout").unwrap(), "250m");
        match self {
            Self::Bytes(count) => {
                let status = Some(Status { code: 3, message: "x".repeat(*count) });
                Ok(tonic::Response::new(CheckResponse { status, http_response: None }))
            }
            Self::Fails => Err(tonic::Status::unavailable("later")),
            Self::Waits => std::future::pending().await,
        }
    }
}

async fn start(server: Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tonic::transport::Server::builder().add_service(AuthorizationServer::new(server));
    tokio::spawn(serving.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

fn client() -> ServedConnection {
    ServedConnection::Inbound(Rc::new(ConnectionInfo {
        peer: "10.0.0.7:4321".parse().unwrap(),
        local: "10.0.0.1:14001".parse().unwrap(),
        port: 14001,
        app: "127.0.0.1:8080".parse().unwrap(),
        terms: Terms::IngressPlaintext,
        tls: false,
        server_name: None,
        client: None,
        identity: "spiffe://cluster.local/ns/httpbin/sa/httpbin".into(),
        accepted: SystemTime::UNIX_EPOCH,
        remote: Default::default(),
    }))
}

async fn call(servers: &GrpcServers, upstreams: &Upstreams, address: ServerAddress) -> Result<i32, String> {
    let timeout = Duration::from_millis(250);
    let response: Result<CheckResponse, _> =
        servers.call(upstreams, &client(), (&address, METHOD), &CheckRequest::default(), timeout).await;
    response.map(|response| response.status.unwrap().code).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_call_has_the_server_s_message_or_says_why_there_is_none() {
    LocalSet::new()
        .run_until(async {
            let servers = GrpcServers::new("a test");
            let upstreams = Upstreams::new(Rc::new(Limits::default()), snapshot::channel().1);
            for (server, expected) in [
                (Server::Bytes(1), Ok(3)),
                (Server::Bytes(60_000), Ok(3)),
                (Server::Bytes(70_000), Err("the answer has more than 64 KiB")),
                (Server::Fails, Err("gRPC status 14")),
                (Server::Waits, Err("no answer in time")),
            ] {
                let address = ServerAddress::Address(start(server).await);
                let answer = call(&servers, &upstreams, address).await;
                assert_eq!(answer.as_ref().map_err(String::as_str).copied(), expected);
            }
            let nothing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let down = call(&servers, &upstreams, ServerAddress::Address(nothing)).await;
            assert!(down.unwrap_err().starts_with("Connection refused"));
        })
        .await;
}

#[tokio::test]
async fn a_name_is_resolved_and_a_server_that_is_not_called_is_forgotten() {
    LocalSet::new()
        .run_until(async {
            let servers = GrpcServers::new("a test");
            let upstreams = Upstreams::new(Rc::new(Limits::default()), snapshot::channel().1);
            let port = start(Server::Bytes(1)).await.port();
            let named = |name| ServerAddress::parse(name, port).unwrap();
            assert_eq!(call(&servers, &upstreams, named("localhost")).await, Ok(3));
            let unknown = call(&servers, &upstreams, named("tidegate.invalid")).await.unwrap_err();
            assert!(unknown.starts_with("the name cannot be resolved"), "{unknown}");
            assert_eq!(servers.known.borrow().len(), 2);
            servers.sweep(Instant::now() + UNUSED_AFTER);
            assert!(servers.known.borrow().is_empty());
        })
        .await;
}
