//! The proof that connections are captured: one is made to an address that is nobody's, and comes in here.
//!
//! Not at the sidecar's port, which the sidecar may have already: the rule for the check is the one right before the rule
//! for everything else.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use tidegate_core::contract::ports;
use tidegate_runtime::listen;

use super::InterceptError;
use super::plan::Plan;
use super::rule::Family;
use crate::listener;

/// A connection that is captured does not leave the host.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How a family came off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Captured {
    /// This connection came in, with the destination that it was made to.
    Yes(SocketAddr),
    /// No connection of this family leaves the pod: there is nothing to capture.
    NoRoute(SocketAddr),
    /// The rules leave no address or port over that they would redirect.
    NothingToCapture,
}

/// Connects to an address and port that the rules redirect.
pub(super) fn check(plan: &Plan, family: Family) -> Result<Captured, InterceptError> {
    let Some(target) = plan.check_target(family) else { return Ok(Captured::NothingToCapture) };
    let address = listen::possible((Ipv6Addr::UNSPECIFIED, ports::CHECK).into());
    let busy = |source| InterceptError::CheckPort { port: ports::CHECK, source };
    let listener = listener::bind(address).map_err(busy)?;
    listener.set_nonblocking(false).map_err(busy)?;
    SockRef::from(&listener).set_read_timeout(Some(TIMEOUT)).map_err(busy)?;
    let not_captured = |problem: String| InterceptError::NotCaptured { target, user: own_user(), problem };
    let client = match TcpStream::connect_timeout(&target, TIMEOUT) {
        Ok(client) => client,
        Err(error) if is_unreachable(&error) => return Ok(Captured::NoRoute(target)),
        Err(error) => return Err(not_captured(error.to_string())),
    };
    let meant = client.local_addr().map_err(|error| not_captured(error.to_string()))?;
    loop {
        let (accepted, peer) = listener
            .accept()
            .map_err(|_| not_captured(format!("it did not come in at port {}", ports::CHECK)))?;
        // Another process of the pod may be faster.
        if (peer.ip().to_canonical(), peer.port()) != (meant.ip(), meant.port()) {
            continue;
        }
        let socket = SockRef::from(&accepted);
        let original = match family {
            Family::V4 => socket.original_dst_v4(),
            Family::V6 => socket.original_dst_v6(),
        };
        let original = original.map_err(|error| not_captured(format!("no original destination: {error}")))?;
        return match original.as_socket() {
            Some(original) if original == target => Ok(Captured::Yes(target)),
            other => Err(not_captured(format!("its original destination is {other:?}"))),
        };
    }
}

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
