# docker build --file docker/controller.Dockerfile --tag tidegate/controller:0.1.0 .
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release --package tidegate-controller

FROM debian:12.12-slim
COPY --from=build /src/target/release/tidegate-controller /usr/local/bin/tidegate-controller
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/tidegate-controller"]
