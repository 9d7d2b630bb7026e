//! Where connections come in, and where each goes.

use std::net::SocketAddr;

use super::Redirected;

/// An address to listen on, and where its connections go.
#[derive(Clone, Debug)]
pub enum Listener {
    /// To one port of the app.
    Fixed(InboundTarget),
    /// To the port that the client dialled before the kernel redirected its connection here.
    Redirected(Redirected),
    /// Out, to one destination.
    FixedOutbound(FixedOutbound),
    /// Out, to what the app dialled before the kernel redirected its connection here.
    RedirectedOutbound(Redirected),
}

/// Where the app connects instead of to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedOutbound {
    /// Where to listen; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// What the app is taken to have dialled.
    pub destination: SocketAddr,
}

/// The direction of a connection, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the app.
    Inbound(InboundTarget),
    /// From the app, to this destination.
    Outbound(SocketAddr),
}

/// One port of the app, and where connections for it come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundTarget {
    /// What the client dialled. Before there are connections: where to listen; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// The pod's port, by which the policy is looked up.
    pub port: u16,
    /// Where the app listens.
    pub app: SocketAddr,
}

impl Listener {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Fixed(target) => target.address,
            Self::Redirected(redirected) | Self::RedirectedOutbound(redirected) => redirected.address,
            Self::FixedOutbound(outbound) => outbound.address,
        }
    }

    /// Whether it is for what the app itself dials.
    pub(crate) fn is_outbound(&self) -> bool {
        matches!(self, Self::FixedOutbound(_) | Self::RedirectedOutbound(_))
    }

    /// The same with the address that was bound.
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
