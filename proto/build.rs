//! Generates the gRPC code with compilers written in Rust, so that `protoc` is not needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/istio_ca.proto", "proto/discovery.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
