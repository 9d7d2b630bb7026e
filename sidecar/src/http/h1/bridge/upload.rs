//! The request's body, from the client to the app.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use http_body_util::channel::Sender;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Bridge;
use crate::http::buffer::{Buffer, MEDIUM};
use crate::http::h1::body::BodyError;
use crate::http::h1::exchange::{Upload, UploadState, make_room};
use crate::http::h1::watch::ClientWatch;
use crate::stream::Abort;

/// How the request's direction ended.
pub(super) enum UploadEnd {
    /// The app has got all of it, or wants no more.
    Done,
    ClientGone,
    Malformed(BodyError),
}

impl<S: AsyncRead + AsyncWrite + Abort + Unpin> Bridge<'_, S> {
    /// Passes the body on, if there is one, and then watches the client: over when the client has gone, or the body is
    /// malformed.
    pub(super) async fn upload(
        &self,
        up: &mut Upload,
        inbound: &mut Buffer,
        sender: Option<Sender<Bytes, io::Error>>,
        watch: &mut ClientWatch,
    ) -> UploadEnd {
        if let Some(sender) = sender {
            let end = self.pass_body_on(up, inbound, sender).await;
            if !matches!(end, UploadEnd::Done) {
                return end;
            }
            self.progress.is_uploaded.set(up.state == UploadState::Done);
            self.progress.is_uploading.set(false);
        }
        let mut reader = &self.client;
        poll_fn(|context| {
            let gone = watch.poll(&mut reader, inbound, (self.line, self.env), context);
            self.progress.watch.set(*watch);
            gone
        })
        .await;
        UploadEnd::ClientGone
    }

    /// Decodes the body, and hands it to the app as fast as the app takes it. A body that breaks off resets the stream.
    async fn pass_body_on(
        &self,
        up: &mut Upload,
        inbound: &mut Buffer,
        mut sender: Sender<Bytes, io::Error>,
    ) -> UploadEnd {
        let (mut reader, env) = (&self.client, self.env);
        loop {
            self.progress.has_moved.set(true);
            let mut out = Buffer::default();
            match up.decoder.transfer(inbound, &mut out, false, &env.buffers, &env.limits) {
                Ok(moved) => up.moved += moved,
                Err(error) => {
                    sender.abort(io::ErrorKind::InvalidData.into());
                    return UploadEnd::Malformed(error);
                }
            }
            if !out.is_empty() {
                let data = Bytes::copy_from_slice(out.bytes());
                env.buffers.give(&mut out);
                if sender.send_data(data).await.is_err() {
                    return UploadEnd::Done;
                }
                continue;
            }
            if up.decoder.is_done() {
                up.state = UploadState::Done;
                return UploadEnd::Done;
            }
            make_room(inbound, env);
            let read = poll_fn(|context| env.buffers.poll_read(inbound, MEDIUM, &mut reader, context));
            if !matches!(read.await, Ok(1..)) {
                sender.abort(io::ErrorKind::ConnectionAborted.into());
                return UploadEnd::ClientGone;
            }
        }
    }
}
