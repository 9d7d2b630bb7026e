//! A TLS connection to a client, as bytes.
//!
//! It drives rustls by its unbuffered API, because an idle connection then holds no buffer at all: bytes are read into
//! and written from buffers of the thread, and only what is left over (half a record, an answer that the socket did
//! not take) is kept with the connection. What is kept of what the client sent is counted by the connection's line.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{Error, ProtocolVersion, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::held::{HeldBytes, affordable};
use crate::lifeline::Lifeline;

/// The most bytes that one read takes from the socket.
const MAX_READ: usize = 32 * 1024;

/// The least: less would cost a system call for each small record.
const MIN_READ: usize = 4 * 1024;

/// The most plaintext that one write encrypts: two full records.
const MAX_WRITE: usize = 32 * 1024;

/// Room for what [`MAX_WRITE`] becomes.
const MAX_ENCRYPTED: usize = MAX_WRITE + 1024;

/// The most bytes of a handshake that are kept while a message is incomplete: rustls' own limit for a message, and a
/// record.
const MAX_HANDSHAKE: usize = 80 * 1024;

/// A connection that has done its handshake.
pub struct TlsStream {
    io: TcpStream,
    connection: UnbufferedServerConnection,
    /// The part of a record, or of a handshake message, that has come so far.
    incoming: Vec<u8>,
    /// Decrypted bytes that a reader had no room for, from `plaintext_start` on.
    plaintext: Vec<u8>,
    plaintext_start: usize,
    /// Encrypted bytes that the socket has not taken yet, from `outgoing_start` on.
    outgoing: Vec<u8>,
    outgoing_start: usize,
    outgoing_held: HeldBytes,
    end: End,
    said_goodbye: bool,
    /// Counts what is kept of what the client sent.
    line: Lifeline,
}

/// A handshake that came to nothing. What TLS has to say about it was sent.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct HandshakeError {
    /// The connection, still open.
    pub io: TcpStream,
    /// Why.
    pub cause: HandshakeFailure,
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeFailure {
    /// The client went away.
    #[error("the client ended the handshake: {0}")]
    Io(#[from] io::Error),
    /// By the rules of TLS, or because the client certificate is not good.
    #[error("{0}")]
    Tls(#[from] Error),
    /// Too much of other handshakes and requests is unfinished.
    #[error("there is no room for it: too many unfinished handshakes and requests")]
    NoRoom,
}

/// What may still be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// The client has said that nothing more comes.
    Closed,
    /// The client broke a rule of TLS.
    Failed,
}

/// What a thread reads into, encrypts into, and gathers in.
struct Scratch {
    incoming: Box<[u8]>,
    outgoing: Box<[u8]>,
    gathered: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        incoming: vec![0; MAX_HANDSHAKE + MAX_READ].into(),
        outgoing: vec![0; MAX_ENCRYPTED].into(),
        gathered: Vec::with_capacity(MAX_WRITE),
    });
}

impl TlsStream {
    /// Does the handshake on a connection of which `first` was read already. `line` says whether there is room for the
    /// bytes of an incomplete message, and is closed if later there is none for those of a record: to be driven under its
    /// guard.
    pub async fn accept(
        io: TcpStream,
        first: BytesMut,
        config: Arc<ServerConfig>,
        line: Lifeline,
    ) -> Result<Box<Self>, HandshakeError> {
        let connection = match UnbufferedServerConnection::new(config) {
            Ok(connection) => connection,
            Err(error) => return Err(HandshakeError { io, cause: error.into() }),
        };
        let mut stream = Box::new(Self {
            io,
            connection,
            incoming: Vec::new(),
            plaintext: Vec::new(),
            plaintext_start: 0,
            outgoing: Vec::new(),
            outgoing_start: 0,
            outgoing_held: HeldBytes::default(),
            end: End::Open,
            said_goodbye: false,
            line,
        });
        match stream.handshake(first).await {
            Ok(()) => {
                // Nothing of it is unfinished any more; a record may have begun behind it.
                let _ = stream.line.hold(0);
                stream.count_kept();
                Ok(stream)
            }
            Err(cause) => Err(HandshakeError { io: stream.io, cause }),
        }
    }

    /// The client's certificate, leaf first, if it was asked for one.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.connection.peer_certificates()
    }

    /// The ALPN protocol that was agreed on.
    pub fn alpn_protocol(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }

    /// The TLS version that was agreed on.
    pub fn protocol_version(&self) -> Option<ProtocolVersion> {
        self.connection.protocol_version()
    }

    /// The socket underneath.
    pub fn socket(&self) -> &TcpStream {
        &self.io
    }

    async fn handshake(&mut self, first: BytesMut) -> Result<(), HandshakeFailure> {
        let mut received = Vec::from(first);
        loop {
            let result = self.process(&mut received, None);
            let sent = poll_fn(|context| self.poll_send(context)).await;
            let consumed = result?;
            sent?;
            received.drain(..consumed);
            if !self.connection.is_handshaking() {
                received.shrink_to_fit();
                self.incoming = received;
                return Ok(());
            }
            if self.end == End::Closed {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if received.len() > MAX_HANDSHAKE {
                return Err(Error::General("handshake message too long".into()).into());
            }
            if !self.line.hold(received.len()) {
                return Err(HandshakeFailure::NoRoom);
            }
            let read = poll_fn(|context| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let mut buffer = ReadBuf::new(&mut scratch.incoming[..MAX_READ]);
                    ready!(Pin::new(&mut self.io).poll_read(context, &mut buffer))?;
                    received.extend_from_slice(buffer.filled());
                    Poll::Ready(Ok::<_, io::Error>(buffer.filled().len()))
                })
            });
            if read.await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    /// Lets rustls take what it can of `incoming`, and says how much that was. Plaintext goes to the reader, and what
    /// it has no room for to `plaintext`; what is to be sent goes to `outgoing`, after an error too.
    fn process(&mut self, incoming: &mut [u8], mut reader: Option<&mut ReadBuf<'_>>) -> Result<usize, Error> {
        let mut consumed = 0;
        let mut failure = None;
        loop {
            let rest = incoming.get_mut(consumed..).unwrap_or_default();
            let UnbufferedStatus { discard, state, .. } = self.connection.process_tls_records(rest);
            let mut discard = discard;
            match state {
                Err(error) => {
                    self.end = End::Failed;
                    failure.get_or_insert(error);
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        let mut payload = record.payload;
                        if let Some(reader) = reader.as_deref_mut()
                            && self.plaintext.is_empty()
                        {
                            let (now, later) = payload.split_at(payload.len().min(reader.remaining()));
                            reader.put_slice(now);
                            payload = later;
                        }
                        self.plaintext.extend_from_slice(payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let start = self.outgoing.len();
                    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                        self.outgoing.resize(start + size.required_size, 0);
                        let encoded = self.outgoing.get_mut(start..).unwrap_or_default();
                        data.encode(encoded).map_err(|error| Error::General(error.to_string()))?;
                        if failure == Some(Error::NoCertificatesPresented) {
                            use_the_alert_of_the_version(encoded);
                        }
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.end = End::Closed,
                Ok(
                    ConnectionState::BlockedHandshake
                    | ConnectionState::WriteTraffic(_)
                    | ConnectionState::Closed,
                ) => {
                    consumed += discard;
                    break;
                }
                // Early data is never offered, and no other state is known.
                Ok(_) => return Err(Error::General("unexpected state of the connection".into())),
            }
            consumed += discard;
            // All that is queued goes out: answers to what came before, then the alert. Without anything queued, rustls
            // would look at the bytes that have failed once more.
            if failure.is_some() && !self.connection.wants_write() {
                break;
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(consumed),
        }
    }

    /// Tells how much is kept of what the client sent.
    fn count_kept(&self) {
        self.line.hold_record(self.incoming.len() + self.plaintext.len());
    }

    /// Encrypts what fits, and hands it to the socket.
    fn encrypt(
        &mut self,
        context: &mut Context<'_>,
        plaintext: &[u8],
        scratch: &mut [u8],
    ) -> io::Result<usize> {
        let taken = plaintext.get(..affordable(MAX_WRITE)).unwrap_or(plaintext);
        let length = self.with_traffic(scratch, |traffic, scratch| traffic.encrypt(taken, scratch))?;
        self.send_or_keep(context, scratch.get(..length).unwrap_or_default())?;
        Ok(taken.len())
    }

    /// Encrypts by rustls, after what it has to say itself.
    fn with_traffic(
        &mut self,
        scratch: &mut [u8],
        encrypt: impl Fn(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        if self.end == End::Failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut incoming = mem::take(&mut self.incoming);
        let consumed = self.process(&mut incoming, None);
        consumed.map_err(invalid_data).and_then(|consumed| {
            incoming.drain(..consumed);
            let UnbufferedStatus { discard, state, .. } = self.connection.process_tls_records(&mut incoming);
            let result = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    encrypt(&mut traffic, scratch).map_err(|error| io::Error::other(error.to_string()))
                }
                _ => Err(io::ErrorKind::BrokenPipe.into()),
            };
            incoming.drain(..discard);
            self.incoming = incoming;
            result
        })
    }

    fn send_or_keep(&mut self, context: &mut Context<'_>, encrypted: &[u8]) -> io::Result<()> {
        let mut sent = 0;
        if self.outgoing.is_empty() {
            match Pin::new(&mut self.io).poll_write(context, encrypted) {
                Poll::Ready(result) => sent = result?,
                Poll::Pending => {}
            }
        }
        self.outgoing.extend_from_slice(encrypted.get(sent..).unwrap_or_default());
        self.outgoing_held.set(self.outgoing.len());
        Ok(())
    }

    /// Sends what is left over.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest @ [_, ..]) = self.outgoing.get(self.outgoing_start..) {
            match ready!(Pin::new(&mut self.io).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.outgoing_start += sent,
            }
        }
        self.outgoing = Vec::new();
        self.outgoing_start = 0;
        self.outgoing_held.set(0);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(kept @ [_, ..]) = this.plaintext.get(this.plaintext_start..) {
            let count = kept.len().min(buffer.remaining());
            buffer.put_slice(kept.get(..count).unwrap_or_default());
            this.plaintext_start += count;
            if this.plaintext_start == this.plaintext.len() {
                this.plaintext = Vec::new();
                this.plaintext_start = 0;
                this.count_kept();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        loop {
            match this.end {
                End::Open => {}
                End::Closed => return Poll::Ready(Ok(())),
                End::Failed => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            let result = SCRATCH.with_borrow_mut(|scratch| {
                let kept = this.incoming.len();
                let room = (buffer.remaining() + 256).clamp(MIN_READ, MAX_READ);
                let bytes = scratch.incoming.get_mut(..kept + room).ok_or(io::ErrorKind::InvalidData)?;
                bytes.get_mut(..kept).unwrap_or_default().copy_from_slice(&this.incoming);
                let mut read = ReadBuf::new(bytes.get_mut(kept..).unwrap_or_default());
                if Pin::new(&mut this.io).poll_read(context, &mut read)?.is_pending() {
                    return Ok(None);
                }
                let count = read.filled().len();
                if count == 0 {
                    // Without a goodbye, the end could be anybody's doing (RFC 8446 §6.1).
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                let received = bytes.get_mut(..kept + count).unwrap_or_default();
                let consumed = this.process(received, Some(buffer)).map_err(invalid_data);
                let rest = consumed
                    .as_ref()
                    .map_or(&[][..], |consumed| received.get(*consumed..).unwrap_or_default());
                if !(rest.is_empty() && this.incoming.is_empty()) {
                    this.incoming = rest.to_vec();
                }
                this.count_kept();
                consumed.map(Some)
            });
            // Answers of TLS itself, an alert among them. What the socket does not take now goes with the next write.
            if !this.outgoing.is_empty() {
                let _ = this.poll_send(context)?;
            }
            match result {
                Err(error) => return Poll::Ready(Err(error)),
                Ok(None) => return Poll::Pending,
                Ok(Some(_)) if buffer.filled().len() > before => return Poll::Ready(Ok(())),
                Ok(Some(_)) => {}
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Poll::Ready(SCRATCH.with_borrow_mut(|scratch| this.encrypt(context, bytes, &mut scratch.outgoing)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        let (Some(first), second) = (filled.next(), filled.next()) else { return Poll::Ready(Ok(0)) };
        if second.is_none() || first.len() >= MAX_WRITE {
            return self.poll_write(context, first);
        }
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        Poll::Ready(SCRATCH.with_borrow_mut(|Scratch { gathered, outgoing, .. }| {
            gathered.clear();
            for slice in slices {
                let room = MAX_WRITE - gathered.len();
                gathered.extend_from_slice(slice.get(..room).unwrap_or(slice));
            }
            this.encrypt(context, gathered, outgoing)
        }))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send(context)
    }

    /// Says goodbye as TLS does (`close_notify`), then as TCP does.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.said_goodbye && this.end != End::Failed {
            this.said_goodbye = true;
            SCRATCH.with_borrow_mut(|scratch| {
                let outgoing = &mut scratch.outgoing;
                let length =
                    this.with_traffic(outgoing, |traffic, buffer| traffic.queue_close_notify(buffer))?;
                this.send_or_keep(context, outgoing.get(..length).unwrap_or_default())
            })?;
        }
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.io).poll_shutdown(context)
    }
}

/// rustls says `certificate_required` in every version, but the word exists since TLS 1.3 only; before, it is
/// `handshake_failure` (RFC 5246 §7.4.6). Those older alerts are not encrypted yet, so they can be told apart.
fn use_the_alert_of_the_version(record: &mut [u8]) {
    const CERTIFICATE_REQUIRED: u8 = 116;
    const HANDSHAKE_FAILURE: u8 = 40;
    if let [0x15, 3, 3, 0, 2, 2, description @ CERTIFICATE_REQUIRED] = record {
        *description = HANDSHAKE_FAILURE;
    }
}

fn invalid_data(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
