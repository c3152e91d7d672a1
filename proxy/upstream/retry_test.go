package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
	"edge/internal/memnet"
	"edge/proxy/exchange"
)

func TestRuleOfReplay(t *testing.T) {
	const soon, late = idleRace, idleRace + 1
	gone := io.ErrUnexpectedEOF
	dial := &exchange.DialError{Err: gone}
	lost := &exchange.LostError{Err: gone, Closed: true, After: soon}
	race := &exchange.LostError{Err: gone, Reused: true, Closed: true, After: soon}
	for name, tc := range map[string]struct {
		err       error
		post, get verdict
	}{
		"no connection":                            {dial, elsewhere, elsewhere},
		"new connection took nothing":              {&exchange.LostError{Err: gone, Unsent: true}, elsewhere, elsewhere},
		"kept-alive connection took nothing":       {&exchange.LostError{Err: gone, Unsent: true, Reused: true}, afresh, afresh},
		"idle race":                                {race, afresh, afresh},
		"end of a kept-alive connection, later":    {&exchange.LostError{Err: gone, Reused: true, Closed: true, After: late}, final, elsewhere},
		"end of a new connection, at once":         {lost, final, elsewhere},
		"kept-alive connection failed at our side": {&exchange.LostError{Err: gone, Reused: true}, final, elsewhere},
		"a byte of a reply":                        {&exchange.LostError{Err: gone, Reused: true, Closed: true, Answered: true}, final, final},
		"invalid reply":                            {&exchange.LostError{Err: ErrInvalidResponse, Answered: true}, final, final},
		"no reply in time":                         {ErrFirstByteTimeout, final, final},
		"client's body":                            {&BodyError{Err: gone}, final, final},
		"unsendable":                               {ErrBadRequest, final, final},
		"something else":                           {gone, final, final},
	} {
		rule := func(method string, change func(*setback)) verdict {
			s := setback{err: tc.err, method: method, replayable: true, short: true}
			if change != nil {
				change(&s)
			}
			return s.judge()
		}
		if post, get := rule("POST", nil), rule("GET", nil); post != tc.post || get != tc.get {
			t.Errorf("%s: POST %v, GET %v; want %v, %v", name, post, get, tc.post, tc.get)
		}
		for _, method := range []string{"HEAD", "OPTIONS", "TRACE"} {
			if got := rule(method, nil); got != tc.get {
				t.Errorf("%s: %s %v, want %v as for GET", name, method, got, tc.get)
			}
		}
		for _, method := range []string{"PUT", "DELETE", "PATCH", "get"} {
			if got := rule(method, nil); got != tc.post {
				t.Errorf("%s: %s %v, want %v as for POST", name, method, got, tc.post)
			}
		}
		if got := rule("GET", func(s *setback) { s.replayable = false }); got != final {
			t.Errorf("%s: %v though the body is gone, want final", name, got)
		}
	}
	for name, tc := range map[string]struct {
		s    setback
		want verdict
	}{
		"fresh tries are bounded, POST":             {setback{err: race, method: "POST", fresh: maxFresh}, final},
		"fresh tries are bounded, GET":              {setback{err: race, method: "GET", fresh: maxFresh}, elsewhere},
		"fresh tries are bounded, nothing was sent": {setback{err: &exchange.LostError{Unsent: true, Reused: true}, method: "POST", fresh: maxFresh}, elsewhere},
		"last fresh try":                            {setback{err: race, method: "POST", fresh: maxFresh - 1}, afresh},
		"only endpoint took nothing":                {setback{err: &exchange.LostError{Unsent: true}, method: "POST", only: true}, afresh},
		"only endpoint was lost":                    {setback{err: lost, method: "POST", only: true}, final},
	} {
		tc.s.replayable, tc.s.short = true, true
		if got := tc.s.judge(); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
	long := func(err error) verdict {
		return setback{err: err, method: "GET", replayable: true}.judge()
	}
	if a, b, c := long(dial), long(&exchange.LostError{Unsent: true, Reused: true}), long(race); a != elsewhere || b != afresh || c != final {
		t.Errorf("body over Retry.Replay: dial %v, unsent %v, race %v; want elsewhere, afresh, final", a, b, c)
	}
}

func TestWhatSpeaksAgainstAnEndpoint(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		want bool
	}{
		"no connection":    {&exchange.DialError{Err: io.EOF}, true},
		"no reply":         {ErrFirstByteTimeout, true},
		"lost":             {&exchange.LostError{Closed: true}, true},
		"idle race":        {&exchange.LostError{Reused: true, Closed: true}, false},
		"took nothing":     {&exchange.LostError{Reused: true, Unsent: true}, false},
		"reply broken off": {&exchange.LostError{Reused: true, Closed: true, Answered: true}, true},
		"client's body":    {&BodyError{Err: io.EOF}, false},
		"unsendable":       {ErrBadRequest, false},
	} {
		if got := guilty(tc.err); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// net of servers in memory, where time is virtual.
type lab struct {
	*testing.T

	net  memnet.Network
	wg   sync.WaitGroup
	stop []io.Closer
}

// inLab runs f in a bubble and then ends its servers.
func inLab(t *testing.T, f func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &lab{T: t}
		f(l)
		for _, c := range l.stop {
			_ = c.Close()
		}
		l.wg.Wait()
	})
}

// script serves each connection to address with f.
func (l *lab) script(address string, f func(c *memnet.Conn, r *bufio.Reader)) {
	l.Helper()
	listener, err := l.net.Listen(l.Context(), "tcp", address)
	if err != nil {
		l.Fatal(err)
	}
	l.stop = append(l.stop, listener)
	l.wg.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() {
				f(c.(*memnet.Conn), bufio.NewReader(c))
				_ = c.Close()
			})
		}
	})
}

// pool opens one to the addresses. It is closed before the servers are.
func (l *lab) pool(f func(p *Pool), addresses ...string) {
	l.Helper()
	var urls []string
	for _, a := range addresses {
		urls = append(urls, "http://"+a)
	}
	r := NewRegistry(Options{Logger: slog.New(slog.DiscardHandler), Dial: l.net.Dial})
	defer r.Close()
	c := poolOf(urls...)
	c.Retry.Attempts = 1
	set, err := r.Prepare(pools(c))
	if err != nil {
		l.Fatal(err)
	}
	defer set.Close()
	f(set.Pool(c.Name))
}

// request reads one with its body.
func request(r *bufio.Reader) (method, body string, err error) {
	req, err := http.ReadRequest(r)
	if err != nil {
		return "", "", err
	}
	b, err := io.ReadAll(req.Body)
	return req.Method, string(b), err
}

// A model server that reads a prompt, works for five seconds and dies must not be
// asked to work again.
func TestSlowKillerSeesOneGeneration(t *testing.T) {
	for name, key := range map[string]string{"plain": "", "with an Idempotency-Key": "stainless-node-retry-1"} {
		t.Run(name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				t := l.T // of the bubble
				var generations, others atomic.Int32
				l.script("10.0.0.1:80", func(c *memnet.Conn, r *bufio.Reader) {
					for {
						method, _, err := request(r)
						if err != nil {
							return
						}
						if method == "POST" {
							generations.Add(1)
							time.Sleep(5 * time.Second)
							c.Reset()
							return
						}
						io.WriteString(c, ok)
					}
				})
				l.script("10.0.0.2:80", func(_ *memnet.Conn, r *bufio.Reader) {
					if _, _, err := request(r); err == nil {
						others.Add(1)
					}
				})
				for _, addresses := range [][]string{{"10.0.0.1:80"}, {"10.0.0.1:80", "10.0.0.2:80"}} {
					for _, warm := range []bool{false, true} {
						l.pool(func(p *Pool) {
							p.retry.Attempts = 3
							if warm {
								text(t, do(t, p, get("/")))
								p.picker = newPicker(config.RoundRobin, len(p.endpoints))
							}
							req := post("prompt")
							if key != "" {
								req.Header.Add("Idempotency-Key", key)
							}
							generations.Store(0)
							_, err := p.Do(t.Context(), req)
							if _, ok := errors.AsType[*LostError](err); !ok {
								t.Errorf("error %v, want a LostError", err)
							}
							if generations.Load() != 1 || others.Load() != 0 {
								t.Errorf("%d generations and %d elsewhere (warm %v), want 1 and 0", generations.Load(), others.Load(), warm)
							}
							if p.endpoints[0].lastError.Load() == nil {
								t.Error("the endpoint has no last error")
							}
						}, addresses...)
					}
				}
			})
		})
	}
}

// racer closes each connection as its second request arrives, d after it.
func (l *lab) racer(address string, d time.Duration, reset bool, posts *atomic.Int32) {
	l.script(address, func(c *memnet.Conn, r *bufio.Reader) {
		for n := range 2 {
			method, body, err := request(r)
			if err != nil {
				return
			}
			if method == "POST" && body == "prompt" {
				posts.Add(1)
			}
			if n == 0 {
				io.WriteString(c, ok)
				continue
			}
			time.Sleep(d)
			if reset {
				c.Reset()
			}
		}
	})
}

func TestIdleRaceCostsNeitherTheRequestNorAnAttempt(t *testing.T) {
	for name, tc := range map[string]struct {
		after time.Duration
		reset bool
		posts int32 // that the endpoint has seen
	}{
		"FIN at once":            {0, false, 2},
		"RST at once":            {0, true, 2},
		"FIN just in time":       {idleRace - time.Millisecond, false, 2},
		"FIN when work may done": {idleRace + time.Millisecond, false, 1},
		"RST when work may done": {idleRace + time.Millisecond, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, func(l *lab) {
				t := l.T // of the bubble
				var posts atomic.Int32
				l.racer("10.0.0.1:80", tc.after, tc.reset, &posts)
				l.pool(func(p *Pool) {
					text(t, do(t, p, get("/")))
					resp, err := p.Do(t.Context(), post("prompt"))
					if raced := tc.posts == 2; raced != (err == nil) {
						t.Fatalf("error %v, want one: %v", err, !raced)
					}
					if err == nil {
						if got := text(t, resp); got != "ok" || resp.Attempts != 2 {
							t.Errorf("%q at try %d, want ok at 2", got, resp.Attempts)
						}
						if text := p.endpoints[0].lastError.Load(); text != nil {
							t.Errorf("the race is held against the endpoint: %s", *text)
						}
					}
					if posts.Load() != tc.posts || p.endpoints[0].inflight.Load() != 0 {
						t.Errorf("%d arrived, %d in flight; want %d, 0", posts.Load(), p.endpoints[0].inflight.Load(), tc.posts)
					}
				}, "10.0.0.1:80")
			})
		})
	}
}

// A server that took the beginning of a request in time had not closed its
// connection for being idle. What it did with the rest before it went, nobody knows.
func TestALongUploadIsNoIdleRace(t *testing.T) {
	inLab(t, func(l *lab) {
		t := l.T // of the bubble
		var posts atomic.Int32
		l.racer("10.0.0.1:80", 10*time.Millisecond, true, &posts)
		l.pool(func(p *Pool) {
			text(t, do(t, p, get("/")))
			r, w := io.Pipe()
			l.wg.Go(func() {
				for _, piece := range []string{"pr", "om", "pt"} {
					_, _ = io.WriteString(w, piece)
					time.Sleep(idleRace)
				}
				_ = w.Close()
			})
			req := post("")
			req.Length, req.Body = -1, r
			_, err := p.Do(t.Context(), req)
			if _, ok := errors.AsType[*LostError](err); !ok || posts.Load() != 1 {
				t.Errorf("error %v, %d arrived; want a LostError and 1", err, posts.Load())
			}
		}, "10.0.0.1:80")
	})
}

// A request that kills every server it meets is sent at most twice.
func TestRequestThatKillsItsServerIsRepeatedOnce(t *testing.T) {
	inLab(t, func(l *lab) {
		t := l.T // of the bubble
		var seen atomic.Int32
		l.script("10.0.0.1:80", func(c *memnet.Conn, r *bufio.Reader) {
			for {
				method, _, err := request(r)
				if err != nil || method == "POST" {
					if err == nil {
						seen.Add(1)
					}
					return
				}
				io.WriteString(c, ok)
			}
		})
		l.pool(func(p *Pool) {
			var held []*Response
			for range 5 { // idle connections to be lent
				held = append(held, do(t, p, get("/")))
			}
			for _, r := range held {
				text(t, r)
			}
			_, err := p.Do(t.Context(), post("deadly"))
			if _, ok := errors.AsType[*LostError](err); !ok || seen.Load() != 2 {
				t.Errorf("%v after %d times, want a LostError after 2", err, seen.Load())
			}
		}, "10.0.0.1:80")
	})
}

// engineFunc is an engine made for a test.
type engineFunc func(*exchange.Call) (exchange.Reply, error)

func (f engineFunc) Do(call *exchange.Call) (exchange.Reply, error) { return f(call) }
func (f engineFunc) Close()                                         {}

// source is a reply in memory.
type source struct{ *strings.Reader }

func (source) Trailer() exchange.Fields { return nil }
func (source) Close() error             { return nil }

// An engine that has failed may still be in a Read of the client's body.
func TestNextAttemptGetsWhatALateUploadHasRead(t *testing.T) {
	pr, pw := io.Pipe()
	var late sync.WaitGroup
	reading, failed := make(chan struct{}), make(chan struct{})
	p := open(t, poolOf("http://10.0.0.1:1", "http://10.0.0.2:1"))
	p.endpoints[0].backend.client = engineFunc(func(call *exchange.Call) (exchange.Reply, error) {
		buf := make([]byte, 4)
		if n, err := io.ReadFull(call.Body, buf); n != 4 || err != nil {
			t.Errorf("first attempt read %d, %v", n, err)
		}
		late.Go(func() {
			close(reading)
			if n, err := call.Body.Read(buf); n != 0 || err == nil {
				t.Errorf("late Read: %q, %v; want an error", buf[:n], err)
			}
		})
		<-reading
		close(failed)
		return exchange.Reply{}, &exchange.LostError{Err: io.ErrUnexpectedEOF, Unsent: true}
	})
	p.endpoints[1].backend.client = engineFunc(func(call *exchange.Call) (exchange.Reply, error) {
		all, err := io.ReadAll(call.Body)
		return exchange.Reply{Status: 200, Length: -1, Body: source{strings.NewReader(string(all))}}, err
	})
	go func() {
		io.WriteString(pw, "one ")
		<-failed
		io.WriteString(pw, "two ")
		io.WriteString(pw, "three")
		pw.Close()
	}()
	req := post("")
	req.Length, req.Body = -1, pr
	if got := text(t, do(t, p, req)); got != "one two three" {
		t.Errorf("second attempt read %q, want one two three", got)
	}
	late.Wait()
}

// The endpoint is lost in the middle of an upload, and the client goes on.
func TestUploadGoesOnAtTheNextEndpoint(t *testing.T) {
	var got atomic.Value
	lost := make(chan struct{})
	first := script(t, func(_ net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			io.ReadFull(r, make([]byte, len("3\r\none")))
			close(lost)
		}
	})
	second := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got.Store(string(b))
	})
	pr, pw := io.Pipe()
	go func() {
		io.WriteString(pw, "one")
		<-lost
		io.WriteString(pw, " two")
		pw.Close()
	}()
	req := get("/")
	req.Length, req.Body = -1, pr
	resp := do(t, open(t, poolOf(first, second.URL)), req)
	text(t, resp)
	if got.Load() != "one two" || resp.Attempts != 2 {
		t.Errorf("%v at attempt %d, want one two at 2", got.Load(), resp.Attempts)
	}
}

func TestAttemptsDoNotShareACanceler(t *testing.T) {
	var cancelers []*exchange.Canceler
	p := open(t, poolOf("http://10.0.0.1:1"))
	p.endpoints[0].backend.client = engineFunc(func(call *exchange.Call) (exchange.Reply, error) {
		cancelers = append(cancelers, call.Canceler)
		return exchange.Reply{}, &exchange.LostError{Err: io.EOF, Unsent: true, Reused: true}
	})
	p.endpoints[0].backend.fresh = p.endpoints[0].backend.client
	_, err := p.Do(t.Context(), get("/"))
	if lost, ok := errors.AsType[*exchange.LostError](err); !ok || !lost.Unsent || len(cancelers) != 1+maxFresh {
		t.Fatalf("%v after %d tries, want a LostError after %d", err, len(cancelers), 1+maxFresh)
	}
	if cancelers[0] == cancelers[1] || cancelers[1] == cancelers[2] {
		t.Error("a late Disarm of one attempt would let go of the next")
	}
}

// What a small request costs besides its engine: the Response, and the body.
func TestSmallRequestsAllocateLittle(t *testing.T) {
	p := open(t, poolOf("http://10.0.0.1:1"))
	var sink [64]byte
	empty := source{strings.NewReader("")}
	p.endpoints[0].backend.client = engineFunc(func(call *exchange.Call) (exchange.Reply, error) {
		for err := error(nil); call.Body != nil && err == nil; {
			_, err = call.Body.Read(sink[:])
		}
		return exchange.Reply{Status: 200, Body: empty}, nil
	})
	body := strings.NewReader("prompt")
	for _, tc := range []struct {
		req  *Request
		most float64
	}{{get("/"), 1}, {post("prompt"), 3}} { // a pooled block may have been collected
		if tc.req.Body != nil {
			tc.req.Body = body
		}
		got := testing.AllocsPerRun(100, func() {
			body.Reset("prompt")
			resp, err := p.Do(context.Background(), tc.req)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := resp.Read(sink[:]); !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			resp.Close()
		})
		if got > tc.most {
			t.Errorf("%s: %v allocations, want at most %v", tc.req.Method, got, tc.most)
		}
	}
}

func TestCallSaysWhatTheRequestSays(t *testing.T) {
	var got exchange.Call
	p := open(t, poolOf("http://gpu-1:8000"))
	p.connect = time.Minute
	p.endpoints[0].backend.client = engineFunc(func(call *exchange.Call) (exchange.Reply, error) {
		got = exchange.Call{
			Method: call.Method, Target: call.Target, Scheme: call.Scheme, Host: call.Host, Header: call.Header,
			Length: call.Length, Continue: call.Continue, Connect: call.Connect, FirstByte: call.FirstByte,
		}
		return exchange.Reply{Status: 204, Body: source{strings.NewReader("")}}, nil
	})
	req := post("x")
	req.Host, req.Continue, req.FirstByte = "", true, time.Second
	req.Header.Add("b", "1")
	req.Header.Add("A", "2")
	text(t, do(t, p, req))
	if got.Host != "gpu-1:8000" || got.Scheme != "http" || got.Method != http.MethodPost || got.Target != "/v1/chat" ||
		got.Length != 1 || !got.Continue || got.Connect != time.Minute || got.FirstByte != time.Second ||
		len(got.Header) != 2 || got.Header[0].Name != "b" {
		t.Errorf("call is %+v", got)
	}
}

// Servers close idle connections at random, also as a request arrives. Under
// net/http some of a hundred requests failed.
func TestServersThatCloseIdleConnectionsFailNoRequest(t *testing.T) {
	inLab(t, func(l *lab) {
		t := l.T // of the bubble
		const clients, requests = 20, 100
		for _, address := range []string{"10.0.0.1:80", "10.0.0.2:80"} {
			l.script(address, func(c *memnet.Conn, r *bufio.Reader) {
				for served := 0; ; served++ {
					idle := time.AfterFunc(rand.N(10*time.Millisecond), func() { _ = c.Close() })
					_, err := r.Peek(1)
					crossed := served > 0 && rand.N(10) == 0 // FIN and request
					if !idle.Stop() || err != nil || crossed {
						return
					}
					if _, _, err := request(r); err != nil {
						return
					}
					time.Sleep(rand.N(10 * time.Millisecond))
					io.WriteString(c, ok)
				}
			})
		}
		l.pool(func(p *Pool) {
			var failures, again atomic.Int32
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for range requests {
						time.Sleep(rand.N(20 * time.Millisecond))
						resp, err := p.Do(context.Background(), post("prompt"))
						if err != nil {
							failures.Add(1)
							continue
						}
						if resp.Attempts > 1 {
							again.Add(1)
						}
						_, err = io.Copy(io.Discard, resp)
						if err != nil {
							failures.Add(1)
						}
						resp.Close()
					}
				})
			}
			wg.Wait()
			if failures.Load() != 0 || again.Load() == 0 {
				t.Errorf("%d of %d failed, %d were sent again; want 0 and some", failures.Load(), clients*requests, again.Load())
			}
		}, "10.0.0.1:80", "10.0.0.2:80")
	})
}

var _ net.Conn = (*memnet.Conn)(nil)
