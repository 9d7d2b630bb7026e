use std::net::Ipv4Addr;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;

struct Fixture {
    address: SocketAddr,
    metrics: Metrics,
    readiness: Readiness,
    trigger: drain::Trigger,
    task: JoinHandle<()>,
}

impl Fixture {
    async fn start() -> Self {
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        let (trigger, watch) = drain::channel();
        let routes = Router::new().route("/echo", axum::routing::put(|body: String| async move { body }));
        let name = ProcessName("tidegate-test");
        let admin = AdminServer::new(name, metrics.clone(), readiness.clone(), LogHandle::detached())
            .merge(routes)
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .await
            .unwrap();
        let address = admin.local_addr();
        let task = tokio::spawn(admin.serve(watch));
        Self { address, metrics, readiness, trigger, task }
    }

    /// Sends raw bytes and returns all that comes back until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
        ))
        .await
    }

    async fn get(&self, path: &str) -> String {
        self.request("GET", path, "host: 127.0.0.1:15000\r\n", "").await
    }
}

fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn who_waits_for_readiness_is_answered_when_it_comes_or_after_that_time() {
    let fixture = Fixture::start().await;
    let blocker = fixture.readiness.block("policy");
    let answer = fixture.get("/ready?wait=1ms").await;
    assert_eq!(status(&answer), 503);
    assert!(answer.ends_with("not ready, waiting for: policy\n"), "{answer}");
    assert_eq!(status(&fixture.get("/ready?wait=soon").await), 400);
    let waiting = fixture.get("/ready?wait=5s");
    let mut waiting = std::pin::pin!(waiting);
    tokio::select! {
        answer = &mut waiting => panic!("{answer}"),
        // The server has had its chance to answer the other, too.
        answer = fixture.get("/live") => assert_eq!(status(&answer), 200),
    }
    drop(blocker);
    assert_eq!(status(&waiting.await), 200);
}

#[tokio::test]
async fn readiness_shows_what_blocks_it() {
    let fixture = Fixture::start().await;
    let blockers = (fixture.readiness.block("policy"), fixture.readiness.block("certificate"));
    let answer = fixture.get("/ready").await;
    assert_eq!(status(&answer), 503);
    assert!(answer.ends_with("not ready, waiting for: certificate, policy\n"), "{answer}");
    assert_eq!(status(&fixture.get("/live").await), 200);
    drop(blockers);
    let answer = fixture.get("/ready").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("\r\n\r\nready\n"), "{answer}");
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let fixture = Fixture::start().await;
    let counter = Counter::<u64>::default();
    fixture.metrics.registry(|registry| registry.register("tidegate_tests", "Tests", counter));
    let answer = fixture
        .request("GET", "/metrics", "host: localhost\r\naccept: application/openmetrics-text\r\n", "")
        .await;
    assert!(answer.contains("content-type: application/openmetrics-text; version=1.0.0;"), "{answer}");
    assert!(answer.ends_with("tidegate_tests_total 0\n# EOF\n"), "{answer}");
    let answer = fixture.get("/metrics").await;
    assert!(answer.contains("content-type: text/plain; version=0.0.4;"), "{answer}");
    assert!(answer.ends_with("# TYPE tidegate_tests_total counter\ntidegate_tests_total 0\n"), "{answer}");
}

#[tokio::test]
async fn the_log_filter_is_read_and_set() {
    let fixture = Fixture::start().await;
    assert!(fixture.get("/log").await.ends_with("\r\n\r\ninfo\n"));
    for (method, filter) in [("PUT", "debug"), ("POST", "warn,tidegate_core=trace")] {
        let answer = fixture.request(method, "/log", "host: localhost\r\n", filter).await;
        assert_eq!(status(&answer), 200);
        assert!(fixture.get("/log").await.ends_with(&format!("\r\n\r\n{filter}\n")));
    }
    assert_eq!(status(&fixture.request("PUT", "/log", "host: localhost\r\n", "a=loud").await), 400);
    assert_eq!(status(&fixture.request("DELETE", "/log", "host: localhost\r\n", "").await), 405);
    assert!(fixture.get("/log").await.ends_with("\r\n\r\nwarn,tidegate_core=trace\n"));
}

#[tokio::test]
async fn only_requests_that_name_this_host_by_address_are_answered() {
    let fixture = Fixture::start().await;
    for host in
        ["127.0.0.1", "127.0.0.1:15000", "[::1]:80", "[::1]", "localhost", "LocalHost:80", "10.1.2.3:15901"]
    {
        let answer = fixture.request("GET", "/live", &format!("host: {host}\r\n"), "").await;
        assert_eq!(status(&answer), 200, "{host}");
    }
    for headers in [
        "host: evil.example\r\n",
        "host: evil.example:15000\r\n",
        "host: 127.0.0.1.nip.example\r\n",
        "host: localhost.evil.example\r\n",
        "host: a@127.0.0.1\r\n",
        "host: \r\n",
        "host: 127.0.0.1\r\nhost: evil.example\r\n",
        "",
    ] {
        for path in ["/live", "/log", "/echo", "/nothing"] {
            let answer = fixture.request("GET", path, headers, "").await;
            assert_eq!(status(&answer), 403, "{path} {headers:?}");
        }
    }
    let answer = fixture.request("GET", "http://evil.example/live", "host: 127.0.0.1\r\n", "").await;
    assert_eq!(status(&answer), 403);
}

#[tokio::test]
async fn web_pages_of_other_origins_read_and_change_nothing() {
    let fixture = Fixture::start().await;
    let headers = "host: 127.0.0.1\r\norigin: http://evil.example\r\n";
    let answer = fixture.request("GET", "/log", headers, "").await;
    assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
    assert_eq!(status(&fixture.request("POST", "/log", headers, "trace").await), 403);
    assert_eq!(status(&fixture.request("OPTIONS", "/log", headers, "").await), 403);
    assert!(fixture.get("/log").await.ends_with("\r\n\r\ninfo\n"));
}

#[tokio::test]
async fn routes_of_a_daemon_are_served_and_bodies_are_limited() {
    let fixture = Fixture::start().await;
    let most = "x".repeat(MAX_BODY_BYTES);
    let answer = fixture.request("PUT", "/echo", "host: localhost\r\n", &most).await;
    assert!(answer.ends_with(&format!("\r\n\r\n{most}")));
    let answer = fixture.request("PUT", "/echo", "host: localhost\r\n", &format!("{most}x")).await;
    assert_eq!(status(&answer), 413);
}

#[tokio::test]
async fn only_health_is_served_at_an_address_that_others_can_reach() {
    let server =
        || AdminServer::new(ProcessName("x"), Metrics::new(), Readiness::new(), LogHandle::detached());
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    assert!(matches!(server().bind(any).await, Err(AdminServerError::NotLoopback(_))));
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    let health = AdminServer::health(ProcessName("x"), metrics, readiness, LogHandle::detached());
    assert!(health.bind(any).await.is_ok());
    let bound = server().bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let error = server().bind(bound.local_addr()).await.unwrap_err();
    assert!(matches!(error, AdminServerError::Bind { .. }), "{error}");
}

#[tokio::test]
async fn a_drain_ends_idle_connections_and_the_server() {
    let fixture = Fixture::start().await;
    let mut idle = TcpStream::connect(fixture.address).await.unwrap();
    idle.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 200");
    let outcome = fixture.trigger.drain(Duration::from_secs(60)).await;
    assert_eq!(outcome, drain::DrainOutcome::Complete);
    idle.read_to_end(&mut answer).await.unwrap();
    fixture.task.await.unwrap();
    assert!(TcpStream::connect(fixture.address).await.is_err());
}

/// A health server that other hosts reach, at its address on loopback.
async fn start_health() -> (drain::Trigger, SocketAddr) {
    let (trigger, watch) = drain::channel();
    let name = ProcessName("tidegate-test");
    let health = AdminServer::health(name, Metrics::new(), Readiness::new(), LogHandle::detached());
    let health = health.bind((Ipv4Addr::UNSPECIFIED, 0).into()).await.unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, health.local_addr().port()));
    tokio::spawn(health.serve(watch));
    (trigger, address)
}

/// The status of the answer to a request without a body.
async fn ask(address: SocketAddr, request: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{request} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    status(&answer)
}

#[tokio::test]
async fn a_health_server_only_reads() {
    let (_trigger, address) = start_health().await;
    let ask = |request: &'static str| ask(address, request, "host: 127.0.0.1\r\n");
    for request in ["GET /live", "GET /ready", "GET /metrics", "GET /stats/prometheus"] {
        assert_eq!(ask(request).await, 200, "{request}");
    }
    for request in ["PUT /log", "GET /log", "GET /config", "GET /"] {
        assert_eq!(ask(request).await, 404, "{request}");
    }
    assert_eq!(ask("POST /ready").await, 405);
}

#[tokio::test]
async fn a_health_server_may_be_called_by_any_dns_name_and_by_nothing_else() {
    let (_trigger, address) = start_health().await;
    let label = "a".repeat(63);
    let longest = [&label[..], &label, &label, &label[..61]].join(".");
    for host in [
        "10.1.2.3:15010",
        "[fd00::1]:15010",
        "localhost",
        "httpbin",
        "tidegate-controller.tidegate-system.svc:9091",
        "Prometheus_Target.example.",
        &longest,
    ] {
        let headers = format!("host: {host}\r\n");
        assert_eq!(ask(address, "GET /metrics", &headers).await, 200, "{host}");
    }
    for host in [
        "",
        ":9091",
        "a..example",
        "a@b.example",
        "*.example",
        "a%2eexample",
        "[example]",
        &format!("{label}a"),
        &format!("{longest}a"),
    ] {
        let status = ask(address, "GET /metrics", &format!("host: {host}\r\n")).await;
        assert!(matches!(status, 400 | 403), "{host}: {status}");
    }
    assert_eq!(ask(address, "GET /metrics", "").await, 403);
    assert_eq!(ask(address, "GET /metrics", "host: a.example\r\nhost: b.example\r\n").await, 403);
    assert_eq!(ask(address, "POST /metrics", "host: a.example\r\norigin: http://a.example\r\n").await, 403);
}

#[tokio::test]
async fn a_health_server_answers_at_once_while_other_clients_stay_silent() {
    let (_trigger, address) = start_health().await;
    for count in [64, 1000] {
        let mut silent = Vec::new();
        for _ in 0..count {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let limit = HEALTH_HEAD_TIMEOUT / 2;
        let asked = ask(address, "GET /live", "host: a\r\n");
        let status =
            tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| panic!("{count}: no answer"));
        assert_eq!(status, 200, "{count}");
    }
}
