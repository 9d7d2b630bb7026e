//! One unary call: a message there, a message back (gRPC over HTTP/2, `PROTOCOL-HTTP2.md`).

use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use prost::Message;

use super::GrpcError;
use super::server::GrpcServer;
use crate::connection_info::ServedConnection;
use crate::upstream::{SendFailure, UpstreamBody, UpstreamError, Upstreams};

/// The largest answer, in bytes.
const MOST_ANSWER: usize = 64 * 1024;
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Calls a method. If an endpoint cannot be reached, the next one is tried.
pub(super) async fn unary<A: Message + Default>(
    upstreams: &Upstreams,
    client: &ServedConnection,
    (server, method): (&Rc<GrpcServer>, &'static str),
    message: &impl Message,
    timeout: Duration,
) -> Result<A, GrpcError> {
    let mut endpoint = server.first().ok_or(GrpcError::Malformed("the name has no address"))?;
    let request = request(&server.authority(), method, message, timeout)?;
    let mut sending = upstreams.send(client, &endpoint, request, None)?;
    let mut tried = 1;
    loop {
        let (error, unsent) = match sending.await {
            Ok(response) => return answer(response).await,
            Err(SendFailure { error, unsent }) => (error, unsent),
        };
        let next = server.after(&endpoint, tried);
        let (Some(unsent), Some(next)) = (unsent, next) else { return Err(error.into()) };
        tried += 1;
        endpoint = next;
        sending = upstreams.resend(client, &endpoint, true, unsent)?;
    }
}

/// The request of a call.
fn request(
    authority: &str,
    method: &'static str,
    message: &impl Message,
    timeout: Duration,
) -> Result<Request<Full<Bytes>>, GrpcError> {
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Authority::try_from(authority).ok();
    uri.path_and_query = Some(PathAndQuery::from_static(method));
    let mut request = Request::new(Full::new(framed(message)?));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| GrpcError::Malformed("not an authority"))?;
    let fields = request.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(TE, HeaderValue::from_static("trailers"));
    fields.insert(USER_AGENT, HeaderValue::from_static(concat!("tidegate/", env!("CARGO_PKG_VERSION"))));
    // At most 8 digits are allowed.
    let milliseconds = timeout.as_millis().min(99_999_999);
    if let Ok(timeout) = HeaderValue::try_from(format!("{milliseconds}m")) {
        fields.insert(GRPC_TIMEOUT, timeout);
    }
    Ok(request)
}

/// A message with its prefix.
fn framed(message: &impl Message) -> Result<Bytes, GrpcError> {
    let too_large = |_| GrpcError::Malformed("the request is too large");
    let mut bytes = BytesMut::with_capacity(PREFIX + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).map_err(too_large)?);
    message.encode(&mut bytes).map_err(|_| GrpcError::Malformed("the request cannot be encoded"))?;
    Ok(bytes.freeze())
}

/// The message of an answer.
async fn answer<A: Message + Default>(response: Response<UpstreamBody>) -> Result<A, GrpcError> {
    let (head, mut body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(GrpcError::HttpStatus(head.status.as_u16()));
    }
    // "Trailers-Only": without a message, which is an error unless the status is.
    let mut has_status = has_ok_status(&head.headers)?;
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame: http_body::Frame<Bytes> = frame.map_err(|error: UpstreamError| error)?;
        match frame.into_data() {
            Ok(data) if message.len() + data.len() > MOST_ANSWER => {
                return Err(GrpcError::Malformed("the answer has more than 64 KiB"));
            }
            Ok(data) => message.extend_from_slice(&data),
            Err(frame) => has_status |= has_ok_status(&frame.into_trailers().unwrap_or_default())?,
        }
    }
    if has_status { unframed(&message) } else { Err(GrpcError::Malformed("the answer has no grpc-status")) }
}

/// Whether there is a status of gRPC; one that is not 0 is the error.
fn has_ok_status(fields: &HeaderMap) -> Result<bool, GrpcError> {
    match fields.get(GRPC_STATUS).map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(true),
        None => Ok(false),
        Some(status) => {
            let status: String = String::from_utf8_lossy(status).chars().take(8).collect();
            Err(GrpcError::GrpcStatus(status.escape_debug().to_string()))
        }
    }
}

fn unframed<A: Message + Default>(bytes: &[u8]) -> Result<A, GrpcError> {
    let (prefix, message) = bytes.split_at_checked(PREFIX).ok_or(GrpcError::Malformed("no message"))?;
    match *prefix {
        [0, a, b, c, d] if usize::try_from(u32::from_be_bytes([a, b, c, d])) == Ok(message.len()) => {
            A::decode(message).map_err(|_| GrpcError::Malformed("the message cannot be decoded"))
        }
        _ => Err(GrpcError::Malformed("not one uncompressed message")),
    }
}
