use std::time::Instant;

use super::*;
use crate::limits::Limits;
use crate::test_pki::{Authority, GATEWAY};

/// The ClientHello of a client that requests this name.
fn hello(server_name: &str, alpn: &[&str]) -> Vec<u8> {
    let config = client_config(&Authority::root("x").bundle(), None, &VERSIONS, alpn);
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn connections_that_no_rule_opens_are_reset_without_an_alert() {
    let mesh = Mesh::start().await;
    let no_name = hello("127.0.0.1", &[]);
    let other_name = hello("x.foo.example", &[]);
    let tls = hello(SERVER, &[]);
    let mesh_peer = hello(SERVER, &["tidegate/tcp"]);
    for (port, first) in [
        (Port::None, GET),
        (Port::None, &tls),
        (Port::Elsewhere, GET),
        (Port::Elsewhere, &tls),
        (Port::Https, GET),
        (Port::Skip, GET),
        (Port::Sni, &no_name),
        (Port::Sni, &other_name),
        (Port::Mesh, GET),
        (Port::Mesh, &tls),
        (Port::Https, &mesh_peer),
        (Port::Http, b"\x16\x03\x01\x00\x00"),
        (Port::Https, b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"),
    ] {
        assert_eq!(end_after(mesh.address(port), first).await, (End::Reset, vec![]), "{port:?} {first:?}");
    }
}

#[tokio::test]
async fn without_a_policy_or_a_certificate_nothing_is_admitted() {
    let mesh = Mesh::start().await;
    mesh.publisher.update(|snapshot| snapshot.tls = None);
    let mut client = mesh.connect(Port::Skip).await;
    client.write_all(&hello(SERVER, &[])).await.unwrap();
    assert_eq!(end(&mut client).await, (End::Reset, vec![]));
    assert!(get(&mut mesh.connect(Port::Http).await).await.is_ok());
    mesh.publisher.update(|snapshot| snapshot.policy = None);
    assert_eq!(end_after(mesh.address(Port::Http), GET).await, (End::Reset, vec![]));
}

#[tokio::test]
async fn tls_at_a_plaintext_port_is_answered_in_plaintext() {
    let mesh = Mesh::start().await;
    let mut client = mesh.connect(Port::Http).await;
    client.write_all(&hello(SERVER, &["h2"])).await.unwrap();
    let (end, answer) = end(&mut client).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let lines: Vec<&str> = head.split("\r\n").collect();
    assert_eq!(end, End::Fin);
    assert_eq!(body, "Bad Request");
    assert_eq!(lines[..3], ["HTTP/1.1 400 Bad Request", "content-length: 11", "content-type: text/plain"]);
    assert!(lines[3].starts_with("date: ") && lines[3].ends_with(" GMT"));
    assert_eq!(lines[4..], ["connection: close"]);
}

#[tokio::test]
async fn a_silent_client_is_closed_with_fin_at_its_deadline() {
    let limits = Limits { detect: Duration::from_millis(600), ..Limits::default() };
    let mesh = Mesh::with(1, limits).await;
    for first in [&b""[..], b"\x16", b"\x16\x03\x01"] {
        let start = Instant::now();
        let mut client = mesh.connect(Port::Https).await;
        client.write_all(first).await.unwrap();
        assert_eq!(end(&mut client).await, (End::Fin, vec![]), "{first:?}");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(5), "{took:?}");
    }
    mesh.connections(0).await;
}

#[tokio::test]
async fn a_stalled_handshake_is_ended() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let mesh = Mesh::with(1, limits).await;
    let mut client = mesh.connect(Port::Https).await;
    client.write_all(&hello(SERVER, &[])).await.unwrap();
    let (end, flight) = end(&mut client).await;
    assert_eq!((end, flight[0]), (End::Fin, 0x16));
    mesh.connections(0).await;
}

#[tokio::test]
async fn a_hello_in_single_bytes_and_many_records_is_judged_like_a_whole_one() {
    let mesh = Mesh::start().await;
    for (server_name, expected) in [("A.Bar.example", true), ("foo.EXAMPLE", true), ("bar.example", false)] {
        let whole = hello(server_name, &[]);
        let message = &whole[5..];
        for size in [message.len(), message.len().div_ceil(50)] {
            let mut client = mesh.connect(Port::Sni).await;
            client.set_nodelay(true).unwrap();
            let records: Vec<u8> = message
                .chunks(size)
                .flat_map(|part| {
                    let length = u16::try_from(part.len()).unwrap().to_be_bytes();
                    [&[0x16, 3, 1][..], &length, part].concat()
                })
                .collect();
            for byte in records {
                client.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut answer = [0];
            let let_in = client.read_exact(&mut answer).await.is_ok();
            // The server's flight begins with a handshake record.
            assert_eq!((let_in, answer[0] == 0x16), (expected, expected), "{server_name} in {size}");
        }
    }
}

#[tokio::test]
async fn a_principal_that_is_not_allowed_gets_403_and_keeps_its_connection() {
    let mesh = Mesh::start().await;
    let other = mesh.root.named("other.ns.cluster.local");
    let mut client = tls(&mesh, Port::Https, Some(&other), &[]).await.unwrap();
    for _ in 0..2 {
        assert!(get(&mut client).await.unwrap().starts_with("HTTP/1.1 403 "));
    }
    let gateway = mesh.root.named(GATEWAY);
    let mut client = tls(&mesh, Port::Https, Some(&gateway), &[]).await.unwrap();
    assert!(get(&mut client).await.unwrap().starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_truncated_answer_never_ends_like_a_complete_one() {
    let mesh = Mesh::start().await;
    // To a client of HTTP/1.0 the end of the connection is the end of the answer.
    let mut client = mesh.connect(Port::Http).await;
    client.write_all(b"GET /cut HTTP/1.0\r\n\r\n").await.unwrap();
    assert_eq!(end(&mut client).await.0, End::Reset);
    client = mesh.connect(Port::Http).await;
    client.write_all(b"GET /cut HTTP/1.1\r\nhost: httpbin\r\n\r\n").await.unwrap();
    let (_, answer) = end(&mut client).await;
    assert!(!answer.ends_with(b"0\r\n\r\n"), "{}", answer.escape_ascii());
}

#[tokio::test]
async fn connections_beyond_the_limit_are_ended_at_once_and_counted() {
    let mesh = Mesh::with(2, Limits { connections: 3, ..Limits::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = mesh.connect(Port::Http).await;
        get(&mut client).await.unwrap();
        clients.push(client);
    }
    assert_eq!(mesh.workers.connections(), 3);
    assert_eq!(end_after(mesh.address(Port::Http), GET).await.0, End::Reset);
    assert_eq!(mesh.metrics.total(|totals| &totals.no_place), 1);
    for client in &mut clients {
        get(client).await.unwrap();
    }
    clients.pop();
    mesh.connections(2).await;
    get(&mut mesh.connect(Port::Http).await).await.unwrap();
}
