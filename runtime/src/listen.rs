//! Addresses to listen on.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use tokio::net::TcpListener;

/// Listens on [`possible`] of an address, as every server does with a configured address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(possible(address)).await
}

/// The address itself; except that `[::]`, which means all addresses, becomes `0.0.0.0` on a kernel without IPv6.
pub fn possible(address: SocketAddr) -> SocketAddr {
    possible_where(address, || UdpSocket::bind("[::]:0").is_ok())
}

fn possible_where(address: SocketAddr, has_ipv6: impl FnOnce() -> bool) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() && !has_ipv6() => {
            (Ipv4Addr::UNSPECIFIED, address.port()).into()
        }
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn only_the_address_of_all_is_ever_another_one() {
        for text in ["0.0.0.0:1", "127.0.0.1:2", "[::1]:3", "[fd00::1]:4"] {
            let address = text.parse().unwrap();
            assert_eq!(possible_where(address, || false), address);
        }
        let all = "[::]:5".parse().unwrap();
        assert_eq!(possible_where(all, || true), all);
        assert_eq!(possible_where(all, || false), "0.0.0.0:5".parse().unwrap());
    }

    /// A test cannot run on a kernel without IPv6, so it checks the sources: the addresses of daemons come from flags,
    /// and the chart's are `[::]`.
    #[test]
    fn no_daemon_listens_on_an_address_of_its_flags_by_other_means() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for part in ["runtime", "kubernetes", "cert-manager", "controller", "injector"] {
            let mut folders = vec![root.join(part).join("src")];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(&folder).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_dir() {
                        folders.push(path);
                    } else {
                        check(&path);
                    }
                }
            }
        }
    }

    fn check(path: &Path) {
        let is_for_tests = ["tests", "testing", "fake_api", "test_ca"]
            .iter()
            .any(|part| path.to_string_lossy().contains(part));
        let text = fs::read_to_string(path).unwrap();
        let text = text.split("mod tests {").next().unwrap();
        for line in text.lines().filter(|line| line.contains("TcpListener::bind(") && !is_for_tests) {
            assert!(line.contains("TcpListener::bind(possible(address))"), "{}: {line}", path.display());
        }
    }
}
