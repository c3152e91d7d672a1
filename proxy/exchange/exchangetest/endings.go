package exchangetest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"edge/proxy/exchange"
)

func testOnEnd(t *testing.T, start Start) {
	t.Helper()
	var order strings.Builder
	returned := false
	s := serve(t, start, func(e *exchange.Exchange) {
		e.OnEnd(func(*exchange.Exchange) { order.WriteString("a") })
		e.OnEnd(func(*exchange.Exchange) { order.WriteString("b"); panic("one is broken") })
		e.OnEnd(func(e *exchange.Exchange) {
			expect(t, "handler returned before the end", returned, true)
			e.OnEnd(func(*exchange.Exchange) { order.WriteString("c") })
			e.Abort() // too late
		})
		write(t, e, "hello")
		returned = true
	})
	res, err := s.Client.Do(s.request(t, http.MethodGet, "/", nil))
	if err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	if p, ok := errors.AsType[*exchange.PanicError](s.end(t).err); !ok || p.Value != "one is broken" {
		t.Errorf("Err is %v, want the panic", p)
	}
	expect(t, "order", order.String(), "cba")
}

func testPanic(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		if e.Path == "/late" {
			write(t, e, "hello")
		}
		panic("broken")
	})
	for _, path := range []string{"/early", "/late"} {
		s.breaks(t, s.request(t, http.MethodPost, path, strings.NewReader("x")))
		if p, ok := errors.AsType[*exchange.PanicError](s.end(t).err); !ok || p.Value != "broken" {
			t.Errorf("Err is %v, want the panic", p)
		}
	}
}

func testAbort(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		ctx := e.Context()
		switch e.Path {
		case "/late":
			write(t, e, "hello")
		case "/declared":
			e.Reply.Set("content-length", "10")
			write(t, e, "hello")
		}
		e.Abort()
		e.Abort()
		expect(t, "cause", context.Cause(ctx), exchange.ErrAborted)
		if _, err := io.WriteString(e, "more"); !errors.Is(err, exchange.ErrAborted) {
			t.Errorf("write after Abort: %v, want ErrAborted", err)
		}
		if _, err := e.Read(make([]byte, 1)); !errors.Is(err, exchange.ErrAborted) {
			t.Errorf("read after Abort: %v, want ErrAborted", err)
		}
		expect(t, "detach after Abort", e.Detach(nil), false)
	})
	for _, path := range []string{"/early", "/late", "/declared"} {
		s.breaks(t, s.request(t, http.MethodPost, path, strings.NewReader("x")))
		s.end(t)
	}
}

// testAbortHTTP10 is about replies that end with the connection: only a reset
// tells a broken one.
func testAbortHTTP10(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		write(t, e, "hello")
		e.Abort()
	})
	w := s.dial(t, "GET / HTTP/1.0\r\n\r\n")
	if b, err := io.ReadAll(w.r); err == nil {
		t.Errorf("reply %q ended cleanly, want a reset", b)
	}
}

func testAbortFrees(t *testing.T, start Start) {
	t.Helper()
	stuck := make(chan *exchange.Exchange)
	s := serve(t, start, func(e *exchange.Exchange) {
		stuck <- e
		var err error
		if e.Path == "/read" {
			_, err = e.Read(make([]byte, 1))
		} else {
			err = flood(e)
		}
		if err == nil {
			t.Errorf("%s: no error, want one", e.Path)
		}
	})
	for _, path := range []string{"/read", "/write"} {
		body, client := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			res, err := s.Client.Do(s.request(t, http.MethodPost, path, body))
			if err == nil {
				defer func() { _ = res.Body.Close() }()
				<-t.Context().Done()
			}
		}()
		e := receive(t, stuck, "the handler")
		time.AfterFunc(100*time.Millisecond, e.Abort) // while it is in the call, most likely
		s.end(t)
		_ = client.Close()
		if path == "/read" {
			receive(t, done, "the client's error")
		}
	}
}

func testInterrupt(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		reads := make(chan error)
		ctx := e.Context()
		go func() {
			_, err := io.ReadAll(e)
			reads <- err
		}()
		write(t, e, "hello")
		e.Interrupt()
		if err := receive(t, reads, "the reader"); !errors.Is(err, exchange.ErrInterrupted) {
			t.Errorf("read: %v, want ErrInterrupted", err)
		}
		write(t, e, " world")
		stays(ctx, t)
	})
	body, client := io.Pipe()
	defer func() { _ = client.Close() }()
	go func() { _, _ = io.WriteString(client, "x") }()
	_, text := s.do(t, s.request(t, http.MethodPost, "/", body))
	expect(t, "reply", text, "hello world")
	s.end(t)
	// It still works at the end, for who must see the reader stop.
	s = serve(t, start, func(e *exchange.Exchange) {
		reads := make(chan error)
		go func() {
			_, err := io.ReadAll(e)
			reads <- err
		}()
		e.OnEnd(func(e *exchange.Exchange) {
			e.Interrupt()
			if err := receive(t, reads, "the reader"); err == nil {
				t.Error("the reader saw the end of the body, want an error")
			}
		})
		write(t, e, "hello")
	})
	body, second := io.Pipe()
	defer func() { _ = second.Close() }()
	_, text = s.do(t, s.request(t, http.MethodPost, "/", body))
	expect(t, "reply", text, "hello")
	// When the body has ended there is nothing to interrupt.
	s = serve(t, start, func(e *exchange.Exchange) {
		expect(t, "body", readAll(t, e), "x")
		e.Interrupt()
		write(t, e, "hello")
	})
	for range 2 {
		_, text = s.do(t, s.request(t, http.MethodPost, "/", strings.NewReader("x")))
		expect(t, "reply", text, "hello")
	}
}

// stays checks that the client is not taken for gone, nor a little later.
func stays(ctx context.Context, t *testing.T) {
	t.Helper()
	select {
	case <-ctx.Done():
		t.Errorf("the context ended: %v", context.Cause(ctx))
	case <-time.After(20 * time.Millisecond):
	}
}

// flood writes more than any buffer takes.
func flood(e *exchange.Exchange) error {
	part := make([]byte, 256<<10)
	for range 1024 {
		if _, err := e.Write(part); err != nil {
			return err
		}
		if err := e.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func testClientLeaves(t *testing.T, start Start) {
	t.Helper()
	arrived := make(chan struct{})
	left := make(chan time.Time, 1)
	s := serve(t, start, func(e *exchange.Exchange) {
		e.SetReadTimeout(30 * time.Millisecond) // ends with the body
		readAll(t, e)
		stays(e.Context(), t)
		stays(e.Context(), t)
		if e.Path == "/begun" {
			write(t, e, "hello")
		}
		arrived <- struct{}{}
		select {
		case <-e.Done():
			left <- time.Now()
			expect(t, "cause", context.Cause(e.Context()), exchange.ErrClientGone)
		case <-time.After(wait):
			t.Error("Done is open though the client left")
			left <- time.Now()
		}
	})
	for _, path := range []string{"/silent", "/begun"} {
		r := s.request(t, http.MethodPost, path, strings.NewReader("hello"))
		ctx, cancel := context.WithCancel(r.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if res, err := s.Client.Do(r.WithContext(ctx)); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		}()
		receive(t, arrived, "the handler")
		gone := time.Now()
		cancel()
		if d := receive(t, left, "Done").Sub(gone); d > time.Second {
			t.Errorf("noticed after %v, want within 1s", d)
		}
		receive(t, done, "the client")
		s.end(t)
	}
}

func testDoneAtEnd(t *testing.T, start Start) {
	t.Helper()
	contexts := make(chan context.Context, 1)
	s := serve(t, start, func(e *exchange.Exchange) {
		contexts <- e.Context()
		expect(t, "cause while it runs", e.Context().Err(), nil)
	})
	s.do(t, s.request(t, http.MethodGet, "/", nil))
	ctx := receive(t, contexts, "the context")
	receive(t, ctx.Done(), "Done")
	expect(t, "cause", context.Cause(ctx), exchange.ErrEnded)
}

func testReadTimeout(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		ctx := e.Context()
		e.SetReadTimeout(100 * time.Millisecond)
		b, err := io.ReadAll(e)
		expect(t, "body", string(b), "hel")
		stays(ctx, t)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read of a silent body: %v, want a deadline exceeded", err)
		}
		e.Status = http.StatusRequestTimeout
		e.Reply.Set("content-length", "4")
		_, _ = io.WriteString(e, "slow")
	})
	body, client := io.Pipe()
	defer func() { _ = client.Close() }()
	go func() { _, _ = io.WriteString(client, "hel") }()
	res, text := s.do(t, s.request(t, http.MethodPost, "/", body))
	expect(t, "status", res.StatusCode, http.StatusRequestTimeout)
	expect(t, "body", text, "slow")
	if s.Dial != nil {
		rest := s.dial(t, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel").rest(t)
		if !strings.Contains(strings.ToLower(rest), "connection: close") {
			t.Errorf("reply is %q, want Connection: close", rest)
		}
	}
}

func testWriteTimeout(t *testing.T, start Start) {
	t.Helper()
	s := serve(t, start, func(e *exchange.Exchange) {
		e.SetWriteTimeout(200 * time.Millisecond)
		if err := flood(e); err == nil {
			t.Error("a client that does not read took all")
		}
		receive(t, e.Done(), "Done")
	})
	res := s.open(t, s.request(t, http.MethodGet, "/", nil))
	if end := s.end(t); end.err == nil {
		t.Error("Err is nil, want the cause")
	}
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("the reply ended cleanly, want a broken one")
	}
}

// testSlowReader writes at once what the client takes a while to read.
func testSlowReader(t *testing.T, start Start) {
	t.Helper()
	const size = 16 << 20
	s := serve(t, start, func(e *exchange.Exchange) {
		e.SetWriteTimeout(500 * time.Millisecond)
		if n, err := e.Write(make([]byte, size)); n != size || err != nil {
			t.Errorf("wrote %d bytes: %v, want all", n, err)
		}
	})
	res := s.open(t, s.request(t, http.MethodGet, "/", nil))
	tick := time.NewTicker(75 * time.Millisecond)
	defer tick.Stop()
	total := int64(0)
	for total < size {
		<-tick.C
		n, err := io.CopyN(io.Discard, res.Body, 1<<20)
		if total += n; err != nil {
			t.Fatalf("after %d bytes: %v", total, err)
		}
	}
}
