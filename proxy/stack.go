package proxy

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"

	"edge/proxy/exchange"
)

// layers is what a request passes on its way to r's pool, outermost first.
// A layer does nothing after next returned: a reply that was handed on
// (exchange.Exchange.Detach) is still under way then. The order:
func (s *Server) layers(r *route) exchange.Handler {
	return stack(
		observe(s),  // first, so that the Record sees whatever the others do
		rescue(s),   // outside of all that can panic, inside of what reports it
		deadline(r), // before the body is touched: each wait for the client is bounded
		limit(r),    // last before forward: what is too large never takes an endpoint's slot
	)(forward(s, r))
}

// refusal ends requests that have no route. The reason is in the exchange. They
// pass the same outer layers, so that each leaves a Record.
func (s *Server) refusal() exchange.Handler {
	return stack(
		observe(s),
		rescue(s),
	)(func(e *exchange.Exchange) { fail(e, Reason(e.Reason), nil) })
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
