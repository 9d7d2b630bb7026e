use std::future::pending;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::stream::Abort;

/// A server that runs this on each connection.
async fn server<F: Future<Output = ()>>(
    serve: impl Fn(TcpStream) -> F,
) -> (SocketAddr, impl Future<Output = ()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async move {
        loop {
            serve(listener.accept().await.unwrap().0).await;
        }
    };
    (address, serving)
}

/// The error of an attempt; empty if the server answered.
async fn outcome<F: Future<Output = ()>>(scheme: &str, serve: impl Fn(TcpStream) -> F) -> String {
    let (address, serving) = server(serve).await;
    let target: WaitTarget = format!("{scheme}://{address}").parse().unwrap();
    tokio::select! {
        answer = attempt::attempt(&target) => answer.err().map(|error| error.to_string()).unwrap_or_default(),
        () = serving => unreachable!(),
    }
}

#[tokio::test]
async fn closing_at_the_end_and_first_bytes_are_answers_and_a_reset_is_not() {
    let closes = async |mut io: TcpStream| {
        assert_eq!(io.read(&mut [0; 1]).await.unwrap(), 0);
    };
    assert_eq!(outcome("tcp", closes).await, "");
    let greets = async |mut io: TcpStream| {
        io.write_all(b"220 hello\r\n").await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    };
    assert_eq!(outcome("tcp", greets).await, "");
    // As a sidecar that reaches no server.
    let resets = async |io: TcpStream| io.abort();
    let reset = outcome("tcp", resets).await;
    assert!(reset.starts_with("the connection was reset"), "{reset}");
}

#[tokio::test]
async fn http_answers_by_a_status_below_400() {
    let answers = |answer: &'static str| {
        async move |mut io: TcpStream| {
            let mut request = [0; 1024];
            let count = io.read(&mut request).await.unwrap();
            let request = std::str::from_utf8(&request[..count]).unwrap();
            assert!(request.starts_with("GET / HTTP/1.1\r\nhost: 127.0.0.1:"), "{request}");
            io.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""),
        ("HTTP/1.0 302 Found\r\nlocation: /a\r\n\r\n", ""),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", "status 503"),
        ("HTTP/1.1 200 OK\r\ncont", "closed without an answer"),
        ("220 hello\r\n", "its answer is not HTTP"),
    ] {
        assert_eq!(outcome("http", answers(answer)).await, expected, "{answer}");
    }
}

#[tokio::test]
async fn servers_are_tried_until_each_answers_and_one_that_does_not_is_named_with_the_reason() {
    // Bound but not listening: no other process gets the port, and connections are refused.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let late = socket.local_addr().unwrap();
    let (there, serving) = server(async |mut io: TcpStream| drop(io.read(&mut [0; 1]).await)).await;
    let options = |timeout: &str| {
        let (there, late) = (format!("tcp://{there}"), format!("tcp://{late}"));
        WaitOptions::parse_from(["wait", "--for", &there, "--for", &late, "--timeout", timeout])
    };
    let both = options("100ms");
    let error = tokio::select! {
        waited = wait(&both, pending()) => waited.unwrap_err().to_string(),
        () = serving => unreachable!(),
    };
    let expected = format!("tcp://{late} has not answered within 100ms: cannot connect: ");
    assert!(error.starts_with(&expected), "{error}");

    let listener = socket.listen(1).unwrap();
    let only_late = WaitOptions::parse_from(["wait", "--for", &format!("tcp://{late}")]);
    let accept = async { drop(listener.accept().await.unwrap()) };
    let (waited, ()) = tokio::join!(wait(&only_late, pending()), accept);
    waited.unwrap();
}
