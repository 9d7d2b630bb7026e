//! What the kernel knows of a TCP connection (`tcp(7)`, `TCP_INFO`).

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd};

/// How often in a row the oldest bytes that the peer has not acknowledged were sent again. Zero if nothing is
/// unacknowledged, and for a peer that acknowledges and does not read. On a short path Linux sends again after 0.2 s, and
/// waits twice as long each further time: four times are 3 s without a sign of life.
///
/// # Errors
///
/// If it is not a TCP socket.
pub fn retransmissions(socket: impl AsFd) -> io::Result<u8> {
    const LENGTH: usize = size_of::<libc::tcp_info>();
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = libc::socklen_t::try_from(LENGTH).map_err(io::Error::other)?;
    #[expect(
        unsafe_code,
        reason = "getsockopt(2) writes at most `length` bytes into `info`; every byte pattern is a valid `tcp_info`"
    )]
    let (result, info) = unsafe {
        let socket = socket.as_fd().as_raw_fd();
        let to = info.as_mut_ptr().cast();
        let result = libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut length);
        (result, info.assume_init())
    };
    if result == 0 { Ok(info.tcpi_retransmits) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn what_is_acknowledged_is_not_sent_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        io::Write::write_all(&mut &stream, b"acknowledged by the kernel").unwrap();
        assert_eq!(retransmissions(&stream).unwrap(), 0);
    }

    #[test]
    fn another_socket_has_no_such_count() {
        assert!(retransmissions(UdpSocket::bind("127.0.0.1:0").unwrap()).is_err());
    }
}
