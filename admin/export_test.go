package admin

import (
	"net/http"
	"time"
)

// TelemetryHandler is what a Telemetry answers with at an address whose host is
// configured as host.
func TelemetryHandler(t *Telemetry, host string) http.Handler { return t.handler(host) }

// Hasten shortens the waits of calls. Servers of tests are real, so their time is.
func (w *Webhook) Hasten(pause, timeout time.Duration) {
	w.sender.pause, w.sender.client.Timeout = pause, timeout
}

// Waiting is how many calls wait.
func (w *Webhook) Waiting() int { return len(w.queue) }
