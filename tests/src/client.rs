//! Clients that report exactly what they see: bytes, FIN or RST, TLS alerts by number.
//!
//! The client is deliberately low-level: it reads from the socket with deadlines and classifies how a connection
//! ended ([`End`]), which a library would hide behind one error. Requests are sent as the bytes that a test writes.

pub mod h2;
mod tls;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use socket2::{Domain, Socket, Type};

pub use self::tls::{Tls, TlsVersion};
use crate::http1::{self, Message, MessageKind, Parsed};
use crate::wait::SOON;

/// A client: its address, its target, and whether it uses TLS.
#[derive(Clone, Debug)]
pub struct Client {
    /// The source address; any if `None`.
    pub source: Option<IpAddr>,
    /// The address to connect to.
    pub target: SocketAddr,
    /// TLS, if any.
    pub tls: Option<Tls>,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    unread: Vec<u8>,
    end: Option<End>,
    /// A write has met an RST, which the next read would then not report.
    was_reset: bool,
}

/// How a connection ended, as its client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN, and with TLS a `close_notify` before it.
    Closed,
    /// FIN inside TLS, without `close_notify`.
    Truncated,
    /// RST.
    Reset,
    /// A TLS alert, by its number.
    Alert(u8),
    /// The client itself refused the server's handshake.
    OwnRefusal(String),
    /// The connection had not ended in time.
    StillOpen,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// An answer with this status.
    Status(u16),
    /// No answer; the connection ended like this.
    Refused(End),
}

impl Client {
    /// A client to this address, in plaintext.
    pub fn to(target: SocketAddr) -> Self {
        Self { source: None, target, tls: None }
    }

    /// Connects from this address.
    #[must_use]
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Uses TLS.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Connects, and does the TLS handshake if configured. With TLS 1.3 a server that refuses the client's certificate
    /// reports it only afterwards.
    pub fn connect(&self) -> Result<Connection, End> {
        let stream = connect(self.source, self.target).map_err(|error| end_of(&error))?;
        let tls = self.tls.as_ref().map(|tls| Box::new(tls.connection()));
        let mut connection = Connection { stream, tls, unread: Vec::new(), end: None, was_reset: false };
        connection.handshake()?;
        Ok(connection)
    }

    /// GET of a path on its own connection.
    pub fn get(&self, path: &str) -> RequestOutcome {
        match self.connect().and_then(|mut connection| connection.get(path)) {
            Ok(answer) => RequestOutcome::Status(answer.status()),
            Err(end) => RequestOutcome::Refused(end),
        }
    }

    /// The answer to a GET, which must be answered.
    #[track_caller]
    pub fn answer(&self, path: &str) -> Message {
        let result = self.connect().and_then(|mut connection| connection.get(path));
        result.unwrap_or_else(|end| panic!("GET {path} at {}: {end:?}", self.target))
    }

    /// Sends these bytes on its own connection and reads until the end, or for `limit`.
    pub fn exchange(&self, bytes: &[u8], limit: Duration) -> (Vec<u8>, End) {
        match self.connect() {
            Ok(mut connection) => {
                connection.write(bytes);
                connection.read_to_end(limit)
            }
            Err(end) => (Vec::new(), end),
        }
    }
}

impl Connection {
    /// Sends; an error shows when reading.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some(tls) = &mut self.tls {
            // The buffer is full once the peer stops reading.
            self.was_reset |= tls.writer().write_all(bytes).is_err();
            self.flush_tls();
        } else if let Err(error) = self.stream.write_all(bytes) {
            // The peer's reason is in what can still be read.
            self.was_reset |= error.kind() == ErrorKind::ConnectionReset;
        }
    }

    /// Sends until the peer has read nothing for `limit`; returns how many bytes it took.
    pub fn write_some(&mut self, bytes: &[u8], limit: Duration) -> usize {
        assert!(self.tls.is_none(), "for plaintext only");
        self.stream.set_write_timeout(Some(limit)).unwrap();
        self.stream.write(bytes).unwrap_or_default()
    }

    /// Sends a request and reads its answer.
    pub fn request(&mut self, bytes: &[u8]) -> Result<Message, End> {
        self.write(bytes);
        let kind =
            if bytes.starts_with(b"HEAD ") { MessageKind::ResponseToHead } else { MessageKind::Response };
        self.response(kind)
    }

    /// GET, and its answer.
    pub fn get(&mut self, path: &str) -> Result<Message, End> {
        self.request(format!("GET {path} HTTP/1.1\r\nhost: httpbin.test\r\n\r\n").as_bytes())
    }

    /// Reads one answer; waits for a body that lasts until the end.
    pub fn response(&mut self, kind: MessageKind) -> Result<Message, End> {
        let deadline = Instant::now() + SOON;
        loop {
            match http1::parse(&self.unread, kind) {
                Parsed::Whole(mut message, length) => {
                    self.unread.drain(..length);
                    if message.is_delimited_by_close(kind) {
                        message.body = self.read_to_end(SOON).0;
                    }
                    return Ok(message);
                }
                Parsed::Garbage => panic!("not HTTP/1: {:?}", String::from_utf8_lossy(&self.unread)),
                Parsed::Partial => self.read_some(deadline)?,
            }
        }
    }

    /// Reads until these bytes have arrived; returns everything up to them.
    pub fn read_until(&mut self, wanted: &[u8]) -> Result<Vec<u8>, End> {
        let deadline = Instant::now() + SOON;
        loop {
            if let Some(at) = http1::find(&self.unread, wanted) {
                return Ok(self.unread.drain(..at + wanted.len()).collect());
            }
            self.read_some(deadline)?;
        }
    }

    /// Reads at least one byte.
    pub fn read(&mut self, limit: Duration) -> Result<Vec<u8>, End> {
        if self.unread.is_empty() {
            self.read_some(Instant::now() + limit)?;
        }
        Ok(std::mem::take(&mut self.unread))
    }

    /// Reads until the end, or for `limit`.
    pub fn read_to_end(&mut self, limit: Duration) -> (Vec<u8>, End) {
        let deadline = Instant::now() + limit;
        loop {
            if let Err(end) = self.read_some(deadline) {
                return (std::mem::take(&mut self.unread), end);
            }
        }
    }

    /// How the connection ends, within `limit`.
    pub fn end(&mut self, limit: Duration) -> End {
        self.read_to_end(limit).1
    }

    /// Updates the TLS keys this many times, unless the peer stops reading; returns how often.
    pub fn update_keys(&mut self, count: usize) -> usize {
        for done in 0..count {
            self.tls.as_mut().unwrap().refresh_traffic_keys().unwrap();
            self.flush_tls();
            if self.was_reset || self.tls.as_ref().unwrap().wants_write() {
                return done;
            }
        }
        count
    }

    /// Sends FIN, and with TLS `close_notify` before it.
    pub fn finish(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            let _ = tls.write_tls(&mut self.stream);
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The TLS session's state.
    pub fn tls(&self) -> Option<&ClientConnection> {
        self.tls.as_deref()
    }

    fn handshake(&mut self) -> Result<(), End> {
        let deadline = Instant::now() + SOON;
        while self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
            self.flush_tls();
            if self.tls.as_ref().is_some_and(|tls| tls.is_handshaking()) {
                self.read_some(deadline)?;
            }
        }
        self.flush_tls();
        Ok(())
    }

    fn flush_tls(&mut self) {
        let Some(tls) = &mut self.tls else { return };
        while tls.wants_write() {
            if let Err(error) = tls.write_tls(&mut self.stream) {
                self.was_reset |= error.kind() == ErrorKind::ConnectionReset;
                return;
            }
        }
    }

    /// Reads the next bytes, which may be only a TLS record without content.
    fn read_some(&mut self, deadline: Instant) -> Result<(), End> {
        if let Some(end) = &self.end {
            return Err(end.clone());
        }
        let result = match self.tls {
            None => self.read_plain(deadline),
            Some(_) => self.read_tls(deadline),
        };
        let result = match result {
            Err(End::Closed | End::Truncated) if self.was_reset => Err(End::Reset),
            result => result,
        };
        if let Err(end) = &result
            && *end != End::StillOpen
        {
            self.end = Some(end.clone());
        }
        result
    }

    fn read_plain(&mut self, deadline: Instant) -> Result<(), End> {
        self.wait_until(deadline)?;
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(End::Closed),
            Ok(length) => {
                self.unread.extend_from_slice(&buffer[..length]);
                Ok(())
            }
            Err(error) => Err(end_of(&error)),
        }
    }

    fn read_tls(&mut self, deadline: Instant) -> Result<(), End> {
        self.wait_until(deadline)?;
        let Some(tls) = &mut self.tls else { unreachable!() };
        let is_end = match tls.read_tls(&mut self.stream) {
            Ok(length) => length == 0,
            Err(error) => return Err(end_of(&error)),
        };
        let state = tls.process_new_packets();
        self.flush_tls();
        let Some(tls) = &mut self.tls else { unreachable!() };
        let state = match state {
            Ok(state) => state,
            Err(rustls::Error::AlertReceived(alert)) => return Err(End::Alert(alert.into())),
            Err(error) => return Err(End::OwnRefusal(error.to_string())),
        };
        let (at, received) = (self.unread.len(), state.plaintext_bytes_to_read());
        self.unread.resize(at + received, 0);
        tls.reader().read_exact(&mut self.unread[at..]).unwrap();
        match (state.peer_has_closed(), is_end) {
            // The last bytes arrived with the closing alert: they are processed first.
            _ if received > 0 => Ok(()),
            (true, _) => Err(End::Closed),
            (false, true) => Err(End::Truncated),
            (false, false) => Ok(()),
        }
    }

    fn wait_until(&self, deadline: Instant) -> Result<(), End> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(End::StillOpen);
        }
        self.stream.set_read_timeout(Some(left)).unwrap();
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// A TCP connection from an address.
pub fn connect(source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect_timeout(&target.into(), SOON)?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn end_of(error: &io::Error) -> End {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::StillOpen,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => End::Reset,
        _ => End::OwnRefusal(error.to_string()),
    }
}
