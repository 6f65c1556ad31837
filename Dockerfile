# Build: docker build -t realign .
# Run:   docker compose -f deploy/docker-compose.yml up, or see docs/operating.md
#
# The image runs as user 10001 and writes to /data/adapters, /data/state and /tmp alone, so the root
# file system can be read-only. It computes on the CPU; there is no other backend yet.

FROM rust:1-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests tests
COPY README.md LICENSE realign.example.toml ./
RUN cargo build --release --locked --bin realign

FROM debian:bookworm-slim AS cpu
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin realign \
 && install -d -o realign -g realign /data /data/models /data/policies /data/preferences /data/adapters /data/state
COPY --from=build /src/target/release/realign /usr/local/bin/realign
# Inside a container, loopback would be out of reach.
ENV REALIGN_SERVER__HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME ["/data/adapters", "/data/state"]
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD curl -fsS http://127.0.0.1:8080/ready || exit 1
STOPSIGNAL SIGTERM
ENTRYPOINT ["realign"]
CMD ["serve"]
