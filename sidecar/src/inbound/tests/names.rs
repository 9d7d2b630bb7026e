//! Hosts of requests on a port whose rules differ by server name.

use std::sync::Arc;

use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_core::Principal;
use tidegate_core::dns_name::DnsPattern;
use tidegate_core::policy::{ClientCheck, IngressTransport, Sources};

use super::*;
use crate::test_mesh::rule;
use crate::test_pki::{GATEWAY, dns};
use crate::tls::ServerTls;

/// Open to every client under one name, and to the gateway under others.
async fn mesh() -> Mesh {
    let mesh = Mesh::start().await;
    let names = ["open.example", "secret.example", "a.secret.example"].map(dns).to_vec();
    let leaf = mesh.root.issue(|params| params.subject_alt_names = names);
    let tls = ServerTls::new(leaf.credentials(), mesh.root.bundle()).unwrap();
    mesh.publisher.update(|snapshot| snapshot.tls = Some(Arc::new(tls)));
    mesh.publish(|policy| {
        let https = |host: &str, client| {
            let sni_hosts = vec![DnsPattern::parse(host).unwrap()];
            rule(Sources::Any, IngressTransport::Https { sni_hosts, client })
        };
        let gateway = || ClientCheck::Principals(vec![Principal::parse(GATEWAY)].into());
        let port = policy.ports.get_mut(&(Port::Sni as u16)).unwrap();
        port.ingress = [
            https("open.example", ClientCheck::Skip),
            https("secret.example", gateway()),
            https("*.secret.example", gateway()),
        ]
        .concat();
    });
    mesh
}

/// The status of a request for this host.
const OPEN: &[(&str, u16)] = &[
    ("open.example", 200),
    ("OPEN.example:443", 200),
    ("httpbin", 200),
    ("secret.example", 421),
    ("Secret.Example.:8443", 421),
    ("a.secret.example", 421),
    ("open.example", 200),
];
const SECRET: &[(&str, u16)] =
    &[("secret.example", 200), ("a.secret.example", 421), ("httpbin", 200), ("open.example", 421)];
const BELOW: &[(&str, u16)] = &[("b.secret.example", 200), ("secret.example", 421)];

#[tokio::test]
async fn a_request_for_a_host_of_another_rule_is_421_and_the_connection_stays_open() {
    let mesh = mesh().await;
    let gateway = mesh.root.named(GATEWAY);
    for (server_name, leaf, requests) in [
        ("open.example", None, OPEN),
        ("secret.example", Some(&gateway), SECRET),
        ("a.secret.example", Some(&gateway), BELOW),
    ] {
        let mut client = tls_as(&mesh, Port::Sni, leaf, &VERSIONS, &[], server_name).await.unwrap();
        for (host, status) in requests {
            client.write_all(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\nok") && !answer.ends_with(b"Misdirected Request") {
                assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
            }
            let start = format!("HTTP/1.1 {status} ");
            assert!(answer.starts_with(start.as_bytes()), "{server_name}, {host}: {}", answer.escape_ascii());
        }

        let client = tls_as(&mesh, Port::Sni, leaf, &VERSIONS, &["h2"], server_name).await.unwrap();
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        for (host, status) in requests {
            let request = http::Request::get(format!("https://{host}/")).body(Empty::<bytes::Bytes>::new());
            let response = sender.send_request(request.unwrap()).await.unwrap();
            assert_eq!(response.status(), *status, "{server_name}, {host}");
        }
    }
}

#[tokio::test]
async fn a_rule_for_every_name_allows_every_host() {
    let mesh = mesh().await;
    mesh.publish(|policy| {
        let https = |sni_hosts| IngressTransport::Https { sni_hosts, client: ClientCheck::Skip };
        let port = policy.ports.get_mut(&(Port::Sni as u16)).unwrap();
        let named = https(vec![DnsPattern::parse("secret.example").unwrap()]);
        port.ingress = [rule(Sources::Any, named), rule(Sources::Any, https(vec![]))].concat();
    });
    let mut client = tls_as(&mesh, Port::Sni, None, &VERSIONS, &[], "open.example").await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: secret.example\r\n\r\n").await.unwrap();
    let mut start = [0; 13];
    client.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 ");
}
