//! Addresses that no object has, where an EgressProxy takes connections to a forward proxy.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate_core::dns_name::DnsPattern;
use tidegate_core::forward_proxy::{
    EgressProxyRule, ForwardedHeaders, NoProxy, ProxyCredentials, ProxySettings,
};

use super::unregistered::{client_hello, line};
use super::*;

/// A forward proxy that answers heads with what `answer` says, and echoes what follows a `CONNECT`.
struct FakeProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// The answer to a head; `None`: the connection is closed without one.
type Answerer = fn(&str) -> Option<String>;

impl FakeProxy {
    async fn start(answer: Answerer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<String>>>::default());
        let (seen, connections) = (heads.clone(), Arc::<AtomicUsize>::default());
        let opened = connections.clone();
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                opened.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(Self::serve(io, answer, seen.clone()));
            }
        });
        Self { address, heads, connections }
    }

    async fn serve(mut io: TcpStream, answer: Answerer, heads: Arc<Mutex<Vec<String>>>) {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = io.read_u8().await else { return };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            heads.lock().unwrap().push(head.clone());
            let Some(answer) = answer(&head) else { return };
            io.write_all(answer.as_bytes()).await.unwrap();
            if head.starts_with("CONNECT ") {
                let (mut reader, mut writer) = io.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                return;
            }
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn settings(forwarded_headers: ForwardedHeaders) -> ProxySettings {
    ProxySettings {
        origin: ObjectRef::new("EgressProxy", "shop", "squid"),
        credentials: ProxyCredentials::basic("mesh", "s3cret").ok(),
        credentials_version: "1".into(),
        tls: None,
        connect_timeout: Duration::from_secs(5),
        response_timeout: Duration::from_millis(300),
        forwarded_headers,
    }
}

pub(super) fn rule(proxies: &[SocketAddr]) -> EgressProxyRule {
    EgressProxyRule {
        hosts: Vec::new(),
        ports: vec![80, 443],
        no_proxy: NoProxy::default(),
        proxies: proxies.to_vec(),
        http_proxies: Vec::new(),
        settings: Arc::new(settings(ForwardedHeaders::Transparent)),
    }
}

/// A client that dials an address outside the mesh, at which nothing is.
pub(super) fn client(port: u16, log: &std::path::Path, rule: EgressProxyRule) -> Client {
    let log = log.to_owned();
    let telemetry = Arc::new(move || Telemetry::in_file(&log));
    let client = Client::telling(([192, 0, 2, 1], port).into(), Limits::default(), telemetry);
    client.destinations.set_egress(EgressMode::AllowAny, &[Arc::new(rule)]);
    client.learn(Answer::Destination(Destination::Unknown));
    client
}

fn tunnel(_: &str) -> Option<String> {
    Some("HTTP/1.1 200 Connection established\r\n\r\n220 hello\r\n".into())
}

#[tokio::test]
async fn tls_goes_through_a_tunnel_by_its_server_name_and_nothing_of_it_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let proxy = FakeProxy::start(tunnel).await;
    let client = client(443, &log, rule(&[proxy.address]));
    let hello = client_hello();
    let (first, rest) = hello.split_at(40);
    let mut io = client.dial().await;
    io.write_all(first).await.unwrap();
    // Longer than what decides nothing is waited for.
    tokio::time::sleep(Limits::default().outbound_detect * 2).await;
    io.write_all(rest).await.unwrap();
    io.shutdown().await.unwrap();
    let mut received = Vec::new();
    io.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, [b"220 hello\r\n", &*hello].concat(), "read ahead, and echoed");
    let connect = "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\
                   Proxy-Authorization: Basic bWVzaDpzM2NyZXQ=\r\n\r\n";
    assert_eq!(proxy.heads(), [connect]);
    let record = line(&log, "a.example").await;
    assert_eq!(record["upstream_host"], proxy.address.to_string());
    assert_eq!(record["upstream_cluster"], "outbound|443||EgressProxy/shop/squid");
    assert!(!std::fs::read_to_string(&log).unwrap().contains("bWVzaDpzM2NyZXQ"));
}

#[tokio::test]
async fn an_app_that_is_slow_to_speak_at_the_port_of_https_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::start(tunnel).await;
    let client = client(443, &directory.path().join("log"), rule(&[proxy.address]));
    let mut io = client.dial().await;
    tokio::time::sleep(Limits::default().outbound_detect * 2).await;
    io.write_all(&client_hello()).await.unwrap();
    io.read_u8().await.unwrap();
    assert!(proxy.heads()[0].starts_with("CONNECT a.example:443 HTTP/1.1\r\n"));
}

#[tokio::test]
async fn bytes_that_name_no_host_go_through_a_tunnel_to_their_address() {
    let directory = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::start(tunnel).await;
    let rule = EgressProxyRule { ports: vec![25], ..rule(&[proxy.address]) };
    let client = client(25, &directory.path().join("log"), rule);
    let mut greeting = [0; 11];
    client.dial().await.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n", "a server that speaks first");
    assert!(proxy.heads()[0].starts_with("CONNECT 192.0.2.1:25 HTTP/1.1\r\n"));
}

/// Sends requests over one connection, one after the other; the answers' first lines.
async fn requests(client: &Client, requests: &[&str]) -> Vec<String> {
    let mut io = client.dial().await;
    let mut lines = Vec::new();
    for request in requests {
        io.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
        let mut body = vec![0; length.parse().unwrap()];
        io.read_exact(&mut body).await.unwrap();
        lines.push(head.lines().next().unwrap().to_owned());
    }
    lines
}

fn serve(head: &str) -> Option<String> {
    Some(match head {
        head if head.contains("denied") => {
            "HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\ncontent-length: 0\r\n\r\n".into()
        }
        head if head.contains("unknown") => {
            "HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\ncontent-length: 0\r\n\r\n".into()
        }
        _ => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".into(),
    })
}

#[tokio::test]
async fn requests_for_several_hosts_share_a_connection_to_the_proxy_in_absolute_form() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let proxy = FakeProxy::start(serve).await;
    let client = client(80, &log, rule(&[proxy.address]));
    let sent = [
        "GET /a?b HTTP/1.1\r\nHost: a.example\r\nProxy-Authorization: Basic x\r\nX-Forwarded-For: 10.1.1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: b.example:80\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: b.example\r\n\r\n",
        "GET /c HTTP/1.1\r\nHost: denied.example\r\n\r\n",
        "GET /d HTTP/1.1\r\nHost: unknown.example\r\n\r\n",
    ];
    let lines = requests(&client, &sent).await;
    let ok = "HTTP/1.1 200 OK";
    assert_eq!(lines, [ok, ok, ok, "HTTP/1.1 403 Forbidden", "HTTP/1.1 502 Bad Gateway"]);
    // Nothing is sent before a request, and no answer but its own is waited for: no round trip is added.
    let heads = proxy.heads();
    assert_eq!((heads.len(), proxy.connections.load(Ordering::Relaxed)), (5, 1));
    let first: Vec<_> = heads.iter().map(|head| head.lines().next().unwrap()).collect();
    let expected = [
        "GET http://a.example/a?b HTTP/1.1",
        "GET http://b.example/ HTTP/1.1",
        "OPTIONS http://b.example HTTP/1.1",
        "GET http://denied.example/c HTTP/1.1",
        "GET http://unknown.example/d HTTP/1.1",
    ];
    assert_eq!(first, expected);
    assert!(heads[0].contains("proxy-authorization: Basic bWVzaDpzM2NyZXQ=\r\n"), "{}", heads[0]);
    assert!(!heads[0].contains("Basic x\r\n") && heads[0].contains("X-Forwarded-For: 10.1.1.1\r\n"));
    let denied = line(&log, "denied.example").await;
    assert_eq!(denied["upstream_cluster"], "outbound|80||EgressProxy/shop/squid");
    let details = "forward_proxy_denied{403 X-Squid-Error: ERR_ACCESS_DENIED 0}";
    assert_eq!(denied["response_code_details"], details);
    let unknown = line(&log, "unknown.example").await;
    assert_eq!(
        unknown["response_code_details"],
        "forward_proxy_authentication{407 Proxy-Authenticate: Basic}"
    );
}

#[tokio::test]
async fn what_is_not_a_plain_request_of_http_1_goes_through_a_tunnel() {
    let directory = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::start(tunnel).await;
    let client = client(80, &directory.path().join("log"), rule(&[proxy.address]));
    let mut io = client.dial().await;
    let upgrade = "GET / HTTP/1.1\r\nHost: ws.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    io.write_all(upgrade.as_bytes()).await.unwrap();
    until(|| proxy.heads().len() == 1).await;
    assert!(proxy.heads()[0].starts_with("CONNECT ws.example:80 HTTP/1.1\r\n"));
}

#[tokio::test]
async fn headers_about_clients_are_appended_or_deleted_as_the_object_says() {
    let directory = tempfile::tempdir().unwrap();
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 10.1.1.1\r\nForwarded: for=x\r\n\
                   X-Forwarded-Proto: https\r\nX-Real-IP: 10.1.1.1\r\nVia: 1.1 a\r\n\r\n";
    for (forwarded, has, lacks) in [
        (
            ForwardedHeaders::Append,
            "x-forwarded-for: 10.1.1.1, 127.0.0.1\r\n",
            "x-forwarded-for: 10.1.1.1\r\n",
        ),
        (ForwardedHeaders::Delete, "host: a.example", "10.1.1.1"),
    ] {
        let proxy = FakeProxy::start(serve).await;
        let rule = EgressProxyRule { settings: Arc::new(settings(forwarded)), ..rule(&[proxy.address]) };
        let client = client(80, &directory.path().join("log"), rule);
        requests(&client, &[request]).await;
        let head = proxy.heads()[0].to_ascii_lowercase();
        assert!(head.contains(has) && !head.contains(lacks), "{head}");
        let is_deleted = forwarded == ForwardedHeaders::Delete;
        for name in ["\r\nforwarded:", "\r\nvia:", "\r\nx-real-ip:", "\r\nx-forwarded-proto:"] {
            assert_eq!(head.contains(name), !is_deleted, "{name} {head}");
        }
    }
}

#[tokio::test]
async fn each_failure_of_a_proxy_has_its_own_reason_and_no_connection_passes_it() {
    let directory = tempfile::tempdir().unwrap();
    let answers: [(Answerer, &str); 6] = [
        (|_| Some("HTTP/1.1 403 Forbidden\r\n\r\n".into()), "forward_proxy_denied"),
        (|_| Some("HTTP/1.1 407 Who\r\n\r\n".into()), "forward_proxy_authentication"),
        (|_| Some("HTTP/1.1 503 x\r\n\r\n".into()), "forward_proxy_target_unreachable"),
        (|_| Some(String::new()), "forward_proxy_timeout"),
        (|_| Some("garbage".into()), "forward_proxy_malformed_answer"),
        (|_| None, "forward_proxy_closed"),
    ];
    for (answer, details) in answers {
        let log = directory.path().join(details);
        let proxy = FakeProxy::start(answer).await;
        let client = client(443, &log, rule(&[proxy.address]));
        let mut io = client.dial().await;
        io.write_all(&client_hello()).await.unwrap();
        assert!(io.read_u8().await.is_err(), "{details}");
        let record = line(&log, "a.example").await;
        assert_eq!([&record["response_code_details"], &record["response_flags"]], [details, "UF"]);
    }
    let log = directory.path().join("unreachable");
    let client = client(443, &log, rule(&[closed_address().await]));
    let mut io = client.dial().await;
    io.write_all(&client_hello()).await.unwrap();
    assert!(io.read_u8().await.is_err());
    let record = line(&log, "a.example").await;
    assert_eq!(record["response_code_details"], "forward_proxy_unreachable");
    assert_eq!(record["upstream_cluster"], "outbound|443||EgressProxy/shop/squid");
}

#[tokio::test]
async fn the_access_log_has_a_proxy_s_own_words_whatever_was_to_go_through_its_tunnel() {
    let directory = tempfile::tempdir().unwrap();
    let denies: Answerer =
        |_| Some("HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n".into());
    let words = "forward proxy: the answer to CONNECT is 403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0";
    let proxy = FakeProxy::start(denies).await;
    let log = |name| directory.path().join(name);
    let refused = |record: serde_json::Value| {
        assert_eq!(record["upstream_transport_failure_reason"], words, "{record}");
        assert_eq!(record["response_code_details"], "forward_proxy_denied");
    };

    let tls = client(443, &log("tls"), rule(&[proxy.address]));
    let mut io = tls.dial().await;
    io.write_all(&client_hello()).await.unwrap();
    assert!(io.read_u8().await.is_err());
    refused(line(&log("tls"), "a.example").await);

    let http1 = client(80, &log("http1"), rule(&[proxy.address]));
    let upgrade = "GET / HTTP/1.1\r\nHost: ws.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(requests(&http1, &[upgrade]).await, ["HTTP/1.1 503 Service Unavailable"]);
    refused(line(&log("http1"), "ws.example").await);

    let http2 = client(80, &log("http2"), rule(&[proxy.address]));
    let request = ::http::Request::get("http://h2.example/").body(String::new()).unwrap();
    let response = http::http2(&http2).await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 503);
    refused(line(&log("http2"), "h2.example").await);
}

#[tokio::test]
async fn an_object_without_usable_proxies_refuses_under_its_own_name() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    for (port, sent) in [(443, client_hello()), (80, b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec())] {
        let client = client(port, &log, rule(&[]));
        let mut io = client.dial().await;
        io.write_all(&sent).await.unwrap();
        let _ = io.read_u8().await;
        let cluster = format!("outbound|{port}||EgressProxy/shop/squid");
        let record = line(&log, &cluster).await;
        assert_eq!(record["response_code_details"], "no_healthy_upstream");
    }
}

#[tokio::test]
async fn the_next_proxy_takes_over_for_one_that_cannot_be_reached_but_not_for_one_that_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let second = FakeProxy::start(tunnel).await;
    let opened = async |client: &Client| {
        let mut io = client.dial().await;
        io.write_all(&client_hello()).await.unwrap();
        io.read_u8().await.is_ok()
    };
    let log = directory.path().join("log");
    let over = client(443, &log, rule(&[closed_address().await, second.address]));
    assert!(opened(&over).await && opened(&over).await);
    assert_eq!(second.heads().len(), 2);
    let denies = FakeProxy::start(|_| Some("HTTP/1.1 403 Forbidden\r\n\r\n".into())).await;
    let refused = client(443, &log, rule(&[denies.address, second.address]));
    assert!(!opened(&refused).await && !opened(&refused).await);
    assert_eq!((denies.heads().len(), second.heads().len()), (2, 2));
}

#[tokio::test]
async fn what_the_rule_excepts_goes_to_the_address_that_was_dialled() {
    let directory = tempfile::tempdir().unwrap();
    let (app, proxy) = (start_app().await, FakeProxy::start(tunnel).await);
    let echoed = async |rule: EgressProxyRule| {
        let log = directory.path().join("log");
        let client = Client::telling(app, Limits::default(), Arc::new(move || Telemetry::in_file(&log)));
        let rule = EgressProxyRule { ports: vec![app.port()], ..rule };
        client.destinations.set_egress(EgressMode::AllowAny, &[Arc::new(rule)]);
        client.learn(Answer::Destination(Destination::Unknown));
        client.echo().await.unwrap()
    };
    // Loopback is never proxied.
    assert_eq!(echoed(rule(&[proxy.address])).await, b"hellobye");
    let hosts = vec![DnsPattern::parse("*.other").unwrap()];
    assert_eq!(echoed(EgressProxyRule { hosts, ..rule(&[proxy.address]) }).await, b"hellobye");
    assert_eq!(proxy.heads(), [""; 0]);
}

#[tokio::test]
async fn a_change_of_the_rules_reaches_addresses_that_are_known() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (FakeProxy::start(tunnel).await, FakeProxy::start(tunnel).await);
    let by = |proxy: &FakeProxy| EgressProxyRule { ports: vec![25], ..rule(&[proxy.address]) };
    let client = client(25, &directory.path().join("log"), by(&first));
    client.dial().await.read_u8().await.unwrap();
    client.destinations.set_egress(EgressMode::AllowAny, &[Arc::new(by(&second))]);
    client.destinations.settle(true);
    client.dial().await.read_u8().await.unwrap();
    assert_eq!((first.heads().len(), second.heads().len()), (1, 1));
}
