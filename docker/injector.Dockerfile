# docker build --file docker/injector.Dockerfile --tag tidegate/injector:0.1.0 .
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package tidegate-injector

FROM debian:12.12-slim
COPY --from=build /src/target/release/tidegate-injector /usr/local/bin/tidegate-injector
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/tidegate-injector"]
