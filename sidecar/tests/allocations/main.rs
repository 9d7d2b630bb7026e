//! What a sidecar allocates: for a request on a keep-alive connection, and for what hostile clients hold open.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is a test, its helpers too")]

mod kept;
mod requests;
mod world;
