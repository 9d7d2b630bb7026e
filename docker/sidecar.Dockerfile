# docker build --file docker/sidecar.Dockerfile --tag tidegate/sidecar:0.1.0 .
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package tidegate-sidecar

FROM debian:12.12-slim
# For the interception step; both backends, because a node may use either.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends iptables \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/tidegate-sidecar /usr/local/bin/tidegate-sidecar
USER 1500:1500
ENTRYPOINT ["/usr/local/bin/tidegate-sidecar"]
