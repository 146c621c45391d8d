# Built with the Rust toolchain, run on plain Debian. The pocket model is inside the binary.
#   docker build -t retune .
#   docker run --rm --read-only --tmpfs /tmp --network host -v retune-data:/data retune
# Without configured keys Retune listens on loopback only, hence the host's network above; deploy/compose has keys, and all that belongs beside it.
FROM rust:1.95-bookworm AS chef
RUN cargo install cargo-chef --version ^0.1.70 --locked
WORKDIR /src

# What the dependencies are, and nothing of the sources: as long as that stays, so does the layer with the dependencies built.
FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path /recipe.json

FROM chef AS build
# An image travels between machines: x86-64-v3 rather than the builder's own CPU (.cargo/config.toml). On ARM: --build-arg RUSTFLAGS=""
ARG RUSTFLAGS="-C target-cpu=x86-64-v3"
COPY --from=plan /recipe.json /recipe.json
RUN cargo chef cook --release --locked --bin retune --recipe-path /recipe.json
COPY . .
RUN cargo build --release --locked --bin retune

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 retune && useradd --no-create-home --home-dir /data --uid 10001 --gid retune retune \
    && install -d -o retune -g retune /data
COPY --from=build /src/target/release/retune /usr/local/bin/retune
# All that Retune writes is in the volume: the store, the pocket model unpacked, what comes from Hugging Face. And in /tmp questions that outgrow their
# memory. So the root file system can be read-only.
ENV XDG_CACHE_HOME=/data/cache HF_HOME=/data/huggingface
# By number: Kubernetes' runAsNonRoot cannot look names up.
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 8080
STOPSIGNAL SIGTERM
# There is no curl in the image. HEALTH_PORT: the port of server.ops_listen where it is set. Loading a large base may take minutes.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=2s CMD ["bash", "-c", \
    "exec 3<>/dev/tcp/127.0.0.1/${HEALTH_PORT:-8080} && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *' 200 '* ]]"]
ENTRYPOINT ["retune"]
CMD ["up"]
