package proxy_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"edge/config"
	"edge/internal/modelserver"
	"edge/proxy"
)

// TestReloadBreaksNoStream: a hundred streams are under way, on both protocols;
// their route goes away, then its pool, then their listener.
func TestReloadBreaksNoStream(t *testing.T) {
	const streams = 50 // on each protocol
	m := modelserver.New(t, modelserver.Options{Script: modelserver.Script{Gate: true, Tokens: []string{"a", "b", "c", "d", "e"}}})
	other := modelserver.New(t, modelserver.Options{Name: "other"})
	cfg := onePool(m.URL)
	e := start(t, cfg)
	type open struct {
		resp *http.Response
		r    *bufio.Reader
	}
	var all []open
	for _, protocol := range []string{"h1", "h2"} {
		c := e.client(t, protocol)
		for i := range streams {
			req := request(t, "POST", chat, `{"stream":true}`)
			req.Header.Set(modelserver.KeyHeader, fmt.Sprintf("%s-%d", protocol, i))
			resp, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			all = append(all, open{resp, bufio.NewReader(resp.Body)})
		}
	}
	step := func(when string) {
		t.Helper()
		for i, s := range all {
			m.ConfirmKey(s.resp.Request.Header.Get(modelserver.KeyHeader), 1)
			if _, err := event(s.r); err != nil {
				t.Fatalf("%s: stream %d: %v", when, i, err)
			}
		}
	}
	step("before")
	moved := settings(map[string][]string{"q": {other.URL}}, &config.Route{Hosts: []string{"a.example.com"}, Pool: "q"})
	e.reload(t, moved)
	step("after the route moved to another pool")
	if got := echo(t, e.client(t, "h2"), request(t, "GET", "https://a.example.com/echo", "")).Server; got != "other" {
		t.Errorf("a new request went to %s, want the new pool", got)
	}
	unrouted := settings(nil, &config.Route{Hosts: []string{"b.example.com"}, Pool: "q"})
	unrouted.Pools = moved.Pools
	e.reload(t, unrouted)
	step("after the route was removed")
	removed := settings(nil)
	delete(removed.Listeners, "https")
	e.reload(t, removed)
	step("after the listener was removed")
	var running sync.WaitGroup
	var broken atomic.Int64
	for _, s := range all {
		running.Go(func() {
			m.ConfirmKey(s.resp.Request.Header.Get(modelserver.KeyHeader), 10)
			if rest, err := io.ReadAll(s.r); err != nil || !strings.Contains(string(rest), "[DONE]") {
				broken.Add(1)
			}
		})
	}
	running.Wait()
	if n := broken.Load(); n > 0 {
		t.Errorf("%d of %d streams broke at the end", n, len(all))
	}
	if _, err := net.DialTimeout("tcp", e.addr, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the removed listener: got %v, want refused", err)
	}
}

func TestReloadLosesNoRequest(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	cfg := onePool(m.URL)
	e := start(t, cfg)
	stop := make(chan struct{})
	var running sync.WaitGroup
	var sent, lost atomic.Int64
	var first atomic.Value
	for _, protocol := range []string{"h1", "h2"} {
		for _, keep := range []bool{true, false} {
			c := e.client(t, protocol)
			c.Transport.(*http.Transport).DisableKeepAlives = !keep
			running.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					sent.Add(1)
					resp, err := c.Post("https://a.example.com/echo", "text/plain", strings.NewReader("x"))
					if err == nil {
						_, err = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
						if err == nil && resp.StatusCode != http.StatusOK {
							err = fmt.Errorf("got %d", resp.StatusCode)
						}
					}
					if err != nil {
						lost.Add(1)
						first.CompareAndSwap(nil, err)
					}
				}
			})
		}
	}
	for i := range 20 {
		next := onePool(m.URL)
		for range i % 5 {
			next.Routes = append(next.Routes, &config.Route{Name: "more", Hosts: []string{"b.example.com"}, Path: "/", Pool: "p", Listeners: []string{"https"}})
		}
		e.reload(t, next)
		for before := sent.Load(); sent.Load() < before+20; {
			<-time.After(time.Millisecond)
		}
	}
	close(stop)
	running.Wait()
	if lost.Load() > 0 {
		t.Errorf("%d of %d requests were lost, the first: %v", lost.Load(), sent.Load(), first.Load())
	}
}

func TestFailedPrepareChangesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	m := modelserver.New(t, modelserver.Options{})
	cfg := onePool(m.URL)
	e := start(t, cfg)
	bad := onePool(m.URL)
	bad.Listeners["new"] = &config.Listener{Name: "new", Address: "127.0.0.1:0", Protocols: []config.Protocol{config.H1}}
	bad.Listeners["taken"] = &config.Listener{Name: "taken", Address: taken.Addr().String(), Protocols: []config.Protocol{config.H1}}
	bad.Pools["p"].CA = "/nowhere/ca.pem"
	bad.Pools["p"].Endpoints[0].URL = "https://127.0.0.1:1"
	_, err = e.Prepare(t.Context(), bad)
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{"listener taken", "another process listens there", "/nowhere/ca.pem"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %q", err, want)
		}
	}
	if e.Addr("new") != nil {
		t.Error("a listener of the failed configuration is there")
	}
	echo(t, e.client(t, "h2"), request(t, "GET", "https://a.example.com/echo", ""))
	if got := e.Addr("https").String(); got != e.addr {
		t.Errorf("https moved from %s to %s", e.addr, got)
	}
}

func TestAbortedChangeReleasesItsAddresses(t *testing.T) {
	e := start(t, onePool("http://127.0.0.1:1"))
	cfg := onePool("http://127.0.0.1:1")
	var bound net.Addr
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	bound = free.Addr()
	_ = free.Close()
	cfg.Listeners["new"] = &config.Listener{Name: "new", Address: bound.String(), Protocols: []config.Protocol{config.H1}}
	change, err := e.Prepare(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Prepare(t.Context(), cfg); err == nil {
		t.Error("got a second change while one is pending")
	}
	change.Abort()
	again, err := net.Listen("tcp", bound.String())
	if err != nil {
		t.Fatalf("after Abort: %v", err)
	}
	_ = again.Close()
	e.reload(t, cfg) // and another change is possible
	if e.Addr("new") == nil {
		t.Error("the listener was not bound")
	}
}

func TestAddressIsKeptWhenItsListenerChanges(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	cfg := onePool(m.URL)
	e := start(t, cfg)
	old := e.client(t, "h1")
	echo(t, old, request(t, "GET", "https://a.example.com/echo", ""))
	renamed := onePool(m.URL)
	l := *renamed.Listeners["https"]
	l.Name, l.Protocols = "secure", []config.Protocol{config.H1}
	delete(renamed.Listeners, "https")
	renamed.Listeners["secure"] = &l
	// "http" has the same address as configured; it must keep its own socket.
	httpAddr := e.Addr("http").String()
	renamed.Routes[0].Listeners = []string{"secure"}
	e.reload(t, renamed)
	if got := e.Addr("secure").String(); got != e.addr {
		t.Errorf("the address moved from %s to %s", e.addr, got)
	}
	if got := e.Addr("http").String(); got != httpAddr {
		t.Errorf("http moved from %s to %s", httpAddr, got)
	}
	if r := echo(t, e.client(t, "h1"), request(t, "GET", "https://a.example.com/echo", "")); r.Server == "" {
		t.Error("the renamed listener does not serve")
	}
	if _, err := tls.Dial("tcp", e.addr, clientTLS("a.example.com", "h2")); err == nil {
		t.Error("the new protocols are not in force")
	}
	var names []string
	for _, l := range e.Status().Listeners {
		names = append(names, l.Name)
	}
	if fmt.Sprint(names) != "[http secure]" {
		t.Errorf("got listeners %v", names)
	}
}

func TestShutdownLetsStreamsEnd(t *testing.T) {
	e, m := startModel(t, modelserver.Script{Gate: true})
	streams := map[string]*http.Response{}
	for _, protocol := range []string{"h1", "h2"} {
		req := request(t, "POST", chat, `{"stream":true}`)
		req.Header.Set(modelserver.KeyHeader, protocol)
		resp, err := e.client(t, protocol).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		streams[protocol] = resp
	}
	down := make(chan error, 1)
	go func() { down <- e.Shutdown(t.Context()) }()
	for !e.Status().Stopping {
		<-time.After(time.Millisecond)
	}
	select {
	case err := <-down:
		t.Fatalf("shutdown returned %v while streams were under way", err)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := net.DialTimeout("tcp", e.addr, time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: got %v, want refused", err)
	}
	m.ConfirmKey("h1", 10)
	m.ConfirmKey("h2", 10)
	for protocol, resp := range streams {
		if body, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(body), "[DONE]") {
			t.Errorf("%s: got %q, %v, want the whole stream", protocol, body, err)
		}
	}
	select {
	case err := <-down:
		if err != nil {
			t.Errorf("shutdown: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("shutdown does not end")
	}
	if _, err := e.Prepare(t.Context(), onePool(m.URL)); err == nil {
		t.Error("a stopped server took a configuration")
	}
}

func TestShutdownCutsStreamsWhenTheTimeIsOver(t *testing.T) {
	e, m := startModel(t, modelserver.Script{Gate: true})
	streams := map[string]*http.Response{"h1": stream(t, e.client(t, "h1")), "h2": stream(t, e.client(t, "h2"))}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if err := e.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
	for protocol, resp := range streams {
		if body, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%s: got a clean end after %q", protocol, body)
		}
		if r := e.record(t); r.Reason != proxy.ShuttingDown {
			t.Errorf("got record %+v, want shutting_down", r)
		}
		select {
		case <-m.Aborted():
		case <-time.After(patience):
			t.Error("the backend was not told")
		}
	}
	if n := e.Status().Active; n != 0 {
		t.Errorf("%d requests are active after Shutdown", n)
	}
}

func TestAcceptErrorsAreWaitedOut(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	e := start(t, onePool(m.URL), func(o *proxy.Options) {
		o.Listen = func(ctx context.Context, network, address string) (net.Listener, error) {
			ln, err := new(net.ListenConfig).Listen(ctx, network, address)
			return &shortOfFiles{Listener: ln, left: 3}, err
		}
	})
	echo(t, e.client(t, "h1"), request(t, "GET", "https://a.example.com/echo", ""))
}

// shortOfFiles fails to accept a few times, as when descriptors run out.
type shortOfFiles struct {
	net.Listener
	left int
}

func (l *shortOfFiles) Accept() (net.Conn, error) {
	if l.left > 0 {
		l.left--
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

// lateAccept is a listener that accepts one more connection as it is closed, and
// tells of it when the reload that closed it is over.
type lateAccept struct {
	net.Listener
	late net.Conn
	once sync.Once
}

func (l *lateAccept) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		l.once.Do(func() {
			<-time.After(100 * time.Millisecond)
			c, err = l.late, nil
		})
	}
	return c, err
}

func TestConnectionAcceptedAsItsListenerClosesIsClosed(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	cfg := onePool("http://127.0.0.1:1")
	first := true
	e := start(t, cfg, func(o *proxy.Options) {
		o.Listen = func(ctx context.Context, network, address string) (net.Listener, error) {
			ln, err := new(net.ListenConfig).Listen(ctx, network, address)
			if first { // in order of names: "http"
				first = false
				return &lateAccept{Listener: ln, late: server}, err
			}
			return ln, err
		}
	})
	delete(cfg.Listeners, "http")
	e.reload(t, cfg)
	_ = client.SetDeadline(time.Now().Add(patience / 2))
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read: %v, want io.EOF", err)
	}
}

// TestRequestOnAConnectionOlderThanTheReloadIsServed, and one older than a stop,
// also when its answer takes longer than a stop waits for last bytes.
func TestRequestOnAConnectionOlderThanTheReloadIsServed(t *testing.T) {
	m := modelserver.New(t, modelserver.Options{})
	e := start(t, onePool(m.URL))
	late := func(t *testing.T, change func()) {
		t.Helper()
		c := e.raw(t)
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		change()
		<-time.After(100 * time.Millisecond)
		c.send(t, "POST /v1/chat/completions HTTP/1.1\r\nHost: a.example.com\r\nContent-Length: 2\r\n\r\n{}")
		if resp, body := c.response(t, "POST"); resp.StatusCode != http.StatusOK {
			t.Errorf("got %d %s", resp.StatusCode, body)
		}
	}
	late(t, func() {
		cfg := onePool(m.URL)
		cfg.Routes[0].Limits.Headers = 128 << 10 // needs another server
		e.reload(t, cfg)
	})
	m.SetScript(modelserver.Script{HeadDelay: 2500 * time.Millisecond})
	var stopped sync.WaitGroup
	late(t, func() {
		stopped.Go(func() {
			if err := e.Shutdown(t.Context()); err != nil {
				t.Errorf("shutdown: %v", err)
			}
		})
	})
	stopped.Wait()
}

func TestStatusTellsPoolsAndListeners(t *testing.T) {
	e, m := startModel(t, modelserver.Script{})
	echo(t, e.client(t, "h2"), request(t, "GET", "https://a.example.com/echo", ""))
	st := e.Status()
	if len(st.Listeners) != 2 || st.Listeners[1].Address != e.addr || !st.Listeners[0].Redirect || st.Stopping {
		t.Errorf("got %+v", st)
	}
	if len(st.Pools) != 1 || st.Pools[0].Name != "p" || st.Pools[0].Endpoints[0].URL != m.URL || st.Pools[0].Endpoints[0].Requests != 1 {
		t.Errorf("got pools %+v", st.Pools)
	}
}

func TestTwoListenersMayHaveOneAddressAsWritten(t *testing.T) {
	cfg := onePool("http://127.0.0.1:1")
	more := maps.Clone(cfg.Listeners)
	more["x"] = &config.Listener{Name: "x", Address: "127.0.0.1:0", Protocols: []config.Protocol{config.H1}}
	cfg.Listeners = more
	e := start(t, cfg)
	before := []string{e.Addr("http").String(), e.Addr("https").String(), e.Addr("x").String()}
	e.reload(t, cfg)
	if after := []string{e.Addr("http").String(), e.Addr("https").String(), e.Addr("x").String()}; fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("got %v after a reload, want %v", after, before)
	}
}
