package proxy

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"

	"edge/proxy/exchange"
)

// The layers that a request passes, outermost first. A layer does nothing after
// next returned: a reply that was handed on (exchange.Exchange.Detach) is still
// under way then. The reasons for the order stand behind each.

// entry is what every request on a TLS listener passes, refused ones too.
func (s *Server) entry() exchange.Handler {
	return stack(
		observe(s), // first, so that there is one Record whatever the others do
		rescue(s),  // around everything that can panic, inside of what reports it
	)(s.dispatch) // admits the request and finds its route, whose layers are:
}

// layers is what the requests of r pass between dispatch and its pool.
func layers(s *Server, r *route) exchange.Handler {
	return stack(
		deadline(r), // before anything touches the body: each wait for the client is bounded
		limit(r),    // last before forward: what is too large never takes an endpoint's slot
	)(forward(s, r))
}

// stack nests layers, the first outermost.
func stack(layers ...exchange.Layer) exchange.Layer {
	return func(h exchange.Handler) exchange.Handler {
		for _, layer := range slices.Backward(layers) {
			h = layer(h)
		}
		return h
	}
}

// rescue turns a panic into a 500, or into a broken reply once bytes are out.
// It is the one layer that does something after next.
func rescue(s *Server) exchange.Layer {
	return func(next exchange.Handler) exchange.Handler {
		return func(e *exchange.Exchange) {
			defer func() {
				p := recover()
				if p == nil {
					return
				}
				if p == http.ErrAbortHandler { //nolint:errorlint // a panic value, compared as net/http does
					panic(p)
				}
				s.log.LogAttrs(e.Context(), slog.LevelError, "panic in a handler",
					slog.Any("panic", p), slog.String("request_id", e.RequestID), slog.String("stack", string(debug.Stack())))
				fail(e, Internal, fmt.Errorf("panic: %v", p))
			}()
			next(e)
		}
	}
}
