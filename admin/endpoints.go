package admin

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

const (
	maxCostly  = 4   // replies at once that look at every certificate
	maxReasons = 100 // lines of /readyz
)

// handler answers on a telemetry address whose host is configured as host.
func (t *Telemetry) handler(host string) http.Handler {
	costly := make(chan struct{}, maxCostly)
	mux := http.NewServeMux()
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "ok") })
	mux.HandleFunc("/readyz", t.ready)
	mux.Handle("/metrics", few(costly, t.metrics.handler()))
	mux.Handle("/v1/status", few(costly, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, t.options.Status())
	})))
	return guard(host, mux)
}

// guard lets in what reads, by a name that is ours. A page in an operator's
// browser can have its own name resolve to our address (DNS rebinding) and read
// what we answer; the Host field then still has that name. Addresses cannot be
// rebound, and no browser leaves the field out, as checks of load balancers do.
func guard(host string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		switch {
		case !ours(r.Host, host):
			text(w, http.StatusMisdirectedRequest, "ask by IP address, or by the name in telemetry.address")
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			text(w, http.StatusMethodNotAllowed, "read only")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// ours reports whether a Host field may stand for an endpoint that is configured
// as host.
func ours(field, host string) bool {
	name := field
	if h, _, err := net.SplitHostPort(field); err == nil {
		name = h
	}
	name = strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(name, "["), "]"), ".")
	if _, err := netip.ParseAddr(name); err == nil || field == "" {
		return true
	}
	return name != "" && (strings.EqualFold(name, "localhost") || strings.EqualFold(name, strings.TrimSuffix(host, ".")))
}

// few bounds how many replies are made at once.
func few(slots chan struct{}, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("Retry-After", "1")
			text(w, http.StatusServiceUnavailable, "too many at once")
		}
	})
}

// ready says whether to send requests here, and if not, why.
func (t *Telemetry) ready(w http.ResponseWriter, _ *http.Request) {
	r := t.options.Ready()
	if r.Ready {
		text(w, http.StatusOK, "ready")
		return
	}
	reasons := append([]string{"not ready"}, r.Reasons...)
	if extra := len(r.Reasons) - maxReasons; extra > 0 {
		reasons = append(reasons[:1+maxReasons], fmt.Sprintf("and %d more", extra))
	}
	text(w, http.StatusServiceUnavailable, strings.Join(reasons, "\n"))
}

func text(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(body + "\n")) // the client may be gone
}
