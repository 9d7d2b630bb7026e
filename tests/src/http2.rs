//! Bodies of HTTP/2, for clients and apps.

use std::future::poll_fn;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::HeaderMap;

/// A body in the pieces that its sender writes.
#[derive(Clone, Debug, Default)]
pub struct H2Body {
    /// Its pieces.
    pub pieces: Vec<Bytes>,
    /// What follows it; empty: nothing.
    pub trailers: HeaderMap,
}

impl H2Body {
    /// Sends it as the receiver's windows allow, and ends the stream with its last piece or its trailers.
    pub(crate) async fn send(self, stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
        let (ends_with_data, count) = (self.trailers.is_empty(), self.pieces.len());
        for (at, piece) in self.pieces.into_iter().enumerate() {
            send_data(stream, piece, ends_with_data && at + 1 == count).await?;
        }
        match (ends_with_data, count) {
            (false, _) => stream.send_trailers(self.trailers),
            (true, 0) => stream.send_data(Bytes::new(), true),
            (true, _) => Ok(()),
        }
    }
}

impl From<&[u8]> for H2Body {
    /// In one piece, without trailers.
    fn from(body: &[u8]) -> Self {
        Self { pieces: vec![Bytes::copy_from_slice(body)], trailers: HeaderMap::new() }
    }
}

/// Sends data as the receiver's windows allow; `is_end`: it ends the stream.
pub(crate) async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    is_end: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(granted) = poll_fn(|context| stream.poll_capacity(context)).await else { return Ok(()) };
        let now = data.split_to(granted?.min(data.len()));
        stream.send_data(now, is_end && data.is_empty())?;
        if is_end && data.is_empty() {
            return Ok(());
        }
    }
    if is_end { stream.send_data(data, true) } else { Ok(()) }
}

/// Reads a stream to its end: its body, and its trailers.
pub(crate) async fn read(mut stream: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok((body, stream.trailers().await?))
}
