package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edge/config"
	"edge/proxy/exchange"
)

func TestPostIsSentToAnotherEndpointWhenDialIsRefused(t *testing.T) {
	var body atomic.Value
	alive := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body.Store(string(b))
		w.Header().Set("X-Model", "tiny")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "done")
	})
	p := open(t, poolOf(refused(t), refused(t), alive.URL))
	resp := do(t, p, post("prompt"))
	if got := text(t, resp); got != "done" || resp.Status != 201 || resp.Header.Get("x-model") != "tiny" || resp.Length != 4 {
		t.Errorf("reply %d %v length %d %q, want 201 X-Model: tiny length 4 done", resp.Status, resp.Header, resp.Length, got)
	}
	if body.Load() != "prompt" {
		t.Errorf("endpoint read %q, want prompt", body.Load())
	}
	if resp.Attempts != 3 || resp.Endpoint != alive.URL {
		t.Errorf("attempt %d at %s, want 3 at %s", resp.Attempts, resp.Endpoint, alive.URL)
	}
	for _, e := range p.endpoints {
		if n := e.inflight.Load(); n != 0 {
			t.Errorf("%s: inflight %d after the end, want 0", e.url, n)
		}
	}
}

func TestAttemptsAreDistinctAndBounded(t *testing.T) {
	var dialed []string
	o := Options{Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		dialed = append(dialed, address)
		return nil, syscall.ECONNREFUSED
	}}
	c := poolOf("http://a:1", "http://b:1", "http://c:1")
	c.Retry.Attempts = 2
	_, err := openWith(t, o, c).Do(t.Context(), post("x"))
	dial, ok := errors.AsType[*DialError](err)
	if !ok || !errors.Is(err, syscall.ECONNREFUSED) || dial.Attempts != 2 || dial.Endpoint != "http://b:1" || dial.Timeout() {
		t.Errorf("error %#v, want a DialError of attempt 2 at http://b:1", err)
	}
	if len(dialed) != 2 || dialed[0] == dialed[1] {
		t.Errorf("dialed %v, want two different", dialed)
	}
	c.Retry.Attempts = 9
	dialed = nil
	if _, err := openWith(t, o, c).Do(t.Context(), get("/")); err == nil || len(dialed) != 3 {
		t.Errorf("9 attempts dialed %v (%v), want each endpoint once", dialed, err)
	}
}

func TestConnectTimeoutOfThePoolEndsADial(t *testing.T) {
	o := Options{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	c := poolOf("http://a:1")
	c.Connect = 20 * time.Millisecond
	_, err := openWith(t, o, c).Do(t.Context(), get("/"))
	if dial, ok := errors.AsType[*DialError](err); !ok || !dial.Timeout() {
		t.Errorf("error %v, want a DialError that is a timeout", err)
	}
}

// lossy reads a request and closes the connection without a reply.
func lossy(t *testing.T, count *atomic.Int32) string {
	t.Helper()
	return script(t, func(_ net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			count.Add(1)
		}
	})
}

func TestPostIsNotRepeatedOnceItWasAccepted(t *testing.T) {
	var lost, others atomic.Int32
	other := serve(t, func(http.ResponseWriter, *http.Request) { others.Add(1) })
	p := open(t, poolOf(lossy(t, &lost), other.URL))
	_, err := p.Do(t.Context(), post("x"))
	if e, ok := errors.AsType[*LostError](err); !ok || e.Endpoint != p.endpoints[0].url || errors.Is(err, ErrInvalidResponse) {
		t.Errorf("error %v, want a LostError of %s", err, p.endpoints[0].url)
	}
	if lost.Load() != 1 || others.Load() != 0 {
		t.Errorf("%d requests arrived and %d at the other endpoint, want 1 and 0", lost.Load(), others.Load())
	}
}

func TestGetMovesOnWhenTheConnectionWasLost(t *testing.T) {
	var lost atomic.Int32
	alive := serve(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	p := open(t, poolOf(lossy(t, &lost), alive.URL))
	req := get("/")
	req.Length, req.Body = 5, strings.NewReader("query") // kept and replayed
	resp := do(t, p, req)
	if got := text(t, resp); got != "query" || resp.Attempts != 2 || lost.Load() != 1 {
		t.Errorf("%q at attempt %d after %d lost, want query at 2 after 1", got, resp.Attempts, lost.Load())
	}
}

func TestBodyBeyondReplayIsNotSentAgain(t *testing.T) {
	var others atomic.Int32
	lost := script(t, func(_ net.Conn, r *bufio.Reader) {
		if req, err := http.ReadRequest(r); err == nil {
			io.Copy(io.Discard, req.Body)
		}
	})
	other := serve(t, func(http.ResponseWriter, *http.Request) { others.Add(1) })
	c := poolOf(lost, other.URL)
	c.Retry.Replay = 4
	req := get("/")
	req.Length, req.Body = 5, strings.NewReader("query")
	_, err := open(t, c).Do(t.Context(), req)
	if _, ok := errors.AsType[*LostError](err); !ok || others.Load() != 0 {
		t.Errorf("error %v and %d requests elsewhere, want a LostError and 0", err, others.Load())
	}
}

func TestNothingIsRepeatedAfterAByteOfAReply(t *testing.T) {
	var others atomic.Int32
	half := script(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX")
		}
	})
	other := serve(t, func(http.ResponseWriter, *http.Request) { others.Add(1) })
	_, err := open(t, poolOf(half, other.URL)).Do(t.Context(), get("/"))
	if _, ok := errors.AsType[*LostError](err); !ok || others.Load() != 0 {
		t.Errorf("error %v and %d requests elsewhere, want a LostError and 0", err, others.Load())
	}
}

// deadWrites is a connection whose writes fail on command before a byte went out.
type deadWrites struct {
	net.Conn
	dead *atomic.Bool
}

func (c deadWrites) Write(p []byte) (int, error) {
	if c.dead.Load() {
		c.Conn.Close()
		return 0, syscall.EPIPE
	}
	return c.Conn.Write(p)
}

func TestPostIsSentAgainWhenAKeptAliveConnectionTookNothing(t *testing.T) {
	var first atomic.Bool
	var dials atomic.Int32
	o := Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil && dials.Add(1) == 1 {
			c = deadWrites{c, &first}
		}
		return c, err
	}}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	p := openWith(t, o, poolOf(s.URL))
	text(t, do(t, p, get("/")))
	first.Store(true)
	if got := text(t, do(t, p, post("prompt"))); got != "prompt" || dials.Load() != 2 {
		t.Errorf("echo %q over %d connections, want prompt over 2", got, dials.Load())
	}
}

func TestPoolWithoutHealthyEndpointAnswersAtOnce(t *testing.T) {
	c := poolOf("http://a:1", "http://b:1")
	c.Health = &config.Health{Path: "/", Interval: time.Hour, Timeout: time.Hour, Rise: 1, Fall: 1}
	r := NewRegistry(Options{})
	s, err := r.Prepare(map[string]*config.Pool{"test": c})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := s.Pool("test")
	for _, e := range p.endpoints {
		e.checker.up.Store(false)
	}
	if _, err := p.Do(t.Context(), get("/")); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("error %v, want ErrNoEndpoint", err)
	}
}

func TestFirstByteTimeoutIsNotRepeated(t *testing.T) {
	var seen atomic.Int32
	release := make(chan struct{})
	hang := func(http.ResponseWriter, *http.Request) { seen.Add(1); <-release }
	a, b := serve(t, hang), serve(t, hang)
	defer close(release)
	req := get("/")
	req.FirstByte = 50 * time.Millisecond
	p := open(t, poolOf(a.URL, b.URL))
	if _, err := p.Do(t.Context(), req); !errors.Is(err, ErrFirstByteTimeout) {
		t.Errorf("error %v, want ErrFirstByteTimeout", err)
	}
	if n := seen.Load(); n != 1 {
		t.Errorf("%d endpoints got the request, want 1", n)
	}
}

func TestFirstByteClockStandsStillWhileTheClientUploads(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	pr, pw := io.Pipe()
	req := post("")
	req.Length, req.Body, req.FirstByte = -1, pr, 250*time.Millisecond
	go func() {
		tick := time.NewTicker(400 * time.Millisecond)
		defer tick.Stop()
		for range 2 {
			<-tick.C
			io.WriteString(pw, "x")
		}
		pw.Close()
	}()
	if got := text(t, do(t, open(t, poolOf(s.URL)), req)); got != "xx" {
		t.Errorf("echo %q, want xx", got)
	}
}

func TestFirstByteClockRunsWhileAnEndpointRefusesToRead(t *testing.T) {
	release := make(chan struct{})
	url := script(t, func(net.Conn, *bufio.Reader) { <-release })
	defer close(release)
	req := post("")
	req.Length, req.Body, req.FirstByte = 1<<30, zeros{}, 100*time.Millisecond
	if _, err := open(t, poolOf(url)).Do(t.Context(), req); !errors.Is(err, ErrFirstByteTimeout) {
		t.Errorf("error %v, want ErrFirstByteTimeout", err)
	}
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestFailureOfTheClientsBodyIsABodyError(t *testing.T) {
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	p := open(t, poolOf(s.URL))
	tooLarge := errors.New("too large")
	req := post("")
	req.Length, req.Body = -1, io.MultiReader(strings.NewReader("x"), failing{tooLarge})
	_, err := p.Do(t.Context(), req)
	if _, ok := errors.AsType[*BodyError](err); !ok || !errors.Is(err, tooLarge) {
		t.Errorf("error %v, want a BodyError around %v", err, tooLarge)
	}
	req = post("short")
	req.Length = 9
	_, err = p.Do(t.Context(), req)
	if _, ok := errors.AsType[*BodyError](err); !ok || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want a BodyError around io.ErrUnexpectedEOF", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestInvalidReplies(t *testing.T) {
	for name, reply := range map[string]string{
		"malformed":        "HTTP/1.1 banana\r\n\r\n",
		"not HTTP":         "SSH-2.0-OpenSSH_9.2\r\n\r\n",
		"head over 64 KiB": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 65<<10) + "\r\n\r\n",
		"nine 1xx":         strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 9) + ok,
		"unasked 101":      "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			url := script(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := head(r); err == nil {
					io.WriteString(c, reply)
					<-closedByPeer(r)
				}
			})
			_, err := open(t, poolOf(url)).Do(t.Context(), get("/"))
			if lost, ok := errors.AsType[*LostError](err); !ok || !errors.Is(err, ErrInvalidResponse) || lost.Endpoint != url {
				t.Errorf("error %v, want a LostError around ErrInvalidResponse", err)
			}
		})
	}
}

func TestInterimRepliesAreHandedOn(t *testing.T) {
	url := script(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			io.WriteString(c, strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 8)+ok)
		}
	})
	var got []string
	req := get("/")
	req.Interim = func(status int, f exchange.Fields) {
		got = append(got, http.StatusText(status)+" "+f.Get("link"))
	}
	resp := do(t, open(t, poolOf(url)), req)
	if text(t, resp) != "ok" || len(got) != 8 || got[0] != "Early Hints </a>" {
		t.Errorf("interim %q before %d, want 8 Early Hints </a> before 200", got, resp.Status)
	}
}

// BenchmarkDo is the way to a server that costs nothing, and back: two system
// calls each way and what is ours.
func BenchmarkDo(b *testing.B) {
	body := make([]byte, 1<<10)
	for _, bm := range []struct {
		name   string
		length int64
		bound  bool // to a context that can end
	}{{"get", 0, false}, {"post 1 KiB", 1 << 10, false}, {"post 1 KiB with a context", 1 << 10, true}} {
		b.Run(bm.name, func(b *testing.B) {
			r := NewRegistry(Options{})
			defer r.Close()
			set, err := r.Prepare(pools(poolOf(frugal(b, int(bm.length)))))
			if err != nil {
				b.Fatal(err)
			}
			defer set.Close()
			p := set.Pool("test")
			ctx := context.Background()
			if bm.bound {
				ctx = b.Context()
			}
			buf := make([]byte, 4<<10)
			reader := bytes.NewReader(body)
			req := get("/v1/models")
			if bm.length > 0 {
				req.Method, req.Length, req.Body = "POST", bm.length, reader
			}
			b.ReportAllocs()
			for b.Loop() {
				reader.Reset(body)
				resp, err := p.Do(ctx, req)
				if err != nil {
					b.Fatal(err)
				}
				for err == nil {
					_, err = resp.Read(buf)
				}
				resp.Close()
			}
		})
	}
}

// frugal serves equal requests with a body of that length, and allocates nothing.
func frugal(b *testing.B, length int) (url string) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	serve := func(c net.Conn) {
		defer c.Close()
		in, reply := make([]byte, 8<<10), []byte(ok)
		for n := 0; ; {
			k, err := c.Read(in[n:])
			if err != nil {
				return
			}
			n += k
			if i := bytes.Index(in[:n], []byte("\r\n\r\n")); i >= 0 && n == i+4+length {
				n = 0
				_, _ = c.Write(reply)
			}
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(c) })
		}
	})
	b.Cleanup(func() { l.Close(); wg.Wait() })
	return "http://" + l.Addr().String()
}
