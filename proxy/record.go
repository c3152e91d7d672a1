package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"time"

	"edge/proxy/exchange"
)

// Record is what there is to say of one request at its end: logs, metrics and
// traces are views of it. Nothing in it is secret: no query, no field, no body.
type Record struct {
	Start     time.Time
	Duration  time.Duration // to the last byte
	FirstByte time.Duration // to the head of the backend's reply; 0 when there was none

	Listener   string
	Peer       netip.AddrPort
	ServerName string
	Protocol   string // "HTTP/1.1", "HTTP/2.0"
	RequestID  string

	Method, Host, Path string
	Status             int    // 499: the client left before there was one
	Reason             Reason // "" when the backend's reply went through

	Route, Pool string // "" when refused before routing
	Endpoint    string // that answered
	Attempts    int
	Received    int64 // bytes of the request body
	Sent        int64 // bytes of the response body
	Err         error // internal cause, for the log only; may name addresses
}

// observe counts the request as active and tells Options.Observe about it at
// the end.
func observe(s *Server) exchange.Layer {
	return func(next exchange.Handler) exchange.Handler {
		return func(e *exchange.Exchange) {
			s.active.Add(1)
			e.OnEnd(s.ended)
			next(e)
		}
	}
}

func (s *Server) ended(e *exchange.Exchange) {
	if p, ok := errors.AsType[*exchange.PanicError](e.Err); ok { // past rescue: the pump, or an OnEnd function
		s.log.LogAttrs(context.Background(), slog.LevelError, "panic in a reply",
			slog.Any("panic", p.Value), slog.String("request_id", e.RequestID), slog.String("stack", string(p.Stack)))
	}
	if s.options.Observe != nil {
		r := newRecord(e)
		if s.drain.Err() != nil && (r.Reason == ClientLeft || r.Status == http.StatusSwitchingProtocols) {
			r.Reason = ShuttingDown // it was we who left
		}
		s.options.Observe(r)
	}
	if s.active.Add(-1) == 0 && s.isStopping() {
		select {
		case s.idle <- struct{}{}:
		default:
		}
	}
}

func newRecord(e *exchange.Exchange) *Record {
	r := &Record{
		Start: e.Start, Duration: time.Since(e.Start),
		Listener: e.Conn.Listener, Peer: e.Conn.Peer, ServerName: e.Conn.ServerName, Protocol: e.Conn.Protocol,
		RequestID: e.RequestID, Method: e.Method, Host: e.Host, Path: e.Path,
		Status: e.Status, Reason: Reason(e.Reason), Route: e.Route, Pool: e.Pool,
		Endpoint: e.Endpoint, Attempts: e.Attempts, Received: e.Received, Sent: e.Sent, Err: e.Err,
	}
	if !e.FirstByte.IsZero() {
		r.FirstByte = e.FirstByte.Sub(e.Start)
	}
	if r.Reason == "" && e.Err != nil {
		r.Reason = unexplained(e.Err)
	}
	return r
}

// unexplained is the reason of an end that no layer gave one for: the engine
// could not deliver the reply.
func unexplained(err error) Reason {
	if _, ok := errors.AsType[*exchange.PanicError](err); ok {
		return Internal
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ClientStalled
	case errors.Is(err, exchange.ErrLength):
		return UpstreamLost
	}
	return ClientLeft
}

// LogAttrs returns r as the attributes of a log line, the interesting ones
// first, without those that are empty.
func (r *Record) LogAttrs() []slog.Attr {
	attrs := []slog.Attr{
		slog.String("method", r.Method),
		slog.String("host", r.Host),
		slog.String("path", r.Path),
		slog.Int("status", r.Status),
		slog.Duration("duration", r.Duration),
	}
	if r.FirstByte > 0 {
		attrs = append(attrs, slog.Duration("first_byte", r.FirstByte))
	}
	for _, a := range []slog.Attr{
		slog.String("reason", string(r.Reason)),
		slog.String("route", r.Route),
		slog.String("pool", r.Pool),
		slog.String("endpoint", r.Endpoint),
		slog.String("server_name", r.ServerName),
	} {
		if a.Value.String() != "" {
			attrs = append(attrs, a)
		}
	}
	attrs = append(attrs,
		slog.Int("attempts", r.Attempts),
		slog.Int64("received", r.Received),
		slog.Int64("sent", r.Sent),
		slog.String("protocol", r.Protocol),
		slog.String("peer", r.Peer.String()),
		slog.String("listener", r.Listener),
		slog.String("request_id", r.RequestID),
	)
	if r.Err != nil {
		attrs = append(attrs, slog.Any("error", r.Err))
	}
	return attrs
}
