use std::net::SocketAddr;

use rustls_pki_types::ServerName;
use tidegate_core::forward_proxy::ProxyCredentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server that gives the n-th connection the answer `answer(n)` to its first bytes, and closes it if that is `None`. Other
/// connections stay open.
async fn server(answer: fn(usize) -> Option<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for place in 0.. {
            let (mut io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let _ = io.read(&mut [0; 1024]).await;
                let Some(answer) = answer(place) else { return };
                io.write_all(answer.as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

fn probe(address: SocketAddr) -> ProxyProbe {
    ProxyProbe {
        object: ObjectName::new("shop", "squid"),
        proxy: HttpProxy::at(address, None, ProxyCredentials::basic("mesh", "s3cret").ok()),
        roots: None,
        opens_tunnels: true,
        connect_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_secs(15),
    }
}

fn answer(head: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {head}\r\n\r\n"))
}

/// The reason and the message of a probe's result.
async fn result(probe: ProxyProbe) -> Option<(&'static str, String)> {
    probe.run().await.err().map(|defect| (defect.reason, defect.message))
}

#[tokio::test]
async fn a_proxy_works_if_it_answers_whatever_it_allows() {
    let answers: [fn(usize) -> Option<String>; 3] =
        [|_| answer("200 OK"), |_| answer("403 Forbidden"), |_| answer("503 Service Unavailable")];
    for answer in answers {
        assert_eq!(result(probe(server(answer).await)).await, None);
    }
    let for_requests = server(|_| answer("405 Method Not Allowed")).await;
    assert_eq!(result(ProxyProbe { opens_tunnels: false, ..probe(for_requests) }).await, None);
}

#[tokio::test]
async fn a_failure_counts_if_it_happens_twice() {
    let first_closes = |place| if place == 0 { None } else { answer("200 OK") };
    assert_eq!(result(probe(server(first_closes).await)).await, None);
}

#[tokio::test]
async fn each_failure_has_its_reason_and_names_the_proxy_with_its_own_words() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let who = server(|_| answer("407 Who\r\nX-Squid-Error: ERR_CACHE_ACCESS_DENIED 0")).await;
    let tls = |address| ProxyProbe {
        proxy: HttpProxy::at(address, Some(ServerName::try_from("proxy.corp.example").unwrap()), None),
        roots: Some(rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem().into()),
        ..probe(address)
    };
    let silent = probe(server(|_| Some(String::new())).await);
    let silent = ProxyProbe { response_timeout: Duration::from_millis(200), ..silent };
    let expected = [
        (probe(closed), "Unreachable", "Connection refused"),
        (probe(who), "AuthenticationFailed", "407 Who, X-Squid-Error: ERR_CACHE_ACCESS_DENIED 0"),
        (probe(server(|_| answer("405 No")).await), "ConnectNotSupported", "405 No"),
        (silent, "NoAnswer", "no answer to CONNECT within 200ms"),
        (probe(server(|_| None).await), "Closed", "unexpected end of file"),
        (probe(server(|_| Some("garbage".into())).await), "MalformedAnswer", "not HTTP/1"),
        (probe(server(|_| answer(&"x".repeat(70_000))).await), "HeadTooLarge", "larger than 65536 bytes"),
        (tls(server(|_| answer("200 OK")).await), "TLSFailed", "InvalidContentType"),
        (tls(closed), "Unreachable", "Connection refused"),
    ];
    let results = expected.map(|(probe, reason, words)| async move {
        let proxy = probe.proxy.to_string();
        let (found, message) = result(probe).await.unwrap();
        assert_eq!(found, reason, "{message}");
        assert!(
            message.starts_with(&format!("forward proxy {proxy}")) && message.contains(words),
            "{message}"
        );
        assert!(!message.contains("bWVzaDpzM2NyZXQ"));
    });
    futures_util::future::join_all(results).await;
}

#[tokio::test]
async fn objects_are_reported_once_all_their_proxies_are_known_and_forgotten_with_them() {
    let good = server(|_| answer("403 Forbidden")).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let wanted = watch::Sender::new(Arc::new(vec![probe(good), probe(closed)]));
    let (sender, mut health) = watch::channel(Arc::default());
    let running = tokio::spawn(watch_proxies(wanted.subscribe(), sender));
    wanted.send_modify(|_| {});
    let object = ObjectName::new("shop", "squid");
    let is_known = |health: &Arc<ProxyHealth>| health.of(&object).is_some();
    let probed = health.wait_for(is_known).await.unwrap().of(&object).unwrap().clone();
    assert_eq!((probed.count, probed.defects.len(), probed.defects[0].reason), (2, 1, "Unreachable"));
    wanted.send_replace(Arc::new(vec![probe(good)]));
    let is_good = |health: &Arc<ProxyHealth>| health.of(&object).is_some_and(|it| it.defects.is_empty());
    drop(health.wait_for(is_good).await.unwrap());
    wanted.send_replace(Arc::default());
    drop(health.wait_for(|health| health.of(&object).is_none()).await.unwrap());
    drop(wanted);
    running.await.unwrap();
}

#[tokio::test]
async fn probes_hold_no_connection_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (mut io, _): (TcpStream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        io.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert_eq!(io.read(&mut [0; 1]).await.unwrap(), 0, "closed");
        String::from_utf8(head).unwrap()
    };
    let probe = probe(address);
    let (head, result) = tokio::join!(serve, probe.run());
    assert_eq!(result, Ok(()));
    let expected = "CONNECT tidegate-probe.invalid:443 HTTP/1.1\r\nHost: tidegate-probe.invalid:443\r\n\
                    Proxy-Authorization: Basic bWVzaDpzM2NyZXQ=\r\n\r\n";
    assert_eq!(head, expected);
}
