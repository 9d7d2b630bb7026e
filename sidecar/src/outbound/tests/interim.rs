//! Interim responses, from servers of both versions to clients of both.

use ::http::{Request, Response};
use bytes::Bytes;

use super::app::{playing, read_head};
use super::*;

const GET: &str = "GET / HTTP/1.1\r\nhost: cart.shop\r\n\r\n";

/// Status and `link` of interim responses, and the status of the response.
type Received = (Vec<(u16, String)>, u16);

/// A server that sends this interim response so often, one of `102`, and its response.
async fn server_of(version: BackendProtocol, count: usize) -> SocketAddr {
    match version {
        BackendProtocol::Http2 => playing(move |io| serve_http2(io, count)).await,
        _ => {
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nkeep-alive: 1\r\n\r\n".repeat(count);
            playing(move |io| serve_http1(io, hints.clone())).await
        }
    }
}

async fn serve_http1(mut io: TcpStream, hints: String) {
    let end = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
    while read_head(&mut io).await.is_some() {
        if io.write_all(format!("{hints}{end}").as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn serve_http2(io: TcpStream, count: usize) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        let head = |status: u16| Response::builder().status(status);
        for _ in 0..count {
            respond.send_informational(head(103).header("link", "</a>").body(()).unwrap()).unwrap();
        }
        respond.send_informational(head(102).body(()).unwrap()).unwrap();
        respond.send_response(head(204).body(()).unwrap(), true).unwrap();
    }
}

async fn get(client: &Client, version: BackendProtocol) -> Received {
    let io = client.dial().await;
    let got = match version {
        BackendProtocol::Http2 => get_http2(io).await,
        _ => get_http1(io).await,
    };
    let (mut interims, status) = got;
    assert_eq!(interims.pop().map(|(status, _)| status), Some(status), "the last one is the response");
    (interims, status)
}

/// All heads, the response's as the last one.
async fn get_http1(mut io: TcpStream) -> Received {
    io.write_all(GET.as_bytes()).await.unwrap();
    let mut heads = Vec::new();
    loop {
        let head = read_head(&mut io).await.unwrap();
        assert!(!head.contains("keep-alive") || head.starts_with("HTTP/1.1 103"), "{head}");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let link = head.lines().find_map(|line| line.strip_prefix("link: ")).unwrap_or_default();
        heads.push((status, link.to_owned()));
        if status >= 200 {
            return (heads, status);
        }
    }
}

async fn get_http2(io: TcpStream) -> Received {
    let (mut sender, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://cart.shop/").body(()).unwrap();
    let (mut response, _) = sender.send_request(request, true).unwrap();
    let link = |head: &Response<()>| {
        head.headers().get("link").map_or_else(String::new, |link| link.to_str().unwrap().to_owned())
    };
    let mut heads = Vec::new();
    while let Some(head) = std::future::poll_fn(|context| response.poll_informational(context)).await {
        let head = head.unwrap();
        assert!(!head.headers().contains_key("keep-alive"));
        heads.push((head.status().as_u16(), link(&head)));
    }
    let status = response.await.unwrap().status().as_u16();
    heads.push((status, String::new()));
    (heads, status)
}

fn hints() -> (u16, String) {
    (103, "</a>".to_owned())
}

#[tokio::test]
async fn interim_responses_pass_in_every_pairing_of_versions() {
    let versions = [BackendProtocol::Http1, BackendProtocol::Http2];
    for (of_client, of_server) in versions.into_iter().flat_map(|one| versions.map(|other| (one, other))) {
        let server = server_of(of_server, 2).await;
        let client = Client::of(&Authority::root("root"));
        client.learn(service_of(AppProtocol::Http, of_server, &[(server, None)]));
        // The second time on a connection that is kept.
        for _ in 0..2 {
            let expected = vec![hints(), hints(), (102, String::new())];
            assert_eq!(get(&client, of_client).await, (expected, 204), "{of_client:?} to {of_server:?}");
        }
    }
}

#[tokio::test]
async fn interim_responses_pass_through_both_sidecars() {
    for version in [BackendProtocol::Http1, BackendProtocol::Http2] {
        let server = server_before(server_of(version, 1).await);
        let client = Client::of(&server.root);
        let endpoints = [(server.address(Port::Mesh), identity("cart"))];
        client.learn(service_of(AppProtocol::Http, BackendProtocol::Http, &endpoints));
        let expected = vec![hints(), (102, String::new())];
        assert_eq!(get(&client, version).await, (expected, 204), "{version:?}");
    }
}

#[tokio::test]
async fn a_flood_of_interim_responses_passes_in_part_and_the_response_behind_it() {
    const FLOOD: usize = 5_000;
    for of_server in [BackendProtocol::Http1, BackendProtocol::Http2] {
        let server = server_of(of_server, FLOOD).await;
        let client = Client::of(&Authority::root("root"));
        client.learn(service_of(AppProtocol::Http, of_server, &[(server, None)]));
        let (interims, status) = get(&client, BackendProtocol::Http2).await;
        assert!((1..=64).contains(&interims.len()) && status == 204, "{} {status}", interims.len());
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_before_a_server_of_http2_gets_it_once() {
    let server = playing(async |io: TcpStream| {
        let mut connection = h2::server::handshake(io).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.headers().get("expect"), None);
            respond.send_informational(Response::builder().status(100).body(()).unwrap()).unwrap();
            tokio::spawn(async move {
                let mut body = request.into_body();
                let data = body.data().await.unwrap().unwrap();
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data(data, true).unwrap();
            });
        }
    })
    .await;
    let client = Client::of(&Authority::root("root"));
    client.learn(service_of(AppProtocol::Http, BackendProtocol::Http2, &[(server, None)]));
    let mut io = client.dial().await;
    io.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(read_head(&mut io).await.unwrap(), "HTTP/1.1 100 Continue\r\n\r\n");
    io.write_all(b"hello").await.unwrap();
    assert!(read_head(&mut io).await.unwrap().starts_with("HTTP/1.1 200 OK\r\n"));
    let mut chunk = [0; 13];
    io.read_exact(&mut chunk).await.unwrap();
    assert_eq!(Bytes::copy_from_slice(&chunk), "5\r\nhello\r\n0\r\n".as_bytes());
}
