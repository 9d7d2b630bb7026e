//! Our view of a ClientHello never contradicts rustls's, and however the bytes arrive it is the same.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    tidegate_sidecar::detect::client_hello::check_against_rustls(bytes);
});
