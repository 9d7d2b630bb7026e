//! Addresses that the sidecar listens on, and where their connections go.

use std::net::SocketAddr;

use super::Redirected;

/// An address to listen on, and where its connections go.
#[derive(Clone, Debug)]
pub(crate) enum Listener {
    /// Inbound, to a fixed port of the app.
    Fixed(InboundTarget),
    /// Inbound, to the port that the client dialled before the kernel redirected its connection.
    Redirected(Redirected),
    /// Outbound, to a fixed destination.
    FixedOutbound(FixedOutbound),
    /// Outbound, to the address that the app dialled before the kernel redirected its connection.
    RedirectedOutbound(Redirected),
}

/// An address that the app dials instead of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FixedOutbound {
    /// Address to listen on; port 0 lets the kernel choose.
    pub(crate) address: SocketAddr,
    /// The destination that stands behind it.
    pub(crate) destination: SocketAddr,
}

/// Direction of a connection, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the app.
    Inbound(InboundTarget),
    /// From the app, to this destination.
    Outbound(SocketAddr),
}

/// One port of the app, and the address at which its connections arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InboundTarget {
    /// Address that the client dialled. In a configuration: address to listen on; port 0 lets the kernel choose.
    pub(crate) address: SocketAddr,
    /// The pod's port, by which the policy is looked up.
    pub(crate) port: u16,
    /// Address at which the app listens.
    pub(crate) app: SocketAddr,
}

impl Listener {
    /// The address to listen on.
    pub(crate) fn address(&self) -> SocketAddr {
        match self {
            Self::Fixed(target) => target.address,
            Self::Redirected(redirected) | Self::RedirectedOutbound(redirected) => redirected.address,
            Self::FixedOutbound(outbound) => outbound.address,
        }
    }

    /// Whether it accepts the app's own connections.
    pub(crate) fn is_outbound(&self) -> bool {
        matches!(self, Self::FixedOutbound(_) | Self::RedirectedOutbound(_))
    }

    /// The listener with the address that was bound.
    pub(crate) fn at(mut self, address: SocketAddr) -> Self {
        match &mut self {
            Self::Fixed(target) => target.address = address,
            Self::Redirected(redirected) | Self::RedirectedOutbound(redirected) => {
                redirected.address = address;
            }
            Self::FixedOutbound(outbound) => outbound.address = address,
        }
        self
    }
}
