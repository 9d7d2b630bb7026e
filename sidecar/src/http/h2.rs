//! Stands in for the HTTP/2 path on this branch.

use std::rc::Rc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Env;
use crate::lifeline::Lifeline;
use crate::session::Gate;

/// Closes.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    _stream: S,
    _first: BytesMut,
    _gate: Rc<Gate>,
    _line: Lifeline,
    _env: Rc<Env>,
) {
}
