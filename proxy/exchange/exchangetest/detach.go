package exchangetest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"edge/proxy/exchange"
)

// source is the body of a reply that the test steers.
type source struct {
	ctx    context.Context //nolint:containedctx // a Source ends with the context of its exchange
	parts  chan string     // closed: the end
	fail   error           // instead of the end
	closed atomic.Int32
}

func (s *source) Read(p []byte) (int, error) {
	select {
	case part, ok := <-s.parts:
		if ok {
			if part == "panic" {
				panic("source is broken")
			}
			return copy(p, part), nil
		}
		if s.fail != nil {
			return 0, s.fail
		}
		return 0, io.EOF
	case <-s.ctx.Done():
		return 0, context.Cause(s.ctx)
	}
}

func (s *source) Trailer() exchange.Fields { return exchange.Fields{{Name: "x-sum", Value: "42"}} }

func (s *source) Close() error {
	s.closed.Add(1)
	return nil
}

// detached serves one source and reports when its handler has returned.
func detached(t *testing.T, start Start) (*running, *source, <-chan struct{}) {
	t.Helper()
	src := &source{parts: make(chan string)}
	returned := make(chan struct{})
	s := serve(t, start, func(e *exchange.Exchange) {
		src.ctx = e.Context()
		e.OnEnd(func(*exchange.Exchange) { expect(t, "source closed at the end", src.closed.Load(), 1) })
		expect(t, "detached", e.Detach(src), true)
		expect(t, "detached twice", e.Detach(src), false)
		close(returned)
	})
	return s, src, returned
}

func testDetach(t *testing.T, start Start) {
	t.Helper()
	s, src, returned := detached(t, start)
	res := s.open(t, s.request(t, http.MethodGet, "/", nil)) // the head comes before any event
	receive(t, returned, "the handler")
	buf := make([]byte, 64)
	for _, event := range []string{"data: a\n\n", "data: b\n\n", "data: c\n\n"} {
		src.parts <- event
		n, err := res.Body.Read(buf)
		expect(t, "event", string(buf[:n]), event)
		expect(t, "error", err, nil)
	}
	expect(t, "ended before the end", s.ended.Load(), 0)
	close(src.parts)
	if n, err := res.Body.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v, want EOF", n, err)
	}
	expect(t, "trailer", strings.Join(res.Trailer("X-Sum"), " "), "42")
	expect(t, "sent", s.end(t).sent, 27)
	expect(t, "closed", src.closed.Load(), 1)
}

func testDetachError(t *testing.T, start Start) {
	t.Helper()
	s, src, _ := detached(t, start)
	src.fail = errors.New("backend is gone")
	close(src.parts)
	s.breaks(t, s.request(t, http.MethodGet, "/", nil))
	expect(t, "cause", errors.Is(s.end(t).err, src.fail), true)
}

func testDetachPanic(t *testing.T, start Start) {
	t.Helper()
	s, src, _ := detached(t, start)
	go func() { src.parts <- "panic" }()
	s.breaks(t, s.request(t, http.MethodGet, "/", nil))
	if p, ok := errors.AsType[*exchange.PanicError](s.end(t).err); !ok || p.Value != "source is broken" {
		t.Errorf("Err is %v, want the panic", p)
	}
}

func testDetachClientLeaves(t *testing.T, start Start) {
	t.Helper()
	s, src, returned := detached(t, start)
	r := s.request(t, http.MethodGet, "/", nil)
	ctx, cancel := context.WithCancel(r.Context())
	res, err := s.Client.Do(r.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	receive(t, returned, "the handler")
	cancel()
	_ = res.Body.Close()
	expect(t, "cause", errors.Is(s.end(t).err, exchange.ErrClientGone), true)
	expect(t, "closed", src.closed.Load(), 1)
}
