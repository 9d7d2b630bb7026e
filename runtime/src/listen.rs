//! Addresses to listen on.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// The address itself; but for `[::]`, which means all addresses, the one that means it where there is no IPv6.
pub fn possible(address: SocketAddr) -> SocketAddr {
    let has_no_ipv6 = || UdpSocket::bind("[::]:0").is_err();
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() && has_no_ipv6() => {
            (Ipv4Addr::UNSPECIFIED, address.port()).into()
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_address_of_all_is_ever_another_one() {
        for text in ["0.0.0.0:1", "127.0.0.1:2", "[::1]:3", "[fd00::1]:4"] {
            let address = text.parse().unwrap();
            assert_eq!(possible(address), address);
        }
        assert!(possible("[::]:5".parse().unwrap()).ip().is_unspecified());
    }
}
