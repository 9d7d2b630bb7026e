//! hyper parses the same requests as our parser; where ours is stricter, the reason is on the list.

#![no_main]

use libfuzzer_sys::fuzz_target;
// `against_hyper` expects these at the paths where the sidecar has them.
use tidegate_sidecar::{http, limits};

#[path = "../../sidecar/src/http/h1/tests/against_hyper.rs"]
mod against_hyper;

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    if let Err(difference) = runtime.block_on(against_hyper::compare(bytes)) {
        panic!("{difference}");
    }
});
