//! No input makes the CA's parser of certificate signing requests panic.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = tidegate_cert_manager::check_csr(bytes);
});
