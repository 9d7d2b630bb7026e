//! Reads the API server's responses within bounds: list pages by bytes, events line by line.
//!
//! Objects stay text here. Each is decoded separately, so that at most one of them is in memory in decoded form.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;

/// Maximum bytes of a list page, and of an event. One object has at most 1.5 MiB with etcd's default.
pub(super) const MOST_BYTES: usize = 8 << 20;
/// Maximum bytes of an error response.
const MOST_ERROR_BYTES: usize = 64 << 10;

/// Why a response is missing or incomplete.
#[derive(Debug)]
pub(super) enum ReadFailure {
    /// The API server's own error.
    Status(i32, String),
    /// The response is longer than [`MOST_BYTES`].
    TooLong,
    /// Any other error, as text.
    Other(String),
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct ListPage<'p> {
    #[serde(default)]
    pub(super) metadata: PageHead,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<&'p RawValue>>,
}

/// `metadata` of a list: the token of the next page, and the version from which to watch after the last one.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageHead {
    #[serde(default, rename = "continue")]
    pub(super) continue_token: Option<String>,
    #[serde(default)]
    pub(super) resource_version: Option<String>,
}

/// An event of a watch.
#[derive(Deserialize)]
pub(super) struct RawEvent<'l> {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(borrow)]
    pub(super) object: &'l RawValue,
}

/// The events of a watch, as lines.
pub(super) struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no line end.
    searched: usize,
}

/// Sends a request and returns the body of a successful response.
pub(super) async fn open(client: &Client, request: http::Request<Vec<u8>>) -> Result<Body, ReadFailure> {
    let answer = client.send(request.map(Body::from)).await.map_err(|error| ReadFailure::from(&error))?;
    let (head, body) = answer.into_parts();
    if !head.status.is_client_error() && !head.status.is_server_error() {
        return Ok(body);
    }
    let text =
        Limited::new(body, MOST_ERROR_BYTES).collect().await.map(|text| text.to_bytes()).unwrap_or_default();
    let code = i32::from(head.status.as_u16());
    Err(match serde_json::from_slice::<Status>(&text) {
        Ok(status) => ReadFailure::Status(status.code.unwrap_or(code), status.message.unwrap_or_default()),
        // A response of a proxy, or for an unknown path.
        Err(_) => ReadFailure::Status(code, String::from_utf8_lossy(&text).trim().to_owned()),
    })
}

/// The whole body of a response.
pub(super) async fn whole(body: Body) -> Result<Bytes, ReadFailure> {
    match Limited::new(body, MOST_BYTES).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ReadFailure::TooLong),
        Err(error) => Err(ReadFailure::Other(causes(&*error))),
    }
}

impl Lines {
    /// The lines of a body; nothing is read yet.
    pub(super) fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next complete line, without its line end; `None` at the end of the response. A remainder without a line end
    /// was truncated, and will be sent again.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ReadFailure> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(end) = unsearched.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.searched > MOST_BYTES {
                return Err(ReadFailure::TooLong);
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(ReadFailure::from(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

impl From<&kube::Error> for ReadFailure {
    fn from(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Status(i32::from(status.code), status.message.clone()),
            error => Self::Other(causes(error)),
        }
    }
}

impl std::fmt::Display for ReadFailure {
    /// What an operator needs: the API server's message, or all causes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Status(code, message) => write!(f, "{code} {message}"),
            Self::TooLong => write!(f, "an object is larger than {MOST_BYTES} bytes"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// An error with all of its causes, each once: `kube`'s errors name only the outermost.
fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
