//! No bytes make the reader of first bytes panic, and whether they come at once or byte by byte makes no difference.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;
use tidegate_sidecar::detect::{FirstBytes, first_bytes};

fuzz_target!(|bytes: &[u8]| {
    let whole = first_bytes(bytes);
    for cut in 0..bytes.len().min(2048) {
        match first_bytes(&bytes[..cut]) {
            FirstBytes::Incomplete => {}
            // What is known early stays true.
            early => assert_eq!(early, whole, "after {cut} bytes"),
        }
    }
    let FirstBytes::Tls(hello) = whole else { return };
    let mut acceptor = Acceptor::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello();
                let ours = hello.server_name.as_ref().map(|name| name.as_str().to_owned());
                let theirs_name = theirs.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase());
                assert_eq!(ours, theirs_name);
                return;
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
});
