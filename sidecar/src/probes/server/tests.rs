use std::convert::Infallible;

use http_body_util::{BodyExt, Channel};
use hyper_util::rt::TokioExecutor;
use rustls_pki_types::PrivateKeyDer;
use tidegate_runtime::tls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::test_pki::Authority;

/// An HTTP/1.1 app that responds to a path `/<status>` with that status; the body is the head that it received.
async fn start_app(tls: bool) -> u16 {
    tls::install_provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let leaf = Authority::root("another root").named("another.name");
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(leaf.chain.clone(), PrivateKeyDer::try_from(leaf.key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if tls {
                    answer_head(acceptor.accept(stream).await.unwrap()).await;
                } else {
                    answer_head(stream).await;
                }
            });
        }
    });
    port
}

async fn answer_head(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap() == 0 {
            return;
        }
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(['/', ' ', '?']).nth(2).unwrap();
    if status == "never" {
        std::future::pending::<()>().await;
    }
    let length = head.len();
    // A redirect's location is the query's `to=`.
    let location =
        head.split([' ', '=']).nth(2).filter(|_| head.contains("?to=")).unwrap_or("http://else.where/");
    let answer =
        format!("HTTP/1.1 {status} x\r\nlocation: {location}\r\ncontent-length: {length}\r\n\r\n{head}");
    stream.write_all(answer.as_bytes()).await.unwrap();
    let _ = stream.shutdown().await;
}

/// A `grpc.health.v1.Health` that serves the service `good`, and the server as a whole only on its path.
async fn start_health() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let check = |request: Request<Incoming>| async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let (status, code) = match &body[..] {
            [0, 0, 0, 0, 0] | [0, 0, 0, 0, 6, 0x0a, 4, b'g', b'o', b'o', b'd'] => (1, "0"),
            [.., b'b', b'a', b'd'] => (2, "0"),
            _ => (0, "5"),
        };
        let (mut sender, body) = Channel::<Bytes>::new(2);
        let message = if code == "0" { vec![0, 0, 0, 0, 2, 8, status] } else { Vec::new() };
        sender.send_data(message.into()).await.unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        sender.send_trailers(trailers).await.unwrap();
        Ok::<_, Infallible>(
            Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
        )
    };
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(check);
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    port
}

async fn start(probes: &str) -> SocketAddr {
    let probes: Probes = probes.parse().unwrap();
    let server = ProbeServer::bind("127.0.0.1:0".parse().unwrap(), probes.0.to_vec()).unwrap();
    let address = server.listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (_trigger, watch) = drain::channel();
        server.serve(watch).await;
    });
    address
}

fn probe(path: &str, target: &str) -> String {
    format!(r#"[{{"port":15901,"path":"{path}","timeoutSeconds":1,"target":{target}}}]"#)
}

/// kubelet's request, and the response.
async fn kubelet(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: kube-probe/1.35\r\naccept: */*\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer[9..12].parse().unwrap(), answer.to_lowercase())
}

#[tokio::test]
async fn the_apps_status_is_the_answer_and_a_redirect_to_another_host_is_not_followed() {
    let port = start_app(false).await;
    for status in [200, 302, 404, 503] {
        let target = format!(r#"{{"http":{{"port":{port},"path":"/{status}?x=1"}}}}"#);
        let address = start(&probe("/osm-liveness-probe/app", &target)).await;
        let (answered, answer) = kubelet(address, "/osm-liveness-probe/app").await;
        assert_eq!(answered, status, "{answer}");
        assert!(!answer.contains("location:"), "{answer}");
        assert!(answer.contains(&format!("get /{status}?x=1 http/1.1")), "{answer}");
    }
}

#[tokio::test]
async fn redirects_to_the_same_host_are_followed_as_far_as_kubelet_goes() {
    let port = start_app(false).await;
    let secure = start_app(true).await;
    let ask = async |path: &str| {
        let headers = r#"[["X-Probe","a"],["Host","app.example"]]"#;
        let target = format!(r#"{{"http":{{"port":{port},"path":"{path}","headers":{headers}}}}}"#);
        kubelet(start(&probe("/p", &target)).await, "/p").await
    };
    // The host header applies to relative redirects only, other headers to all.
    let (status, answer) = ask("/302?to=/204?x").await;
    assert!(status == 204 && !answer.contains("location:"), "{answer}");
    let (status, answer) = ask("/307?to=/503?x").await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer.contains("host: app.example\r\n") && answer.contains("x-probe: a\r\n"), "{answer}");
    let (status, answer) = ask(&format!("/301?to=https://127.0.0.1:{secure}/418?x")).await;
    assert_eq!(status, 418, "{answer}");
    assert!(answer.contains(&format!("host: 127.0.0.1:{secure}\r\n")), "{answer}");
    // For kubelet, the app's loopback is another host, and Go follows only certain statuses.
    assert_eq!(ask(&format!("/302?to=http://localhost:{port}/503?x")).await.0, 302);
    assert_eq!(ask("/304?to=/503?x").await.0, 304);
    let (status, answer) = ask("/302?to=http://127.0.0.1:15901/p").await;
    assert!(status == 503 && answer.contains("redirects to port 15901"), "{answer}");
    let (status, answer) = ask("/302?to=ftp://127.0.0.1/").await;
    assert!(status == 503 && answer.contains("the app redirects to \"ftp://127.0.0.1/\""), "{answer}");
}

#[tokio::test]
async fn redirects_without_end_are_a_failure() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!(r#"{{"http":{{"port":{}}}}}"#, app.local_addr().unwrap().port());
    let asked = tokio::spawn(async move { kubelet(start(&probe("/p", &target)).await, "/p").await });
    for _ in 0..10 {
        let (mut stream, _) = app.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut head).await.unwrap();
        }
        let answer = b"HTTP/1.1 302 x\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    }
    let (status, answer) = asked.await.unwrap();
    assert!(status == 503 && answer.ends_with("the app redirects more than 9 times\n"), "{answer}");
}

#[tokio::test]
async fn the_probes_headers_reach_the_app_and_kubelets_agent_where_they_leave_it_open() {
    let port = start_app(false).await;
    let target = |headers: &str| format!(r#"{{"http":{{"port":{port},"path":"/200","headers":{headers}}}}}"#);
    let address = start(&probe("/p", &target(r#"[["X-Probe","a"],["Host","app.example"]]"#))).await;
    let (_, answer) = kubelet(address, "/p").await;
    for line in ["x-probe: a", "host: app.example", "user-agent: kube-probe/1.35"] {
        assert!(answer.contains(&format!("\r\n{line}\r\n")), "{line}: {answer}");
    }
    let address = start(&probe("/p", &target(r#"[["User-Agent","mine"]]"#))).await;
    let (_, answer) = kubelet(address, "/p").await;
    assert!(answer.contains("\r\nuser-agent: mine\r\n") && !answer.contains("kube-probe"), "{answer}");
    assert!(answer.contains(&format!("\r\nhost: 127.0.0.1:{port}\r\n")), "{answer}");
}

#[tokio::test]
async fn https_works_with_any_certificate() {
    let port = start_app(true).await;
    let target = format!(r#"{{"http":{{"scheme":"https","port":{port},"path":"/204"}}}}"#);
    let address = start(&probe("/p", &target)).await;
    assert_eq!(kubelet(address, "/p").await.0, 204);
}

#[tokio::test]
async fn tcp_is_good_once_it_is_connected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!(r#"{{"tcp":{{"port":{}}}}}"#, listener.local_addr().unwrap().port());
    let address = start(&probe("/p", &target)).await;
    assert_eq!(kubelet(address, "/p").await.0, 200);
    drop(listener);
    let (status, answer) = kubelet(address, "/p").await;
    assert!(status == 503 && answer.contains("cannot connect to port"), "{answer}");
}

#[tokio::test]
async fn grpc_is_good_if_it_serves() {
    let port = start_health().await;
    for (service, status, words) in [
        ("", 200, "serving"),
        ("good", 200, "serving"),
        ("bad", 503, "not_serving"),
        ("what", 503, "status 5"),
    ] {
        let target = format!(r#"{{"grpc":{{"port":{port},"service":"{service}"}}}}"#);
        let address = start(&probe("/p", &target)).await;
        let (answered, answer) = kubelet(address, "/p").await;
        assert!(answered == status && answer.contains(words), "{service}: {answer}");
    }
}

#[tokio::test]
async fn an_app_that_does_not_listen_or_is_too_slow_is_a_failure_with_its_reason() {
    let port = start_app(false).await;
    let target = format!(r#"{{"http":{{"port":{port},"path":"/never"}}}}"#);
    let (status, answer) = kubelet(start(&probe("/p", &target)).await, "/p").await;
    assert!(status == 503 && answer.ends_with("no answer within 1 s\n"), "{answer}");

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let target = format!(r#"{{"http":{{"port":{free},"path":"/200"}}}}"#);
    let (status, answer) = kubelet(start(&probe("/p", &target)).await, "/p").await;
    assert!(status == 503 && answer.contains(&format!("cannot connect to port {free}")), "{answer}");
}

#[tokio::test]
async fn a_hook_is_waited_for_and_gets_no_answer_if_the_app_gives_none() {
    let port = start_app(false).await;
    let hook = |port: u16, path: &str| {
        format!(
            r#"[{{"port":15904,"path":"/osm-lifecycle/app/pre-stop/0a1b","hook":true,
               "target":{{"http":{{"port":{port},"path":"{path}"}}}}}}]"#
        )
    };
    const PATH: &str = "/osm-lifecycle/app/pre-stop/0a1b";
    for status in [200, 500] {
        let address = start(&hook(port, &format!("/{status}"))).await;
        assert_eq!(kubelet(address, PATH).await.0, status);
        assert_eq!(kubelet(address, "/osm-lifecycle/app/pre-stop/guess").await.0, 404);
    }

    let request = format!("GET {PATH} HTTP/1.1\r\nhost: a\r\n\r\n");
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut stream = TcpStream::connect(start(&hook(free, "/200")).await).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // kubelet only looks at how the connection ends.
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");

    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = start(&hook(app.local_addr().unwrap().port(), "/drain")).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut asked, _) = app.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        asked.read_buf(&mut head).await.unwrap();
    }
    assert!(head.starts_with(b"GET /drain HTTP/1.1\r\n"));
    // By now, a probe of the same app has timed out.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = format!(r#"{{"http":{{"port":{}}}}}"#, silent.local_addr().unwrap().port());
    let (_, late) = kubelet(start(&probe("/p", &target)).await, "/p").await;
    assert!(late.ends_with("no answer within 1 s\n"), "{late}");
    asked.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 4\r\n\r\ndone").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202 ") && answer.ends_with("done"), "{answer}");
}

#[tokio::test]
async fn nothing_but_the_probes_paths_is_reached() {
    let port = start_app(false).await;
    let address =
        start(&probe("/osm-liveness-probe/app", &format!(r#"{{"http":{{"port":{port},"path":"/200"}}}}"#)))
            .await;
    for path in ["/", "/200", "/osm-liveness-probe", "/osm-liveness-probe/app/", "//osm-liveness-probe/app"] {
        assert_eq!(kubelet(address, path).await.0, 404, "{path}");
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"POST /osm-liveness-probe/app HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn a_probe_is_answered_at_once_despite_silent_connections_on_its_port() {
    let port = start_app(false).await;
    let address = start(&probe("/p", &format!(r#"{{"http":{{"port":{port},"path":"/200"}}}}"#))).await;
    for count in [MAX_CONNECTIONS, 1000] {
        let mut silent = Vec::new();
        for index in 0..count {
            let mut stream = TcpStream::connect(address).await.unwrap();
            // Some send a part of a head and then nothing.
            if index % 2 == 0 {
                stream.write_all(b"GET /p HTTP/1.1\r\n").await.unwrap();
            }
            silent.push(stream);
        }
        let asked = kubelet(address, "/p");
        let answered = tokio::time::timeout(HEAD_TIMEOUT / 2, asked).await;
        assert_eq!(answered.unwrap_or_else(|_| panic!("{count}: no answer")).0, 200, "{count}");
    }
}

/// A connection from this loopback address that sends a request.
async fn asking_from(source: &str, address: SocketAddr, request: &str) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_probe_is_answered_at_once_despite_another_address_with_probes_of_a_slow_app() {
    let port = start_app(false).await;
    let probes = format!(
        r#"[{{"port":15901,"path":"/slow","target":{{"http":{{"port":{port},"path":"/never"}}}}}},
            {{"port":15901,"path":"/p","target":{{"http":{{"port":{port},"path":"/200"}}}}}}]"#
    );
    let address = start(&probes).await;
    let mut crowd = Vec::new();
    for index in 0..2 * MAX_CONNECTIONS {
        let request = format!("GET /slow HTTP/1.1\r\nhost: a\r\nuser-agent: {index}\r\n\r\n");
        crowd.push(asking_from("127.0.0.2", address, &request).await);
    }
    // The next one is refused: all connections of its address are waiting.
    let mut answer = String::new();
    asking_from("127.0.0.2", address, "").await.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("from your address\n"), "{answer}");
    for _ in 0..20 {
        let asked = kubelet(address, "/p");
        let answered = tokio::time::timeout(HEAD_TIMEOUT / 2, asked).await;
        assert_eq!(answered.expect("no answer").0, 200);
    }
}

#[tokio::test]
async fn equal_probes_at_the_same_time_are_one_request_to_the_app() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = app.local_addr().unwrap().port();
    let address = start(&probe("/p", &format!(r#"{{"http":{{"port":{port},"path":"/200"}}}}"#))).await;
    let request = "GET /p HTTP/1.1\r\nhost: a\r\nuser-agent: kube-probe/1.35\r\n\r\n";
    let mut asking = vec![asking_from("127.0.0.1", address, request).await];
    let (mut asked, _) = app.accept().await.unwrap();
    for last in 2..22 {
        asking.push(asking_from(&format!("127.0.0.{last}"), address, request).await);
    }
    // A different probe is run separately; by then, all the others were received.
    let other = request.replace("kube-probe/1.35", "curl");
    let _other = asking_from("127.0.0.1", address, &other).await;
    let (mut other, _) = app.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        other.read_buf(&mut head).await.unwrap();
    }
    assert!(String::from_utf8(head).unwrap().contains("user-agent: curl"));
    asked.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    for mut stream in asking {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_without_a_whole_head_is_ended_within_a_second_or_so() {
    let address = start(&probe("/p", r#"{"tcp":{"port":1}}"#)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /p HTTP/1.1\r\n").await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    // Far less than the ten seconds that kubelet's next probes would wait.
    let _ = tokio::time::timeout(3 * HEAD_TIMEOUT, read).await.expect("the connection is still open");
}
