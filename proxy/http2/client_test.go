package http2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/proxy/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is net/http's server, with or without TLS, and a Client for it.
type peer struct {
	*Client
	scheme, host string
	accept       func() *script // of a scripted server
}

func newPeer(tb testing.TB, secure bool, h http.HandlerFunc) *peer {
	tb.Helper()
	server := httptest.NewUnstartedServer(h)
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server.Config.Protocols = &protocols
	p := &peer{scheme: "http"}
	if secure {
		server.EnableHTTP2 = true
		server.StartTLS()
		p.scheme = "https"
	} else {
		server.Start()
	}
	tb.Cleanup(server.Close)
	p.host = server.Listener.Addr().String()
	p.Client = NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "tcp", p.host)
		if err != nil || !secure {
			return nc, err
		}
		tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		return tc, tc.HandshakeContext(ctx)
	}, Options{})
	tb.Cleanup(p.Close)
	return p
}

// call is a POST, or a GET without a body.
func (p *peer) call(path string, body io.Reader, length int64) *exchange.Call {
	c := &exchange.Call{
		Method: "POST", Target: path, Scheme: p.scheme, Host: p.host, Body: body, Length: length,
		Connect: 10 * time.Second, Canceler: new(exchange.Canceler),
	}
	if body == nil {
		c.Method = "GET"
	}
	return c
}

// get does the call and reads the reply to its end.
func (p *peer) get(tb testing.TB, call *exchange.Call) (exchange.Reply, string) {
	tb.Helper()
	reply, err := p.Do(call)
	if err != nil {
		tb.Fatalf("Do: %v", err)
	}
	body, err := io.ReadAll(reply.Body)
	if err != nil {
		tb.Fatalf("after %d bytes: %v", len(body), err)
	}
	if err := reply.Body.Close(); err != nil {
		tb.Errorf("Close: %v", err)
	}
	return reply, string(body)
}

func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Method", r.Method)
	w.Header().Set("X-Path", r.URL.RequestURI())
	w.Header().Set("X-Length", strconv.FormatInt(r.ContentLength, 10))
	w.Header().Set("X-Test", strings.Join(r.Header["X-Test"], ","))
	w.Header().Set("Trailer", "X-Sum")
	sum := sha256.New()
	buf := make([]byte, 8<<10)
	w.WriteHeader(http.StatusOK)
	c := http.NewResponseController(w)
	_ = c.Flush()
	for {
		n, err := r.Body.Read(buf)
		sum.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return
		}
		_ = c.Flush()
		if err != nil {
			break
		}
	}
	w.Header().Set("X-Sum", hex.EncodeToString(sum.Sum(nil))+r.Trailer.Get("X-After"))
}

func TestRequestsAndRepliesOfNetHTTP(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			p := newPeer(t, secure, echo)
			big := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // 1 MiB
			for _, test := range []struct {
				name    string
				body    []byte
				length  int64
				trailer bool
			}{
				{"no body", nil, 0, false},
				{"small", []byte("hello"), 5, false},
				{"unknown length", []byte("hello"), -1, false},
				{"trailer", []byte("hello"), -1, true},
				{"trailer of a declared body", []byte("hello"), 5, true},
				{"nothing, of unknown length", []byte{}, -1, false},
				{"big", big, int64(len(big)), false},
				{"big, of unknown length", big, -1, true},
			} {
				t.Run(test.name, func(t *testing.T) {
					var body io.Reader
					if test.body != nil {
						body = bytes.NewReader(test.body)
					}
					call := p.call("/echo?a=%20b", body, test.length)
					call.Header = exchange.Fields{{Name: "X-Test", Value: "one"}, {Name: "x-test", Value: " two "}, {Name: "Connection", Value: "close"}}
					after := ""
					if test.trailer {
						after = "!"
						call.Header.Add("Trailer", "X-After")
						call.Trailer = func() exchange.Fields { return exchange.Fields{{Name: "X-After", Value: "!"}} }
					}
					reply, got := p.get(t, call)
					sum := sha256.Sum256(test.body)
					want := exchange.Fields{
						{Name: "x-method", Value: call.Method},
						{Name: "x-path", Value: call.Target},
						{Name: "x-length", Value: strconv.FormatInt(test.length, 10)},
						{Name: "x-test", Value: "one,two"},
					}
					for _, f := range want {
						if v := reply.Header.Get(f.Name); v != f.Value {
							t.Errorf("%s %q, want %q", f.Name, v, f.Value)
						}
					}
					if reply.Status != 200 || got != string(test.body) {
						t.Errorf("status %d, %d bytes, want %d", reply.Status, len(got), len(test.body))
					}
					if v := reply.Body.Trailer().Get("x-sum"); v != hex.EncodeToString(sum[:])+after {
						t.Errorf("trailer %q", v)
					}
				})
			}
		})
	}
}

func TestManyStreamsShareAConnection(t *testing.T) {
	var addresses sync.Map
	p := newPeer(t, false, func(w http.ResponseWriter, r *http.Request) {
		addresses.Store(r.RemoteAddr, true)
		echo(w, r)
	})
	p.get(t, p.call("/", nil, 0)) // so that there is one
	var all sync.WaitGroup
	for i := range 80 {
		all.Go(func() {
			text := strings.Repeat(strconv.Itoa(i), 1000*i)
			call := p.call("/", strings.NewReader(text), int64(len(text)))
			reply, err := p.Do(call)
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(reply.Body)
			if err != nil || string(got) != text {
				t.Errorf("%d: %d bytes of %d, %v", i, len(got), len(text), err)
			}
		})
	}
	all.Wait()
	n := 0
	addresses.Range(func(_, _ any) bool { n++; return true })
	if n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// A conversation: each side waits for the other's message, and the client for the
// head before it says anything.
func TestMessagesPassInBothDirections(t *testing.T) {
	p := newPeer(t, false, echo)
	r, w := io.Pipe()
	reply, err := p.Do(p.call("/", r, -1))
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for i := range 50 {
		text := fmt.Sprintf("message %d", i)
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		n, err := io.ReadFull(reply.Body, buf[:len(text)])
		if err != nil || string(buf[:n]) != text {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
	}
	_ = w.Close()
	if n, err := reply.Body.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("got %d, %v, want the end", n, err)
	}
}

func TestServerThatStopsReadingIsAnsweredAll(t *testing.T) {
	p := newPeer(t, false, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_, _ = io.WriteString(w, "too much")
	})
	var stopped sync.WaitGroup
	defer stopped.Wait()
	r, w := io.Pipe()
	stopped.Go(func() {
		b := make([]byte, 1<<10)
		for {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	defer r.Close()
	reply, got := p.get(t, p.call("/", r, 1<<40))
	if reply.Status != 413 || got != "too much" {
		t.Errorf("%d %q", reply.Status, got)
	}
	if _, got = p.get(t, p.call("/", nil, 0)); got != "too much" { // the connection lives
		t.Errorf("%q", got)
	}
}

func TestClosedReplyStopsTheServer(t *testing.T) {
	gone := make(chan error, 1)
	p := newPeer(t, true, func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		for r.Context().Err() == nil {
			_, _ = w.Write(make([]byte, 1000))
			_ = c.Flush()
		}
		gone <- r.Context().Err()
	})
	for _, how := range []string{"close", "cancel"} {
		call := p.call("/", nil, 0)
		reply, err := p.Do(call)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(reply.Body, make([]byte, 5000)); err != nil {
			t.Fatal(err)
		}
		cause := errors.New("enough")
		if how == "close" {
			_ = reply.Body.Close()
		} else {
			call.Canceler.Cancel(cause)
			if _, err := io.Copy(io.Discard, reply.Body); !errors.Is(err, cause) {
				t.Errorf("Read: %v, want the cause", err)
			}
		}
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Fatal("the server goes on")
		}
	}
}
