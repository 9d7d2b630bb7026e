//! What h2 writes for many streams.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::server::{Connection, SendResponse};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};

use super::kit::run;

/// Sizes of the writes so far.
type Writes = Rc<RefCell<Vec<usize>>>;

/// A stream with vectored writes, as sockets and TLS have them, that records the size of each.
struct Recorded {
    stream: DuplexStream,
    writes: Writes,
}

impl AsyncRead for Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Recorded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.writes.borrow_mut().push(count);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.poll_write(context, &bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn recorded() -> (Recorded, DuplexStream, Writes) {
    let (ours, theirs) = duplex(1 << 20);
    let writes = Writes::default();
    (Recorded { stream: ours, writes: writes.clone() }, theirs, writes)
}

/// The two ends of a connection, the client's driven by a task.
async fn connect<C, S>(client: C, server: S) -> (SendRequest<Bytes>, Connection<S, Bytes>)
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (client, server) = tokio::join!(h2::client::handshake(client), h2::server::handshake(server));
    let (client, connection) = client.unwrap();
    tokio::task::spawn_local(connection);
    (client, server.unwrap())
}

/// What answers the next request.
async fn accept<S: AsyncRead + AsyncWrite + Unpin>(server: &mut Connection<S, Bytes>) -> SendResponse<Bytes> {
    server.accept().await.unwrap().unwrap().1
}

#[test]
fn responses_of_many_streams_go_out_together() {
    run(async {
        let (ours, theirs, writes) = recorded();
        let (mut client, mut server) = connect(theirs, ours).await;
        let mut responses = Vec::new();
        for _ in 0..32 {
            let request = Request::get("http://app.example/").body(()).unwrap();
            responses.push(client.send_request(request, true).unwrap().0);
        }
        let mut answers = Vec::new();
        for _ in 0..32 {
            answers.push(accept(&mut server).await);
        }
        let before = writes.borrow().len();
        for mut answer in answers {
            let mut body = answer.send_response(Response::new(()), false).unwrap();
            body.send_data(Bytes::from(vec![b'x'; 1_000]), true).unwrap();
        }
        tokio::task::spawn_local(async move { while server.accept().await.is_some() {} });
        for response in responses {
            let mut body = response.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap().len(), 1_000);
        }
        let all = writes.borrow().get(before..).unwrap().to_vec();
        assert!(all.len() <= 5, "33 KB in {all:?}");
    });
}

#[test]
fn values_that_occur_once_displace_no_others_from_the_table() {
    run(async {
        let (ours, theirs, writes) = recorded();
        let (mut client, mut server) = connect(ours, theirs).await;
        let mut sizes = Vec::new();
        for number in 0..100 {
            let request = Request::get("http://app.example/")
                .header("user-agent", "x".repeat(600))
                .header("x-request-id", format!("{number:036}"))
                .header("traceparent", format!("00-{number:032}-{number:016}-01"))
                .body(())
                .unwrap();
            let before = writes.borrow().len();
            let response = client.send_request(request, true).unwrap().0;
            let mut answer = accept(&mut server).await;
            sizes.push(writes.borrow().get(before..).unwrap().iter().sum::<usize>());
            answer.send_response(Response::new(()), true).unwrap();
            tokio::select! {
                _ = server.accept() => panic!("another request"),
                response = response => assert_eq!(response.unwrap().status(), 200),
            }
        }
        assert!(sizes.first().is_some_and(|first| *first > 400), "{sizes:?}");
        assert!(sizes.iter().skip(1).all(|size| *size < 100), "{sizes:?}");
    });
}
