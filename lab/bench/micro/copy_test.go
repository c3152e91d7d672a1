package micro

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"edge/proxy/exchange"
)

// source is a reply of n reads of size bytes.
type source struct{ n, size int }

func (s *source) Read([]byte) (int, error) {
	if s.n--; s.n < 0 {
		return 0, io.EOF
	}
	return s.size, nil
}

func (*source) Trailer() exchange.Fields { return nil }
func (*source) Close() error             { return nil }

// client takes a reply and counts.
type client struct {
	header         http.Header
	bytes, flushes int
}

func (c *client) Header() http.Header         { return c.header }
func (c *client) WriteHeader(int)             {}
func (c *client) Flush()                      { c.flushes++ }
func (c *client) Write(p []byte) (int, error) { c.bytes += len(p); return len(p), nil }

// copying returns a client and a function that sends it s, through an exchange
// without layers.
func copying(s source) (to *client, send func()) {
	to = &client{header: http.Header{}}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	h := exchange.ToHTTP(func(e *exchange.Exchange) {
		e.Status = http.StatusOK
		from := s
		_ = exchange.Pump(e, &from)
	}, nil)
	return to, func() { h.ServeHTTP(to, r) }
}

// BenchmarkCopy is the way of a reply's body through an exchange, without a
// network: 100 events of 200 B, and a MiB in reads of 32 KiB. The exchange
// itself is in it, once.
func BenchmarkCopy(b *testing.B) {
	for name, s := range map[string]source{"events": {100, 200}, "blocks": {32, 32 << 10}} {
		b.Run(name, func(b *testing.B) {
			_, send := copying(s)
			b.SetBytes(int64(s.n * s.size))
			b.ReportAllocs()
			for b.Loop() {
				send()
			}
		})
	}
}

func TestEveryReadIsFlushed(t *testing.T) {
	to, send := copying(source{100, 200})
	send()
	if to.bytes != 20_000 || to.flushes < 100 {
		t.Errorf("got %d bytes in %d flushes, want 20000 in 100 or more", to.bytes, to.flushes)
	}
}
