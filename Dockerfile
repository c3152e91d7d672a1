# syntax=docker/dockerfile:1
# A static binary on an empty image: CA roots, an unprivileged user, nothing else.
#
#   docker build -t edge .
#   docker run -p 443:8443 -p 80:8080 -v ./routes.yaml:/etc/edge/routes.yaml:ro -v edge:/var/lib/edge edge
#
# The user may not bind ports below 1024 everywhere: either listen on 8443 and
# 8080 as above, or run with --sysctl net.ipv4.ip_unprivileged_port_start=0,
# which Docker and Kubernetes set by default since 2021.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
RUN CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags "-s -w -X main.release=${VERSION}" -o /out/edge ./cmd/edge \
 && mkdir -p /out/root/var/lib/edge /out/root/run/edge /out/root/etc/edge /out/root/tmp \
 && cp routes.yaml /out/root/etc/edge/routes.yaml

FROM debian:bookworm-slim AS roots
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates

FROM scratch
COPY --from=roots /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=65532:65532 --chmod=0750 /out/root/ /
COPY --from=build /out/edge /usr/local/bin/edge
USER 65532:65532
ENV EDGE_CONFIG=/etc/edge/routes.yaml
VOLUME /var/lib/edge
EXPOSE 80 443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=90s CMD ["/usr/local/bin/edge", "status", "--ready"]
ENTRYPOINT ["/usr/local/bin/edge"]
CMD ["run"]
