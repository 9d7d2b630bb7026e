//! Verifies that connections are captured: opens one to an unassigned address and accepts it here.
//!
//! The check does not use the sidecar's port, on which the sidecar may already listen. Its rule is placed directly
//! before the rule for all other connections.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use tidegate_core::contract::ports;
use tidegate_runtime::listen;

use super::InterceptError;
use super::plan::Plan;
use super::rule::IpFamily;
use crate::listener;

/// A captured connection does not leave the host.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Outcome of the check for one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Captured {
    /// The connection came in with this original destination.
    Yes(SocketAddr),
    /// The pod has no route for this family: there is nothing to capture.
    NoRoute(SocketAddr),
    /// The rules redirect no address or port at all.
    NothingToCapture,
}

/// Connects to an address and port that the rules redirect.
pub(super) fn check(plan: &Plan, family: IpFamily) -> Result<Captured, InterceptError> {
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
    let expected = client.local_addr().map_err(|error| not_captured(error.to_string()))?;
    loop {
        let (accepted, peer) = listener
            .accept()
            .map_err(|_| not_captured(format!("it did not come in at port {}", ports::CHECK)))?;
        // Ignore connections of other processes in the pod.
        if (peer.ip().to_canonical(), peer.port()) != (expected.ip(), expected.port()) {
            continue;
        }
        let socket = SockRef::from(&accepted);
        let original = match family {
            IpFamily::V4 => socket.original_dst_v4(),
            IpFamily::V6 => socket.original_dst_v6(),
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

/// This process's user, for the error: connections of the sidecar's own user are not redirected.
fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}
