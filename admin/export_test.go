package admin

import "net/http"

// TelemetryHandler is what a Telemetry answers with at an address whose host is
// configured as host.
func TelemetryHandler(t *Telemetry, host string) http.Handler { return t.handler(host) }
