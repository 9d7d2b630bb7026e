//! gRPC without a client library, from any address.

use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::Request;
use prost::Message as _;
use tidegate_proto::discovery::discovery_request::Message;
use tidegate_proto::discovery::{DiscoveryRequest, DiscoveryResponse, Hello, Node};
use tidegate_tests::client::h2::H2Connection;

const CREATE_CERTIFICATE: &str = "istio.v1.auth.IstioCertificateService/CreateCertificate";
const STREAM: &str = "tidegate.discovery.v1.Discovery/Stream";
/// A flag and the length of the message.
const PREFIX: usize = 5;

/// A stream to the controller, like a sidecar's.
pub(crate) struct DiscoveryStream {
    send: SendStream<Bytes>,
    response: Option<ResponseFuture>,
    receive: Option<RecvStream>,
    unread: Vec<u8>,
}

/// A message in wire format.
pub(crate) fn frame(message: &impl prost::Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], &message].concat()
}

/// Requests a certificate from the CA; returns whether it was issued.
pub(crate) async fn create_certificate(
    connection: &H2Connection,
    ca: SocketAddr,
    token: Option<&str>,
    body: &[u8],
) -> Result<bool, h2::Error> {
    let mut request = request(ca, CREATE_CERTIFICATE);
    if let Some(token) = token {
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let answer = connection.exchange(request, body).await?;
    let fields = answer.trailers.as_ref().unwrap_or(answer.head.headers());
    Ok(fields.get("grpc-status").is_some_and(|status| status == "0"))
}

fn request(server: SocketAddr, method: &str) -> Request<()> {
    let request = Request::post(format!("https://{server}/{method}"));
    request.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

impl DiscoveryStream {
    /// Opens a stream and subscribes to a workload; also returns the bytes sent.
    pub(crate) async fn open(
        connection: &H2Connection,
        controller: SocketAddr,
        workload: &str,
    ) -> Result<(Self, u64), h2::Error> {
        let mut requests = connection.requests.clone().ready().await?;
        let (response, send) = requests.send_request(request(controller, STREAM), false)?;
        let mut stream = Self { send, response: Some(response), receive: None, unread: Vec::new() };
        let node = Node { workload: workload.to_owned(), ..Node::default() };
        let sent = stream.say(Message::Hello(Hello { node: Some(node), ..Hello::default() })).await?;
        Ok((stream, sent))
    }

    /// Sends a message as the controller's windows allow; returns its length.
    pub(crate) async fn say(&mut self, message: Message) -> Result<u64, h2::Error> {
        let mut rest = Bytes::from(frame(&DiscoveryRequest { message: Some(message) }));
        let length = rest.len() as u64;
        while !rest.is_empty() {
            self.send.reserve_capacity(rest.len());
            let Some(room) = poll_fn(|context| self.send.poll_capacity(context)).await else {
                return Err(Reason::STREAM_CLOSED.into());
            };
            let piece = rest.split_to(room?.min(rest.len()));
            self.send.send_data(piece, false)?;
        }
        Ok(length)
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<DiscoveryResponse>, h2::Error> {
        if let Some(response) = self.response.take() {
            self.receive = Some(response.await?.into_body());
        }
        let Some(receive) = &mut self.receive else { return Ok(None) };
        loop {
            if let Some(length) = self.unread.get(1..PREFIX) {
                let end = PREFIX + u32::from_be_bytes(length.try_into().unwrap()) as usize;
                if self.unread.len() >= end {
                    let message: Vec<u8> = self.unread.drain(..end).collect();
                    return Ok(DiscoveryResponse::decode(&message[PREFIX..]).ok());
                }
            }
            let Some(data) = receive.data().await else { return Ok(None) };
            let data = data?;
            receive.flow_control().release_capacity(data.len())?;
            self.unread.extend_from_slice(&data);
        }
    }
}
