#!/bin/sh
# Start the proxy named by $1, with the binary $2 if there is one, and with the
# lab's settings, which arrive in the environment: LISTEN PORT BACKEND H2C CERTS
# TMP WORKERS LAB.
set -eu
binary=${2:-}
conf=$LAB/peers/conf
fill() { # fill TEMPLATE OUTPUT
	sed -e "s|@LISTEN@|$LISTEN|g; s|@HOST@|${LISTEN%:*}|g; s|@PORT@|$PORT|g; s|@BACKEND@|$BACKEND|g; s|@H2C@|$H2C|g" \
		-e "s|@CERTS@|$CERTS|g; s|@TMP@|$TMP|g; s|@WORKERS@|$WORKERS|g; s|@SSLBUF@|${SSLBUF:-16k}|g; s|@PROXYBUF@|${PROXYBUF:-8k}|g; s|@FAST@|${FAST:-}|g; s|@ACCESS@|${ACCESS:-false}|g" \
		"$conf/$1" >"$2"
}
case $1 in
nginx | nginx-bulk)
	[ "$1" = nginx ] || PROXYBUF=64k
	fill nginx.conf.in "$TMP/nginx.conf"
	exec "${binary:-nginx}" -c "$TMP/nginx.conf" -p "$TMP"
	;;
haproxy)
	fill haproxy.cfg.in "$TMP/haproxy.cfg"
	exec "${binary:-haproxy}" -db -q -f "$TMP/haproxy.cfg"
	;;
h2o)
	fill h2o.conf.in "$TMP/h2o.conf"
	exec "${binary:-h2o}" -c "$TMP/h2o.conf"
	;;
caddy)
	fill caddy.json.in "$TMP/caddy.json"
	export XDG_DATA_HOME="$TMP" XDG_CONFIG_HOME="$TMP"
	exec "${binary:-${CADDY:-$LAB/peers/bin/caddy}}" run --config "$TMP/caddy.json"
	;;
traefik | traefik-fast)
	[ "$1" = traefik ] || FAST="experimental: {fastProxy: {}}"
	fill traefik.yml.in "$TMP/traefik.yml"
	fill traefik-dynamic.yml.in "$TMP/dynamic.yml"
	exec "${binary:-$LAB/peers/bin/traefik}" --configfile="$TMP/traefik.yml"
	;;
edge | edge-logged) # its log says more than the peers', which are quiet
	[ "$1" = edge ] || ACCESS=true
	fill edge.yaml.in "$TMP/routes.yaml"
	binary=${binary:-${EDGE:-$LAB/bin/edge}}
	"$binary" validate -c "$TMP/routes.yaml" >/dev/null
	exec "$binary" run -c "$TMP/routes.yaml" 2>"$TMP/log"
	;;
std) exec "${binary:-$LAB/bin/std}" -listen "$LISTEN" -backend "$BACKEND" -h2c "$H2C" -certs "$CERTS" ;;
*)
	echo "unknown proxy $1" >&2
	exit 2
	;;
esac
