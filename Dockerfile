# syntax=docker/dockerfile:1
# A static binary on an empty image: CA roots, an unprivileged user, nothing else.
#
#   docker build -t edge .
#   docker run -p 443:443 -p 80:80 -e CLOUDFLARE_API_TOKEN \
#     -v ./routes.yaml:/etc/edge/routes.yaml:ro -v edge:/var/lib/edge edge
#
# The root may be read-only: what edge writes is in the two volumes. Docker lets
# any user bind ports below 1024; where the platform does not, set the sysctl
# net.ipv4.ip_unprivileged_port_start=0 for the container or pod, or listen on
# :8443 and :8080.
FROM golang:1.26.8-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=devel
RUN CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -ldflags "-s -w -X main.release=${VERSION}" -o /out/edge ./cmd/edge \
 && mkdir -m 0750 /out/empty

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build --chown=65532:65532 /out/empty /var/lib/edge
COPY --from=build --chown=65532:65532 /out/empty /run/edge
COPY --from=build /out/edge /usr/local/bin/edge
USER 65532:65532
ENV EDGE_CONFIG=/etc/edge/routes.yaml
VOLUME ["/var/lib/edge", "/run/edge"]
EXPOSE 80 443
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=90s CMD ["/usr/local/bin/edge", "status", "--ready"]
ENTRYPOINT ["/usr/local/bin/edge"]
CMD ["run"]
