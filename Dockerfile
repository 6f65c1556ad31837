# Build: docker build -t realign .
# Run:   docker run -p 8080:8080 -v "$PWD/models:/data/models" -v "$PWD/policies:/data/policies" \
#            -v "$PWD/preferences:/data/preferences" -v realign-adapters:/data/adapters \
#            -v realign-state:/data/state -e REALIGN_SERVER__ADMIN_KEY realign
FROM rust:1-slim-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests tests
COPY README.md LICENSE ./
RUN cargo build --release --locked --bin realign

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin realign \
 && install -d -o realign -g realign /data /data/models /data/policies /data/preferences /data/adapters /data/state
COPY --from=build /src/target/release/realign /usr/local/bin/realign
# Inside a container, loopback would be out of reach.
ENV REALIGN_SERVER__HOST=0.0.0.0
USER realign
WORKDIR /data
VOLUME ["/data/models", "/data/policies", "/data/preferences", "/data/adapters", "/data/state"]
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD curl -fsS http://127.0.0.1:8080/ready || exit 1
STOPSIGNAL SIGTERM
ENTRYPOINT ["realign"]
CMD ["serve"]
