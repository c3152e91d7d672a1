package http2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

// credited reads what the client sends, beside the test, and adds up the window
// of the connection.
func (s *script) credited() *atomic.Int64 {
	credit := new(atomic.Int64)
	credit.Store(defaultWindow)
	go func() {
		for got := ""; got != "end"; got = s.next() {
			var n int64
			if _, err := fmt.Sscanf(got, "WINDOW_UPDATE 0 %d", &n); err == nil {
				credit.Add(n)
			}
		}
	}()
	return credit
}

// Clients that do not read hold what the window of their stream lets come, and
// nobody else's replies.
func TestStalledRepliesDoNotHoldUpOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		const stalled = 80
		replies := make(chan exchange.Reply, stalled)
		for range stalled {
			go func() {
				if reply, err := p.Do(p.call("/", nil, 0)); err == nil {
					replies <- reply
				}
			}()
		}
		s := accept()
		s.preface()
		credit := s.credited()
		synctest.Wait()
		piece := strings.Repeat("x", frameSize)
		send := func(id uint32) {
			t.Helper()
			synctest.Wait()
			if credit.Add(-frameSize) < 0 {
				t.Fatalf("stream %d: the window of the connection is used up", id)
			}
			s.text(id, false, piece)
		}
		for i := range uint32(stalled) {
			s.head(2*i+1, false, ":status", "200")
			for range streamWindow / frameSize {
				send(2*i + 1)
			}
		}
		done := p.begin(p.call("/", nil, 0))
		synctest.Wait()
		const other = 2*stalled + 1
		s.head(other, false, ":status", "200")
		for range 2 * connWindow / frameSize {
			send(other)
		}
		s.head(other, true, "a", "b")
		if o := <-done; o.err != nil || o.rerr != nil || len(o.body) != 2*connWindow {
			t.Errorf("%d bytes, %v, %v", len(o.body), o.err, o.rerr)
		}
		for range stalled {
			_ = (<-replies).Body.Close()
		}
	})
}

func TestThoseWhoWaitAreServedAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{MaxConns: 1})
		first := p.begin(p.call("/", nil, 0))
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 1})
		s.await("HEADERS 1 END")
		s.await("SETTINGS ACK")
		synctest.Wait()
		var late []<-chan outcome
		for range 2 {
			late = append(late, p.begin(p.call("/", nil, 0)))
			synctest.Wait()
		}
		p.Close()
		for _, done := range late {
			s2 := accept()
			s2.preface()
			s2.await("HEADERS 1 END")
			s2.head(1, true, ":status", "200")
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
		}
		s.head(1, true, ":status", "200")
		if o := <-first; o.err != nil {
			t.Error(o.err)
		}
	})
}

// A server that answers no PING, but is not silent, keeps no streams from others
// and no connection from its end.
func TestPingThatIsNeverAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{Idle: time.Minute})
		call := p.call("/", nil, 0)
		done := p.begin(call)
		s := accept()
		s.preface()
		s.await("HEADERS 1 END")
		call.Canceler.Cancel(io.ErrClosedPipe)
		<-done
		ended := make(chan time.Time, 1)
		go func() {
			_, _ = io.Copy(io.Discard, s.nc)
			ended <- time.Now()
		}()
		begin := time.Now()
		for time.Since(begin) < 2*time.Minute && s.WritePing(false, [8]byte{}) == nil {
			time.Sleep(5 * time.Second)
		}
		select {
		case at := <-ended:
			if at.Sub(begin) > pingTime+time.Minute+10*time.Second {
				t.Errorf("ended after %v", at.Sub(begin))
			}
		default:
			t.Error("the connection is kept for a stream that nobody has")
			_ = s.nc.Close()
		}
	})
}

func TestUnaskedAnswersDoNotKeepAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, done := get1(t)
		s.head(1, true, ":status", "200")
		<-done
		s.drain()
		begin := time.Now()
		for s.WritePing(true, [8]byte{}) == nil && time.Since(begin) < time.Hour {
			time.Sleep(time.Second)
		}
		if d := time.Since(begin); d > idleTime+5*time.Second {
			t.Errorf("kept for %v", d)
		}
	})
}

// Many servers say nothing before they have the preface, which leaves with the
// first request: the time for their SETTINGS begins then.
func TestTimeForSettingsBeginsWithThePreface(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		dial := p.dial
		p.dial = func(ctx context.Context) (net.Conn, error) {
			time.Sleep(time.Second)
			return dial(ctx)
		}
		call := p.call("/", nil, 0)
		gone := p.begin(call)
		synctest.Wait()
		call.Canceler.Cancel(io.ErrClosedPipe)
		<-gone
		s := accept()
		time.Sleep(2 * settingsTime)
		done := p.begin(p.call("/", nil, 0))
		time.Sleep(settingsTime / 2)
		s.preface()
		s.head(1, true, ":status", "200")
		if o := <-done; o.err != nil {
			t.Error(o.err)
		}
	})
}

// A server does not close a connection for being idle while it works on another
// request of it: it may have acted on this one too.
func TestLossOfABusyConnectionIsNoIdleRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, first := get1(t)
		time.Sleep(10 * time.Second)
		second := p.begin(p.call("/", strings.NewReader("hello"), 5))
		s.await("DATA 3 5 END")
		time.Sleep(100 * time.Millisecond)
		_ = s.nc.Close()
		o := <-second
		if lost := lostError(t, o.err); !lost.Closed || lost.After < 10*time.Second {
			t.Errorf("got %+v", lost)
		}
		<-first
		// Those that come together to an idle one are all in the race.
		third := p.begin(p.call("/", nil, 0))
		s = p.accept()
		s.preface()
		s.await("HEADERS 1 END")
		s.head(1, true, ":status", "200")
		<-third
		time.Sleep(10 * time.Second)
		a, b := p.begin(p.call("/", nil, 0)), p.begin(p.call("/", nil, 0))
		s.await("HEADERS 3 END")
		s.await("HEADERS 5 END")
		_ = s.nc.Close()
		for _, done := range []<-chan outcome{a, b} {
			o := <-done
			if lost := lostError(t, o.err); !lost.Closed || !lost.Reused || lost.After != 0 {
				t.Errorf("got %+v", lost)
			}
		}
	})
}

// What clients that come and go leave behind a write that is stuck is bounded.
func TestRequestsBehindAStuckWriteAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		first := p.begin(p.call("/", strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20))
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 20})
		_ = s.WriteWindowUpdate(0, 1<<20)
		synctest.Wait()
		c := p.conns[0]
		for range 1000 {
			call := p.call("/", nil, 0)
			call.Header.Add("x-large", strings.Repeat("x", 8000))
			c.freePings.Store(0) // so that the stream does not count until a PING is answered
			done := p.begin(call)
			synctest.Wait()
			call.Canceler.Cancel(io.ErrClosedPipe)
			<-done
		}
		c.mu.Lock()
		n := len(c.pending)
		c.mu.Unlock()
		if n > 2*maxBacklog {
			t.Errorf("%d bytes wait to be written", n)
		}
		_ = s.nc.Close()
		<-first
	})
}

// A server that reads nothing holds up the writer, but not the call.
func TestCancelOfACallWhoseRequestIsNotTaken(t *testing.T) {
	for _, length := range []int64{100 << 10, -1} {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{})
			call := p.call("/", strings.NewReader(strings.Repeat("x", 100<<10)), length)
			done := p.begin(call)
			s := accept()
			synctest.Wait()
			begin := time.Now()
			cause := errors.New("left")
			call.Canceler.Cancel(cause)
			if o := <-done; !errors.Is(o.err, cause) || time.Since(begin) != 0 {
				t.Errorf("length %d: %v after %v", length, o.err, time.Since(begin))
			}
			_ = s.nc.Close()
		})
	}
}

// Servers send it though they must not (RFC 9113 8.2.1).
func TestWhiteSpaceAroundValuesIsNoneOfTheirs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, done := get1(t)
		s.head(1, false, ":status", "200", "a", " b c\t", "content-length", "2 ", "d", " ")
		s.text(1, false, "ok")
		s.head(1, true, "e", "\tf")
		o := <-done
		if o.err != nil {
			t.Fatal(o.err)
		}
		if got := fmt.Sprint(o.rerr, o.reply.Header, o.reply.Length, o.reply.Body.Trailer()); got != "<nil> [{a b c} {content-length 2} {d }] 2 [{e f}]" {
			t.Errorf("got %s", got)
		}
	})
}

// Who reads the end may close the reply before the connection has forgotten it.
func TestCloseOfACompleteReplyIsNoCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, done := get1(t)
		c := p.conns[0]
		c.mu.Lock()
		st := c.streams[1]
		c.mu.Unlock()
		st.complete(nil)
		_ = st.Close()
		_ = s.WritePing(false, [8]byte{})
		for got := ""; got != "PING ACK"; {
			if got = s.next(); strings.HasPrefix(got, "RST") || got == "PING" {
				t.Fatalf("got %s", got)
			}
		}
		c.ended(st, nil)
		_ = s.nc.Close()
		<-done
	})
}
