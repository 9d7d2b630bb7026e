//! Linker options for releases that reduce resident memory: the functions that a sidecar runs are placed side by side
//! (`bench/layout` lists them), and relocations are packed (supported by glibc since 2.36).

use std::{env, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=hot.ld");
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let is_linux = env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux");
    if is_release && is_linux {
        let folder = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", Path::new(&folder).join("hot.ld").display());
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
