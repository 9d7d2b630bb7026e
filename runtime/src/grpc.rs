//! gRPC between processes: tonic over TLS, with certificates that change while connections live.
//!
//! [`server_stream`] accepts a server's connections; each call's extensions hold the calling [`Peer`]. [`channel`] is
//! the client's side. Both take the current TLS configuration for each connection, so a renewed certificate needs no
//! restart.

mod client;
mod config;
mod intake;
mod places;
mod server;

pub use client::{Address, AddressError, channel};
pub use config::{ClientCertificates, ConfigError, client_config, server_config};
pub use intake::IntakeLimits;
pub use places::ConnectionLimits;
pub use server::{
    AcceptedConnection, HANDSHAKE_TIMEOUT, IncomingConnections, Peer, RefusedConnections, ServerStream,
    server_stream,
};

#[cfg(test)]
mod tests;
