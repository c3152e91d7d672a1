package http2

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"edge/internal/memnet"
	"edge/proxy/exchange"
)

// capricious answers as no server should, but may.
func capricious(w http.ResponseWriter, r *http.Request) {
	c := http.NewResponseController(w)
	switch r.URL.Path {
	case "/echo":
		echo(w, r)
	case "/early":
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "no")
	case "/abort":
		_, _ = io.WriteString(w, "begun")
		_ = c.Flush()
		panic(http.ErrAbortHandler)
	case "/big":
		_, _ = w.Write(make([]byte, 700<<10))
	case "/slow":
		for range 20 {
			_, _ = io.WriteString(w, "event")
			_ = c.Flush()
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// Calls of all kinds, given up in all ways: everything is given back in the end.
func TestEverythingIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Network
		l, err := n.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(capricious), Protocols: new(http.Protocols)}
		server.Protocols.SetUnencryptedHTTP2(true)
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(l) })
		defer serving.Wait()
		defer server.Close()
		p := &peer{scheme: "http", host: "models.test"}
		p.Client = NewClient(func(ctx context.Context) (net.Conn, error) { return n.Dial(ctx, "tcp", l.Addr().String()) }, Options{MaxConns: 3})
		defer p.Close()
		var all sync.WaitGroup
		for i := range uint64(40) {
			all.Go(func() {
				random := rand.New(rand.NewPCG(i, 7))
				for range 25 {
					misuse(t, p, random)
				}
			})
		}
		all.Wait()
		time.Sleep(time.Second) // for what is on the way, PING included
		synctest.Wait()
		if len(p.conns) == 0 {
			t.Error("no connection is left")
		}
		if len(p.waiting) != 0 {
			t.Errorf("%d wait", len(p.waiting))
		}
		for _, c := range p.conns {
			if c.open != 0 || len(c.streams) != 0 || c.held != 0 || c.blocked != 0 || c.flushing || len(c.pending) > 0 {
				t.Errorf("open %d, streams %d, held %d, blocked %d, flushing %v, pending %d", c.open, len(c.streams), c.held, c.blocked, c.flushing, len(c.pending))
			}
			if got := c.granted.left.Load() + c.granted.owed.Load(); got != connWindow {
				t.Errorf("%d bytes of the window are lost", connWindow-got)
			}
		}
	})
}

// misuse does one call, and something to it.
func misuse(t *testing.T, p *peer, random *rand.Rand) {
	t.Helper()
	paths := []string{"/echo", "/early", "/abort", "/big", "/slow"}
	size := random.IntN(200 << 10)
	var body io.Reader = strings.NewReader(strings.Repeat("x", size))
	length := int64(size)
	switch random.IntN(4) {
	case 0:
		length = -1
	case 1:
		length += 10 // more than there is
	case 2:
		body, length = nil, 0
	}
	call := p.call(paths[random.IntN(len(paths))], body, length)
	call.FirstByte = time.Second
	call.Continue = random.IntN(5) == 0
	cause := errors.New("left")
	var canceling sync.WaitGroup
	if random.IntN(3) == 0 {
		delay := time.Duration(random.IntN(30)) * time.Millisecond
		canceling.Go(func() {
			time.Sleep(delay)
			call.Canceler.Cancel(cause)
		})
	}
	defer canceling.Wait()
	reply, err := p.Do(call)
	if err == nil {
		if random.IntN(3) == 0 {
			_, err = io.CopyN(io.Discard, reply.Body, 10)
		} else {
			_, err = io.Copy(io.Discard, reply.Body)
		}
		_ = reply.Body.Close()
	}
	var lost *exchange.LostError
	var failed *exchange.BodyError
	if err != nil && !errors.Is(err, cause) && !errors.As(err, &lost) && !errors.As(err, &failed) && !errors.Is(err, exchange.ErrFirstByte) && !errors.Is(err, io.EOF) {
		t.Errorf("%s: %v", call.Target, err)
	}
}

// A connection that goes away while the body's first part is read takes nothing
// of it along.
func TestFirstPartOfTheBodyMovesToAnotherConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, first := get1(t)
		s.head(1, true, ":status", "200")
		<-first
		r, w := io.Pipe()
		done := p.begin(p.call("/", r, 10))
		synctest.Wait()
		_ = s.nc.Close()
		synctest.Wait()
		_, _ = io.WriteString(w, "hello")
		go func() { _, _ = io.WriteString(w, "world") }()
		s2 := p.accept()
		s2.preface()
		s2.await("HEADERS 1")
		s2.await("DATA 1 5")
		s2.await("DATA 1 5 END")
		s2.head(1, true, ":status", "200")
		if o := <-done; o.err != nil || string(s2.data) != "helloworld" {
			t.Errorf("%v, sent %q", o.err, s2.data)
		}
	})
}
