//! Loopback addresses that belong to one test.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bound while a block is in use, at the block's last address.
const CLAIM_PORT: u16 = 20471;

/// `127.x.y.0/24`, claimed during the lifetime of this value.
#[derive(Debug)]
pub struct Block {
    x: u8,
    y: u8,
    _claim: TcpListener,
}

impl Block {
    /// The next free block. The search starts at the process id, so that parallel processes seldom collide.
    pub fn claim() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        for _ in 0..60_000 {
            let n = process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed))
                % (200 * 250);
            // 127.0 to 127.15 are left to people and to examples.
            let (x, y) = (16 + (n / 250) as u8, (n % 250) as u8);
            if let Ok(claim) = TcpListener::bind((Ipv4Addr::new(127, x, y, 254), CLAIM_PORT)) {
                return Self { x, y, _claim: claim };
            }
        }
        panic!("no free block of loopback addresses");
    }

    /// The block's address that ends with `host`.
    pub fn ip(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(127, self.x, self.y, host).into()
    }

    /// [`Block::ip`] with a port.
    pub fn at(&self, host: u8, port: u16) -> SocketAddr {
        (self.ip(host), port).into()
    }

    /// `127.x.y.`
    pub fn prefix(&self) -> String {
        format!("127.{}.{}.", self.x, self.y)
    }
}
