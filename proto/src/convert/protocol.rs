//! Protocols of apps and backends.
//!
//! Their numbers are the wire contract. Value 0 is reserved for "unspecified" by proto3 and refused, as is every
//! number that this version does not define: guessing a protocol would parse opaque bytes as HTTP, or pass HTTP on
//! without its authorization.

use tidegate_core::backend::BackendProtocol;
use tidegate_core::policy::AppProtocol;

use super::{ConversionError, bad};
use crate::discovery as wire;

/// What an app speaks on one of its ports, as its Service declares it.
pub(super) fn app_protocol_to_wire(protocol: AppProtocol) -> wire::AppProtocol {
    match protocol {
        AppProtocol::Http => wire::AppProtocol::Http,
        AppProtocol::Undeclared => wire::AppProtocol::Undeclared,
        AppProtocol::H2c => wire::AppProtocol::H2c,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::TcpServerFirst => wire::AppProtocol::TcpServerFirst,
    }
}

/// `protocol` is the raw number, because proto3 decodes an unknown one without an error.
pub(super) fn app_protocol_from_wire(path: &str, protocol: i32) -> Result<AppProtocol, ConversionError> {
    match wire::AppProtocol::try_from(protocol) {
        Ok(wire::AppProtocol::Http) => Ok(AppProtocol::Http),
        Ok(wire::AppProtocol::Undeclared) => Ok(AppProtocol::Undeclared),
        Ok(wire::AppProtocol::H2c) => Ok(AppProtocol::H2c),
        Ok(wire::AppProtocol::Tcp) => Ok(AppProtocol::Tcp),
        Ok(wire::AppProtocol::TcpServerFirst) => Ok(AppProtocol::TcpServerFirst),
        Ok(wire::AppProtocol::Unspecified) | Err(_) => Err(unknown(path, protocol)),
    }
}

/// What is spoken to a backend's endpoints, which may differ from what the client speaks.
pub(super) fn backend_protocol_to_wire(protocol: BackendProtocol) -> wire::BackendProtocol {
    match protocol {
        BackendProtocol::Http => wire::BackendProtocol::Http,
        BackendProtocol::Http1 => wire::BackendProtocol::Http1,
        BackendProtocol::Http2 => wire::BackendProtocol::Http2,
        BackendProtocol::Tcp => wire::BackendProtocol::Tcp,
    }
}

pub(super) fn backend_protocol_from_wire(
    path: &str,
    protocol: i32,
) -> Result<BackendProtocol, ConversionError> {
    match wire::BackendProtocol::try_from(protocol) {
        Ok(wire::BackendProtocol::Http) => Ok(BackendProtocol::Http),
        Ok(wire::BackendProtocol::Http1) => Ok(BackendProtocol::Http1),
        Ok(wire::BackendProtocol::Http2) => Ok(BackendProtocol::Http2),
        Ok(wire::BackendProtocol::Tcp) => Ok(BackendProtocol::Tcp),
        Ok(wire::BackendProtocol::Unspecified) | Err(_) => Err(unknown(path, protocol)),
    }
}

fn unknown(path: &str, value: i32) -> ConversionError {
    bad(path, format!("unknown value {value}"))
}
