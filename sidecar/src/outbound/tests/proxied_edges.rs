//! What may go wrong with tunnels through forward proxies, byte by byte.

use super::proxied::{client, rule};
use super::unregistered::client_hello;
use tidegate_core::forward_proxy::EgressProxyRule;

use super::*;

/// Serves one connection: gives its first head this answer, and closes if it `closes`. Returns the head, and what came behind it.
async fn one(listener: TcpListener, answer: Vec<u8>, closes: bool) -> (String, Vec<u8>) {
    let (mut io, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    let (mut reader, mut writer) = io.split();
    let mut behind = Vec::new();
    let write = async {
        // A client that closes does not read all of it.
        let _ = writer.write_all(&answer).await;
        if closes {
            let _ = writer.shutdown().await;
        }
    };
    let (_, _) = tokio::join!(write, reader.read_to_end(&mut behind));
    (String::from_utf8(head).unwrap(), behind)
}

/// A proxy that serves one connection, and a client whose connections to a port go there.
async fn proxied(
    port: u16,
    answer: Vec<u8>,
    closes: bool,
) -> (Client, tokio::task::JoinHandle<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rule = EgressProxyRule { ports: vec![port], ..rule(&[listener.local_addr().unwrap()]) };
    let client = client(port, std::path::Path::new("/dev/null"), rule);
    (client, tokio::spawn(one(listener, answer, closes)))
}

#[tokio::test]
async fn what_the_app_has_sent_does_not_reach_a_proxy_that_refuses_and_its_page_is_not_read() {
    let page = [&b"HTTP/1.1 403 Forbidden\r\ncontent-length: 100000000\r\n\r\n"[..], &vec![b'x'; 20_000_000]]
        .concat();
    let (client, served) = proxied(443, page, false).await;
    let mut io = client.dial().await;
    io.write_all(&client_hello()).await.unwrap();
    assert!(io.read_u8().await.is_err());
    let (head, behind) = served.await.unwrap();
    assert!(head.starts_with("CONNECT a.example:443 ") && behind.is_empty(), "{head}{behind:?}");
}

#[tokio::test]
async fn a_download_whose_server_closes_first_is_complete_and_so_is_an_upload_after_it() {
    let body = vec![b'd'; 3_000_000];
    let answer = [&b"HTTP/1.0 200 Connection established\r\n\r\n"[..], &body].concat();
    let (client, served) = proxied(443, answer, true).await;
    let (mut io, hello) = (client.dial().await, client_hello());
    io.write_all(&hello).await.unwrap();
    let mut received = Vec::new();
    io.read_to_end(&mut received).await.unwrap();
    assert!(received == body, "{} bytes", received.len());
    io.write_all(b"bye").await.unwrap();
    io.shutdown().await.unwrap();
    let (_, behind) = served.await.unwrap();
    assert_eq!(behind, [&*hello, b"bye"].concat());
}

#[tokio::test]
async fn a_proxy_never_gets_an_address_with_a_zone() {
    for host in ["[::1%25.example.com]", "[fe80::1%eth0]:80", "a b", "a.example:x"] {
        let (client, served) = proxied(80, Vec::new(), true).await;
        let mut io = client.dial().await;
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        io.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 400", "{host}");
        served.abort();
        assert!(
            served.await.is_err_and(|error| error.is_cancelled()),
            "the proxy got a connection for {host}"
        );
    }
}
