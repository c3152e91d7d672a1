package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/lab/bench/internal/meter"
	"edge/lab/bench/internal/model"
)

// targets starts the model server over TLS, for HTTP/1.1 and for HTTP/2, and
// returns the addresses by protocol. No proxy is in between.
func targets(t *testing.T) map[string]string {
	t.Helper()
	h2 := httptest.NewUnstartedServer(http.HandlerFunc(model.H2))
	h2.EnableHTTP2 = true
	h2.StartTLS()
	t.Cleanup(h2.Close)
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: h2.TLS.Certificates, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- model.Serve(ln) }()
	t.Cleanup(func() { ln.Close(); <-served })
	return map[string]string{"h1": ln.Addr().String(), "h2": h2.Listener.Addr().String()}
}

// quickly are options for a short window on this process.
func quickly(mode, proto string) options {
	return options{
		mode: mode, proto: proto, name: "bench.test", conns: 3, streams: 4, pid: os.Getpid(), body: 1024, events: 50,
		warm: time.Millisecond, window: 80 * time.Millisecond, gap: 2 * time.Millisecond,
	}
}

func TestEveryWorkloadCountsItsUnits(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("CPU time of a process is read on Linux only")
	}
	current := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, current) })
	for _, o := range []options{
		quickly("req", "h1"), quickly("req", "h2"), quickly("conn", "h1"), quickly("sse", "h1"), quickly("sse", "h2"),
		quickly("up", "h1"), quickly("down", "h1"), quickly("idle", "h1"), quickly("ws", "h1"), quickly("grpc", "h2"),
	} {
		t.Run(o.mode+"-"+o.proto, func(t *testing.T) {
			t.Parallel()
			o.addr = targets(t)[o.proto]
			if o.mode == "up" || o.mode == "down" {
				o.body = mib
			}
			r, err := runUntilBusy(t, o)
			if err != nil || r.Errors != 0 || r.Mode != o.mode {
				t.Fatalf("got %+v, %v", r, err)
			}
			if !strings.Contains(r.Note, "X25519") {
				t.Errorf("note %q does not say what TLS agreed on", r.Note)
			}
			if o.mode == "idle" {
				if r.Units != 0 || r.PSS == 0 {
					t.Errorf("got %d units and %v MiB, want none and some", r.Units, r.PSS)
				}
				return
			}
			if r.Units == 0 || r.CPU <= 0 || r.Rate <= 0 || r.Cores <= 0 {
				t.Errorf("got %+v, want units and what they cost", r)
			}
			if o.mode == "sse" && r.TTFT50 <= 0 {
				t.Error("no time to the first event")
			}
		})
	}
}

// runUntilBusy makes the window longer until work is done in it: another's
// load may keep us from the processors for a while.
func runUntilBusy(t *testing.T, o options) (r meter.Report, err error) {
	t.Helper()
	for ; o.window < time.Minute; o.window *= 4 {
		if r, err = run(t.Context(), o); err != nil || r.Units > 0 || o.mode == "idle" {
			break
		}
	}
	return r, err
}

func TestRateIsKept(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("CPU time of a process is read on Linux only")
	}
	o := quickly("req", "h1")
	o.addr, o.rate, o.window = targets(t)["h1"], 100, 300*time.Millisecond
	r, err := runUntilBusy(t, o)
	if most := int64(float64(o.rate)*r.Seconds) + 20; err != nil || r.Units > most {
		t.Errorf("got %d requests in %vs, %v, want at most %d: after a delay it catches up, but not more", r.Units, r.Seconds, err, most)
	}
}

func TestResumptionIsSeen(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("CPU time of a process is read on Linux only")
	}
	o := quickly("conn", "h1")
	o.addr, o.resume, o.expect = targets(t)["h1"], true, "resumed=true"
	if r, err := runUntilBusy(t, o); err != nil || r.Units == 0 {
		t.Errorf("got %+v, %v", r, err)
	}
	o.resume = false
	if r, err := run(t.Context(), o); err != nil || r.Units != 0 || !strings.HasPrefix(r.Note, "not resumed=true: ") {
		t.Errorf("without resumption: got %d units, note %q, %v; want a row that says nothing", r.Units, r.Note, err)
	}
}

func TestRefusalsAreReported(t *testing.T) {
	refuse := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer refuse.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for name, c := range map[string]struct {
		o    options
		addr string
		want string
	}{
		"status":            {quickly("req", "h1"), refuse.Listener.Addr().String(), "502"},
		"status of a body":  {func() options { o := quickly("down", "h1"); o.body = mib; return o }(), refuse.Listener.Addr().String(), "502"},
		"no upgrade":        {quickly("ws", "h1"), refuse.Listener.Addr().String(), "502"},
		"no h2":             {quickly("req", "h2"), refuse.Listener.Addr().String(), "handshake"},
		"nobody there":      {quickly("sse", "h1"), gone.Addr().String(), "refused"},
		"unknown mode":      {quickly("fly", "h1"), "", `unknown mode "fly"`},
		"a body too small":  {quickly("up", "h1"), "", "a MiB at least"},
		"message too small": {func() options { o := quickly("ws", "h1"); o.body = 5; return o }(), "", "126"},
	} {
		c.o.addr = c.addr
		r, err := run(t.Context(), c.o)
		if err == nil || r.Errors != 1 || !strings.Contains(r.Note, c.want) {
			t.Errorf("%s: got %+v, %v, want %q", name, r, err, c.want)
		}
	}
}

func TestFirstErrorIsKeptAndTheEndIsNone(t *testing.T) {
	var l load
	l.fail(nil)
	l.fail(errors.New("first"))
	l.fail(errors.New("second"))
	l.stopping.Store(true)
	l.fail(errors.New("closed"))
	var r meter.Report
	l.note(&r)
	if r.Errors != 2 || r.Note != "first" {
		t.Errorf("got %d errors, %q, want 2, first", r.Errors, r.Note)
	}
}

func TestWindowIsDividedByItsUnits(t *testing.T) {
	at := time.Now()
	var r meter.Report
	(&load{}).fill(&r, sample{at, time.Second, 100, 10}, sample{at.Add(2 * time.Second), 2 * time.Second, 300, 60})
	if r.Units != 200 || r.CPU != 5000 || r.Rate != 100 || r.Cores != .5 || r.Switch != .25 {
		t.Errorf("got %+v, want 200 units of 5000 us, 100 a second on half a core, 0.25 switches each", r)
	}
	(&load{}).fill(&r, sample{at, time.Second, 100, 10}, sample{at.Add(time.Second), 2 * time.Second, 100, 60})
	if r.Units != 0 {
		t.Errorf("got %d units, want none", r.Units)
	}
}

func TestEventsAreFoundHoweverTheyAreCut(t *testing.T) {
	const text = "data: {\"t\":1700000000000000001,\"i\":0}\n\ndata: [DONE]\n\ndata: {\"t\":1700000000000000002,\"i\":1}\n\n: comment\n\ndata: {\"t\":12}\n\n"
	for size := 1; size <= len(text); size++ {
		var got []int64
		var e events
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			e.feed([]byte(rest[:n]), func(sent time.Time) { got = append(got, sent.UnixNano()) })
			rest = rest[n:]
		}
		if fmt.Sprint(got) != "[1700000000000000001 1700000000000000002]" {
			t.Errorf("in pieces of %d: got %v, want two events", size, got)
		}
	}
}

func TestPromptsHaveTheirSize(t *testing.T) {
	for _, n := range []int{0, 100, 1024, 8192} {
		p := prompt(n)
		if !json.Valid(p) || n >= 100 && len(p) != n {
			t.Errorf("prompt(%d) has %d bytes, valid JSON %v", n, len(p), json.Valid(p))
		}
	}
}

func TestRequestsSayWhatAnOpenAIClientSays(t *testing.T) {
	l := &load{options: options{name: "bench.test"}}
	got := l.post("/v1/chat/completions", []byte("{}"))
	for _, want := range []string{"POST /v1/chat/completions HTTP/1.1\r\nHost: bench.test\r\n", "content-length: 2\r\n\r\n{}", "authorization: Bearer "} {
		if !bytes.Contains(got, []byte(want)) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	l.path = "/own?x=1"
	if got := l.target("/default"); got != "/own?x=1" {
		t.Errorf("got %s, want the path of the option", got)
	}
}

func TestEachIsBoundedAndReturnsAnError(t *testing.T) {
	var now, most, ran atomic.Int64
	want := errors.New("the third")
	err := each(200, func(i int) error {
		for n := now.Add(1); ; {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		runtime.Gosched()
		now.Add(-1)
		ran.Add(1)
		if i == 3 {
			return want
		}
		return nil
	})
	if !errors.Is(err, want) || ran.Load() != 200 || most.Load() > dialsAtOnce {
		t.Errorf("got %v after %d runs, %d at once, want %v, 200, at most %d", err, ran.Load(), most.Load(), want, dialsAtOnce)
	}
}

func TestPauseEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start := time.Now()
	pause(ctx, time.Hour)
	pause(t.Context(), -time.Hour)
	if d := time.Since(start); d > time.Minute {
		t.Errorf("took %v", d)
	}
}
