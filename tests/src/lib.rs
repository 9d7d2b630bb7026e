//! The harness of the end-to-end suites: real programs over loopback, seen from outside.
//!
//! A suite starts a [`mesh::Mesh`] (CA, controller and sidecars as processes, objects in a folder), puts an [`app`]
//! behind a sidecar, and acts as a client: [`client`] byte by byte, [`openssl`] and [`nginx`] as users do, [`load`]
//! continuously while something changes. The daemons' code is not linked in. [`standalone::StandaloneProcess`] is the whole
//! mesh in one process. Start reading at [`mesh`].
//!
//! [`kubernetes`] does the same on a real cluster, [`walkthrough`] runs pages of the documentation there.
//!
//! Every test has its own [loopback addresses](loopback) and folder, so tests run in parallel. Tests do not sleep:
//! [`wait::until`] waits for a condition. When a test fails, its daemons' logs are printed.

// The harness is part of the tests: a panic here fails one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod app;
pub mod authorizer;
pub mod caller;
pub mod capture;
pub mod client;
pub mod daemon;
pub mod dns;
pub mod files;
pub mod go;
pub mod golden;
pub mod helm;
pub mod http1;
pub mod http2;
pub mod kubernetes;
pub mod limits;
pub mod load;
pub mod loopback;
pub mod mesh;
pub mod mitmproxy;
pub mod modules;
pub mod netns;
pub mod nginx;
pub mod objects;
pub mod openssl;
pub mod outside;
pub mod pki;
pub mod process;
pub mod prometheus;
pub mod proxied_pod;
pub mod rate_limiter;
pub mod squid;
pub mod standalone;
pub mod tokens;
pub mod wait;
pub mod walkthrough;
pub mod webhook;
