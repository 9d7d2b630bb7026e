//! gRPC between processes: TLS underneath tonic, with certificates that change while connections live.
//!
//! [`server_stream`] is what a server serves from; each call's extensions hold the [`Peer`] that made it.
//! [`channel`] is what a client calls through. Both take the TLS configuration of the moment for each connection, so
//! a renewed certificate needs no restart.

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
    Connection, HANDSHAKE_TIMEOUT, IncomingConnections, Peer, RefusedConnections, ServerStream, server_stream,
};

#[cfg(test)]
mod tests;
