package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"edge/config"
	"edge/internal/memnet"
	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

// Rounds of the property that bodies arrive as they were sent, however they are
// cut to pieces; the race detector has a tenth of them. EDGE_SEED repeats the
// rounds of a failure.
const (
	roundsH1 = 10_000 / slowdown
	roundsH2 = 3_000 / slowdown
	longBody = 40 << 10 // crosses every buffer on the way
)

// round is one request and its reply; both ends derive it from seed and number.
type round struct {
	rand     *rand.Rand
	up, down []byte
	known    bool // Length of the request is said
	trailer  string
	reply    string // raw
	read     int    // bytes of reply said before the request's body is read
	closes   bool   // the connection ends with the reply
}

func newRound(seed, n uint64, frame func(*round) string) *round {
	r := &round{rand: rand.New(rand.NewPCG(seed, n))}
	r.up, r.down = r.bytes(), r.bytes()
	r.known = r.rand.IntN(2) == 0
	if r.rand.IntN(3) == 0 {
		r.trailer = "x-sum: " + strconv.Itoa(r.rand.IntN(1000)) + "\n"
	}
	r.reply = frame(r)
	if r.rand.IntN(3) == 0 {
		r.read = r.rand.IntN(len(r.reply))
	}
	return r
}

// bytes is a body: mostly short, now and then none, now and then long.
func (r *round) bytes() []byte {
	n := r.rand.IntN(200)
	switch r.rand.IntN(20) {
	case 0:
		n = 0
	case 1:
		n = r.rand.IntN(longBody)
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.rand.Uint32())
	}
	return b
}

// piece is the length of the next piece of n bytes, n > 0.
func (r *round) piece(n int) int {
	most := n
	if r.rand.IntN(4) > 0 {
		most = min(n, 1+n/4)
	}
	return 1 + r.rand.IntN(most)
}

// h1Reply frames the reply by length, by chunks or by the end of the connection.
func h1Reply(r *round) string {
	switch r.rand.IntN(8) {
	case 0:
		r.closes, r.trailer = true, ""
		return h1("200 OK", "Connection: close") + string(r.down)
	case 1, 2, 3:
		r.trailer = ""
		return h1("200 OK", "Content-Length: "+strconv.Itoa(len(r.down))) + string(r.down)
	}
	var b strings.Builder
	b.WriteString(h1("200 OK", "Transfer-Encoding: chunked"))
	for rest := r.down; len(rest) > 0; {
		n := r.piece(len(rest))
		b.WriteString(strings.Repeat("0", r.rand.IntN(3)))
		size := strconv.FormatInt(int64(n), 16)
		if r.rand.IntN(2) == 0 {
			size = strings.ToUpper(size)
		}
		b.WriteString(size)
		if r.rand.IntN(8) == 0 {
			b.WriteString(";a=\"b\"")
		}
		fmt.Fprintf(&b, "\r\n%s\r\n", rest[:n])
		rest = rest[n:]
	}
	b.WriteString("0\r\n" + strings.ReplaceAll(r.trailer, "\n", "\r\n") + "\r\n")
	return b.String()
}

// h2Reply frames the reply for stream 1; onStream moves it.
func h2Reply(r *round) string {
	var b strings.Builder
	b.WriteString(frame(fHeaders, endHeaders, 1, block(":status", "200")))
	for rest := r.down; len(rest) > 0; {
		n := min(r.piece(len(rest)), 16000)
		if r.rand.IntN(4) == 0 {
			pad := r.rand.IntN(100)
			b.WriteString(frame(fData, padded, 1, string(rune(pad))+string(rest[:n])+strings.Repeat("\x00", pad)))
		} else {
			b.WriteString(frame(fData, 0, 1, string(rest[:n])))
		}
		rest = rest[n:]
	}
	if r.trailer == "" {
		b.WriteString(frame(fData, endStream, 1, ""))
		return b.String()
	}
	name, value, _ := strings.Cut(strings.TrimSuffix(r.trailer, "\n"), ": ")
	b.WriteString(frame(fHeaders, endBoth, 1, block(name, value)))
	return b.String()
}

// say writes s in pieces.
func (r *round) say(w io.Writer, s string) error {
	for len(s) > 0 {
		n := r.piece(len(s))
		if _, err := io.WriteString(w, s[:n]); err != nil {
			return err
		}
		s = s[n:]
		if r.rand.IntN(2) == 0 {
			runtime.Gosched()
		}
	}
	return nil
}

// pieces reads b in pieces; the last may come with io.EOF.
type pieces struct {
	b    []byte
	rand *rand.Rand
}

func (p *pieces) Read(buf []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := copy(buf, p.b[:1+p.rand.IntN(len(p.b))])
	p.b = p.b[n:]
	if len(p.b) == 0 && p.rand.IntN(2) == 0 {
		return n, io.EOF
	}
	if p.rand.IntN(4) == 0 {
		runtime.Gosched()
	}
	return n, nil
}

// arrivals are the request bodies that a server read, by round.
type arrivals struct {
	mu sync.Mutex
	m  map[uint64][]byte
}

func (a *arrivals) put(n uint64, b []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.m[n] = b
}

func (a *arrivals) take(n uint64) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.m[n]
	delete(a.m, n)
	return b
}

func (a *arrivals) speakH1(c net.Conn, seed uint64) {
	in := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		n, _ := strconv.ParseUint(req.URL.Path[1:], 10, 64)
		r := newRound(seed, n, h1Reply)
		if r.say(c, r.reply[:r.read]) != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		a.put(n, body)
		if r.say(c, r.reply[r.read:]) != nil || r.closes {
			return
		}
	}
}

func (a *arrivals) speakH2(c net.Conn, seed uint64) {
	r := bufio.NewReader(c)
	if _, err := io.WriteString(c, greeting2); err != nil {
		return
	}
	if _, err := r.Discard(len(http2.ClientPreface)); err != nil {
		return
	}
	framer := http2.NewFramer(c, r)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var n uint64
	var body []byte
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return
		}
		ended := false
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = framer.WritePing(true, f.Data)
			}
		case *http2.MetaHeadersFrame:
			n, _ = strconv.ParseUint(f.PseudoValue("path")[1:], 10, 64)
			body, ended = nil, f.StreamEnded()
		case *http2.DataFrame:
			body = append(body, f.Data()...)
			if ended = f.StreamEnded(); f.Length > 0 {
				_ = framer.WriteWindowUpdate(0, f.Length)
				err = framer.WriteWindowUpdate(f.StreamID, f.Length)
			}
		}
		if err == nil && ended {
			a.put(n, body)
			round := newRound(seed, n, h2Reply)
			err = round.say(c, onStream(round.reply, f.Header().StreamID))
		}
		if err != nil {
			return
		}
	}
}

// onStream moves frames to another stream.
func onStream(frames string, id uint32) string {
	b := []byte(frames)
	for i := 0; i < len(b); {
		copy(b[i+5:i+9], u32(id))
		i += 9 + int(b[i])<<16 + int(b[i+1])<<8 + int(b[i+2])
	}
	return string(b)
}

func TestBodiesArriveHoweverTheyAreCut(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("EDGE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		protocol config.PoolProtocol
		rounds   uint64
		frame    func(*round) string
		speak    func(*arrivals, net.Conn, uint64)
	}{
		{config.PoolH1, roundsH1, h1Reply, (*arrivals).speakH1},
		{config.PoolH2C, roundsH2, h2Reply, (*arrivals).speakH2},
	} {
		t.Run(string(tc.protocol), func(t *testing.T) {
			t.Parallel()
			var network memnet.Network
			var a arrivals
			a.m = map[uint64][]byte{}
			pool := poolTo(t, &network, tc.protocol, func(c net.Conn) { tc.speak(&a, c, seed) })
			for n := range tc.rounds {
				if err := a.roundTrip(pool, newRound(seed, n, tc.frame), n); err != nil {
					t.Fatalf("EDGE_SEED=%d, round %d: %v", seed, n, err)
				}
			}
			if d := network.Dials(); uint64(d) > tc.rounds/4 {
				t.Errorf("%d connections for %d rounds: they are not reused", d, tc.rounds)
			}
		})
	}
}

// poolTo is a pool of one endpoint that speak serves.
func poolTo(t *testing.T, network *memnet.Network, protocol config.PoolProtocol, speak func(net.Conn)) *upstream.Pool {
	t.Helper()
	ln, err := network.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				speak(c)
			})
		}
	})
	registry := upstream.NewRegistry(upstream.Options{Dial: network.Dial, Logger: slog.New(slog.DiscardHandler)})
	set, err := registry.Prepare(map[string]*config.Pool{"p": {
		Name: "p", Protocol: protocol, Retry: config.Retry{Attempts: 1},
		Endpoints: []config.Endpoint{{URL: "http://" + ln.Addr().String(), Weight: 1}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	set.Commit()
	t.Cleanup(func() {
		set.Close()
		registry.Close()
		_ = ln.Close()
		running.Wait()
	})
	return set.Pool("p")
}

// roundTrip does one round and returns in what it differs.
func (a *arrivals) roundTrip(pool *upstream.Pool, r *round, n uint64) error {
	ctx, cancel := context.WithTimeout(context.Background(), liePatience)
	defer cancel()
	req := &upstream.Request{
		Method: "POST", Target: "/" + strconv.FormatUint(n, 10), Host: "a", Length: -1,
		Body: &pieces{r.up, rand.New(rand.NewPCG(n, n))},
	}
	if r.known {
		req.Length = int64(len(r.up))
	}
	resp, err := pool.Do(ctx, req)
	if err != nil {
		return err
	}
	defer resp.Close()
	got, err := readPieces(resp, r)
	switch {
	case err != nil:
		return fmt.Errorf("after %d bytes of %d: %w", len(got), len(r.down), err)
	case !bytes.Equal(got, r.down):
		return fmt.Errorf("reply of %d bytes, want other %d", len(got), len(r.down))
	case lines(resp.Trailer()) != r.trailer:
		return fmt.Errorf("trailer %q, want %q", lines(resp.Trailer()), r.trailer)
	}
	if came := a.take(n); !bytes.Equal(came, r.up) {
		return fmt.Errorf("the server read %d bytes, want other %d", len(came), len(r.up))
	}
	return nil
}

func readPieces(src exchange.Source, r *round) ([]byte, error) {
	var got []byte
	buf := make([]byte, 4096)
	for {
		n, err := src.Read(buf[:1+r.rand.IntN(len(buf))])
		got = append(got, buf[:n]...)
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return got, err
		}
	}
}
