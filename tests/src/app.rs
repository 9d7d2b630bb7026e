//! Apps behind a sidecar. Each records every byte that it receives, unless it runs for long.
//!
//! An app runs in the test's process, in a thread for each connection, and speaks blocking I/O: a handler is a story
//! that a test can hold up ([`Conversation::hold`], [`App::release`]) or end early. What arrives is recorded byte for
//! byte, so that a test can assert what a proxy forwarded, not only what it answered.

pub mod h2_faults;
pub mod h2c;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::SockRef;

use crate::http1::{self, Message, MessageKind, Parsed};
use crate::wait::{self, SOON};

/// How long an app waits for a byte before it checks whether it should stop.
const TICK: Duration = Duration::from_millis(50);
/// The same for a held request: there may be many at a time.
const HELD_TICK: Duration = Duration::from_millis(200);

/// A TCP server; ends when dropped.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    listener: TcpListener,
    shared: Arc<AppState>,
    acceptor: Option<JoinHandle<()>>,
}

/// One accepted connection, as passed to a handler.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    unread: Vec<u8>,
    recording: Option<Arc<Mutex<Vec<u8>>>>,
    shared: Arc<AppState>,
    patience: Option<Duration>,
}

/// Shared by the app, its accepting thread and its conversations. The gate opens once and stays open.
#[derive(Debug, Default)]
struct AppState {
    ends: AtomicBool,
    recordings: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    gate: Mutex<bool>,
    gate_opened: Condvar,
}

impl App {
    /// Listens, and runs `handler` in a thread for each connection; the connection is closed when it returns.
    pub fn start(
        address: SocketAddr,
        handler: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::listen(address, true, handler)
    }

    /// [`App::start`] without a recording: for an app that runs for long, or receives much.
    pub fn unrecorded(
        address: SocketAddr,
        handler: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::listen(address, false, handler)
    }

    /// Binds, and accepts in a thread of its own until the app is dropped.
    fn listen(
        address: SocketAddr,
        is_recorded: bool,
        handler: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("app at {address}: {error}"));
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(AppState::default());
        let (app, handler) = (shared.clone(), Arc::new(handler));
        let accepting = listener.try_clone().unwrap();
        let acceptor = thread::spawn(move || {
            for stream in accepting.incoming() {
                if shared.ends.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let recording = is_recorded.then(|| Arc::new(Mutex::new(Vec::new())));
                shared.recordings.lock().unwrap().extend(recording.clone());
                let (handler, shared) = (handler.clone(), shared.clone());
                thread::spawn(move || {
                    let mut conversation =
                        Conversation { stream, unread: Vec::new(), recording, shared, patience: None };
                    // A peer that disconnects ends the conversation; tests look at what was recorded.
                    let _ = handler(&mut conversation);
                });
            }
        });
        Self { address, listener, shared: app, acceptor: Some(acceptor) }
    }

    /// Answers each request with a description of it, as httpbin does: see [`echo`].
    pub fn echo(address: SocketAddr) -> Self {
        Self::start(address, echo)
    }

    /// Answers each request with these bytes.
    pub fn answering(address: SocketAddr, answer: &[u8]) -> Self {
        let answer = answer.to_vec();
        Self::start(address, move |conversation| {
            while conversation.request()?.is_some() {
                conversation.write(&answer)?;
            }
            Ok(())
        })
    }

    /// Sends back the bytes that it receives.
    pub fn tcp_echo(address: SocketAddr) -> Self {
        Self::start(address, tcp_echo)
    }

    /// Sends a greeting first, then sends back the bytes that it receives.
    pub fn server_first(address: SocketAddr, greeting: &'static [u8]) -> Self {
        Self::start(address, move |conversation| {
            conversation.write(greeting)?;
            tcp_echo(conversation)
        })
    }

    /// Accepts and never reads.
    pub fn stalled(address: SocketAddr) -> Self {
        Self::start(address, |conversation| {
            conversation.wait_for_release();
            Ok(())
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was received, one recording per connection.
    pub(crate) fn recordings(&self) -> Vec<Vec<u8>> {
        self.shared.recordings.lock().unwrap().iter().map(|bytes| bytes.lock().unwrap().clone()).collect()
    }

    /// All that was received, one connection after another.
    pub fn received(&self) -> Vec<u8> {
        self.recordings().concat()
    }

    /// The requests that were received.
    pub fn requests(&self) -> Vec<Message> {
        self.recordings().iter().flat_map(|bytes| http1::parse_all(bytes, MessageKind::Request)).collect()
    }

    /// Forgets what was received.
    pub fn forget(&self) {
        for recording in self.shared.recordings.lock().unwrap().iter() {
            recording.lock().unwrap().clear();
        }
    }

    /// Releases every [`Conversation::wait_for_release`], now and later.
    pub fn release(&self) {
        *self.shared.gate.lock().unwrap() = true;
        self.shared.gate_opened.notify_all();
    }

    /// Waits until this many requests have arrived.
    #[track_caller]
    pub fn wait_for_requests(&self, count: usize) {
        wait::until_true("the app gets a request", SOON, || self.requests().len() >= count);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        self.release();
        // Wakes the accepting thread, from whatever network namespace; once it has ended, the address is free.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Conversation {
    /// The next request, complete; `None` at the end of the connection.
    pub fn request(&mut self) -> io::Result<Option<Message>> {
        loop {
            match http1::parse(&self.unread, MessageKind::Request) {
                Parsed::Whole(message, length) => {
                    self.unread.drain(..length);
                    return Ok(Some(message));
                }
                Parsed::Garbage => return Err(io::ErrorKind::InvalidData.into()),
                Parsed::Partial if !self.read_some()? => return Ok(None),
                Parsed::Partial => {}
            }
        }
    }

    /// The head of the next request; the body remains to be read.
    pub fn head(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(end) = http1::find(&self.unread, b"\r\n\r\n") {
                let mut bytes: Vec<u8> = self.unread.drain(..end + 4).collect();
                let head = bytes.clone();
                // Parsed as a message without a body.
                bytes.splice(..0, b"HTTP/1.1 ".iter().copied());
                let Parsed::Whole(mut message, _) = http1::parse(&bytes, MessageKind::ResponseToHead) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                message.first_line = message.first_line["HTTP/1.1 ".len()..].to_owned();
                message.raw = head;
                return Ok(Some(message));
            }
            if !self.read_some()? {
                return Ok(None);
            }
        }
    }

    /// Received bytes that have not been taken yet; waits for some. Empty at the end of the connection.
    pub fn bytes(&mut self) -> io::Result<Vec<u8>> {
        if self.unread.is_empty() {
            self.read_some()?;
        }
        Ok(std::mem::take(&mut self.unread))
    }

    /// The client's address.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }

    /// Sends.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends FIN; can still read.
    pub fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Waits for [`App::release`].
    pub(crate) fn wait_for_release(&self) {
        let mut is_open = self.shared.gate.lock().unwrap();
        while !*is_open {
            is_open = self.shared.gate_opened.wait(is_open).unwrap();
        }
    }

    /// Waits for [`App::release`] or the client's end; returns whether it was released. The end of a client that has
    /// sent more bytes goes unnoticed.
    pub fn hold(&self) -> io::Result<bool> {
        self.stream.set_read_timeout(Some(HELD_TICK))?;
        while !*self.shared.gate.lock().unwrap() {
            match self.stream.peek(&mut [0]) {
                Ok(0) => return Ok(false),
                Ok(_) => self.wait_for_release(),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Pauses, or less if the app ends; `false` when it does.
    pub fn pause(&self, time: Duration) -> bool {
        let gate = self.shared.gate.lock().unwrap();
        let _ = self.shared.gate_opened.wait_timeout(gate, time).unwrap();
        !self.shared.ends.load(Ordering::Relaxed)
    }

    /// Ends the conversation once nothing has arrived for this long.
    pub fn hang_up_after(&mut self, patience: Duration) {
        self.patience = Some(patience);
    }

    /// Whether more has arrived; `false` at the end.
    fn read_some(&mut self) -> io::Result<bool> {
        let begun = Instant::now();
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = self.patience.map(|patience| patience.saturating_sub(begun.elapsed()));
            if self.shared.ends.load(Ordering::Relaxed) || left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            self.stream.set_read_timeout(Some(left.map_or(TICK, |left| left.min(TICK))))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => {
                    if let Some(recording) = &self.recording {
                        recording.lock().unwrap().extend_from_slice(&buffer[..length]);
                    }
                    self.unread.extend_from_slice(&buffer[..length]);
                    return Ok(true);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Answers with the request as JSON, except for what [`lasting`] answers. `/bytes/<n>` sends that many bytes.
pub fn echo(conversation: &mut Conversation) -> io::Result<()> {
    while let Some(request) = conversation.request()? {
        if lasting(conversation, &request)? {
            return Ok(());
        }
        let path = request.target().split('?').next().unwrap_or_default();
        if let Some(count) = requested_bytes(path) {
            send_bytes(conversation, count)?;
            continue;
        }
        conversation.write(&describe(&request))?;
    }
    Ok(())
}

/// The `n` of the path `/bytes/<n>`.
fn requested_bytes(path: &str) -> Option<usize> {
    path.strip_prefix("/bytes/")?.parse().ok()
}

/// Handles requests that take time or the whole connection; returns whether the connection is finished. `/hold` waits
/// for [`App::release`], and is then answered like any other path; `/stream` sends a chunk every 50 ms until the client
/// disconnects; `upgrade: websocket` is accepted: afterwards bytes are sent back as they arrive.
pub fn lasting(conversation: &mut Conversation, request: &Message) -> io::Result<bool> {
    if request.value("upgrade").is_some_and(|protocol| protocol.eq_ignore_ascii_case("websocket")) {
        conversation.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )?;
        return tcp_echo(conversation).map(|()| true);
    }
    match request.target().split('?').next().unwrap_or_default() {
        "/hold" => conversation.hold().map(|is_released| !is_released),
        "/stream" => stream(conversation).map(|()| true),
        _ => Ok(false),
    }
}

/// The request as JSON, in a response without a body for HEAD.
fn describe(request: &Message) -> Vec<u8> {
    let body = json!({
        "method": request.method(),
        "path": request.target(),
        "headers": request.fields,
        "body": request.text(),
    });
    let body = format!("{body}\n");
    let length = body.len();
    let body = if request.method() == "HEAD" { "" } else { &body };
    format!(
        "HTTP/1.1 200 OK\r\nServer: echo\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         access-control-allow-origin: *\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A chunk every 50 ms, until the app ends or the client disconnects.
fn stream(conversation: &mut Conversation) -> io::Result<()> {
    conversation
        .write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")?;
    while conversation.pause(Duration::from_millis(50)) {
        conversation.write(b"5\r\ntick\n\r\n")?;
    }
    conversation.write(b"0\r\n\r\n")
}

/// A response with a body of this length, in blocks of 64 KiB.
fn send_bytes(conversation: &mut Conversation, mut left: usize) -> io::Result<()> {
    conversation.write(format!("HTTP/1.1 200 OK\r\ncontent-length: {left}\r\n\r\n").as_bytes())?;
    let block = vec![b'x'; 64 * 1024];
    while left > 0 {
        let now = left.min(block.len());
        conversation.write(&block[..now])?;
        left -= now;
    }
    Ok(())
}

/// Sends back what arrives, and FIN after the client's FIN.
fn tcp_echo(conversation: &mut Conversation) -> io::Result<()> {
    loop {
        let bytes = conversation.bytes()?;
        if bytes.is_empty() {
            return conversation.finish();
        }
        conversation.write(&bytes)?;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_held_request_ends_with_its_client_or_when_it_is_released() {
        let (sender, ends) = mpsc::channel();
        let sender = Mutex::new(sender);
        let app = App::unrecorded((Ipv4Addr::LOCALHOST, 0).into(), move |conversation| {
            conversation.request()?;
            let end = conversation.hold()?;
            sender.lock().unwrap().send(end).map_err(io::Error::other)
        });
        let ask = || {
            let mut client = TcpStream::connect(app.address()).unwrap();
            client.write_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            client
        };
        drop(ask());
        assert_eq!(ends.recv_timeout(SOON), Ok(false));
        let waits = ask();
        app.release();
        assert_eq!(ends.recv_timeout(SOON), Ok(true));
        drop(waits);
    }
}
