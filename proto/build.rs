//! Generates the gRPC code with compilers written in Rust, so that `protoc` is not needed.
//!
//! The `.proto` files are compiled by protox and prost; their comments are the contract of the services, and the
//! generated modules are included by `src/lib.rs` without documentation of their own.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/istio_ca.proto",
        "proto/discovery.proto",
        "proto/otlp.proto",
        "proto/external_authorization.proto",
        "proto/rate_limit.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
