//! What a sidecar allocates: for a request on a connection that is kept alive, and for what hostile clients keep open.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is a test, its helpers too")]

mod kept;
mod requests;
mod world;
