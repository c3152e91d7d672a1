package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
)

// pipes is a listener in memory, whose waits a synctest bubble understands.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// clinic is an endpoint under examination, in a bubble.
type clinic struct {
	*testing.T // of the bubble

	answer atomic.Pointer[http.HandlerFunc]

	mu     sync.Mutex
	checks []time.Duration // since start
	paths  []string
	log    bytes.Buffer

	registry *Registry
	set      *Set
	config   *config.Pool
}

func (c *clinic) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.Write(p)
}

func (c *clinic) logged() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.log.String()
}

func (c *clinic) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.checks)
}

func (c *clinic) reply(h http.HandlerFunc) { c.answer.Store(&h) }

func (c *clinic) status() EndpointStatus { return c.registry.Status()[0].Endpoints[0] }

func code(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

const interval = 10 * time.Second

// examine runs f in a bubble with a committed pool of one endpoint that is
// checked every interval: fall 3, rise 2, timeout 2 s.
func examine(t *testing.T, f func(c *clinic)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		c := &clinic{T: t}
		c.reply(code(200))
		start := time.Now()
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c.mu.Lock()
			c.checks = append(c.checks, time.Since(start))
			c.paths = append(c.paths, fmt.Sprintf("%s %s%s close=%t", r.Method, r.Host, r.RequestURI, r.Close))
			c.mu.Unlock()
			(*c.answer.Load())(w, r)
		})}
		served := make(chan struct{})
		go func() { server.Serve(l); close(served) }()
		c.registry = NewRegistry(Options{Logger: slog.New(slog.NewTextHandler(c, nil)), Dial: l.dial})
		c.config = poolOf("http://gpu-1:8000")
		c.config.Health = &config.Health{Path: "/health?full=1", Interval: interval, Timeout: 2 * time.Second, Rise: 2, Fall: 3}
		set, err := c.registry.Prepare(pools(c.config))
		if err != nil {
			t.Fatal(err)
		}
		c.set = set
		time.Sleep(interval)
		synctest.Wait()
		if n := c.count(); n != 0 {
			t.Fatalf("%d checks before Commit, want 0", n)
		}
		start = time.Now()
		set.Commit()
		synctest.Wait()
		f(c)
		c.set.Close()
		c.registry.Close()
		server.Close()
		<-served
		time.Sleep(time.Minute) // handlers that were under way end
	})
}

// rounds lets n checks happen.
func rounds(n int) {
	for range n {
		time.Sleep(interval)
	}
	synctest.Wait()
}

func TestEndpointIsUsableUntilChecksFail(t *testing.T) {
	examine(t, func(c *clinic) {
		if s := c.status(); !s.Healthy || c.count() != 1 {
			c.Errorf("after commit: %+v, %d checks; want healthy, 1", s, c.count())
		}
		if c.paths[0] != "GET gpu-1:8000/health?full=1 close=true" {
			c.Errorf("check asks %s, want GET gpu-1:8000/health?full=1 on a connection of its own", c.paths[0])
		}
		if c.logged() != "" {
			c.Errorf("log %q, want nothing", c.logged())
		}
	})
}

func TestFallAndRiseAreCountedInARow(t *testing.T) {
	examine(t, func(c *clinic) {
		fail, pass := code(503), code(204)
		began := c.status().Since
		for i, step := range []struct {
			reply   http.HandlerFunc
			healthy bool
		}{
			{fail, true},
			{fail, true},
			{pass, true},
			{fail, true},
			{fail, true},
			{fail, false},
			{pass, false},
			{fail, false},
			{pass, false},
			{pass, true},
			{fail, true},
		} {
			// Each step sees exactly one check: wait for the count.
			c.reply(step.reply)
			for n := c.count(); c.count() == n; {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			if s := c.status(); s.Healthy != step.healthy {
				c.Fatalf("step %d: healthy %v, want %v", i, s.Healthy, step.healthy)
			}
		}
		if s := c.status(); !s.Since.After(began) || s.LastError != "status 503" {
			c.Errorf("status %+v, want a later since and status 503", s)
		}
		log := c.logged()
		if n := strings.Count(log, "\n"); n != 2 {
			c.Errorf("%d log lines for two changes:\n%s", n, log)
		}
		for _, want := range []string{
			`level=WARN msg="endpoint is down" endpoint=http://gpu-1:8000 path="/health?full=1" failures=3 reason="status 503"`,
			`level=INFO msg="endpoint is up" endpoint=http://gpu-1:8000 path="/health?full=1" passes=2`,
		} {
			if !strings.Contains(log, want) {
				c.Errorf("log lacks %q:\n%s", want, log)
			}
		}
	})
}

func TestChecksKeepTheirIntervalWithJitter(t *testing.T) {
	examine(t, func(c *clinic) {
		c.reply(func(http.ResponseWriter, *http.Request) { time.Sleep(time.Second) })
		rounds(50)
		var shortest, longest time.Duration = time.Hour, 0
		for i := 1; i < len(c.checks); i++ {
			d := c.checks[i] - c.checks[i-1]
			shortest, longest = min(shortest, d), max(longest, d)
		}
		if shortest < interval*9/10 || longest > interval*11/10 || longest-shortest < interval/20 {
			c.Errorf("intervals from %v to %v, want within 10%% of %v and spread", shortest, longest, interval)
		}
		if s := c.status(); !s.Healthy {
			c.Errorf("status %+v, want healthy", s)
		}
	})
}

func TestWhatCountsAsAFailure(t *testing.T) {
	for name, tc := range map[string]struct {
		reply http.HandlerFunc
		want  string // part of the reason; "" passes
	}{
		"299":              {code(299), ""},
		"redirect":         {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) }, "status 302"},
		"404":              {code(404), "status 404"},
		"silence":          {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "deadline exceeded"},
		"body that stalls": {stall, "read body"},
		"endless body":     {flood, ""},
	} {
		t.Run(name, func(t *testing.T) {
			examine(t, func(c *clinic) {
				c.reply(tc.reply)
				rounds(5)
				s := c.status()
				if s.Healthy != (tc.want == "") || !strings.Contains(s.LastError, tc.want) {
					c.Errorf("status %+v, want reason %q", s, tc.want)
				}
				for _, p := range c.paths {
					if strings.Contains(p, "other") {
						c.Errorf("redirect followed: %s", p)
					}
				}
			})
		})
	}
}

func stall(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, "part")
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func flood(w http.ResponseWriter, _ *http.Request) {
	for {
		if _, err := w.Write(make([]byte, 1<<10)); err != nil {
			return
		}
	}
}

func TestVerdictSurvivesAReloadAndItsCheckIsNotDoubled(t *testing.T) {
	examine(t, func(c *clinic) {
		c.reply(code(500))
		rounds(5)
		down := c.status()
		if down.Healthy {
			c.Fatalf("status %+v, want down", down)
		}
		other := *c.config
		other.Name = "other" // a second pool with the same check
		next, err := c.registry.Prepare(pools(c.config, &other))
		if err != nil {
			c.Fatal(err)
		}
		next.Commit()
		c.set.Close()
		c.set = next
		for _, p := range c.registry.Status() {
			if e := p.Endpoints[0]; e.Healthy || !e.Since.Equal(down.Since) {
				c.Errorf("pool %s after reload: %+v, want down since %v", p.Name, e, down.Since)
			}
		}
		if _, err := next.Pool("other").Do(c.Context(), get("/")); !errors.Is(err, ErrNoEndpoint) {
			c.Errorf("Do: %v, want ErrNoEndpoint", err)
		}
		before := c.count()
		rounds(10)
		if n := c.count() - before; n < 9 || n > 11 {
			c.Errorf("%d checks in ten intervals, want about 10", n)
		}
	})
}

func TestChecksEndWithTheLastSetAndBeginAnew(t *testing.T) {
	examine(t, func(c *clinic) {
		waiting, err := c.registry.Prepare(pools(c.config)) // holds, does not run
		if err != nil {
			c.Fatal(err)
		}
		c.set.Close()
		before := c.count()
		rounds(3)
		if n := c.count(); n != before {
			c.Errorf("%d checks while no Set is committed, want 0", n-before)
		}
		waiting.Commit()
		synctest.Wait()
		if n := c.count(); n != before+1 {
			c.Errorf("%d checks after Commit, want 1", n-before)
		}
		c.set = waiting
	})
}

func TestResultOfAStoppedCheckIsNoNews(t *testing.T) {
	examine(t, func(c *clinic) {
		c.reply(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		for c.count() < 2 { // into a check under way
			time.Sleep(time.Second)
			synctest.Wait()
		}
		checker := c.set.Pool("test").endpoints[0].checker
		c.set.Close()
		synctest.Wait()
		if _, reason := checker.verdict(); reason != "" || !checker.up.Load() {
			c.Errorf("reason %q after the check was aborted, want none", reason)
		}
	})
}
