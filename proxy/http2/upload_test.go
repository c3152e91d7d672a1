package http2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"

	"edge/proxy/exchange"
)

// parts is a body that comes in parts; a Read gives one of them, or err at the end.
type parts struct {
	parts []string
	err   error
}

func (p *parts) Read(b []byte) (int, error) {
	if len(p.parts) == 0 {
		return 0, p.err
	}
	n := copy(b, p.parts[0])
	p.parts[0] = p.parts[0][n:]
	if p.parts[0] == "" {
		p.parts = p.parts[1:]
	}
	return n, nil
}

// A body that fails never ends the request in good order.
func TestBodiesThatFail(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		name    string
		body    io.Reader
		length  int64
		trailer bool
		want    error
		sent    bool // a part of it had gone out
	}{
		{"at once", iotest.ErrReader(broken), 5, false, broken, false},
		{"at once, of unknown length", iotest.ErrReader(broken), -1, false, broken, true},
		{"later", &parts{[]string{"one", "two"}, broken}, 10, false, broken, true},
		{"later, of unknown length", &parts{[]string{"one", "two"}, broken}, -1, false, broken, true},
		{"with the last bytes", iotest.DataErrReader(&parts{[]string{"hello"}, broken}), 5, false, broken, false},
		{"short", &parts{[]string{"one"}, io.EOF}, 10, false, io.ErrUnexpectedEOF, true},
		{"empty", &parts{nil, io.EOF}, 10, false, io.ErrUnexpectedEOF, false},
		{"long, before a trailer", &parts{[]string{"hello", "!"}, io.EOF}, 5, true, errTooLong, true},
		{"without progress", &parts{[]string{"", ""}, nil}, 5, false, io.ErrNoProgress, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, accept := scripted(t, Options{})
				call := p.call("/", test.body, test.length)
				if test.trailer {
					call.Trailer = func() exchange.Fields { t.Error("asked for the trailer"); return nil }
				}
				done := p.begin(call)
				s := accept()
				if test.sent {
					s.preface()
					for got := ""; got != "RST_STREAM 1 CANCEL"; {
						if got = s.next(); strings.HasSuffix(got, "END") || got == "end" {
							t.Fatal(got)
						}
					}
				}
				o := <-done
				var body *exchange.BodyError
				if !errors.As(o.err, &body) || !errors.Is(o.err, test.want) {
					t.Errorf("got %v, want a BodyError of %v", o.err, test.want)
				}
				other := p.begin(p.call("/", nil, 0)) // the connection is as good as before
				id := uint32(3)
				if !test.sent {
					id = 1
					s.preface()
				}
				s.await(fmt.Sprintf("HEADERS %d END", id))
				s.head(id, true, ":status", "200")
				if o := <-other; o.err != nil {
					t.Error(o.err)
				}
			})
		})
	}
}

func TestBodyThatFailsWhileTheReplyIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		r, w := io.Pipe()
		done := p.begin(p.call("/", r, -1))
		s := accept()
		s.preface()
		s.await("HEADERS 1")
		s.head(1, false, ":status", "200")
		s.text(1, false, "part")
		synctest.Wait()
		broken := errors.New("broken")
		_ = w.CloseWithError(broken)
		s.await("RST_STREAM 1 CANCEL")
		o := <-done
		var body *exchange.BodyError
		if o.err != nil || !errors.As(o.rerr, &body) || !errors.Is(o.rerr, broken) {
			t.Errorf("got %+v", o)
		}
	})
}

// What Length says is sent, and nothing else is even read.
func TestBodyLongerThanDeclaredIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		body := strings.NewReader("hello, world")
		done := p.begin(p.call("/", body, 5))
		s := accept()
		s.preface()
		s.await("DATA 1 5 END")
		s.head(1, true, ":status", "200")
		if o := <-done; o.err != nil || body.Len() != 7 {
			t.Errorf("%v, %d bytes unread, want 7", o.err, body.Len())
		}
	})
}

func TestRequestsLeaveInAsFewFramesAsTheyCan(t *testing.T) {
	trailer := func() exchange.Fields {
		return exchange.Fields{{Name: "x-sum", Value: "1"}, {Name: "Host", Value: "no"}}
	}
	for _, test := range []struct {
		body    io.Reader
		length  int64
		trailer func() exchange.Fields
		want    string
	}{
		{strings.NewReader("hello"), 5, nil, "HEADERS 1, DATA 1 5 END"},
		{&parts{[]string{"he", "llo"}, nil}, 5, nil, "HEADERS 1, DATA 1 2, DATA 1 3 END"},
		{iotest.DataErrReader(strings.NewReader("hello")), -1, nil, "HEADERS 1, DATA 1 5 END"},
		{strings.NewReader("hello"), -1, nil, "HEADERS 1, DATA 1 5, DATA 1 0 END"},
		{strings.NewReader(""), -1, nil, "HEADERS 1, DATA 1 0 END"},
		{strings.NewReader("hello"), -1, trailer, "HEADERS 1, DATA 1 5, HEADERS 1 END"},
		{strings.NewReader("hello"), 5, trailer, "HEADERS 1, DATA 1 5, HEADERS 1 END"},
		{strings.NewReader("hello"), -1, func() exchange.Fields { return nil }, "HEADERS 1, DATA 1 5, DATA 1 0 END"},
		{strings.NewReader(strings.Repeat("x", 40000)), 40000, nil, "HEADERS 1, DATA 1 16384, DATA 1 16384, DATA 1 7232 END"},
		{strings.NewReader(strings.Repeat("x", 4096)), -1, nil, "HEADERS 1, DATA 1 4096, DATA 1 0 END"},
	} {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{})
			call := p.call("/", test.body, test.length)
			call.Trailer = test.trailer
			done := p.begin(call)
			s := accept()
			s.preface()
			var got []string
			for !strings.HasSuffix(strings.Join(got, ""), "END") {
				if f := s.next(); strings.Contains(f, " 1") && !strings.HasPrefix(f, "WINDOW") {
					got = append(got, f)
				}
			}
			if strings.Join(got, ", ") != test.want {
				t.Errorf("got %q, want %s", got, test.want)
			}
			if test.trailer != nil && strings.HasPrefix(got[len(got)-1], "HEADERS") && fmt.Sprint(s.last) != "[{x-sum 1}]" {
				t.Errorf("trailer %v", s.last)
			}
			s.head(1, true, ":status", "200")
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
		})
	}
}

// writes counts what a small request costs in system calls.
func TestASmallRequestIsOneWrite(t *testing.T) {
	for _, length := range []int64{5, -1} {
		synctest.Test(t, func(t *testing.T) {
			p, accept := scripted(t, Options{})
			done := p.begin(p.call("/", strings.NewReader("hello"), length))
			s := accept()
			synctest.Wait()
			b := make([]byte, 1<<10)
			n, _ := s.nc.Read(b)
			if !bytes.HasPrefix(b, []byte(h2.ClientPreface)) || !bytes.Contains(b[:n], []byte("hello")) {
				t.Errorf("the first write is %q", b[:n])
			}
			_ = s.nc.Close()
			<-done
		})
	}
}

func TestTrailerThatCannotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		call := p.call("/", strings.NewReader("hello"), -1)
		call.Trailer = func() exchange.Fields { return exchange.Fields{{Name: "a b", Value: "1"}} }
		done := p.begin(call)
		s := accept()
		s.preface()
		s.await("RST_STREAM 1 CANCEL")
		if o := <-done; !errors.Is(o.err, exchange.ErrUnsendable) {
			t.Errorf("got %v", o.err)
		}
	})
}

func TestExpectContinue(t *testing.T) {
	begin := func(t *testing.T) (*script, <-chan outcome, *[]int) {
		t.Helper()
		p, accept := scripted(t, Options{})
		call := p.call("/", strings.NewReader("hello"), 5)
		call.Continue = true
		var interim []int
		call.Interim = func(status int, _ exchange.Fields) { interim = append(interim, status) }
		done := p.begin(call)
		s := accept()
		s.preface()
		s.await("HEADERS 1")
		if s.last.Get("expect") != "100-continue" {
			t.Errorf("sent %v", s.last)
		}
		return s, done, &interim
	}
	t.Run("wanted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, done, interim := begin(t)
			now := time.Now()
			time.Sleep(100 * time.Millisecond)
			s.head(1, false, ":status", "103")
			time.Sleep(100 * time.Millisecond)
			s.head(1, false, ":status", "100")
			s.await("DATA 1 5 END")
			if time.Since(now) != 200*time.Millisecond {
				t.Errorf("sent after %v", time.Since(now))
			}
			s.head(1, true, ":status", "200")
			if o := <-done; o.err != nil || fmt.Sprint(*interim) != "[103 100]" {
				t.Errorf("%v, interim %v", o.err, *interim)
			}
		})
	})
	t.Run("silence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, done, _ := begin(t)
			now := time.Now()
			s.await("DATA 1 5 END")
			if time.Since(now) != continueTime {
				t.Errorf("sent after %v", time.Since(now))
			}
			s.head(1, true, ":status", "200")
			if o := <-done; o.err != nil {
				t.Error(o.err)
			}
		})
	})
	t.Run("success before the body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, done, _ := begin(t)
			s.head(1, false, ":status", "200")
			s.await("DATA 1 5 END")
			s.text(1, true, "got it")
			if o := <-done; o.err != nil || o.rerr != nil || o.body != "got it" {
				t.Errorf("got %+v", o)
			}
		})
	})
	t.Run("refused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, done, _ := begin(t)
			s.head(1, false, ":status", "401")
			time.Sleep(10 * time.Second)
			s.text(1, true, "no")
			s.await("RST_STREAM 1 NO_ERROR")
			if o := <-done; o.err != nil || o.rerr != nil || o.reply.Status != 401 || o.body != "no" || len(s.data) > 0 {
				t.Errorf("%+v, sent %q", o, s.data)
			}
		})
	})
}

// The clock for the head stands still while the server waits for our client.
func TestSilenceOfTheClientIsNotTheServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		r, w := io.Pipe()
		call := p.call("/", r, -1)
		call.FirstByte = time.Second
		done := p.begin(call)
		s := accept()
		s.preface()
		s.drain()
		for range 5 {
			time.Sleep(2 * time.Second)
			_, _ = io.WriteString(w, "more")
		}
		_ = w.Close()
		begin := time.Now()
		o := <-done
		if !errors.Is(o.err, exchange.ErrFirstByte) || time.Since(begin) != time.Second {
			t.Errorf("%v after %v", o.err, time.Since(begin))
		}
	})
}

// A server that takes no more of the body is silent too.
func TestSilenceOfAServerThatDoesNotTakeTheBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		call := p.call("/", strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20)
		call.FirstByte = 5 * time.Second
		begin := time.Now()
		done := p.begin(call)
		s := accept()
		s.preface()
		s.await("DATA 1 16384")
		time.Sleep(3 * time.Second)
		_ = s.WriteWindowUpdate(0, 1000)
		_ = s.WriteWindowUpdate(1, 1000)
		s.drain()
		if o := <-done; !errors.Is(o.err, exchange.ErrFirstByte) || time.Since(begin) != 8*time.Second {
			t.Errorf("%v after %v", o.err, time.Since(begin))
		}
	})
}

// Servers announce what they have read in pieces of any size.
func TestWindowUpdatesOfAnUploadAreNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		const size = 4 << 20
		done := p.begin(p.call("/", strings.NewReader(strings.Repeat("x", size)), size))
		s := accept()
		s.preface()
		for taken := 0; taken < size; {
			before := len(s.data)
			if s.next() == "end" {
				break
			}
			n := len(s.data) - before
			taken += n
			for ; n > 0; n -= 512 {
				_ = s.WriteWindowUpdate(0, uint32(min(n, 512)))
				_ = s.WriteWindowUpdate(1, uint32(min(n, 512)))
			}
		}
		s.head(1, true, ":status", "200")
		if o := <-done; o.err != nil {
			t.Error(o.err)
		}
	})
}

func TestLargeHeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, accept := scripted(t, Options{})
		call := p.call("/", nil, 0)
		long := strings.Repeat("x", 40000)
		call.Header.Add("x-long", long)
		done := p.begin(call)
		s := accept()
		s.preface(h2.Setting{ID: h2.SettingMaxHeaderListSize, Val: 30000})
		s.await("HEADERS 1 END")
		s.await("CONTINUATION 1")
		s.await("CONTINUATION 1")
		if s.last.Get("x-long") != long {
			t.Error("the value is not what was sent")
		}
		s.await("SETTINGS ACK")
		s.head(1, true, ":status", "200")
		if o := <-done; o.err != nil {
			t.Error(o.err)
		}
		if o := <-p.begin(call); !errors.Is(o.err, exchange.ErrUnsendable) {
			t.Errorf("got %v from a server that takes no such list", o.err)
		}
	})
}
