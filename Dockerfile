# Two stages: build with the Rust toolchain, run on plain Debian. The pocket model is inside the binary.
#   docker build -t retune .
#   docker run --rm --network host -v retune-data:/data retune
# Without configured keys Retune listens on loopback only, hence the host's network above.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# An image travels between machines: x86-64-v3 rather than the builder's own CPU (.cargo/config.toml).
ARG RUSTFLAGS="-C target-cpu=x86-64-v3"
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/target \
    CARGO_TARGET_DIR=/target cargo build --release --locked --bin retune && cp /target/release/retune /retune

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --uid 10001 retune && mkdir /data && chown retune /data
COPY --from=build /retune /usr/local/bin/retune
USER retune
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["retune"]
CMD ["up"]
