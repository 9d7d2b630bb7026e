//! Searches everything that passes the interfaces of this network namespace for a text.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tidegate_tests::http1;

/// `ETH_P_ALL` in network byte order: frames of every protocol, both ways. packet(7).
const EVERY_PROTOCOL: i32 = 0x0300;

#[derive(Debug, clap::Args)]
pub(crate) struct Capture {
    /// The text. It must fit a packet.
    text: String,
    /// Only packets from or to this address count.
    #[arg(long)]
    address: IpAddr,
}

impl Capture {
    /// Prints `ready`, captures until standard input ends, then prints how many frames there were and how many
    /// contained the text.
    pub(crate) fn run(&self) -> ExitCode {
        let mut socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERY_PROTOCOL)))
            .unwrap_or_else(|error| panic!("a packet socket: {error}"));
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // As much as the kernel allows: a dropped frame would go unsearched.
        let _ = socket.set_recv_buffer_size(16 * 1024 * 1024);
        let ends = Arc::new(AtomicBool::new(false));
        let input = ends.clone();
        thread::spawn(move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            input.store(true, Ordering::Relaxed);
        });
        println!("ready");
        std::io::stdout().flush().unwrap();
        let (mut frames, mut found) = (0_u64, 0_u64);
        let mut buffer = vec![0; 128 * 1024];
        loop {
            match socket.read(&mut buffer) {
                Ok(length) => {
                    let frame = &buffer[..length];
                    if self.is_wanted(frame) {
                        frames += 1;
                        found += u64::from(http1::find(frame, self.text.as_bytes()).is_some());
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if ends.load(Ordering::Relaxed) {
                        break;
                    }
                }
                // Frames were lost: the capture proves nothing.
                Err(error) => panic!("capture: {error}"),
            }
        }
        println!("{}", json!({"frames": frames, "found": found}));
        ExitCode::SUCCESS
    }

    /// Ethernet with IP inside, from or to the address. RFC 894, RFC 791, RFC 2464, RFC 8200.
    fn is_wanted(&self, frame: &[u8]) -> bool {
        let (kind, from, octets) = match self.address {
            IpAddr::V4(ip) => ([8, 0], 26, ip.octets().to_vec()),
            IpAddr::V6(ip) => ([0x86, 0xdd], 22, ip.octets().to_vec()),
        };
        let to = from + octets.len();
        let holds = |at: usize| frame.get(at..at + octets.len()) == Some(&octets[..]);
        frame.get(12..14) == Some(&kind) && (holds(from) || holds(to))
    }
}
