//! A TLS connection to a client as a byte stream.
//!
//! It uses rustls' unbuffered API, so that an idle connection holds no buffer: bytes are read into and written from
//! buffers of the thread, and only leftovers (half a record, encrypted data that the socket did not accept) are kept
//! with the connection. Leftovers from the client are counted by the connection's [`Lifeline`].

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
use rustls::{Error, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::held::{HeldBytes, affordable};
use crate::lifeline::Lifeline;

/// Maximum bytes that one read takes from the socket.
const MAX_READ: usize = 32 * 1024;

/// Minimum bytes per read: smaller reads would need a system call for each small record.
const MIN_READ: usize = 4 * 1024;

/// Maximum plaintext that one write encrypts: two full records.
const MAX_WRITE: usize = 32 * 1024;

/// Room for [`MAX_WRITE`] bytes once encrypted.
const MAX_ENCRYPTED: usize = MAX_WRITE + 1024;

/// Maximum bytes of an incomplete handshake message that are kept: rustls' own limit for a message, and a record.
const MAX_HANDSHAKE: usize = 80 * 1024;

/// A connection whose handshake is done.
pub(crate) struct TlsStream {
    io: TcpStream,
    connection: UnbufferedServerConnection,
    /// Received part of a record, or of a handshake message.
    incoming: Vec<u8>,
    /// Decrypted bytes that did not fit into the reader's buffer, from `plaintext_start` on.
    plaintext: Vec<u8>,
    plaintext_start: usize,
    /// Encrypted bytes that the socket has not accepted yet, from `outgoing_start` on.
    outgoing: Vec<u8>,
    outgoing_start: usize,
    outgoing_held: HeldBytes,
    read_state: ReadState,
    sent_close_notify: bool,
    /// Counts leftover bytes from the client.
    line: Lifeline,
}

/// A failed handshake. The alert, if any, was sent.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub(crate) struct HandshakeError {
    /// The connection, still open.
    pub(crate) io: TcpStream,
    /// Why it failed.
    pub(crate) cause: HandshakeFailure,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeFailure {
    /// The client closed the connection.
    #[error("the client ended the handshake: {0}")]
    Io(#[from] io::Error),
    /// A TLS error, or an invalid client certificate.
    #[error("{0}")]
    Tls(#[from] Error),
    /// Other handshakes and requests hold too many unfinished bytes.
    #[error("there is no room for it: too many unfinished handshakes and requests")]
    NoRoom,
}

/// Whether more can be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ReadState {
    Open,
    /// The client sent `close_notify`.
    Closed,
    /// The client violated the protocol.
    Failed,
}

/// A thread's buffers for reading, encrypting and gathering.
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
    /// Runs the handshake on a connection from which `first` was already read. `line` limits the bytes of incomplete
    /// messages, and is closed if later there is no room for those of a record: drive the connection under its guard.
    ///
    /// # Errors
    ///
    /// If the handshake fails; the error returns the socket.
    pub(crate) async fn accept(
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
            read_state: ReadState::Open,
            sent_close_notify: false,
            line,
        });
        match stream.handshake(first).await {
            Ok(()) => {
                // The handshake is complete; the bytes after it may be part of a record.
                let _ = stream.line.hold(0);
                stream.count_kept();
                Ok(stream)
            }
            Err(cause) => Err(HandshakeError { io: stream.io, cause }),
        }
    }

    /// The client's certificate chain, leaf first, if it sent one.
    pub(crate) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.connection.peer_certificates()
    }

    /// The negotiated ALPN protocol.
    pub(crate) fn alpn_protocol(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }

    /// The underlying socket.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.io
    }

    /// Drives the handshake to its end. On an error, the alert is sent before it is returned.
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
            if self.read_state == ReadState::Closed {
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

    /// Passes `incoming` to rustls, and returns how many bytes it consumed. Plaintext goes to the reader, or to
    /// `plaintext` if it does not fit; data to send goes to `outgoing`, after an error too.
    fn process(&mut self, incoming: &mut [u8], mut reader: Option<&mut ReadBuf<'_>>) -> Result<usize, Error> {
        let mut consumed = 0;
        let mut failure = None;
        loop {
            let rest = incoming.get_mut(consumed..).unwrap_or_default();
            let UnbufferedStatus { discard, state, .. } = self.connection.process_tls_records(rest);
            let mut discard = discard;
            match state {
                Err(error) => {
                    self.read_state = ReadState::Failed;
                    failure.get_or_insert(error);
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        deliver(record.payload, reader.as_deref_mut(), &mut self.plaintext);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    let encoded = encode(data, &mut self.outgoing)?;
                    if failure == Some(Error::NoCertificatesPresented) {
                        correct_alert_for_version(encoded);
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.read_state = ReadState::Closed,
                Ok(
                    ConnectionState::BlockedHandshake
                    | ConnectionState::WriteTraffic(_)
                    | ConnectionState::Closed,
                ) => {
                    consumed += discard;
                    break;
                }
                // Early data is never offered, and there is no other state.
                Ok(_) => return Err(Error::General("unexpected state of the connection".into())),
            }
            consumed += discard;
            // After an error, send everything that is queued: responses to earlier messages, then the alert. With
            // nothing queued, rustls would process the failed bytes again.
            if failure.is_some() && !self.connection.wants_write() {
                break;
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(consumed),
        }
    }

    /// Passes decrypted bytes that were kept to the reader; `false` if there are none.
    fn take_kept(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let Some(kept @ [_, ..]) = self.plaintext.get(self.plaintext_start..) else { return false };
        let count = kept.len().min(buffer.remaining());
        buffer.put_slice(kept.get(..count).unwrap_or_default());
        self.plaintext_start += count;
        if self.plaintext_start == self.plaintext.len() {
            self.plaintext = Vec::new();
            self.plaintext_start = 0;
            self.count_kept();
        }
        true
    }

    /// Reads once from the socket and decrypts; `None` if the socket has no data.
    fn receive(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut [u8],
        buffer: &mut ReadBuf<'_>,
    ) -> io::Result<Option<usize>> {
        let kept = self.incoming.len();
        let room = (buffer.remaining() + 256).clamp(MIN_READ, MAX_READ);
        let bytes = scratch.get_mut(..kept + room).ok_or(io::ErrorKind::InvalidData)?;
        bytes.get_mut(..kept).unwrap_or_default().copy_from_slice(&self.incoming);
        let mut read = ReadBuf::new(bytes.get_mut(kept..).unwrap_or_default());
        if Pin::new(&mut self.io).poll_read(context, &mut read)?.is_pending() {
            return Ok(None);
        }
        let count = read.filled().len();
        if count == 0 {
            // Without `close_notify`, anyone could have ended the connection (RFC 8446 §6.1).
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let received = bytes.get_mut(..kept + count).unwrap_or_default();
        let consumed = self.process(received, Some(buffer)).map_err(invalid_data);
        let rest =
            consumed.as_ref().map_or(&[][..], |consumed| received.get(*consumed..).unwrap_or_default());
        if !(rest.is_empty() && self.incoming.is_empty()) {
            self.incoming = rest.to_vec();
        }
        self.count_kept();
        consumed.map(Some)
    }

    /// Counts the leftover bytes from the client.
    fn count_kept(&self) {
        self.line.hold_record(self.incoming.len() + self.plaintext.len());
    }

    /// Encrypts as much as fits, and passes it to the socket.
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

    /// Encrypts with rustls, after sending what rustls has queued itself.
    fn with_traffic(
        &mut self,
        scratch: &mut [u8],
        encrypt: impl Fn(
            &mut rustls::unbuffered::WriteTraffic<'_, rustls::server::ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) -> io::Result<usize> {
        if self.read_state == ReadState::Failed {
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

    /// Passes encrypted bytes to the socket, and keeps those that it does not accept.
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

    /// Sends the encrypted bytes that were kept.
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
        if this.take_kept(buffer) {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        loop {
            match this.read_state {
                ReadState::Open => {}
                ReadState::Closed => return Poll::Ready(Ok(())),
                ReadState::Failed => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            let result =
                SCRATCH.with_borrow_mut(|scratch| this.receive(context, &mut scratch.incoming, buffer));
            // Responses of TLS itself, such as an alert. What the socket does not accept now goes out with the next
            // write.
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

    /// Sends `close_notify`, then FIN.
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.sent_close_notify && this.read_state != ReadState::Failed {
            this.sent_close_notify = true;
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

/// Passes decrypted bytes to the reader, and those that do not fit to `plaintext`.
fn deliver(payload: &[u8], reader: Option<&mut ReadBuf<'_>>, plaintext: &mut Vec<u8>) {
    let mut rest = payload;
    if let Some(reader) = reader
        && plaintext.is_empty()
    {
        let (now, later) = payload.split_at(payload.len().min(reader.remaining()));
        reader.put_slice(now);
        rest = later;
    }
    plaintext.extend_from_slice(rest);
}

/// Appends a message of rustls to `outgoing`; returns its bytes.
fn encode<'o>(
    mut data: rustls::unbuffered::EncodeTlsData<'_, rustls::server::ServerConnectionData>,
    outgoing: &'o mut Vec<u8>,
) -> Result<&'o mut [u8], Error> {
    let start = outgoing.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        outgoing.resize(start + size.required_size, 0);
        let encoded = outgoing.get_mut(start..).unwrap_or_default();
        data.encode(encoded).map_err(|error| Error::General(error.to_string()))?;
    }
    Ok(outgoing.get_mut(start..).unwrap_or_default())
}

/// Corrects rustls' alert `certificate_required`, which exists only since TLS 1.3, to `handshake_failure` (RFC 5246
/// §7.4.6) in TLS 1.2. Such alerts are not encrypted yet, so the record's version identifies them.
fn correct_alert_for_version(record: &mut [u8]) {
    const CERTIFICATE_REQUIRED: u8 = 116;
    const HANDSHAKE_FAILURE: u8 = 40;
    if let [0x15, 3, 3, 0, 2, 2, description @ CERTIFICATE_REQUIRED] = record {
        *description = HANDSHAKE_FAILURE;
    }
}

/// What rustls refuses, for readers and writers of the stream.
fn invalid_data(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests;
