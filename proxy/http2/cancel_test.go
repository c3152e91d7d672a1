package http2

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

func TestCancelBeforeTheHead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, first := get1(t)
		call := p.call("/", nil, 0)
		done := p.begin(call)
		s.await("HEADERS 3 END")
		cause := errors.New("left")
		begin := time.Now()
		call.Canceler.Cancel(cause)
		s.await("RST_STREAM 3 CANCEL")
		if o := <-done; !errors.Is(o.err, cause) || time.Since(begin) > 100*time.Millisecond {
			t.Errorf("%v after %v", o.err, time.Since(begin))
		}
		// What was on the way is dropped, and nothing happens to the others.
		s.head(3, false, ":status", "200", "x", "1")
		s.text(3, true, "too late")
		s.head(1, true, ":status", "200", "x", "1") // x from the table that the other block made
		if o := <-first; o.err != nil || o.reply.Header.Get("x") != "1" {
			t.Errorf("got %+v", o)
		}
	})
}

func TestCancelWhileTheBodyIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		r, w := io.Pipe()
		call := p.call("/", r, 5)
		done := p.begin(call)
		s := accept()
		synctest.Wait()
		cause := errors.New("left")
		call.Canceler.Cancel(cause)
		_, _ = io.WriteString(w, "hello") // the client's side ends as it may
		if o := <-done; !errors.Is(o.err, cause) {
			t.Errorf("got %v", o.err)
		}
		next := p.begin(p.call("/", nil, 0))
		s.preface()
		s.await("HEADERS 1 END") // nothing was sent before
		s.head(1, true, ":status", "200")
		if o := <-next; o.err != nil {
			t.Error(o.err)
		}
	})
}

func TestCloseWakesTheReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		got := make(chan error, 1)
		replies := make(chan exchange.Reply, 1)
		go func() {
			reply, err := p.Do(p.call("/", nil, 0))
			if err != nil {
				t.Error(err)
			}
			replies <- reply
			_, err = reply.Body.Read(make([]byte, 10))
			got <- err
		}()
		s := accept()
		s.preface()
		s.await("HEADERS 1 END")
		s.head(1, false, ":status", "200")
		reply := <-replies
		synctest.Wait()
		for range 3 {
			_ = reply.Body.Close()
		}
		if err := <-got; err == nil || errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
		s.await("RST_STREAM 1 CANCEL")
		s.await("PING")
	})
}

// Cancelled requests count until the server had the time to notice, and pings
// that gRPC servers would take for an attack are not sent.
func TestRapidCancelsAreNoFloodOfRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{MaxConns: 1})
		first := p.begin(p.call("/", nil, 0))
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 1})
		s.await("HEADERS 1 END")
		s.head(1, true, ":status", "200")
		<-first
		s.await("SETTINGS ACK")
		synctest.Wait() // now the client keeps to them
		call := p.call("/", nil, 0)
		second := p.begin(call)
		s.await("HEADERS 3 END")
		third := p.begin(p.call("/", nil, 0))
		synctest.Wait()
		call.Canceler.Cancel(io.ErrClosedPipe)
		<-second
		s.await("RST_STREAM 3 CANCEL")
		synctest.Wait() // the third waits: nothing but the PING is there to be read
		if got := s.next(); got != "PING" {
			t.Errorf("got %s before the PING", got)
		}
		s.await("HEADERS 5 END")
		s.head(5, true, ":status", "200")
		if o := <-third; o.err != nil {
			t.Error(o.err)
		}
		// Without a frame of use in between there is one more for a silence, no more.
		pings := 0
		for id := uint32(7); id < 27; id += 2 {
			call := p.call("/", nil, 0)
			done := p.begin(call)
			for got := ""; got != fmt.Sprintf("HEADERS %d END", id); {
				if got = s.next(); got == "PING" {
					pings++
				}
			}
			call.Canceler.Cancel(io.ErrClosedPipe)
			<-done
			s.await(fmt.Sprintf("RST_STREAM %d CANCEL", id))
			synctest.Wait()
		}
		if pings != 1 {
			t.Errorf("%d pings for ten cancelled requests", pings)
		}
	})
}

func TestFramesAfterTheEndOfAStream(t *testing.T) {
	for name, test := range map[string]struct {
		send func(s *script)
		want string
	}{
		"DATA":          {func(s *script) { s.text(1, false, "x") }, "GOAWAY STREAM_CLOSED"},
		"HEADERS":       {func(s *script) { s.head(1, true, "a", "b") }, "GOAWAY STREAM_CLOSED"},
		"WINDOW_UPDATE": {func(s *script) { _ = s.WriteWindowUpdate(1, 1); _ = s.WritePing(false, [8]byte{}) }, "PING ACK"},
		"RST_STREAM":    {func(s *script) { _ = s.WriteRSTStream(1, 0); _ = s.WritePing(false, [8]byte{}) }, "PING ACK"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, s, done := get1(t)
				s.head(1, true, ":status", "200")
				if o := <-done; o.err != nil {
					t.Error(o.err)
				}
				test.send(s)
				s.await(test.want)
			})
		})
	}
}

// A server whose streams we have cancelled may have much on its way: that is no
// flood, as long as it was allowed to send it.
func TestLateFramesAreNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, first := get1(t)
		const cancelled = 2 * maxRemembered
		for i := range uint32(cancelled) {
			id := 2*i + 3
			call := p.call("/", nil, 0)
			done := p.begin(call)
			s.await(fmt.Sprintf("HEADERS %d END", id))
			call.Canceler.Cancel(io.ErrClosedPipe)
			<-done
			s.head(id, false, ":status", "200")
			for range 20 {
				s.text(id, false, "event")
			}
			_ = s.WriteRSTStream(id, h2.ErrCodeCancel)
			if i%100 == 0 {
				time.Sleep(time.Second)
			}
		}
		s.head(1, true, ":status", "200")
		if o := <-first; o.err != nil {
			t.Error(o.err)
		}
		s.drain()
	})
}

func TestLateFloodEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, first := get1(t)
		call := p.call("/", nil, 0)
		done := p.begin(call)
		s.await("HEADERS 3 END")
		call.Canceler.Cancel(io.ErrClosedPipe)
		<-done
		go func() { _, _ = io.Copy(io.Discard, s.nc) }()
		s.head(3, false, ":status", "200")
		for range 1 << 20 {
			if s.WriteData(3, false, []byte(strings.Repeat("x", 100))) != nil {
				break
			}
		}
		o := <-first
		if lost := lostError(t, o.err); !strings.Contains(lost.Error(), "ENHANCE_YOUR_CALM") {
			t.Errorf("got %v", lost.Err)
		}
	})
}

type agreed struct {
	net.Conn
	protocol string
}

func (a agreed) ConnectionState() tls.ConnectionState {
	return tls.ConnectionState{NegotiatedProtocol: a.protocol}
}

func TestServerThatHasNotAgreedToHTTP2(t *testing.T) {
	for _, protocol := range []string{"", "http/1.1"} {
		a, b := net.Pipe()
		cl := NewClient(func(context.Context) (net.Conn, error) { return agreed{a, protocol}, nil }, Options{})
		p := &peer{Client: cl, scheme: "https", host: "x"}
		_, err := p.Do(p.call("/", nil, 0))
		var dial *exchange.DialError
		if !errors.As(err, &dial) || !strings.Contains(err.Error(), fmt.Sprintf("%q", protocol)) {
			t.Errorf("%q: got %v", protocol, err)
		}
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%q: the connection is open: %v", protocol, err)
		}
		cl.Close()
	}
}
