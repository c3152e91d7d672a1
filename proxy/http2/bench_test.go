package http2

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"edge/proxy/exchange"
)

// leanServer is a server that costs little: it answers a request when it has
// ended, or echoes its DATA when the path is /echo.
func leanServer(b *testing.B) string {
	b.Helper()
	var config net.ListenConfig
	l, err := config.Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var all sync.WaitGroup
	b.Cleanup(func() { l.Close(); all.Wait() })
	all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { serveLean(nc) })
		}
	})
	return l.Addr().String()
}

func serveLean(nc net.Conn) {
	defer nc.Close()
	in := &bufferedConn{Conn: nc, buf: make([]byte, 0, 64<<10)}
	if _, err := io.ReadFull(in, make([]byte, len(h2.ClientPreface))); err != nil {
		return
	}
	var out bytes.Buffer
	framer := h2.NewFramer(&out, in)
	framer.SetReuseFrames()
	in.flush = func() { _, _ = nc.Write(out.Bytes()); out.Reset() }
	_ = framer.WriteSettings(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 250})
	_ = framer.WriteSettingsAck()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	echoing := false
	dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":path" {
			echoing = f.Value == "/echo"
		}
	})
	head := func(id uint32) {
		block.Reset()
		for _, f := range []hpack.HeaderField{
			{Name: ":status", Value: "200"},
			{Name: "content-type", Value: "application/json"},
			{Name: "date", Value: "Tue, 24 Nov 2026 12:00:00 GMT"},
			{Name: "server", Value: "lean"},
			{Name: "x-request-id", Value: strconv.Itoa(int(id))},
		} {
			_ = enc.WriteField(f)
		}
		_ = framer.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	}
	reply := make([]byte, 500)
	taken := 0
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *h2.HeadersFrame:
			echoing = false
			_, _ = dec.Write(f.HeaderBlockFragment())
			_ = dec.Close()
			if echoing {
				head(f.StreamID)
			}
		case *h2.DataFrame:
			if n := len(f.Data()); n > 0 {
				if taken += n; taken > 16<<10 {
					_ = framer.WriteWindowUpdate(0, uint32(taken))
					taken = 0
				}
				if echoing {
					_ = framer.WriteWindowUpdate(f.StreamID, uint32(n))
					_ = framer.WriteData(f.StreamID, f.StreamEnded(), f.Data())
				}
			}
			if f.StreamEnded() && !echoing {
				head(f.StreamID)
				_ = framer.WriteData(f.StreamID, true, reply)
			}
		case *h2.PingFrame:
			if !f.IsAck() {
				_ = framer.WritePing(true, f.Data)
			}
		}
	}
}

// bufferedConn flushes what was written before it waits for more to read.
type bufferedConn struct {
	net.Conn
	buf   []byte
	flush func()
}

func (c *bufferedConn) Read(p []byte) (int, error) {
	if len(c.buf) == 0 {
		if c.flush != nil {
			c.flush()
		}
		n, err := c.Conn.Read(c.buf[:cap(c.buf)])
		if err != nil {
			return 0, err
		}
		c.buf = c.buf[:n]
	}
	n := copy(p, c.buf)
	rest := copy(c.buf, c.buf[n:])
	c.buf = c.buf[:rest]
	return n, nil
}

// contenders are our Client and the Transport of golang.org/x/net, in one run.
func contenders(b *testing.B, run func(b *testing.B, do func(body io.Reader, length int64, path string) (io.ReadCloser, error))) {
	b.Helper()
	address := leanServer(b)
	b.Run("edge", func(b *testing.B) {
		b.ReportAllocs()
		client := NewClient(func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}, Options{})
		defer client.Close()
		header := exchange.Fields{
			{Name: "Accept", Value: "*/*"},
			{Name: "Content-Type", Value: "application/json"},
			{Name: "User-Agent", Value: "bench/1.0"},
			{Name: "Authorization", Value: "Bearer 0123456789"},
			{Name: "X-Request-Id", Value: "0123456789abcdef"},
		}
		defer reportCPU(b)()
		run(b, func(body io.Reader, length int64, path string) (io.ReadCloser, error) {
			reply, err := client.Do(&exchange.Call{
				Method: "POST", Target: path, Scheme: "http", Host: "models.test", Header: header, Body: body, Length: length,
				FirstByte: time.Minute, Canceler: new(exchange.Canceler),
			})
			if err != nil {
				return nil, err
			}
			return reply.Body, nil
		})
	})
	b.Run("x-net", func(b *testing.B) {
		b.ReportAllocs()
		//nolint:staticcheck // it is what we compare with
		tr := &h2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		}}
		defer tr.CloseIdleConnections() //nolint:staticcheck // as above
		defer reportCPU(b)()
		run(b, func(body io.Reader, length int64, path string) (io.ReadCloser, error) {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://models.test"+path, body)
			if err != nil {
				return nil, err
			}
			req.ContentLength = length
			req.Header = http.Header{
				"Accept": {"*/*"}, "Content-Type": {"application/json"}, "User-Agent": {"bench/1.0"},
				"Authorization": {"Bearer 0123456789"}, "X-Request-Id": {"0123456789abcdef"},
			}
			resp, err := tr.RoundTrip(req) //nolint:staticcheck // as above
			if err != nil {
				return nil, err
			}
			return resp.Body, nil
		})
	})
}

// reportCPU reports the CPU time of client and server together, which on a busy
// machine says more than the time that passed.
func reportCPU(b *testing.B) func() {
	b.Helper()
	begin := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N), "cpu-ns/op") }
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkDo(b *testing.B) {
	for _, length := range []int64{1000, -1} {
		b.Run("length="+strconv.FormatInt(length, 10), func(b *testing.B) {
			contenders(b, func(b *testing.B, do func(io.Reader, int64, string) (io.ReadCloser, error)) {
				b.Helper()
				b.SetParallelism(32)
				b.RunParallel(func(pb *testing.PB) {
					body := make([]byte, 1000)
					buf := make([]byte, 4<<10)
					for pb.Next() {
						r, err := do(bytes.NewReader(body), length, "/")
						if err != nil {
							b.Error(err)
							return
						}
						for err == nil {
							_, err = r.Read(buf)
						}
						if !errors.Is(err, io.EOF) {
							b.Error(err)
						}
						_ = r.Close()
					}
				})
			})
		})
	}
}

func BenchmarkStreamMessage(b *testing.B) {
	const streams = 64
	contenders(b, func(b *testing.B, do func(io.Reader, int64, string) (io.ReadCloser, error)) {
		b.Helper()
		var all sync.WaitGroup
		each := b.N/streams + 1
		for range streams {
			all.Go(func() {
				r, w := io.Pipe()
				reply, err := do(r, -1, "/echo")
				if err != nil {
					b.Error(err)
					return
				}
				out, in := make([]byte, 256), make([]byte, 256)
				for range each {
					if _, err := w.Write(out); err != nil {
						b.Error(err)
						return
					}
					if _, err := io.ReadFull(reply, in); err != nil {
						b.Error(err)
						return
					}
				}
				_ = reply.Close()
				_ = w.Close()
			})
		}
		all.Wait()
	})
}

// A conversation on a connection where uploads wait for windows that are used up.
func BenchmarkMessageBesideStalledUploads(b *testing.B) {
	address := leanServer(b)
	client := NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}, Options{MaxConns: 1})
	defer client.Close()
	p := &peer{Client: client, scheme: "http", host: "models.test"}
	p.get(b, p.call("/", strings.NewReader("hello"), 5)) // so that the server has said how many it takes
	const size = 1 << 20
	big := strings.Repeat("x", size)
	var stalled sync.WaitGroup
	var cancelers []*exchange.Canceler
	const uploads = 150
	for range uploads {
		call := p.call("/", strings.NewReader(big), size)
		cancelers = append(cancelers, call.Canceler)
		stalled.Go(func() { _, _ = client.Do(call) })
	}
	defer stalled.Wait()
	c := client.conns[0]
	for blocked := 0; blocked < uploads; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		blocked = c.blocked
		c.mu.Unlock()
	}
	r, w := io.Pipe()
	defer w.Close()
	reply, err := client.Do(p.call("/echo", r, -1))
	if err != nil {
		b.Fatal(err)
	}
	defer reply.Body.Close()
	report := reportCPU(b)
	out, in := make([]byte, 256), make([]byte, 256)
	for b.Loop() {
		_, _ = w.Write(out)
		if _, err := io.ReadFull(reply.Body, in); err != nil {
			b.Fatal(err)
		}
	}
	report()
	for _, c := range cancelers {
		c.Cancel(io.ErrClosedPipe)
	}
}
