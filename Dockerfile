# The image of one node: docker build -t kvstore .
#
# Runs as uid 10001, needs nothing but /data and a port, and works on a read-only root file system. BUILDER_IMAGE needs a `cargo`, RUNTIME_IMAGE
# a shell, coreutils and the C library of the builder.
ARG BUILDER_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=debian:bookworm-slim

FROM ${BUILDER_IMAGE} AS builder
WORKDIR /build
# The dependencies first, with an empty crate: they are compiled again only when these files change.
COPY Cargo.toml Cargo.lock build.rs ./
COPY build build
COPY proto proto
RUN mkdir -p src benches/table \
 && touch src/lib.rs benches/wal.rs benches/table/main.rs \
 && echo 'fn main() {}' >src/main.rs \
 && cargo build --release --locked --bin kvstore
COPY src src
# The files keep their times, which may be older than the empty crate; cargo would take that for the present one.
RUN touch src/lib.rs src/main.rs \
 && cargo build --release --locked --bin kvstore

FROM ${RUNTIME_IMAGE}
# A volume takes owner and mode from the directory that it is first mounted on. /run/kvstore is where docker-compose.yml puts the secret of the
# cluster.
RUN echo 'kvstore:x:10001:10001::/nonexistent:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'kvstore:x:10001:' >>/etc/group \
 && install -d -o 10001 -g 10001 -m 0700 /data /run/kvstore
COPY --from=builder /build/target/release/kvstore /usr/local/bin/kvstore
# Inside a container loopback reaches nobody else; what is published decides who gets in.
ENV SERVER_ADDRESS=0.0.0.0 KVSTORE_STORAGE_DATADIR=/data
# Where an application.yml is looked for.
WORKDIR /etc/kvstore
USER 10001:10001
VOLUME /data
EXPOSE 8080 9090
# Drains, flushes and exits with 0 (kvstore.shutdown.timeout: 20s): stop it with `docker stop --time 40`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["kvstore", "health", "--timeout", "3s"]
ENTRYPOINT ["kvstore"]
CMD ["serve"]
