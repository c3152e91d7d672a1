#!/bin/sh
# Compare TLS reverse proxies: see README.md.
#
#	lab/bench/bench.sh [flags] NAME|NAME=KNOWN:BINARY|NAME=COMMAND ...
set -eu
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$here/certs/rsa.pem" ] || "$here/certs.sh"
build() { # build NAME PACKAGE: as the release is built, but for the symbols, which perf needs to name functions
	(cd "$here" && CGO_ENABLED=0 go build -trimpath -tags grpcnotrace -o "bin/$1" "$2")
}
build bench .
build loadgen ./loadgen
build modelsim ./modelsim
build std ./std
case " $* " in
*" edge "* | *" edge-logged "*) [ -n "${EDGE:-}" ] || build edge ../../cmd/edge ;;
esac
ulimit -n "$(ulimit -Hn)"
exec "$here/bin/bench" -root "$here" "$@"
