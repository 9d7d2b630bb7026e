# docker build --file docker/cert-manager.Dockerfile --tag tidegate/cert-manager:0.1.0 .
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package tidegate-cert-manager

FROM debian:12.12-slim
COPY --from=build /src/target/release/tidegate-cert-manager /usr/local/bin/tidegate-cert-manager
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/tidegate-cert-manager"]
