//! Allocations per request on a keep-alive connection.

use std::pin::pin;
use std::rc::Rc;

use bytes::BytesMut;
use tidegate_core::policy::AppProtocol;
use tidegate_sidecar::http::{HttpContext, h1};
use tidegate_sidecar::lifeline::Lifeline;
use tidegate_sidecar::snapshot;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::world;

const REQUEST: &[u8] = b"GET /get?a=b HTTP/1.1\r\nHost: httpbin.example\r\nUser-Agent: curl/8\r\nAccept: */*\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n";
const BODY: &[u8] = &[b'x'; 1024];

/// Responds to each request, which must arrive in one piece, with head and body in one piece.
async fn app(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let mut answer = [0; ANSWER.len() + BODY.len()];
    answer[..ANSWER.len()].copy_from_slice(ANSWER);
    answer[ANSWER.len()..].copy_from_slice(BODY);
    while let Ok(count @ 1..) = stream.read(&mut request).await {
        assert!(request[..count].ends_with(b"\r\n\r\n"));
        stream.write_all(&answer).await.unwrap();
    }
}

async fn requests(client: &mut TcpStream, count: usize) {
    let mut answer = [0; ANSWER.len() + BODY.len()];
    for _ in 0..count {
        client.write_all(REQUEST).await.unwrap();
        client.read_exact(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
}

#[test]
fn a_request_on_a_connection_that_is_kept_alive_allocates_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let listen = || runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let (front, back) = (listen(), listen());
    let address = front.local_addr().unwrap();
    let mut client = runtime.block_on(TcpStream::connect(address)).unwrap();
    let (accepted, peer) = runtime.block_on(front.accept()).unwrap();

    let handler = world::handler(peer, address, back.local_addr().unwrap(), AppProtocol::Http, false);
    let line = Lifeline::new();
    let env = Rc::new(HttpContext::new(Rc::default(), Rc::default(), snapshot::channel().1));
    let mut serving = pin!(h1::serve(accepted, BytesMut::new(), &handler, &line, &env));
    let mut answering = pin!(async { app(back.accept().await.unwrap().0).await });

    let mut run = |count| {
        runtime.block_on(async {
            tokio::select! {
                () = requests(&mut client, count) => {}
                () = &mut serving => panic!("the connection ended"),
                () = &mut answering => panic!("the app ended"),
            }
        });
    };
    run(100);
    let once = allocation_counter::measure(|| run(1)).count_total;
    let thousand = allocation_counter::measure(|| run(1000)).count_total;
    assert_eq!(thousand - once, 0, "allocations in 999 requests");
}
