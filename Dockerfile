# Build: docker build -t realign .
# Run:   docker compose -f deploy/docker-compose.yml up, or see docs/operating.md
#
# The image runs as user 10001 and writes only to /data/adapters, /data/state, /data/cache and /tmp, so the root file
# system can be read-only. It computes on the CPU. The target `cuda` computes on an NVIDIA GPU:
#   docker build -t realign:cuda --target cuda --build-arg CAPABILITY=90 .
#   docker run --gpus all …

FROM rust:1-slim-bookworm AS sources
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests tests
COPY README.md LICENSE realign.example.toml ./

FROM sources AS build
RUN cargo build --release --locked --bin realign

FROM sources AS build-cuda
ARG CAPABILITY=90
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY scripts scripts
RUN scripts/build-cuda.sh "$CAPABILITY" && install -D target/release/realign /out/realign

# The CUDA libraries that the program loads at run time, from Python wheels. The driver's library,
# libcuda, comes from the host.
FROM debian:bookworm-slim AS cuda-libraries
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /venv \
 && /venv/bin/pip install --no-cache-dir --only-binary=:all: 'cuda-toolkit[nvrtc,cublas,curand]==13.0.2' \
 && install -d /libraries \
 && find /venv -path '*/nvidia/*/lib/*.so*' -exec cp -P {} /libraries/ ';'

FROM debian:bookworm-slim AS runtime
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin realign \
 && install -d -o realign -g realign /data /data/models /data/policies /data/preferences /data/adapters /data/state /data/cache
# Inside a container, a server on loopback would be unreachable from outside. It starts with a client key
# (REALIGN_SERVER__API_KEY, REALIGN_SERVER__API_KEYS_FILE) or with REALIGN_SERVER__OPEN=true, which lets
# everyone in.
ENV REALIGN_SERVER__HOST=0.0.0.0
# Packed weights, about as large as the model; containers that share this volume share their memory.
ENV REALIGN_ENGINE__WEIGHTS_CACHE=/data/cache
USER 10001:10001
WORKDIR /data
VOLUME ["/data/adapters", "/data/state", "/data/cache"]
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD curl -fsS http://127.0.0.1:8080/ready || exit 1
STOPSIGNAL SIGTERM
ENTRYPOINT ["realign"]
CMD ["serve"]

FROM runtime AS cuda
COPY --from=cuda-libraries /libraries /usr/local/lib/cuda
COPY --from=build-cuda /out/realign /usr/local/bin/realign
ENV CUDA_LIB_DIRS=/usr/local/lib/cuda LD_LIBRARY_PATH=/usr/local/lib/cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The last target is the default of a build without --target.
FROM runtime AS cpu
COPY --from=build /src/target/release/realign /usr/local/bin/realign
