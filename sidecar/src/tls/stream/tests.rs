use proptest::prelude::*;
use rustls_pki_types::ServerName;
use tidegate_core::policy::{AppProtocol, Terms};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;

use super::*;
use crate::detect::client_hello::Alpn;
use crate::test_pki::{Authority, GATEWAY, SERVER, client_config};
use crate::tls::ServerTls;

type Client = tokio_rustls::client::TlsStream<TcpStream>;

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A client and a server after their handshake, over loopback.
async fn pair(version: &'static rustls::SupportedProtocolVersion) -> (Client, Box<TlsStream>) {
    let root = Authority::root("root");
    let tls = ServerTls::new(root.named(SERVER).credentials(), root.bundle()).unwrap();
    let config = tls.config(Terms::IngressMutualTls, Alpn::default(), AppProtocol::Http).unwrap().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = root.named(GATEWAY);
    let connector = TlsConnector::from(client_config(&root.bundle(), Some(&gateway), &[version], &[]));
    let (client, server) = tokio::join!(
        async {
            let io = TcpStream::connect(address).await.unwrap();
            connector.connect(ServerName::try_from(SERVER).unwrap(), io).await.unwrap()
        },
        async {
            let (io, _) = listener.accept().await.unwrap();
            TlsStream::accept(io, BytesMut::new(), config, Lifeline::new()).await.unwrap()
        }
    );
    (client, server)
}

/// Echoes until the end of the stream.
async fn echo(mut stream: Box<TlsStream>) {
    let mut buffer = vec![0; 5000];
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        if count == 0 {
            return stream.shutdown().await.unwrap();
        }
        stream.write_all(&buffer[..count]).await.unwrap();
        stream.flush().await.unwrap();
    }
}

fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn bytes_are_echoed_completely_and_the_end_is_announced_in_both_versions() {
    for version in VERSIONS {
        let (mut client, server) = pair(version).await;
        assert_eq!(server.connection.protocol_version(), Some(version.version));
        assert_eq!(server.peer_certificates().unwrap().len(), 1);
        let sent = bytes(3_000_000);
        let mut received = Vec::new();
        let expected = sent.clone();
        let ((), ()) = tokio::join!(echo(server), async {
            let (mut reader, mut writer) = tokio::io::split(&mut client);
            let write = async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
            // An end without close_notify would be an error here.
            read.unwrap();
        });
        assert!(received == expected);
    }
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (mut client, mut server) = pair(VERSIONS[0]).await;
    client.write_all(&bytes(40_000)).await.unwrap();
    let mut received = vec![0; 40_000];
    server.read_exact(&mut received).await.unwrap();
    server.write_all(&received).await.unwrap();
    server.flush().await.unwrap();
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(received, bytes(40_000));
    assert_eq!(server.incoming.capacity() + server.plaintext.capacity() + server.outgoing.capacity(), 0);
}

#[tokio::test]
async fn many_slices_are_one_record() {
    let (mut client, mut server) = pair(VERSIONS[0]).await;
    let slices = [IoSlice::new(b"head"), IoSlice::new(b""), IoSlice::new(b"-"), IoSlice::new(b"body")];
    assert_eq!(server.write_vectored(&slices).await.unwrap(), 9);
    let mut buffer = [0; 100];
    let count = client.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..count], b"head-body");
}

#[tokio::test]
async fn a_writer_stops_when_the_client_does_not_read() {
    let (client, mut server) = pair(VERSIONS[0]).await;
    let chunk = bytes(MAX_WRITE);
    let mut taken = 0;
    // The kernel's buffers are filled first; they are far smaller than this.
    let stopped = poll_fn(|context| {
        while let Poll::Ready(result) = Pin::new(&mut server).poll_write(context, &chunk) {
            taken += result.unwrap();
            if taken > 64 << 20 {
                return Poll::Ready(false);
            }
        }
        Poll::Ready(true)
    });
    assert!(stopped.await);
    assert!(server.outgoing.len() <= MAX_ENCRYPTED);
    drop(client);
}

#[tokio::test]
async fn an_end_without_close_notify_is_an_error_to_the_reader() {
    let (client, mut server) = pair(VERSIONS[0]).await;
    let (io, _) = client.into_inner();
    drop(io);
    let error = server.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn bytes_that_are_not_tls_are_answered_with_an_alert_and_an_error() {
    let (client, mut server) = pair(VERSIONS[0]).await;
    let (mut io, mut connection) = client.into_inner();
    io.write_all(b"\x17\x03\x03\x00\x20this was never encrypted by us..").await.unwrap();
    assert_eq!(server.read(&mut [0; 10]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(server.read(&mut [0; 10]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(server.write_all(b"x").await.is_err());
    drop(server);
    let mut answer = Vec::new();
    io.read_to_end(&mut answer).await.unwrap();
    connection.read_tls(&mut &answer[..]).unwrap();
    let alert = connection.process_new_packets().unwrap_err();
    assert_eq!(alert, Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
}

/// rustls has queued its ServerHello by the time it finds that there is no common signature scheme.
#[tokio::test]
async fn an_alert_is_sent_together_with_the_message_before_it() {
    let root = Authority::root("root");
    let tls = ServerTls::new(root.named(SERVER).credentials(), root.bundle()).unwrap();
    let config = tls.config(Terms::IngressMutualTls, Alpn::default(), AppProtocol::Http).unwrap().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // A client that verifies only RSA signatures; the server's key is ECDSA.
    let mut provider = tidegate_runtime::tls::provider().as_ref().clone();
    let mapping = provider.signature_verification_algorithms.mapping.iter().copied();
    let of_rsa: Vec<_> = mapping.filter(|(scheme, _)| scheme.as_str().unwrap().starts_with("RSA")).collect();
    provider.signature_verification_algorithms.mapping = of_rsa.leak();
    let client = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&VERSIONS[..1])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(SERVER).unwrap();
    let (server, client) = tokio::join!(
        async {
            let (io, _) = listener.accept().await.unwrap();
            TlsStream::accept(io, BytesMut::new(), config, Lifeline::new()).await.map(drop)
        },
        async {
            let io = TcpStream::connect(address).await.unwrap();
            TlsConnector::from(Arc::new(client)).connect(name, io).await.map(drop)
        },
    );
    assert!(matches!(server.unwrap_err().cause, HandshakeFailure::Tls(_)));
    let error = client.unwrap_err();
    let error = error.get_ref().and_then(|source| source.downcast_ref::<Error>());
    assert_eq!(error, Some(&Error::AlertReceived(rustls::AlertDescription::HandshakeFailure)));
}

#[tokio::test]
async fn a_client_may_update_its_keys_a_limited_number_of_times() {
    let (client, mut server) = pair(VERSIONS[0]).await;
    let (mut io, mut connection) = client.into_inner();
    let mut wire = Vec::new();
    let mut update = |connection: &mut rustls::ClientConnection, times: usize| {
        wire.clear();
        for _ in 0..times {
            connection.refresh_traffic_keys().unwrap();
        }
        io::Write::write_all(&mut connection.writer(), b"after").unwrap();
        while connection.wants_write() {
            connection.write_tls(&mut wire).unwrap();
        }
        wire.clone()
    };
    io.write_all(&update(&mut connection, 1)).await.unwrap();
    let mut buffer = [0; 5];
    server.read_exact(&mut buffer).await.unwrap();
    assert_eq!(&buffer, b"after");
    io.write_all(&update(&mut connection, 200)).await.unwrap();
    assert_eq!(server.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn a_handshake_in_single_bytes_is_a_handshake() {
    let root = Authority::root("root");
    let tls = ServerTls::new(root.named(SERVER).credentials(), root.bundle()).unwrap();
    let config = tls.config(Terms::IngressMutualTls, Alpn::default(), AppProtocol::Http).unwrap().clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = root.named(GATEWAY);
    let client = client_config(&root.bundle(), Some(&gateway), &VERSIONS, &[]);
    let mut connection =
        rustls::ClientConnection::new(client, ServerName::try_from(SERVER).unwrap()).unwrap();
    let (server, ()) = tokio::join!(
        async {
            let (io, _) = listener.accept().await.unwrap();
            TlsStream::accept(io, BytesMut::new(), config, Lifeline::new()).await
        },
        async {
            let mut io = TcpStream::connect(address).await.unwrap();
            io.set_nodelay(true).unwrap();
            while connection.is_handshaking() || connection.wants_write() {
                let mut wire = Vec::new();
                while connection.wants_write() {
                    connection.write_tls(&mut wire).unwrap();
                }
                for byte in wire {
                    io.write_all(&[byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                if connection.is_handshaking() {
                    let mut buffer = [0; 100];
                    let count = io.read(&mut buffer).await.unwrap();
                    connection.read_tls(&mut &buffer[..count]).unwrap();
                    connection.process_new_packets().unwrap();
                }
            }
        }
    );
    assert!(server.is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn whatever_the_sizes_of_reads_and_writes_the_bytes_are_the_same(
        writes in prop::collection::vec(1_usize..40_000, 1..12),
        read in 1_usize..50_000,
        back in 1_usize..70_000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut client, mut server) = pair(VERSIONS[0]).await;
            let total: usize = writes.iter().sum();
            let sent = bytes(total);
            let write = async {
                let mut rest = &sent[..];
                for count in &writes {
                    let (now, later) = rest.split_at(*count);
                    client.write_all(now).await.unwrap();
                    client.flush().await.unwrap();
                    rest = later;
                }
                let mut answer = vec![0; back];
                client.read_exact(&mut answer).await.unwrap();
                answer
            };
            let serve = async {
                let mut received = Vec::new();
                let mut buffer = vec![0; read];
                while received.len() < total {
                    let count = server.read(&mut buffer).await.unwrap();
                    assert_ne!(count, 0);
                    received.extend_from_slice(&buffer[..count]);
                }
                server.write_all(&bytes(back)).await.unwrap();
                server.flush().await.unwrap();
                received
            };
            let (answer, received) = tokio::join!(write, serve);
            assert!(received == sent && answer == bytes(back));
        });
    }
}
