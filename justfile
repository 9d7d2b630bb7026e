# Common tasks of contributors. The README's two commands work without this file.

# List the recipes.
default:
    @just --list

# The README's first command.
demo:
    cargo run -- demo

# The README's second command: everything that CI runs.
test:
    tests/run

# A real Kubernetes on this machine, as root: `just cluster up`, `just cluster down`, `just cluster status`.
cluster *arguments:
    tests/cluster/cluster {{arguments}}

# Format, lint, dependency rules.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo fetch --locked --quiet
    cargo deny --offline check bans licenses sources

# Regenerate golden files; read the diff before you commit it.
golden:
    TIDEGATE_WRITE_GOLDEN=1 cargo test -q -p tidegate --lib every_limit_of_the_sidecar
    cargo run -p tidegate-crds --example crdgen crds/yaml
    TIDEGATE_WRITE_GOLDEN=1 cargo test -q -p tidegate-injector --lib every_pod_of_the_table
    cargo run -p tidegate-crds --example crdgen charts/tidegate-crds/files
    TIDEGATE_WRITE_GOLDEN=1 cargo test -p tidegate-tests --test chart

# Fuzz one target for a while: `just fuzz client_hello 600`.
fuzz target="" seconds="300":
    fuzz/run {{target}} {{seconds}}

# Measure the sidecar against other proxies, alone and in pairs, and write bench/README.md's tables.
bench:
    bench/setup.sh
    cargo build --release --workspace
    cargo build --release --package tidegate-sidecar
    "${CARGO_TARGET_DIR:-target}"/release/tidegate-bench run --write-readme
    "${CARGO_TARGET_DIR:-target}"/release/tidegate-bench run --topology pair --extended --write-readme
    "${CARGO_TARGET_DIR:-target}"/release/tidegate-bench run --topology egress --write-readme

# Regenerate sidecar/hot.ld, which makes the linker place the functions that a sidecar runs side by side; as root, some minutes.
layout:
    bench/layout

# Measure on a dedicated Kubernetes, as root, and write bench/README.md's tables; about 20 minutes.
bench-cluster *arguments:
    cargo build --release --workspace
    cargo build --release --package tidegate-sidecar
    "${CARGO_TARGET_DIR:-target}"/release/tidegate-bench cluster --write-readme {{arguments}}
