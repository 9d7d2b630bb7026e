//! Our view of a ClientHello never contradicts rustls's, and however the bytes arrive it is the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
// `check` finds these where it finds them in the sidecar itself.
use tidegate_sidecar::detect::client_hello::{
    Alpn, ClientHello, HANDSHAKE, MAJOR_VERSION, MESH_PROTOCOLS, Malformed,
};

#[path = "../../sidecar/src/detect/client_hello/check.rs"]
mod check;

fuzz_target!(|bytes: &[u8]| {
    // Each prefix is read anew: longer input would only be slower.
    if bytes.len() <= 4096 {
        check::check_against_rustls(bytes);
    }
});
