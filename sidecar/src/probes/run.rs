//! Runs a probe against the app as kubelet does: HTTP with any status as the result and redirects to the same host
//! followed, a TCP connection, or the gRPC health service.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HOST, LOCATION, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::ServerName;
use tidegate_core::contract::ports;
use tidegate_runtime::tls;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::redirect::{self, Hop, LocationError, ProbeRedirect};
use super::trust::AnyCertificate;
use super::{HttpTarget, ProbeTarget};

/// Maximum bytes of a body that are read, as in kubelet.
const MAX_BODY_BYTES: usize = 10 * 1024;

/// Maximum number of requests of one probe, including redirects, as in kubelet.
const MAX_REQUESTS: usize = 10;

/// Maximum bytes of a health response: a message with one number.
const MAX_GRPC_BYTES: usize = 1024;

/// `grpc.health.v1.HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// The app's response.
#[derive(Clone)]
pub(super) struct AppResponse {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// An HTTP response, and the location of its redirect, if any.
struct HttpAnswer {
    app: AppResponse,
    location: Option<String>,
}

/// Why a probe fails, worded for the pod's events.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    #[error("cannot connect to port {port} of the app: {source}")]
    Connect { port: u16, source: io::Error },
    #[error("TLS with port {port} of the app: {source}")]
    Tls { port: u16, source: io::Error },
    #[error("HTTP with port {port} of the app: {source}")]
    Http { port: u16, source: hyper::Error },
    #[error("the request of the probe cannot be made: {0}")]
    Request(#[from] http::Error),
    #[error(transparent)]
    Location(#[from] LocationError),
    #[error("the app redirects more than {max} times", max = MAX_REQUESTS - 1)]
    Redirects,
    #[error("the app redirects to port {port}, where the sidecar answers probes")]
    Own { port: u16 },
    #[error("gRPC health check: {0}")]
    Grpc(String),
    #[error("no answer within {seconds} s")]
    Late { seconds: u64 },
}

/// Runs a probe. `pod` is the address that kubelet dialled, `user_agent` is kubelet's.
pub(super) async fn run(
    target: &ProbeTarget,
    pod: IpAddr,
    user_agent: Option<&HeaderValue>,
) -> Result<AppResponse, ProbeError> {
    match target {
        ProbeTarget::Http(target) => http(target, pod, user_agent).await,
        ProbeTarget::Tcp { port } => {
            connect(pod, *port).await?;
            Ok(AppResponse { status: StatusCode::OK, body: Bytes::from_static(b"connected\n") })
        }
        ProbeTarget::Grpc { port, service } => {
            health(pod, *port, service, user_agent).await?;
            Ok(AppResponse { status: StatusCode::OK, body: Bytes::from_static(b"SERVING\n") })
        }
    }
}

/// Follows redirects to the pod itself, each on a new connection. One to another host is the result, as in kubelet.
async fn http(
    target: &HttpTarget,
    pod: IpAddr,
    user_agent: Option<&HeaderValue>,
) -> Result<AppResponse, ProbeError> {
    let HttpTarget { tls, port, path, headers: own } = target;
    let mut own = own.clone();
    if let Some(agent) = user_agent {
        own.entry(USER_AGENT).or_insert_with(|| agent.clone());
    }
    own.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    let named = own.remove(HOST);
    let mut hop = Hop { tls: *tls, port: *port, path: path.clone(), authority: None };
    for _ in 0..MAX_REQUESTS {
        let host = match (&hop.authority, &named) {
            (Some(authority), _) => HeaderValue::try_from(&**authority).map_err(http::Error::from)?,
            (None, Some(named)) => named.clone(),
            (None, None) => authority(pod, hop.port)?,
        };
        let answer = get(&hop, pod, &host, &own).await?;
        let location = answer.location.as_ref().filter(|_| redirect::is_followed(answer.app.status));
        let Some(location) = location else { return Ok(answer.app) };
        hop = match redirect::resolve(&hop, &pod.to_string(), location)? {
            // The probe would arrive here again, in a loop.
            ProbeRedirect::Here(next) if ports::PROBES.contains(&next.port) => {
                return Err(ProbeError::Own { port: next.port });
            }
            ProbeRedirect::Here(next) => next,
            ProbeRedirect::Elsewhere => return Ok(answer.app),
        };
    }
    Err(ProbeError::Redirects)
}

/// One request, to the port of this hop.
async fn get(
    hop: &Hop,
    pod: IpAddr,
    host: &HeaderValue,
    headers: &HeaderMap,
) -> Result<HttpAnswer, ProbeError> {
    let mut request = Request::get(hop.path.clone()).body(Full::<Bytes>::default())?;
    *request.headers_mut() = headers.clone();
    request.headers_mut().insert(HOST, host.clone());
    let stream = connect(pod, hop.port).await?;
    if hop.tls {
        exchange(secure(stream, hop.port, pod, host).await?, hop.port, request).await
    } else {
        exchange(stream, hop.port, request).await
    }
}

/// Sends one request and reads its response; the connection ends with it.
async fn exchange<S>(stream: S, port: u16, request: Request<Full<Bytes>>) -> Result<HttpAnswer, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let fails = |source| ProbeError::Http { port, source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(fails)?;
    // Dropped at the end of this function, which ends the task.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut response = sender.send_request(request).await.map_err(fails)?;
    let body = beginning(response.body_mut()).await;
    let location =
        response.headers().get(LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into());
    let location = location.filter(|location: &String| !location.is_empty());
    Ok(HttpAnswer { app: AppResponse { status: response.status(), body }, location })
}

/// As much of a body as kubelet would show. A body that breaks off does no harm: the status is known.
async fn beginning(body: &mut Incoming) -> Bytes {
    let mut text = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { break };
        let left = MAX_BODY_BYTES - text.len();
        text.extend_from_slice(&data[..data.len().min(left)]);
        if text.len() == MAX_BODY_BYTES {
            break;
        }
    }
    text.freeze()
}

/// `Check` of the gRPC health protocol, over plaintext HTTP/2, as in kubelet.
async fn health(
    pod: IpAddr,
    port: u16,
    service: &str,
    user_agent: Option<&HeaderValue>,
) -> Result<(), ProbeError> {
    let fails = |source| ProbeError::Http { port, source };
    let stream = connect(pod, port).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(fails)?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let host = authority(pod, port)?;
    let host = host.to_str().unwrap_or("localhost");
    let mut request = Request::post(format!("http://{host}/grpc.health.v1.Health/Check"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Full::new(health_request(service)))?;
    if let Some(agent) = user_agent {
        request.headers_mut().insert(USER_AGENT, agent.clone());
    }
    let response = sender.send_request(request).await.map_err(fails)?;
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(ProbeError::Grpc(format!("HTTP status {}", head.status)));
    }
    let body = Limited::new(body, MAX_GRPC_BYTES).collect().await;
    let body = body.map_err(|error| ProbeError::Grpc(error.to_string()))?;
    // A response with an error and without a message has its status in the head.
    let of = |headers: &HeaderMap, name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let trailers = body.trailers().unwrap_or(&head.headers);
    match of(trailers, "grpc-status").or_else(|| of(&head.headers, "grpc-status")).as_deref() {
        Some("0") => {}
        Some(status) => {
            let message = of(trailers, "grpc-message").unwrap_or_default();
            return Err(ProbeError::Grpc(format!("status {status} {message}").trim_end().to_owned()));
        }
        None => return Err(ProbeError::Grpc("no grpc-status".to_owned())),
    }
    match serving_status(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(2) => Err(ProbeError::Grpc("NOT_SERVING".to_owned())),
        Some(other) => Err(ProbeError::Grpc(format!("serving status {other}"))),
        None => Err(ProbeError::Grpc("the response is not a HealthCheckResponse".to_owned())),
    }
}

/// `HealthCheckRequest { string service = 1 }` as one gRPC message: a byte for "not compressed", four bytes of length.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(message.len() as u32);
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// The status in one gRPC message `HealthCheckResponse { ServingStatus status = 1 }`; zero if the field is absent.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (header, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes(header[1..].try_into().ok()?);
    if header[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    match message {
        [] => Some(0),
        // Field 1, a number below 128: four values exist.
        [0x08, status @ 0..0x80] => Some((*status).into()),
        _ => None,
    }
}

/// Connects to the app at loopback, in the family that kubelet used. Where apps listen only on the pod's address, the
/// interception rules redirect there.
async fn connect(pod: IpAddr, port: u16) -> Result<TcpStream, ProbeError> {
    let loopback: IpAddr = match pod {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    TcpStream::connect((loopback, port)).await.map_err(|source| ProbeError::Connect { port, source })
}

/// Runs a TLS handshake that accepts any certificate.
async fn secure(
    stream: TcpStream,
    port: u16,
    pod: IpAddr,
    host: &HeaderValue,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ProbeError> {
    let fails = |source| ProbeError::Tls { port, source };
    let provider = tls::provider();
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| fails(io::Error::other(error)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    // A host named by the probe is also the TLS server name.
    let named = host.to_str().ok().and_then(|host| host.parse::<http::uri::Authority>().ok());
    let named = named.and_then(|authority| ServerName::try_from(authority.host().to_owned()).ok());
    let name = named.unwrap_or_else(|| ServerName::from(pod));
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(fails)
}

/// The `host` that kubelet sends: the pod's address and the probe's port.
fn authority(pod: IpAddr, port: u16) -> Result<HeaderValue, ProbeError> {
    let authority = SocketAddr::new(pod, port).to_string();
    HeaderValue::try_from(authority).map_err(|error| ProbeError::Request(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages_are_spelled_as_protobuf_does() {
        assert_eq!(*health_request(""), [0, 0, 0, 0, 0]);
        assert_eq!(*health_request("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = health_request(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        for (frame, status) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 3, 8, 1], None),
            (&[0, 0, 0], None),
        ] {
            assert_eq!(serving_status(frame), status, "{frame:?}");
        }
    }
}
