//! WebSockets by their frames.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;

use tidegate_tests::app::{App, Conversation};
use tidegate_tests::wait::SOON;

use super::{MIB, content, mesh, read_head};

/// A WebSocket frame (RFC 6455 §5.2).
#[derive(Clone, Debug, PartialEq)]
struct Frame {
    is_last: bool,
    opcode: u8,
    payload: Vec<u8>,
}

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

fn frame(is_last: bool, opcode: u8, payload: &[u8]) -> Frame {
    Frame { is_last, opcode, payload: payload.to_vec() }
}

impl Frame {
    /// Its bytes; those of a client are masked.
    fn bytes(&self, mask: Option<[u8; 4]>) -> Vec<u8> {
        let flag = if mask.is_some() { 0x80 } else { 0 };
        let mut bytes = vec![u8::from(self.is_last) << 7 | self.opcode];
        match self.payload.len() {
            length @ 0..126 => bytes.push(flag | length as u8),
            length @ 126..=0xffff => {
                bytes.push(flag | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(flag | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(mask.into_iter().flatten());
        let from = bytes.len();
        bytes.extend(&self.payload);
        toggle(&mut bytes[from..], mask.unwrap_or_default());
        bytes
    }

    fn read(stream: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 2];
        stream.read_exact(&mut head)?;
        let mut long = [0; 8];
        let length = match head[1] & 0x7f {
            126 => stream.read_exact(&mut long[6..]).map(|()| u64::from_be_bytes(long))?,
            127 => stream.read_exact(&mut long).map(|()| u64::from_be_bytes(long))?,
            length => u64::from(length),
        };
        let mut key = [0; 4];
        if head[1] & 0x80 != 0 {
            stream.read_exact(&mut key)?;
        }
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut payload)?;
        toggle(&mut payload, key);
        Ok(Self { is_last: head[0] & 0x80 != 0, opcode: head[0] & 0x0f, payload })
    }
}

/// Masks a payload, or unmasks it. A key of zeros, which large frames have here, leaves it as it is.
fn toggle(payload: &mut [u8], key: [u8; 4]) {
    if key != [0; 4] {
        payload.iter_mut().enumerate().for_each(|(at, byte)| *byte ^= key[at % 4]);
    }
}

/// A stream of a conversation's bytes.
struct Incoming<'c> {
    conversation: &'c mut Conversation,
    unread: Vec<u8>,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.unread.is_empty() {
            self.unread = self.conversation.bytes()?;
        }
        let count = buffer.len().min(self.unread.len());
        buffer[..count].copy_from_slice(&self.unread[..count]);
        self.unread.drain(..count);
        Ok(count)
    }
}

/// A WebSocket server that sends each frame back, a pong for a ping; it ends after a close.
fn websocket(conversation: &mut Conversation) -> io::Result<()> {
    conversation.head()?;
    conversation
        .write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")?;
    let mut incoming = Incoming { conversation, unread: Vec::new() };
    loop {
        let mut frame = Frame::read(&mut incoming)?;
        let is_close = frame.opcode == CLOSE;
        frame.opcode = if frame.opcode == PING { PONG } else { frame.opcode };
        incoming.conversation.write(&frame.bytes(None))?;
        if is_close {
            return incoming.conversation.finish();
        }
    }
}

/// Frames that a client sends: a text in fragments with pings between them, messages at the edges of the forms of a length, and
/// one of 16 MiB, whole and in fragments.
fn frames() -> Vec<Frame> {
    let mut frames = vec![
        frame(false, TEXT, b"frag"),
        frame(true, PING, b"inside"),
        frame(false, CONTINUATION, b""),
        frame(true, PING, b""),
        frame(true, CONTINUATION, b"ments"),
    ];
    frames.extend([0, 125, 126, 65_535, 65_536, 16 * MIB].map(|size| frame(true, BINARY, &content(size))));
    let message = content(16 * MIB);
    let mut fragments = message.chunks(MIB).enumerate().peekable();
    while let Some((at, fragment)) = fragments.next() {
        let opcode = if at == 0 { BINARY } else { CONTINUATION };
        frames.push(frame(fragments.peek().is_none(), opcode, fragment));
        frames.push(frame(true, PING, &at.to_be_bytes()));
    }
    frames.push(frame(true, CLOSE, &[3, 232]));
    frames
}

#[test]
fn a_websocket_carries_fragments_with_pings_between_them_and_sixteen_mebibytes() {
    let mesh = mesh("http");
    let _app = App::unrecorded(mesh.mesh.app_address(), websocket);
    let mut stream = TcpStream::connect(mesh.mesh.way_out()).unwrap();
    stream.set_read_timeout(Some(3 * SOON)).unwrap();
    let request = "GET /chat HTTP/1.1\r\nhost: called\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut stream);
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");

    let mut writer = stream.try_clone().unwrap();
    let sending = thread::spawn(move || {
        for (at, frame) in frames().iter().enumerate() {
            let key = if frame.payload.len() < MIB { [1, 2, 3, at as u8] } else { [0; 4] };
            writer.write_all(&frame.bytes(Some(key))).unwrap();
        }
    });
    let mut stream = io::BufReader::new(stream);
    for (at, mut expected) in frames().into_iter().enumerate() {
        expected.opcode = if expected.opcode == PING { PONG } else { expected.opcode };
        let got = Frame::read(&mut stream).unwrap();
        assert!(got == expected, "frame {at}: {} of {} bytes", got.opcode, got.payload.len());
    }
    sending.join().unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the app's end is the client's");
}
