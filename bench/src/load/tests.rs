use std::sync::Arc;

use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::app;
use crate::certificates::{RunCertificates, SERVER};

async fn app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(app::serve(listener, None));
    address
}

fn plain(address: SocketAddr, kind: LoadKind) -> LoadOptions {
    LoadOptions {
        address,
        ca: None,
        server_name: None,
        certificate: None,
        key: None,
        watch_pid: vec![],
        kind,
    }
}

#[tokio::test]
async fn a_closed_loop_counts_answers_of_the_right_length() {
    for body in [0, SMALL_BYTES, 1_000_000] {
        let kind = LoadKind::Closed { connections: 4, seconds: 0.2, warm_up: 0.0, body };
        let report = run(plain(app().await, kind)).await.unwrap();
        assert!(report.requests > 0 && report.errors == 0, "{report:?}");
        assert_eq!(report.body_bytes, report.requests * body);
        assert!(report.latency.p50 > 0.0 && report.latency.max >= report.latency.p999);
    }
}

#[tokio::test]
async fn streams_of_http2_carry_gets_and_grpc_calls() {
    for (exchange, bytes) in [(Http2Exchange::Get, 1024), (Http2Exchange::Grpc, 1029)] {
        let kind = LoadKind::Http2Closed { exchange, connections: 2, streams: 4, seconds: 0.2, warm_up: 0.0 };
        let report = run(plain(app().await, kind)).await.unwrap();
        assert!(report.requests > 0 && report.errors == 0, "{report:?}");
        assert_eq!(report.body_bytes, report.requests * bytes);
    }
}

#[tokio::test]
async fn large_bodies_go_both_ways_and_are_counted() {
    for kind in [LoadKind::Download { seconds: 0.001 }, LoadKind::Upload { seconds: 0.001 }] {
        let report = run(plain(app().await, kind)).await.unwrap();
        assert_eq!(
            (report.requests, report.errors, report.body_bytes),
            (1, 0, app::LARGE_BYTES),
            "{report:?}"
        );
    }
}

#[tokio::test]
async fn cpu_time_is_that_of_all_watched_processes_and_memory_that_of_the_first() {
    let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let options = LoadOptions {
        watch_pid: vec![other.id(), std::process::id()],
        ..plain(app().await, LoadKind::Closed { connections: 1, seconds: 0.3, warm_up: 0.0, body: 1024 })
    };
    let report = run(options).await.unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(report.proxy_cpu_seconds.unwrap() > 0.0, "this process works, the first one sleeps: {report:?}");
    assert!(report.proxy_kib_after.unwrap() < 10_000, "the first one is small: {report:?}");
}

#[tokio::test]
async fn an_open_loop_sends_as_many_requests_as_were_due() {
    let kind = LoadKind::Open { rate: 200, connections: 4, seconds: 0.5, warm_up: 0.1 };
    let report = run(plain(app().await, kind)).await.unwrap();
    assert_eq!((report.requests, report.errors), (100, 0), "{report:?}");
}

#[tokio::test]
async fn a_stalled_answer_delays_all_that_were_due_behind_it() {
    // One connection; the first response is delayed until ten more requests are due.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n".to_vec();
        answer.resize(answer.len() + 1024, b't');
        let mut buffer = [0; 1024];
        let mut first = true;
        while stream.read(&mut buffer).await.unwrap() > 0 {
            if std::mem::take(&mut first) {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            stream.write_all(&answer).await.unwrap();
        }
    });
    let kind = LoadKind::Open { rate: 100, connections: 1, seconds: 0.2, warm_up: 0.0 };
    let report = run(plain(address, kind)).await.unwrap();
    assert_eq!((report.requests, report.errors), (20, 0), "{report:?}");
    // The nth request behind the first waited 100 − 10 n ms, so half of all waited long, not only one.
    assert!(report.latency.p90 > 70_000.0, "{report:?}");
}

#[tokio::test]
async fn a_wrong_status_is_an_error_and_not_an_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                    stream.write_all(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    let kind = LoadKind::Closed { connections: 1, seconds: 0.1, warm_up: 0.0, body: 1024 };
    let report = run(plain(address, kind)).await.unwrap();
    assert_eq!(report.requests, 0);
    assert!(report.errors > 0);
    assert_eq!(report.first_error.as_deref(), Some("answer has status 503"));
}

#[tokio::test]
async fn each_new_connection_is_a_full_handshake_with_the_clients_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    let (address, handshakes) = tls_server(&certificates).await;
    let kind = LoadKind::Handshakes { connections: 2, seconds: 0.3, warm_up: 0.0 };
    let options = LoadOptions {
        ca: Some(certificates.ca.clone()),
        server_name: Some(SERVER.to_owned()),
        certificate: Some(certificates.allowed.certificate.clone()),
        key: Some(certificates.allowed.key.clone()),
        ..plain(address, kind)
    };
    let report = run(options).await.unwrap();
    assert!(report.requests > 0 && report.errors == 0, "{report:?}");
    let handshakes = handshakes.lock().unwrap();
    assert!(handshakes.len() as u64 >= report.requests);
    assert!(handshakes.iter().all(|kind| *kind == rustls::HandshakeKind::Full), "{handshakes:?}");
}

#[tokio::test]
async fn a_server_of_another_name_is_not_spoken_to() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    let (address, _) = tls_server(&certificates).await;
    let identity = Some(&certificates.allowed);
    let endpoint =
        LoadEndpoint::tls(address, &certificates.ca, "other.cluster.local", identity, &[]).unwrap();
    let error = format!("{:#}", endpoint.connect().await.unwrap_err());
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn the_arguments_of_a_kind_of_load_are_understood_as_that_kind() {
    use clap::Parser;
    #[derive(Parser)]
    struct Arguments {
        #[command(subcommand)]
        kind: LoadKind,
    }
    for kind in [
        LoadKind::Closed { connections: 3, seconds: 1.5, warm_up: 0.25, body: 0 },
        LoadKind::Http2Closed {
            exchange: Http2Exchange::Grpc,
            connections: 2,
            streams: 8,
            seconds: 1.5,
            warm_up: 0.25,
        },
        LoadKind::Open { rate: 7, connections: 3, seconds: 1.5, warm_up: 0.25 },
        LoadKind::Handshakes { connections: 3, seconds: 1.5, warm_up: 0.25 },
        LoadKind::Idle { connections: 9 },
        LoadKind::Download { seconds: 2.0 },
        LoadKind::Upload { seconds: 2.0 },
    ] {
        let words = std::iter::once("load".to_owned()).chain(kind.arguments());
        assert_eq!(format!("{:?}", Arguments::parse_from(words).kind), format!("{kind:?}"));
    }
}

pub(crate) type Handshakes = Arc<std::sync::Mutex<Vec<rustls::HandshakeKind>>>;

/// Serves the small response over mTLS to every client of the CA; it offers session tickets, so that a resuming client would be detected.
pub(crate) async fn tls_server(certificates: &RunCertificates) -> (SocketAddr, Handshakes) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificates.ca).unwrap()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&certificates.server.certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&certificates.server.key).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handshakes = Handshakes::default();
    let seen = handshakes.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            seen.lock().unwrap().push(stream.get_ref().1.handshake_kind().unwrap());
            let mut request = [0; 1024];
            if stream.read(&mut request).await.unwrap_or(0) > 0 {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1024\r\n\r\n";
                stream.write_all(&[head.as_slice(), &[b't'; 1024]].concat()).await.unwrap();
                stream.shutdown().await.ok();
            }
        }
    });
    (address, handshakes)
}
