package http2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

// drain reads what the client sends, beside the test.
func (s *script) drain() {
	go func() {
		for s.next() != "end" {
			continue
		}
	}()
}

func TestStreamsThatTheServerHasNotSeenAreUnsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, first := get1(t)
		second := p.begin(p.call("/", nil, 0))
		s.await("HEADERS 3 END")
		third := p.begin(p.call("/", nil, 0))
		s.await("HEADERS 5 END")
		_ = s.WriteGoAway(1<<31-1, h2.ErrCodeNo, nil) // a warning, as gRPC servers send it
		_ = s.WriteGoAway(3, h2.ErrCodeNo, nil)
		_ = s.WriteGoAway(9, h2.ErrCodeNo, nil) // more than before: it changes nothing
		o := <-third
		if lost := lostError(t, o.err); !lost.Unsent || !lost.Reused || lost.Answered || lost.Closed {
			t.Errorf("third: %+v", lost)
		}
		s.head(1, true, ":status", "200")
		if o := <-first; o.err != nil {
			t.Errorf("first: %v", o.err)
		}
		_ = s.WriteRSTStream(3, h2.ErrCodeRefusedStream)
		o = <-second
		if lost := lostError(t, o.err); !lost.Unsent || !lost.Reused {
			t.Errorf("second: %+v", lost)
		}
		s.await("GOAWAY NO_ERROR") // the connection has no streams any more
		s.await("end")
	})
}

func TestAfterGoAwayAnotherConnectionIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		first := p.begin(p.call("/", nil, 0))
		s := accept()
		s.preface()
		s.await("HEADERS 1 END")
		_ = s.WriteGoAway(1, h2.ErrCodeNo, nil)
		synctest.Wait()
		second := p.begin(p.call("/", nil, 0))
		s2 := accept()
		s2.preface()
		s2.await("HEADERS 1 END")
		s2.head(1, true, ":status", "200")
		s.head(1, true, ":status", "200")
		if a, b := <-first, <-second; a.err != nil || b.err != nil {
			t.Errorf("%v, %v", a.err, b.err)
		}
	})
}

func TestResetByTheServer(t *testing.T) {
	for _, test := range []struct {
		name   string
		code   h2.ErrCode
		head   bool
		unsent bool
	}{
		{"refused", h2.ErrCodeRefusedStream, false, true},
		{"refused after a head", h2.ErrCodeRefusedStream, true, false},
		{"failed", h2.ErrCodeInternal, false, false},
		{"without error, incomplete", h2.ErrCodeNo, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, s, done := get1(t)
				if test.head {
					s.head(1, false, ":status", "200")
					s.text(1, false, "part")
				}
				_ = s.WriteRSTStream(1, test.code)
				o := <-done
				err := o.err
				if test.head {
					err = o.rerr
				}
				if lost := lostError(t, err); lost.Unsent != test.unsent || lost.Answered != test.head || !strings.Contains(lost.Error(), test.code.String()) {
					t.Errorf("got %+v", lost)
				}
				if test.head && o.body != "part" {
					t.Errorf("read %q before it", o.body)
				}
			})
		})
	}
}

func TestResetAfterACompleteReplyIsNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		r, w := io.Pipe()
		defer w.Close()
		done := p.begin(p.call("/", r, -1))
		s := accept()
		s.preface()
		s.await("HEADERS 1")
		s.head(1, false, ":status", "413")
		s.text(1, true, "too much")
		_ = s.WriteRSTStream(1, h2.ErrCodeNo)
		if o := <-done; o.err != nil || o.rerr != nil || o.body != "too much" {
			t.Errorf("got %+v", o)
		}
		s.await("RST_STREAM 1 NO_ERROR") // ours, for the request that went on
	})
}

func TestWhatIsKnownOfALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s, first := get1(t)
		s.head(1, false, ":status", "200")
		s.text(1, false, "part")
		time.Sleep(time.Second)
		second := p.begin(p.call("/", nil, 0))
		s.await("HEADERS 3 END")
		time.Sleep(100 * time.Millisecond)
		_ = s.nc.Close()
		o := <-first
		if lost := lostError(t, o.rerr); lost.Reused || !lost.Closed || !lost.Answered || lost.Unsent || lost.After != 1100*time.Millisecond || o.body != "part" {
			t.Errorf("first: %+v, %q", lost, o.body)
		}
		o = <-second
		if lost := lostError(t, o.err); !lost.Reused || !lost.Closed || lost.Answered || lost.Unsent || lost.After != 1100*time.Millisecond {
			t.Errorf("second: %+v", lost)
		}
	})
}

func TestRequestsThatTheConnectionDidNotTakeAreUnsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		big := strings.NewReader(strings.Repeat("x", 1<<20))
		done := p.begin(p.call("/", big, 1<<20))
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 20})
		_ = s.WriteWindowUpdate(0, 1<<20)
		s.await("HEADERS 1")
		synctest.Wait() // it writes, and we do not read
		second := p.begin(p.call("/", nil, 0))
		synctest.Wait()
		_ = s.nc.Close()
		o := <-second
		if lost := lostError(t, o.err); !lost.Unsent {
			t.Errorf("second: %+v", lost)
		}
		o = <-done
		if lost := lostError(t, o.err); lost.Unsent || !lost.Closed {
			t.Errorf("first: %+v", lost)
		}
	})
}

// A reply that came before the server stopped to take the request is not lost
// with the request.
func TestReplyOfAServerThatClosesWhileWeSend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		r, w := io.Pipe()
		done := p.begin(p.call("/", r, -1))
		s := accept()
		s.preface()
		s.await("HEADERS 1")
		s.await("SETTINGS ACK")
		s.head(1, false, ":status", "401")
		s.text(1, true, "who are you")
		_ = s.nc.Close()
		_, _ = io.WriteString(w, "more")
		if o := <-done; o.err != nil || o.rerr != nil || o.body != "who are you" {
			t.Errorf("got %+v", o)
		}
		w.Close()
	})
}

func TestUploadsKeepToTheWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		text := strings.Repeat("0123456789", 3000)
		done := p.begin(p.call("/", strings.NewReader(text), int64(len(text))))
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 20000})
		s.await("HEADERS 1") // sent before our SETTINGS: with the default window
		s.await("DATA 1 16384")
		s.await("DATA 1 13616 END")
		s.head(1, true, ":status", "200")
		<-done

		done = p.begin(p.call("/", strings.NewReader(text), int64(len(text))))
		s.await("HEADERS 3")
		s.await("DATA 3 16384")
		s.await("DATA 3 3616")
		// The window becomes negative, and nothing may be sent until it is not.
		_ = s.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 10000})
		s.await("SETTINGS ACK")
		_ = s.WriteWindowUpdate(3, 10000)
		_ = s.WritePing(false, [8]byte{})
		s.await("PING ACK")
		_ = s.WriteWindowUpdate(3, 100)
		s.await("DATA 3 100")
		_ = s.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 15000})
		s.await("SETTINGS ACK")
		s.await("DATA 3 5000")
		// Now that of the connection: 65535 less 55100.
		_ = s.WriteWindowUpdate(3, 1<<20)
		s.await("DATA 3 4900 END")
		if got := string(s.data); got != text+text {
			t.Errorf("%d bytes came, which are not what was sent", len(got))
		}
		s.head(3, true, ":status", "200")
		<-done

		done = p.begin(p.call("/", strings.NewReader(text), int64(len(text))))
		s.await("HEADERS 5")
		s.await(fmt.Sprintf("DATA 5 %d", 65535-60000))
		_ = s.WriteWindowUpdate(0, 9465)
		s.await("DATA 5 9465")
		_ = s.WriteWindowUpdate(0, 1<<20)
		_ = s.WriteWindowUpdate(5, 1<<20)
		s.await("DATA 5 15000 END")
		s.head(5, true, ":status", "200")
		<-done
	})
}

func TestWindowsOpenAsTheReplyIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		done := make(chan exchange.Reply, 1)
		go func() {
			reply, err := p.Do(p.call("/", nil, 0))
			if err != nil {
				t.Error(err)
			}
			done <- reply
		}()
		s := accept()
		s.preface()
		s.await("HEADERS 1 END")
		s.head(1, false, ":status", "200")
		reply := <-done
		_ = s.WriteDataPadded(1, false, []byte(strings.Repeat("x", 16000)), make([]byte, 255))
		for range 14 {
			s.text(1, false, strings.Repeat("x", 16384))
		}
		_ = s.WritePing(false, [8]byte{})
		s.await("PING ACK")
		n, err := io.ReadFull(reply.Body, make([]byte, 131072-256))
		if err != nil {
			t.Fatal(n, err)
		}
		s.await("WINDOW_UPDATE 1 131072")
		_ = reply.Body.Close()
		s.await("RST_STREAM 1 CANCEL")
		// What comes for the closed stream opens the connection's window again.
		total := 16256 + 14*16384
		for total+16384 < connWindow/2 {
			s.text(1, false, strings.Repeat("x", 16384))
			total += 16384
		}
		_ = s.WritePing(false, [8]byte{})
		s.await("PING ACK")
		s.text(1, false, strings.Repeat("x", 16384))
		s.await(fmt.Sprintf("WINDOW_UPDATE 0 %d", total+16384))
	})
}

func TestStreamsPerConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{MaxConns: 2})
		first := p.begin(p.call("/", nil, 0))
		a := accept()
		a.preface(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 1})
		a.await("HEADERS 1 END")
		a.await("SETTINGS ACK")
		synctest.Wait()
		second := p.begin(p.call("/", nil, 0))
		b := accept()
		b.preface(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 2})
		b.await("HEADERS 1 END")
		b.await("SETTINGS ACK")
		synctest.Wait()
		third := p.begin(p.call("/3", nil, 0))
		b.await("HEADERS 3 END")
		// Now both are full, and the others wait in order.
		fourth := p.begin(p.call("/4", nil, 0))
		synctest.Wait()
		call := p.call("/5", nil, 0)
		call.Connect = 3 * time.Second
		begin := time.Now()
		fifth := p.begin(call)
		synctest.Wait()
		call = p.call("/6", nil, 0)
		sixth := p.begin(call)
		synctest.Wait()
		cause := errors.New("left")
		call.Canceler.Cancel(cause)
		if o := <-sixth; !errors.Is(o.err, cause) {
			t.Errorf("sixth: %v", o.err)
		}
		a.head(1, true, ":status", "200")
		<-first
		a.await("HEADERS 3 END")
		if a.last.Get(":path") != "/4" {
			t.Errorf("%v came first", a.last)
		}
		o := <-fifth
		var dial *exchange.DialError
		if !errors.As(o.err, &dial) || !errors.Is(o.err, context.DeadlineExceeded) || time.Since(begin) != 3*time.Second {
			t.Errorf("fifth: %v after %v", o.err, time.Since(begin))
		}
		a.head(3, true, ":status", "200")
		b.head(1, true, ":status", "200")
		b.head(3, true, ":status", "200")
		for _, done := range []<-chan outcome{second, third, fourth} {
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
		}
	})
}

func TestCallsWaitForOneDial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		dial, dials := p.dial, 0
		p.dial = func(ctx context.Context) (net.Conn, error) {
			dials++
			time.Sleep(time.Second)
			return dial(ctx)
		}
		var all []<-chan outcome
		for range assumedStreams {
			all = append(all, p.begin(p.call("/", nil, 0)))
		}
		s := accept()
		s.preface()
		for id := range uint32(assumedStreams) {
			s.await(fmt.Sprintf("HEADERS %d END", 2*id+1))
			s.head(2*id+1, true, ":status", "200")
		}
		for _, done := range all {
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
		}
		if dials != 1 {
			t.Errorf("%d dials, want 1", dials)
		}
	})
}

func TestDialErrors(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	for name, test := range map[string]struct {
		o    Options
		dial func(context.Context) (net.Conn, error)
		want error
	}{
		"refused": {Options{}, func(context.Context) (net.Conn, error) { return nil, refused }, syscall.ECONNREFUSED},
		"alone":   {Options{OneShot: true}, func(context.Context) (net.Conn, error) { return nil, refused }, syscall.ECONNREFUSED},
		"slow": {Options{}, func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, context.DeadlineExceeded},
		"slow, alone": {Options{OneShot: true}, func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, context.DeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &peer{Client: NewClient(test.dial, test.o), scheme: "http", host: "x"}
				defer p.Close()
				begin := time.Now()
				call := p.call("/", nil, 0)
				_, err := p.Do(call)
				var dial *exchange.DialError
				if !errors.As(err, &dial) || !errors.Is(err, test.want) || time.Since(begin) > call.Connect {
					t.Errorf("got %v after %v", err, time.Since(begin))
				}
				cause := errors.New("left")
				call.Canceler.Cancel(cause)
				if _, err := p.Do(call); !errors.Is(err, cause) {
					t.Errorf("got %v, want the cause", err)
				}
			})
		})
	}
}

func TestCancelDuringDial(t *testing.T) {
	for _, alone := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := &peer{Client: NewClient(func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}, Options{OneShot: alone}), scheme: "http", host: "x"}
			defer p.Close()
			call := p.call("/", nil, 0)
			begin := time.Now()
			done := p.begin(call)
			synctest.Wait()
			cause := errors.New("left")
			call.Canceler.Cancel(cause)
			if o := <-done; !errors.Is(o.err, cause) || time.Since(begin) != 0 {
				t.Errorf("got %v after %v", o.err, time.Since(begin))
			}
		})
	}
}

func TestIdleOldAndOneShotConnectionsClose(t *testing.T) {
	answer := func(s *script, id uint32, done <-chan outcome) {
		s.await(fmt.Sprintf("HEADERS %d END", id))
		s.head(id, true, ":status", "200")
		if o := <-done; o.err != nil {
			s.Error(o.err)
		}
	}
	t.Run("idle", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{Idle: 4 * time.Second})
			done := p.begin(p.call("/", nil, 0))
			s := accept()
			s.preface()
			answer(s, 1, done)
			time.Sleep(3 * time.Second)
			answer(s, 3, p.begin(p.call("/", nil, 0)))
			begin := time.Now()
			s.await("GOAWAY NO_ERROR")
			s.await("end")
			if d := time.Since(begin); d < 4*time.Second || d > 5*time.Second {
				t.Errorf("closed after %v", d)
			}
		})
	})
	t.Run("old", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{MaxAge: time.Minute})
			first := p.begin(p.call("/", nil, 0))
			s := accept()
			s.preface()
			s.await("HEADERS 1 END")
			s.head(1, false, ":status", "200")
			go func() { // it goes on, and answers PING
				s.await("GOAWAY NO_ERROR")
				s.await("end")
			}()
			time.Sleep(61 * time.Second)
			second := p.begin(p.call("/", nil, 0))
			s2 := accept()
			s2.preface()
			answer(s2, 1, second)
			s.head(1, true, "a", "b")
			if o := <-first; o.rerr != nil {
				t.Error(o.rerr)
			}
			synctest.Wait()
		})
	})
	t.Run("one shot", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{OneShot: true})
			for range 2 {
				done := p.begin(p.call("/", nil, 0))
				s := accept()
				s.preface()
				answer(s, 1, done)
				s.await("GOAWAY NO_ERROR")
				s.await("end")
			}
		})
	})
	t.Run("closed client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{})
			first := p.begin(p.call("/", nil, 0))
			s := accept()
			s.preface()
			s.await("HEADERS 1 END")
			p.Close()
			later := p.begin(p.call("/", nil, 0))
			s2 := accept()
			s2.preface()
			answer(s2, 1, later)
			s2.await("end")
			s.head(1, true, ":status", "200")
			if o := <-first; o.err != nil {
				t.Error(o.err)
			}
			s.await("GOAWAY NO_ERROR")
			s.await("end")
		})
	})
}

func TestServerThatClosesAnIdleConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		for range 3 {
			done := p.begin(p.call("/", nil, 0))
			s := accept()
			s.preface()
			s.await("HEADERS 1 END")
			s.head(1, true, ":status", "200")
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
			_ = s.nc.Close()
			synctest.Wait()
		}
	})
}

// A server that is gone without a word is noticed by a PING, and one that is
// only quiet is not asked so often that it takes it for an attack.
func TestSilentServer(t *testing.T) {
	t.Run("gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, s, done := get1(t)
			begin := time.Now()
			go func() { _, _ = io.Copy(io.Discard, s.nc) }()
			o := <-done
			if lost := lostError(t, o.err); lost.Closed || lost.Unsent || !strings.Contains(lost.Error(), "PING") || time.Since(begin) > 40*time.Second {
				t.Errorf("got %+v after %v", lost, time.Since(begin))
			}
		})
	})
	t.Run("quiet", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, s, done := get1(t)
			pings := 0
			go func() {
				for {
					switch s.next() {
					case "PING":
						pings++
					case "end":
						return
					}
				}
			}()
			time.Sleep(time.Hour)
			synctest.Wait()
			if pings < 10 || pings > 13 {
				t.Errorf("%d pings in an hour", pings)
			}
			s.head(1, true, ":status", "200")
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
		})
	})
}

func TestServerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		done := p.begin(p.call("/", strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20))
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 20})
		_ = s.WriteWindowUpdate(0, 1<<20)
		synctest.Wait()
		// It is stuck; others still come and go.
		call := p.call("/", nil, 0)
		other := p.begin(call)
		synctest.Wait()
		begin := time.Now()
		call.Canceler.Cancel(os.ErrClosed)
		if o := <-other; !errors.Is(o.err, os.ErrClosed) || time.Since(begin) != 0 {
			t.Errorf("%v after %v", o.err, time.Since(begin))
		}
		// It answers pings without end, and takes no answers.
		go func() {
			for s.WritePing(false, [8]byte{}) == nil {
				continue
			}
		}()
		o := <-done
		if lost := lostError(t, o.err); lost.Unsent || time.Since(begin) > time.Minute {
			t.Errorf("got %+v after %v", lost, time.Since(begin))
		}
	})
}

func TestStuckWriteEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		begin := time.Now()
		done := p.begin(p.call("/", strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20))
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 20})
		_ = s.WriteWindowUpdate(0, 1<<20)
		go func() {
			for s.WritePing(true, [8]byte{}) == nil { // not silent
				time.Sleep(time.Second)
			}
		}()
		o := <-done
		time.Sleep(2 * time.Second) // the pings end too
		if lost := lostError(t, o.err); lost.Closed || !strings.Contains(lost.Error(), "does not read") || time.Since(begin) > 30*time.Second {
			t.Errorf("got %+v after %v", lost, time.Since(begin))
		}
	})
}

func TestFloodsEndTheConnection(t *testing.T) {
	for name, send := range map[string]func(s *script) error{
		"SETTINGS":   func(s *script) error { return s.WriteSettings() },
		"ACK":        func(s *script) error { return s.WriteSettingsAck() },
		"PING":       func(s *script) error { return s.WritePing(false, [8]byte{}) },
		"PONG":       func(s *script) error { return s.WritePing(true, [8]byte{}) },
		"PRIORITY":   func(s *script) error { return s.WritePriority(1, h2.PriorityParam{Weight: 1}) },
		"unknown":    func(s *script) error { return s.WriteRawFrame(0x77, 0, 1, []byte("x")) },
		"window":     func(s *script) error { return s.WriteWindowUpdate(1, 1) },
		"GOAWAY":     func(s *script) error { return s.WriteGoAway(1, h2.ErrCodeNo, nil) },
		"empty DATA": func(s *script) error { return s.WriteData(1, false, nil) },
		"padding":    func(s *script) error { return s.WriteDataPadded(1, false, nil, make([]byte, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, s, done := get1(t)
				s.head(1, false, ":status", "200")
				s.drain()
				var sent int
				for sent = 0; sent < 100*floodBurst; sent++ {
					if send(s) != nil {
						break
					}
				}
				if sent >= 100*floodBurst {
					t.Errorf("%d were taken", sent)
				}
				o := <-done
				if lost := lostError(t, o.rerr); !strings.Contains(lost.Error(), "ENHANCE_YOUR_CALM") {
					t.Errorf("got %v", lost.Err)
				}
			})
		})
	}
}

func TestServerThatDoesNotSpeakInTime(t *testing.T) {
	for name, preface := range map[string]func(s *script){
		"no SETTINGS": func(*script) {},
		"no ACK":      func(s *script) { _ = s.WriteSettings() },
		"half a block": func(s *script) {
			_ = s.WriteSettings()
			_ = s.WriteSettingsAck()
			_ = s.WriteRawFrame(h2.FrameHeaders, 0, 1, []byte{0x88})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, accept := scripted(t, Options{})
				begin := time.Now()
				done := p.begin(p.call("/", nil, 0))
				s := accept()
				if _, err := io.ReadFull(s.nc, make([]byte, len(h2.ClientPreface))); err != nil {
					t.Fatal(err)
				}
				s.await("HEADERS 1 END")
				preface(s)
				s.drain()
				o := <-done
				if lost := lostError(t, o.err); lost.Unsent || time.Since(begin) > 15*time.Second {
					t.Errorf("got %+v after %v", lost, time.Since(begin))
				}
			})
		})
	}
}
