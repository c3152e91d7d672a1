package http2

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

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
