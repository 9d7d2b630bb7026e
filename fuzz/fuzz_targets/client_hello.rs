//! Our parse of a ClientHello never contradicts rustls's, and does not depend on how the bytes are split.

#![no_main]

use libfuzzer_sys::fuzz_target;
// `check` expects these at the paths where the sidecar has them.
use tidegate_sidecar::detect::client_hello::{
    Alpn, ClientHello, HANDSHAKE, MAJOR_VERSION, MESH_PROTOCOLS, Malformed,
};

#[path = "../../sidecar/src/detect/client_hello/check.rs"]
mod check;

fuzz_target!(|bytes: &[u8]| {
    // Each prefix is parsed from the start, so longer input would only be slower.
    if bytes.len() <= 4096 {
        check::check_against_rustls(bytes);
    }
});
