package proxy_test

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/proxy"
)

// long reports whether the long forms of the tests below run, which take some
// minutes and are the figures in the documentation:
//
//	EDGE_ENDURANCE=1 go test -v -run 'Endurance|NoStreamIsCut' -timeout 20m ./proxy
func long() bool { return os.Getenv("EDGE_ENDURANCE") == "1" }

// scale returns the size of a test.
func scale(usual, endurance int) int {
	if long() {
		return endurance
	}
	return usual
}

// level is what a process holds.
type level struct{ goroutines, descriptors int }

func measure() level {
	fds, _ := os.ReadDir("/proc/self/fd") // elsewhere than on Linux none are counted
	return level{runtime.NumGoroutine(), len(fds)}
}

// settles waits until no more is held than before. Idle connections of clients
// are closed meanwhile, also those that came late.
func (before level) settles(tb testing.TB, clients ...*http.Client) {
	tb.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var now level
	began := time.Now()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		for _, c := range clients {
			c.CloseIdleConnections()
		}
		if now = measure(); now.goroutines <= before.goroutines && now.descriptors <= before.descriptors {
			tb.Logf("nothing was left %v after the end", time.Since(began).Round(10*time.Millisecond))
			return
		}
	}
	tb.Errorf("got %+v, want at most %+v", now, before)
}

// settled has the test fail unless, when everything that it starts from here on
// has been stopped, no more is held than now.
func settled(tb testing.TB) {
	tb.Helper()
	before := measure()
	tb.Cleanup(func() { before.settles(tb) })
}

// TestEnduranceOfBackendsThatCloseIdleConnections sends requests in bursts, with
// pauses, to backends that end idle connections whenever they like. None may
// fail, and none may be served twice.
func TestEnduranceOfBackendsThatCloseIdleConnections(t *testing.T) {
	const burst = 25
	total, lanes, pause, longest := 5000, 4, 20*time.Millisecond, 40*time.Millisecond
	if long() {
		total, lanes, pause, longest = 100_000, 16, 5*time.Second, 5*time.Second
	}
	l := load{burst: burst, rounds: total / lanes / burst, pause: pause}
	backends := make([]*restless, lanes)
	pools := map[string][]string{}
	var routes []*config.Route
	for i := range lanes {
		name := "lane" + strconv.Itoa(i)
		backends[i] = newRestless(t, longest)
		pools[name] = []string{backends[i].url}
		routes = append(routes, &config.Route{Hosts: []string{"a.example.com"}, Path: "/" + name, Pool: name})
	}
	var seen observer
	cfg := settings(pools, routes...)
	for _, p := range cfg.Pools {
		p.Connect = patience // on a busy machine
	}
	e := start(t, cfg, seen.options)
	before := measure()
	var clients []*http.Client
	var running sync.WaitGroup
	for i := range lanes {
		own := []*http.Client{e.client(t, "h2")}
		if i%2 == 0 {
			// One for each connection: a shared one would also open some in advance,
			// which edge closes when no request comes, and fail requests by that.
			own = own[:0]
			for range burst {
				own = append(own, e.client(t, "h1"))
			}
		}
		clients = append(clients, own...)
		running.Go(func() { l.run(own, "https://a.example.com/lane"+strconv.Itoa(i)) })
	}
	running.Wait()
	var ended [3]int64
	var raced int64
	repeated := 0
	for _, b := range backends {
		for how := range ended {
			ended[how] += b.ended[how].Load()
		}
		raced += b.raced.Load()
		repeated += b.repeated()
	}
	sent := lanes * l.rounds * burst
	t.Logf("%d requests; connections ended by FIN %d, by close %d, by RST %d; %d requests crossed one of the FINs; %d were sent again",
		sent, ended[fin], ended[shut], ended[reset], raced, seen.again.Load())
	seen.judge(t, sent, &l)
	if repeated > 0 {
		t.Errorf("%d requests were served more than once", repeated)
	}
	if raced == 0 {
		t.Error("no request crossed the end of its connection: this has shown nothing")
	}
	before.settles(t, clients...) // while the proxy runs on
}

// idleRace is how long after the last byte of a request the end of its connection
// may come and still be a race. The servers of these tests can be later, on a
// machine so busy that they get no processor: edge is right not to try again then.
const idleRace = 250 * time.Millisecond

// observer looks at how edge tells the requests of an endurance test.
type observer struct {
	again      atomic.Int64 // tries beyond the first
	lost, late tally
}

func (o *observer) options(p *proxy.Options) {
	p.Observe = func(r *proxy.Record) {
		o.again.Add(int64(max(r.Attempts-1, 0)))
		if r.Reason == "" {
			return
		}
		err := fmt.Errorf("%s in try %d, %v after its begin: %w", r.Reason, r.Attempts, r.Duration, r.Err)
		if r.Reason == proxy.UpstreamLost && r.Duration > idleRace {
			o.late.add(err)
		} else {
			o.lost.add(err)
		}
	}
}

// judge has the test fail when one of l's requests failed, unless its server was
// late.
func (o *observer) judge(t *testing.T, sent int, l *load) {
	t.Helper()
	if n := l.failed.count; n > 0 {
		t.Errorf("%d of %d requests failed (%.2f %%): %v …", n, sent, 100*float64(n)/float64(sent), errors.Join(l.failed.first...))
	}
	if o.late.count > 0 {
		t.Logf("%d requests were lost by servers that were late: %v …", o.late.count, o.late.first[0])
	}
	if n := l.lost.count; n > o.late.count || n > sent/100 {
		t.Errorf("%d of %d requests were lost (%.2f %%): %v …", n, sent, 100*float64(n)/float64(sent), errors.Join(o.lost.first...))
	}
}

// load is what one client does: bursts of requests, with pauses.
type load struct {
	burst, rounds int
	least, pause  time.Duration // between bursts, at random; long ones are rare

	failed tally
	lost   tally // told so by edge
}

// tally counts failures and keeps the first few.
type tally struct {
	mu    sync.Mutex
	count int
	first []error
}

// add counts err, unless it is nil.
func (t *tally) add(err error) {
	if err == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count++
	if len(t.first) < 3 {
		t.first = append(t.first, err)
	}
}

func (l *load) run(clients []*http.Client, url string) {
	for round := range l.rounds {
		var burst sync.WaitGroup
		for i := range l.burst {
			burst.Go(func() { l.failed.add(l.one(clients[i%len(clients)], fmt.Sprintf("%s/%d", url, round*l.burst+i))) })
		}
		burst.Wait()
		limit := l.pause
		if round%5 != 0 {
			limit = min(limit, 60*time.Millisecond)
		}
		<-time.After(l.least + rand.N(limit-l.least))
	}
}

// one sends a request and checks that the reply is the one to it.
func (l *load) one(c *http.Client, url string) error {
	method, size, chunked := http.MethodPost, 1000, false
	switch rand.IntN(10) {
	case 0, 1, 2:
		method, size = http.MethodGet, 0
	case 3:
		size = 100_000
	case 4:
		chunked = true
	}
	text := strings.Repeat(url[len(url)-1:], size)
	body := io.Reader(strings.NewReader(text))
	if chunked {
		body = io.MultiReader(body) // of unknown length
	}
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	want := receipt(req.URL.Path, int64(size), crc32.ChecksumIEEE([]byte(text)))
	if err == nil && (resp.StatusCode != http.StatusOK || string(got) != want) {
		if strings.Contains(string(got), string(proxy.UpstreamLost)) {
			l.lost.add(errors.New(string(got)))
			return nil
		}
		err = fmt.Errorf("%s of %d bytes, chunked %v, over %s: got %d %.200q", method, size, chunked, resp.Proto, resp.StatusCode, got)
	}
	return err
}

// TestEnduranceOfServersThatSayGoAway: over HTTP/2 an idle connection ends with a
// GOAWAY, which requests cross as they cross the end of an HTTP/1.1 connection.
func TestEnduranceOfServersThatSayGoAway(t *testing.T) {
	const idle = 25 * time.Millisecond // that the server keeps a connection
	l := load{burst: 16, rounds: scale(60, 1250), least: idle - 3*time.Millisecond, pause: idle + 2*time.Millisecond}
	var mu sync.Mutex
	served := map[string]int{}
	settled(t)
	cfg := speaking(t, config.PoolH2C, func(w http.ResponseWriter, r *http.Request) {
		sum := crc32.NewIEEE()
		n, err := io.Copy(sum, r.Body)
		if err != nil {
			return
		}
		mu.Lock()
		served[r.URL.Path]++
		mu.Unlock()
		_, _ = io.WriteString(w, receipt(r.URL.Path, n, sum.Sum32()))
	}, func(s *http.Server) { s.IdleTimeout = idle })
	var seen observer
	e := start(t, cfg, seen.options)
	l.run([]*http.Client{e.client(t, "h2")}, "https://a.example.com/x")
	t.Logf("%d requests, %d sent again", l.burst*l.rounds, seen.again.Load())
	seen.judge(t, l.burst*l.rounds, &l)
	if seen.again.Load() == 0 {
		t.Error("no request crossed a GOAWAY: this has shown nothing")
	}
	mu.Lock()
	defer mu.Unlock()
	for path, times := range served {
		if times > 1 {
			t.Errorf("%s was served %d times", path, times)
		}
	}
}

// killer is a backend whose model dies of a generation, which is a POST: it reads
// it, and after a while the connection ends. Other requests it answers.
type killer struct {
	url         string
	after       time.Duration
	how         farewell
	sparesFresh bool // answers a generation on a connection that served nothing before

	generations, conns atomic.Int64
}

func newKiller(tb testing.TB, k *killer) *killer {
	tb.Helper()
	k.url = listen(tb, k.serve)
	return k
}

func (k *killer) serve(c *net.TCPConn, r *bufio.Reader) {
	k.conns.Add(1)
	for n := 0; ; n++ {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if req.Method == http.MethodPost {
			k.generations.Add(1)
			if n > 0 || !k.sparesFresh {
				<-time.After(k.after)
				k.how.say(c)
				_, _ = io.Copy(io.Discard, r) // after a FIN: what the other side has to say
				return
			}
		} else {
			<-time.After(10 * time.Millisecond) // so that requests at once take connections of their own
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"); err != nil {
			return
		}
	}
}

// warm leaves n idle connections to the backends.
func warm(tb testing.TB, c *http.Client, n int) {
	tb.Helper()
	var running sync.WaitGroup
	for range n {
		running.Go(func() {
			resp, err := c.Get(chat)
			if err != nil {
				tb.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		})
	}
	running.Wait()
}

// Model servers bill by the generation. What dies slowly, or on a connection
// that was opened for it, may have been computed; what dies at once on a
// connection that had served before was not looked at.
func TestEnduranceOfGenerationsThatKillTheirServer(t *testing.T) {
	slow := 600 * time.Millisecond // beyond an idle race
	if long() {
		slow = 5 * time.Second
	}
	settled(t)
	for name, test := range map[string]struct {
		after       time.Duration
		endpoints   int
		idle        int // connections that served before
		sparesFresh bool

		status      int
		generations int64
	}{
		"slowly":                                      {slow, 1, 0, false, 502, 1},
		"slowly on a used connection":                 {slow, 1, 1, true, 502, 1},
		"slowly with a second endpoint":               {slow, 2, 0, false, 502, 1},
		"slowly on used connections to two endpoints": {slow, 2, 4, true, 502, 1},
		"at once":                                     {0, 1, 0, false, 502, 1},
		"at once with a second endpoint":              {0, 2, 0, false, 502, 1},
		"at once on a used connection":                {0, 1, 1, true, 200, 2},
		"at once on any used connection":              {0, 1, 4, true, 200, 2},
		"at once on used connections to two":          {0, 2, 4, true, 200, 2},
		"at once on a used connection and on a fresh": {0, 1, 1, false, 502, 2},
	} {
		t.Run(name, func(t *testing.T) {
			for _, how := range []farewell{fin, shut, reset} {
				t.Run(how.String(), func(t *testing.T) {
					t.Parallel()
					var urls []string
					var killers []*killer
					for range test.endpoints {
						k := newKiller(t, &killer{after: test.after, how: how, sparesFresh: test.sparesFresh})
						killers, urls = append(killers, k), append(urls, k.url)
					}
					e := start(t, onePool(urls...))
					c := e.client(t, "h2")
					warm(t, c, test.idle)
					for range test.idle {
						e.record(t)
					}
					resp, body := do(t, c, request(t, "POST", chat, `{"model":"m"}`))
					if resp.StatusCode != test.status {
						t.Errorf("got %d %s, want %d", resp.StatusCode, body, test.status)
					}
					if r := e.record(t); (r.Reason == proxy.UpstreamLost) != (test.status == http.StatusBadGateway) {
						t.Errorf("got record %+v", r)
					}
					var generations int64
					for _, k := range killers {
						generations += k.generations.Load()
					}
					if generations != test.generations {
						t.Errorf("got %d generations, want %d", generations, test.generations)
					}
				})
			}
		})
	}
}

// TestEnduranceOfClientsThatLeave: a model server that computes for nobody learns
// of it at once, whatever is spoken on either side, and nothing is left behind.
func TestEnduranceOfClientsThatLeave(t *testing.T) {
	n := scale(20, 200)
	for _, backend := range []config.PoolProtocol{config.PoolH1, config.PoolH2C} {
		for _, front := range []string{"h1", "h2"} {
			t.Run(fmt.Sprintf("%s to %s", front, backend), func(t *testing.T) {
				settled(t)
				ended := make(chan time.Time, 1)
				e := start(t, speaking(t, backend, func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					w.Header().Set("Content-Type", "text/event-stream")
					_, _ = io.WriteString(w, "data: 1\n\n")
					_ = http.NewResponseController(w).Flush()
					<-r.Context().Done()
					ended <- time.Now()
				}))
				c := e.client(t, front)
				took := make([]time.Duration, n)
				for i := range took {
					took[i] = leave(t, c, ended)
					if r := e.record(t); r.Reason != proxy.ClientLeft {
						t.Fatalf("got record %+v, want client_left", r)
					}
				}
				slices.Sort(took)
				t.Logf("of %d departures the backend learned after %v (median), %v (95 of 100), %v (at most)", n, took[n/2], took[n*95/100], took[n-1])
				if m := took[n-1]; m > time.Second {
					t.Errorf("the backend learned after %v, want at most 1 s", m)
				}
			})
		}
	}
}

// leave opens a stream, leaves after its first event, and returns after what time
// the backend learned of it.
func leave(t *testing.T, c *http.Client, ended <-chan time.Time) time.Duration {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := c.Do(request(t, "POST", chat, `{"stream":true}`).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := event(bufio.NewReader(resp.Body)); err != nil {
		t.Fatal(err)
	}
	left := time.Now()
	cancel()
	select {
	case at := <-ended:
		return at.Sub(left)
	case <-time.After(patience):
		t.Fatal("the backend never learned that the client had left")
		return 0
	}
}

// speaking is a configuration with one backend that speaks protocol.
func speaking(tb testing.TB, protocol config.PoolProtocol, h http.HandlerFunc, mod ...func(*http.Server)) *config.Config {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(protocol == config.PoolH1)
	srv.Protocols.SetUnencryptedHTTP2(protocol == config.PoolH2C)
	for _, m := range mod {
		m(srv)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln)
	}()
	tb.Cleanup(func() {
		_ = srv.Close()
		<-served
	})
	cfg := onePool("http://" + ln.Addr().String())
	cfg.Pools["p"].Protocol = cmp.Or(protocol, config.PoolH1)
	return cfg
}
