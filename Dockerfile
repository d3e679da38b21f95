# syntax=docker/dockerfile:1
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package edd-gateway

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libcap2-bin \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/edd --create-home edd \
    && mkdir -p /etc/edd/certs
COPY --from=build /src/target/release/edd-gateway /usr/local/bin/edd-gateway
# The capability lets an ordinary user bind 443, 80 and 22.
RUN setcap cap_net_bind_service=+ep /usr/local/bin/edd-gateway \
    && apt-get purge --yes --auto-remove libcap2-bin
COPY routes.yaml /etc/edd/routes.yaml
# By number: Kubernetes must see that it is not root.
USER 10001
WORKDIR /var/lib/edd
ENV EDD_GATEWAY_ROUTES=/etc/edd/routes.yaml \
    EDD_GATEWAY_CERTS_DIR=/etc/edd/certs \
    EDD_GATEWAY_STATE_DIR=/var/lib/edd \
    DATABASE_URL=sqlite:///var/lib/edd/gateway.db \
    EDD_GATEWAY_HTTP_ADDR=0.0.0.0:80 \
    EDD_GATEWAY_HTTPS_ADDR=0.0.0.0:443 \
    EDD_GATEWAY_SSH_ADDR=0.0.0.0:22
EXPOSE 80 443 22 8000-8100
VOLUME /var/lib/edd
ENTRYPOINT ["edd-gateway"]
