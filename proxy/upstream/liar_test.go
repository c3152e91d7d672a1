package upstream_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
	"edge/internal/memnet"
	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

// The table of lying servers. Each lie is what a server says, byte for byte, with
// the rule that it breaks or bends, and what has to become of the request. It is
// told in a bubble of virtual time over a network in memory, so that a goroutine
// which stays behind fails the test (synctest) and patience costs nothing.
//
// Whatever the lie was, the next request to that server must get its own reply,
// and the client must have closed every connection in the end.

const (
	lieFirstByte = 3 * time.Second  // Request.FirstByte of every lie
	liePatience  = 20 * time.Second // no lie keeps a client for longer
	lieSettle    = 100 * time.Millisecond
	lieEndless   = 48 << 20 // more than any client may take of what has no end
	lieBody      = 1 << 20  // bytes of a reply that a test reads
)

// lie is one row of the table.
type lie struct {
	name, rfc string
	want      outcome
	script    []step // told when the request is in

	method    string
	field     exchange.Fields
	upload    func() (io.Reader, int64, func()) // body, length, interrupt
	greeting  []step                            // told before the request is read
	early     bool                              // script begins at the head of the request
	hasty     bool                              // the next request follows at once
	upgrade   bool
	everybody bool // there is no honest server
	slow      bool // takes more patience than loopback has
	last      bool // the connection is no good for another request
	stingy    bool // HTTP/2: no window is given back
	aside     bool // nobody reads the reply for a while
	mute      bool // HTTP/2: SETTINGS and PING are not acknowledged
	deaf      bool // HTTP/2: nothing is read while the script is played
}

// tell is a lie in answer to a GET.
func tell(name, rfc string, want outcome, script ...step) lie {
	return lie{name: name, rfc: rfc, want: want, script: script, method: "GET"}
}

func (l lie) expect(o outcome) lie         { l.want = o; return l }
func (l lie) ended() lie                   { l.script = append(l.script, fin); return l }
func (l lie) to(method string) lie         { l.method = method; return l }
func (l lie) greeted(greeting ...step) lie { l.greeting = greeting; return l }
func (l lie) atOnce() lie                  { l.early = true; return l }
func (l lie) hurried() lie                 { l.hasty = true; return l }
func (l lie) upgrading() lie               { l.upgrade = true; return l }
func (l lie) slowly() lie                  { l.slow = true; return l }
func (l lie) unacknowledged() lie          { l.mute = true; return l }
func (l lie) unheard() lie                 { l.deaf = true; return l }
func (l lie) windowless() lie              { l.stingy = true; return l }
func (l lie) forlorn() lie                 { l.last = true; return l }
func (l lie) byAll() lie                   { l.everybody = true; return l }
func (l lie) unread() lie                  { l.aside = true; return l }

// maybeKept leaves it open whether the connection survives.
func (l lie) maybeKept() lie {
	l.want.reuse = either
	return l
}

// posting has the request be a POST with a short body.
func (l lie) posting() lie {
	l.method = "POST"
	l.upload = func() (io.Reader, int64, func()) { return strings.NewReader("prompt"), 6, nil }
	return l
}

// uploading has the request be a POST whose body never ends.
func (l lie) uploading() lie {
	l.method, l.early = "POST", true
	l.upload = func() (io.Reader, int64, func()) { return endlessBody{}, -1, nil }
	return l
}

// stalling has the request be a POST whose body never comes.
func (l lie) stalling() lie {
	l.method, l.early = "POST", true
	l.upload = func() (io.Reader, int64, func()) {
		r, w := io.Pipe()
		return r, -1, func() { _ = w.CloseWithError(errors.New("interrupted")) }
	}
	return l
}

// endlessBody takes a while for each piece, or virtual time would stand still.
type endlessBody struct{}

func (endlessBody) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	clear(p)
	return len(p), nil
}

// step is one thing that a server does. An error ends the script.
type step func(*turn) error

// turn is one request on one connection of a lying server.
type turn struct {
	server *liar
	conn   net.Conn
	in     *bufio.Reader
	body   io.Reader // the rest of the request; nil when it is read
	write  func(string) error
}

// say writes raw bytes, in one piece.
func say(s string) step { return func(t *turn) error { return t.write(s) } }

// drip writes raw bytes one by one.
func drip(s string, every time.Duration) step {
	return func(t *turn) error {
		for i := range len(s) {
			time.Sleep(every)
			if err := t.write(s[i : i+1]); err != nil {
				return err
			}
		}
		return nil
	}
}

// endless writes s again and again for as long as somebody reads.
func endless(s string) step {
	piece := strings.Repeat(s, max(1, 4096/len(s)))
	return func(t *turn) error {
		for n := 0; n < lieEndless; n += len(piece) {
			if err := t.write(piece); err != nil {
				return err
			}
		}
		t.server.swallowed.Store(true)
		return errors.New("nobody objected")
	}
}

// pause waits.
func pause(d time.Duration) step {
	return func(*turn) error { time.Sleep(d); return nil }
}

// fin tells the client that nothing more comes, and reads on.
func fin(t *turn) error {
	c, ok := t.conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return c.CloseWrite()
}

// rst ends the connection as a server that crashes does.
func rst(t *turn) error {
	c := t.conn
	if secure, ok := c.(*tls.Conn); ok {
		c = secure.NetConn()
	}
	switch c := c.(type) {
	case *memnet.Conn:
		c.Reset()
	case *net.TCPConn:
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	return net.ErrClosed
}

// readBody takes what is left of the request.
func readBody(t *turn) error {
	if t.body == nil {
		return nil
	}
	_, err := io.Copy(io.Discard, t.body)
	return err
}

// world is where lies are told: in virtual time over a network in memory, or in
// real time over loopback.
type world struct {
	scheme string
	listen func(ctx context.Context, network, address string) (net.Listener, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	settle func(told <-chan struct{}) // before the next request
	rest   func(busy func() bool)
}

func virtual() world {
	var n memnet.Network
	return world{
		"http", n.Listen, n.Dial,
		func(<-chan struct{}) { time.Sleep(lieSettle) },
		func(func() bool) { time.Sleep(liePatience) },
	}
}

func loopback() world {
	return world{
		"http", new(net.ListenConfig).Listen, new(net.Dialer).DialContext,
		func(told <-chan struct{}) {
			select {
			case <-told: // loopback delivers at once
			case <-time.After(liePatience):
			}
			time.Sleep(lieSettle / 10)
		},
		func(busy func() bool) {
			for end := time.Now().Add(liePatience); busy() && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
		},
	}
}

// speaker serves one connection.
type speaker func(s *liar, c net.Conn, first bool)

// liar is a server; lie nil makes it an honest one.
type liar struct {
	url   string
	lie   *lie
	speak speaker

	conns, open, seen atomic.Int32
	swallowed         atomic.Bool // something endless was read to its end
	running           sync.WaitGroup

	told     chan struct{}
	toldOnce sync.Once

	mu   sync.Mutex
	all  []net.Conn
	stop string // see outcome
}

func listen(t *testing.T, w world, speak speaker, l *lie) *liar {
	t.Helper()
	ln, err := w.listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &liar{url: w.scheme + "://" + ln.Addr().String(), lie: l, speak: speak, told: make(chan struct{})}
	s.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			first := s.conns.Add(1) == 1
			s.open.Add(1)
			s.mu.Lock()
			s.all = append(s.all, c)
			s.mu.Unlock()
			s.running.Go(func() {
				s.speak(s, c, first)
				s.open.Add(-1)
				s.toldOnce.Do(func() { close(s.told) })
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		s.mu.Lock()
		for _, c := range s.all {
			_ = c.Close()
		}
		s.mu.Unlock()
		s.running.Wait()
	})
	return s
}

// lies reports whether the n-th request for the lie is to be lied to.
func (s *liar) lies(n int32) bool { return s.lie != nil && n == 1 }

func (s *liar) ended(how string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == "" {
		s.stop = how
	}
}

// tell plays the script of the lie.
func (t *turn) tell() error {
	defer t.server.toldOnce.Do(func() { close(t.server.told) })
	return t.run(t.server.lie.script)
}

// run plays a script.
func (t *turn) run(script []step) error {
	for _, do := range script {
		if err := do(t); err != nil {
			return err
		}
	}
	return nil
}

// check tells l to a pool of a liar and an honest server.
func check(t *testing.T, w world, l *lie, speak speaker, tune func(*config.Pool)) {
	t.Helper()
	second := (*lie)(nil)
	if l.everybody {
		second = l
	}
	s, honest := listen(t, w, speak, l), listen(t, w, speak, second)
	c := &config.Pool{
		Name: "p", Connect: time.Second, Retry: config.Retry{Attempts: 3, Replay: 1 << 20},
		Endpoints: []config.Endpoint{{URL: s.url, Weight: 1}, {URL: honest.url, Weight: 1}},
	}
	if tune != nil {
		tune(c)
	}
	r := upstream.NewRegistry(upstream.Options{Dial: w.dial, Logger: slog.New(slog.DiscardHandler)})
	set, err := r.Prepare(map[string]*config.Pool{"p": c})
	if err != nil {
		t.Fatal(err)
	}
	set.Commit()
	pool := set.Pool("p")

	start := time.Now()
	got := ask(pool, l)
	if took := time.Since(start); took > liePatience {
		t.Errorf("took %v, want at most %v", took, liePatience)
	}
	if !l.hasty {
		w.settle(s.told)
	}
	got.seen = s.seen.Load()
	before := s.conns.Load()
	if !l.last {
		askNext(t, pool, s.url)
	}
	got.reuse = closed
	if s.conns.Load() == before {
		got.reuse = kept
	}
	set.Close()
	r.Close()
	open := func() int32 { return s.open.Load() + honest.open.Load() }
	w.rest(func() bool { return open() > 0 }) // some servers take their time
	if n := open(); n != 0 {
		t.Errorf("%d connections are open after the end, want 0", n)
	}
	if s.swallowed.Load() {
		t.Errorf("%d bytes without an end were read", lieEndless)
	}
	s.mu.Lock()
	got.stop = s.stop
	s.mu.Unlock()
	if wrong := l.want.matches(got); wrong != "" {
		t.Errorf("RFC %s: %s", l.rfc, wrong)
	}
}

// ask sends the request that l answers.
func ask(pool *upstream.Pool, l *lie) (got outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*liePatience)
	defer cancel()
	req := &upstream.Request{
		Method: l.method, Target: "/case", Host: "api.example.com", Header: l.field,
		FirstByte: lieFirstByte, Upgrade: l.upgrade,
		Interim: func(status int, _ exchange.Fields) { got.interim = append(got.interim, status) },
	}
	if l.upload != nil {
		req.Body, req.Length, req.Interrupt = l.upload()
	}
	resp, err := pool.Do(ctx, req)
	if err != nil {
		got.fate, got.reason = blame(err, refused, lost), err.Error()
		return got
	}
	defer resp.Close()
	got.status, got.length = resp.Status, resp.Length
	got.header = lines(resp.Header)
	if tunnel := resp.Tunnel(); tunnel != nil {
		return talk(tunnel, got)
	}
	if l.aside {
		time.Sleep(time.Second)
	}
	body, err := io.ReadAll(io.LimitReader(resp, lieBody))
	got.body = string(body)
	switch {
	case err != nil:
		got.fate, got.reason = blame(err, corrupt, cut), err.Error()
	case len(body) == lieBody:
		got.fate, got.reason = hung, "the reply has no end"
	case got.body == "again":
		got.fate, got.trailer = elsewhere, lines(resp.Trailer())
	default:
		got.fate, got.trailer = replied, lines(resp.Trailer())
	}
	return got
}

// talk has a lying server echo a line.
func talk(tunnel io.ReadWriter, got outcome) outcome {
	got.fate = tunnelled
	if _, err := io.WriteString(tunnel, "ping\n"); err != nil {
		got.reason = err.Error()
		return got
	}
	buf := make([]byte, 64)
	for !strings.Contains(got.body, "ping\n") {
		n, err := tunnel.Read(buf)
		got.body += string(buf[:n])
		if err != nil {
			got.reason = err.Error()
			return got
		}
	}
	return got
}

// tellOver tells the lies of a table that need no patience over loopback, where
// RST, buffers and the look at an idle connection are the kernel's.
func tellOver(t *testing.T, table []lie, speak speaker, tune func(*config.Pool)) {
	t.Helper()
	for _, l := range table {
		if l.want.fate == late || l.want.fate == hung || l.slow {
			continue
		}
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			check(t, loopback(), &l, speak, tune)
		})
	}
}

// askNext sends requests until one has reached the server at url.
func askNext(t *testing.T, pool *upstream.Pool, url string) {
	t.Helper()
	for range 4 {
		ctx, cancel := context.WithTimeout(context.Background(), liePatience)
		defer cancel()
		resp, err := pool.Do(ctx, &upstream.Request{
			Method: "POST", Target: "/next", Host: "api.example.com", FirstByte: lieFirstByte,
			Body: strings.NewReader("more"), Length: 4,
		})
		if err != nil {
			t.Errorf("the next request: %v", err)
			return
		}
		body, err := io.ReadAll(resp)
		resp.Close()
		if err != nil || resp.Status != 200 || string(body) != "next" {
			t.Errorf("the next request got %d %q, %v; want its own reply", resp.Status, body, err)
			return
		}
		if resp.Endpoint == url {
			return
		}
	}
	t.Error("no request reached the liar again")
}

// tellAll tells every lie of a table in a bubble of its own.
func tellAll(t *testing.T, table []lie, speak speaker, tune func(*config.Pool)) {
	t.Helper()
	names := map[string]bool{}
	for _, l := range table {
		if names[l.name] || l.rfc == "" {
			t.Errorf("%s: told twice, or against no rule", l.name)
		}
		names[l.name] = true
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { check(t, virtual(), &l, speak, tune) })
		})
	}
}
