package http1

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"edge/proxy/exchange"
)

const noContent = "HTTP/1.1 204 No Content\r\n\r\n"

func uploadOf(length int64, body io.Reader) *exchange.Call {
	c := post("")
	c.Length, c.Body = length, body
	return c
}

func TestBodiesOfAnyShapeArriveWhole(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, echo(&conns))
	text := strings.Repeat("0123456789abcdef", 20_000)
	for name, wrap := range map[string]func(io.Reader) io.Reader{
		"as it is":  func(r io.Reader) io.Reader { return r },
		"halves":    iotest.HalfReader,
		"data, EOF": iotest.DataErrReader,
		"hesitant":  func(r io.Reader) io.Reader { return &hesitant{r: r} },
	} {
		for _, size := range []int{1, 100, 65_000, 65_536, 200_000} {
			for _, length := range []int64{int64(size), -1} {
				_, got, err := fetch(t, c, uploadOf(length, wrap(strings.NewReader(text[:size]))))
				if err != nil || got != "POST /v1/chat/completions "+text[:size] {
					t.Errorf("%s, %d bytes, length %d: %d bytes came back, %v", name, size, length, len(got), err)
				}
			}
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1: a complete upload leaves it good", n)
	}
}

// hesitant returns nothing now and then, as a Reader may.
type hesitant struct {
	r     io.Reader
	again bool
}

func (h *hesitant) Read(p []byte) (int, error) {
	if h.again = !h.again; h.again {
		return 0, nil
	}
	return h.r.Read(p)
}

type silentReader struct{}

func (silentReader) Read([]byte) (int, error) { return 0, nil }

func TestBodiesThatFailEndTheCallAndAreNoRequest(t *testing.T) {
	broken := errors.New("the client left")
	for _, x := range []struct {
		name   string
		length int64
		body   io.Reader
		want   error
	}{
		{"short", 10, strings.NewReader("hello"), io.ErrUnexpectedEOF},
		{"short and large", 200_000, strings.NewReader(strings.Repeat("a", 100_000)), io.ErrUnexpectedEOF},
		{"empty", 10, strings.NewReader(""), io.ErrUnexpectedEOF},
		{"failing at once", 10, iotest.ErrReader(broken), broken},
		{"failing later", 200_000, io.MultiReader(strings.NewReader("hello"), iotest.ErrReader(broken)), broken},
		{"failing in chunks", -1, io.MultiReader(strings.NewReader("hello"), iotest.ErrReader(broken)), broken},
		{"without progress", -1, silentReader{}, io.ErrNoProgress},
		{"small without progress", 5, silentReader{}, io.ErrNoProgress},
	} {
		var whole atomic.Bool
		c := rawServer(t, Options{}, func(s *serverConn) {
			if s.whole() != "" {
				whole.Store(true)
				s.say(noContent)
			}
		})
		_, err := c.Do(uploadOf(x.length, x.body))
		if b, ok := errors.AsType[*exchange.BodyError](err); !ok || !errors.Is(b.Err, x.want) {
			t.Errorf("%s: %v, want a BodyError of %v", x.name, err, x.want)
		}
		if whole.Load() || c.Idle() != 0 {
			t.Errorf("%s: the server saw it whole %v, %d idle connections", x.name, whole.Load(), c.Idle())
		}
	}
}

func TestABodyThatFailsDuringTheReplyEndsIt(t *testing.T) {
	pr, pw := io.Pipe()
	c := rawServer(t, Options{}, func(s *serverConn) {
		s.request()
		s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
		io.Copy(io.Discard, s.br)
	})
	reply, err := c.Do(uploadOf(-1, pr))
	if err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the client left")
	pw.CloseWithError(broken)
	_, err = io.ReadAll(reply.Body)
	if b, ok := errors.AsType[*exchange.BodyError](err); !ok || !errors.Is(b.Err, broken) {
		t.Errorf("reading the reply: %v, want a BodyError of %v", err, broken)
	}
}

func TestNoMoreThanTheLengthIsSent(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, echo(&conns))
	for _, size := range []int64{5, 100_000} {
		_, got, err := fetch(t, c, uploadOf(size, strings.NewReader(strings.Repeat("a", 300_000))))
		if want := "POST /v1/chat/completions " + strings.Repeat("a", int(size)); err != nil || got != want {
			t.Errorf("%d bytes came back, %v; want %d", len(got), err, len(want))
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

// A server that refuses an upload answers, reads no further and closes.
func TestAnEarlyRefusalIsDelivered(t *testing.T) {
	for i := range 20 {
		c := rawServer(t, Options{}, func(s *serverConn) {
			s.request()
			s.say("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!")
			if i%2 == 0 { // else closing resets, as there are unread bytes
				s.Conn.(*net.TCPConn).CloseWrite()
				io.CopyN(io.Discard, s.br, 1<<20)
			}
		})
		reply, body, err := fetch(t, c, uploadOf(64<<20, &endless{}))
		if err != nil || reply.Status != 413 || body != "no!" {
			t.Fatalf("%d %q, %v; want 413", reply.Status, body, err)
		}
	}
}

type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.read.Add(int64(len(p)))
	return len(p), nil
}

func TestRequestAndReplyRunAtTheSameTime(t *testing.T) {
	pr, pw := io.Pipe()
	c := rawServer(t, Options{}, func(s *serverConn) {
		r := s.request()
		s.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") // before the first byte of the body
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				s.say("2\r\n" + string(buf[:1]) + "!\r\n")
			}
			if err != nil {
				break
			}
		}
		s.say("0\r\n\r\n")
		s.whole()
	})
	reply, err := c.Do(uploadOf(-1, pr))
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for _, x := range []string{"a", "b", "c"} {
		io.WriteString(pw, x)
		n, err := reply.Body.Read(buf)
		if got := string(buf[:n]); got != x+"!" || err != nil {
			t.Errorf("%q, %v; want %q", got, err, x+"!")
		}
	}
	pw.Close()
	if n, err := reply.Body.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v; want EOF", n, err)
	}
	if c.Idle() != 1 {
		t.Error("the connection is lost, though both ended well")
	}
}

func TestAReplyThatIsCompleteFirstStopsTheUpload(t *testing.T) {
	body := &endless{}
	closed := make(chan struct{})
	c := rawServer(t, Options{}, func(s *serverConn) {
		s.request()
		s.say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")
		io.Copy(io.Discard, s.br)
		close(closed)
	})
	reply, text, err := fetch(t, c, uploadOf(-1, body))
	if err != nil || reply.Status != 401 || text != "no" {
		t.Fatalf("%d %q, %v; want 401", reply.Status, text, err)
	}
	<-closed
	eventually(t, "the body is left alone", func() bool {
		before := body.read.Load()
		time.Sleep(20 * time.Millisecond)
		return body.read.Load() == before
	})
	if c.Idle() != 0 {
		t.Error("kept a connection with half a request on it")
	}
}

func TestClosingTheReplyStopsTheUpload(t *testing.T) {
	body := &endless{}
	c := rawServer(t, Options{}, func(s *serverConn) {
		s.request()
		s.say("HTTP/1.1 200 OK\r\n\r\nhello")
		io.Copy(io.Discard, s.br)
	})
	reply, err := c.Do(uploadOf(-1, body))
	if err != nil {
		t.Fatal(err)
	}
	_ = reply.Body.Close()
	eventually(t, "the body is left alone", func() bool {
		before := body.read.Load()
		time.Sleep(20 * time.Millisecond)
		return body.read.Load() == before
	})
}

// brittle is a connection that takes so many bytes and then fails.
type brittle struct {
	net.Conn

	takes int
	err   error
}

func (b *brittle) Write(p []byte) (int, error) {
	if len(p) <= b.takes {
		b.takes -= len(p)
		return b.Conn.Write(p)
	}
	n, _ := b.Conn.Write(p[:b.takes])
	b.takes = 0
	return n, b.err
}

// weaken has a client's connections fail after so many bytes.
func weaken(c *Client, takes int, err error) {
	dial := c.dial
	c.dial = func(ctx context.Context) (net.Conn, error) {
		nc, derr := dial(ctx)
		return &brittle{nc, takes, err}, derr
	}
}

func TestAFailedWriteLeavesTimeForAReply(t *testing.T) {
	for _, size := range []int{50, 500_000} {
		synctest.Test(t, func(t *testing.T) {
			c := memServer(t, Options{}, func(s *serverConn) {
				s.request()
				time.Sleep(lostGrace - time.Second)
				s.say("HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
				io.Copy(io.Discard, s.br)
			})
			weaken(c, 100, syscall.EPIPE)
			reply, _, err := fetch(t, c, uploadOf(int64(size), strings.NewReader(strings.Repeat("a", size))))
			if err != nil || reply.Status != 413 || c.Idle() != 0 {
				t.Errorf("%d bytes: %d, %v, %d idle; want 413", size, reply.Status, err, c.Idle())
			}
		})
		synctest.Test(t, func(t *testing.T) {
			c := memServer(t, Options{}, func(s *serverConn) { s.request(); io.Copy(io.Discard, s.br) })
			weaken(c, 100, syscall.EPIPE)
			start := time.Now()
			_, err := c.Do(uploadOf(int64(size), strings.NewReader(strings.Repeat("a", size))))
			lost, ok := errors.AsType[*exchange.LostError](err)
			if !ok || !lost.Closed || lost.Unsent || lost.Answered || !errors.Is(err, syscall.EPIPE) || lost.After != lostGrace {
				t.Errorf("%d bytes: %#v, want a lost connection", size, err)
			}
			if took := time.Since(start); took != lostGrace {
				t.Errorf("%d bytes: took %v, want %v", size, took, lostGrace)
			}
		})
	}
}

func TestARequestOfWhichNothingWasTakenIsUnsent(t *testing.T) {
	c := rawServer(t, Options{}, func(s *serverConn) { s.whole() })
	weaken(c, 0, syscall.ECONNRESET)
	_, err := c.Do(post("hello"))
	if lost, ok := errors.AsType[*exchange.LostError](err); !ok || !lost.Unsent || !lost.Closed || lost.Reused || lost.Answered {
		t.Errorf("%#v, want a lost connection and an unsent request", err)
	}
}

func TestAnnouncedBodyIsSentWhenTheServerWantsIt(t *testing.T) {
	for _, size := range []int{5, 200_000} {
		c := rawServer(t, Options{}, func(s *serverConn) {
			for {
				r := s.request()
				if r == nil {
					return
				}
				if r.Header.Get("Expect") != "100-continue" || s.br.Buffered() > 0 {
					t.Errorf("expect %q, with %d bytes behind it", r.Header.Get("Expect"), s.br.Buffered())
				}
				s.say("HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n")
				n, _ := io.Copy(io.Discard, r.Body)
				s.say("HTTP/1.1 200 OK\r\nContent-Length: ", itoa(len(itoa(int(n)))), "\r\n\r\n", itoa(int(n)))
			}
		})
		for range 2 {
			call := uploadOf(int64(size), strings.NewReader(strings.Repeat("a", size)))
			call.Continue = true
			var interim []int
			call.Interim = func(status int, _ exchange.Fields) { interim = append(interim, status) }
			_, got, err := fetch(t, c, call)
			if err != nil || got != itoa(size) || !slices.Equal(interim, []int{103, 100}) {
				t.Errorf("the server got %q bytes, interim %v, %v; want %d and 103, 100", got, interim, err, size)
			}
		}
		if c.Idle() != 1 {
			t.Errorf("%d idle connections, want 1", c.Idle())
		}
	}
}

func TestAnnouncedBodyIsNotSentAfterTheReply(t *testing.T) {
	rest := make(chan []byte, 1)
	c := rawServer(t, Options{}, func(s *serverConn) {
		s.request()
		s.say("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
		b, _ := io.ReadAll(s.br)
		rest <- b
	})
	call := uploadOf(5, iotest.ErrReader(errors.New("nobody may read this")))
	call.Continue = true
	reply, body, err := fetch(t, c, call)
	if err != nil || reply.Status != 417 || body != "no" {
		t.Errorf("%d %q, %v; want 417", reply.Status, body, err)
	}
	if b := <-rest; len(b) > 0 || c.Idle() != 0 {
		t.Errorf("the server got %q, %d idle connections", b, c.Idle())
	}
}

func TestAnnouncedBodyIsSentAfterASecondOfSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := memServer(t, Options{}, func(s *serverConn) {
			start := time.Now()
			r := s.request()
			b, _ := io.ReadAll(r.Body)
			if took := time.Since(start); took != continueWait {
				t.Errorf("body came after %v, want %v", took, continueWait)
			}
			s.say("HTTP/1.1 100 Continue\r\n\r\n") // late, and to nobody
			s.say("HTTP/1.1 200 OK\r\nContent-Length: ", itoa(len(b)), "\r\n\r\n", string(b))
		})
		call := uploadOf(5, strings.NewReader("hello"))
		call.Continue, call.FirstByte = true, 10*time.Second
		_, got, err := fetch(t, c, call)
		if err != nil || got != "hello" {
			t.Errorf("%q, %v; want hello", got, err)
		}
	})
}

func TestLargeUploadsKeepTheirConnection(t *testing.T) {
	var conns atomic.Int32
	c := rawServer(t, Options{}, echo(&conns))
	body := bytes.Repeat([]byte("a"), 150_000)
	for range 50 {
		if _, _, err := fetch(t, c, uploadOf(int64(len(body)), bytes.NewReader(body))); err != nil {
			t.Fatal(err)
		}
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections, want 1: the reply overtakes the news that all was sent", n)
	}
}
