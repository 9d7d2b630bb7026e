//! Stands in for the HTTP/1 path on this branch.

use std::rc::Rc;

use bytes::BytesMut;
use tidegate_core::policy::Decision;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Env;
use crate::lifeline::Lifeline;
use crate::session::Gate;

/// Answers requests without bodies.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    mut first: BytesMut,
    gate: &Gate,
    line: &Lifeline,
    _env: &Rc<Env>,
) {
    line.at_ease();
    loop {
        while !first.ends_with(b"\r\n\r\n") {
            if !matches!(line.guard_idle(stream.read_buf(&mut first)).await, Ok(Ok(1..))) {
                let _ = stream.shutdown().await;
                return;
            }
        }
        first.clear();
        let answer: &[u8] = match &*gate.decide() {
            Decision::Allow(_) => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            Decision::Deny(_) => b"HTTP/1.1 403 Forbidden\r\ncontent-length: 19\r\n\r\nRBAC: access denied",
        };
        if stream.write_all(answer).await.is_err() {
            return;
        }
    }
}
