package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/proxy/exchange"
)

var _ exchange.Source = (*Response)(nil)

func TestReplyIsReadAsItArrives(t *testing.T) {
	next := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for _, token := range []string{"a", "bc", "d"} {
			io.WriteString(w, token)
			w.(http.Flusher).Flush()
			<-next // until the reader has confirmed
		}
	})
	resp := do(t, open(t, poolOf(s.URL)), get("/"))
	if resp.Length != -1 {
		t.Errorf("length %d, want -1", resp.Length)
	}
	buf := make([]byte, 100)
	for _, want := range []string{"a", "bc", "d"} {
		n, err := resp.Read(buf)
		if string(buf[:n]) != want || err != nil {
			t.Fatalf("read %q, %v; want %q", buf[:n], err, want)
		}
		next <- struct{}{}
	}
	if n, err := resp.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d, %v; want io.EOF", n, err)
	}
}

func TestTrailersFollowTheBody(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		io.WriteString(w, "x")
		w.Header().Set("Grpc-Status", "0")
	})
	resp := do(t, open(t, poolOf(s.URL)), get("/"))
	if _, err := io.ReadAll(resp); err != nil {
		t.Fatal(err)
	}
	if got := resp.Trailer().Get("grpc-status"); got != "0" {
		t.Errorf("trailer %v, want Grpc-Status: 0", resp.Trailer())
	}
}

func TestHeadKeepsTheDeclaredLength(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "5") })
	req := get("/")
	req.Method = "HEAD"
	resp := do(t, open(t, poolOf(s.URL)), req)
	if got := text(t, resp); got != "" || resp.Length != 5 {
		t.Errorf("body %q length %d, want none and 5", got, resp.Length)
	}
}

// endless is a server that streams until its client leaves, and tells when.
func endless(t *testing.T) (url string, left chan struct{}) {
	t.Helper()
	left = make(chan struct{}, 32)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "token")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		left <- struct{}{}
	})
	return s.URL, left
}

func TestCloseBeforeTheEndStopsTheEndpoint(t *testing.T) {
	url, left := endless(t)
	p := open(t, poolOf(url))
	resp := do(t, p, get("/"))
	readDone := make(chan error, 1)
	first := make(chan struct{})
	go func() {
		buf := make([]byte, 10)
		resp.Read(buf)
		close(first)
		_, err := resp.Read(buf) // blocked
		readDone <- err
	}()
	within(t, patience, "first token", first)
	resp.Close()
	resp.Close()
	within(t, prompt, "endpoint sees the client leave", left)
	if err := within(t, prompt, "blocked Read", readDone); !errors.Is(err, net.ErrClosed) {
		t.Errorf("blocked Read: %v, want net.ErrClosed", err)
	}
	if _, err := resp.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v, want net.ErrClosed", err)
	}
	if n := p.endpoints[0].inflight.Load(); n != 0 {
		t.Errorf("inflight %d after two Closes, want 0", n)
	}
}

func TestEndOfContextAbortsAReply(t *testing.T) {
	url, left := endless(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	resp, err := open(t, poolOf(url)).Do(ctx, get("/"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	gone := errors.New("client gone")
	buf := make([]byte, 10)
	resp.Read(buf)
	cancel(gone)
	within(t, prompt, "endpoint sees the client leave", left)
	if _, err := resp.Read(buf); !errors.Is(err, gone) {
		t.Errorf("Read: %v, want %v", err, gone)
	}
}

func TestEndOfContextAbortsTheWaitForAHead(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan struct{})
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(left)
	})
	ctx, cancel := context.WithCancel(t.Context())
	p := open(t, poolOf(s.URL))
	failed := make(chan error, 1)
	go func() {
		_, err := p.Do(ctx, get("/"))
		failed <- err
	}()
	within(t, patience, "request", arrived)
	cancel()
	if err := within(t, prompt, "Do", failed); !errors.Is(err, context.Canceled) {
		t.Errorf("Do: %v, want context.Canceled", err)
	}
	within(t, prompt, "endpoint sees the client leave", left)
}

func TestReplyThatBreaksOffIsLost(t *testing.T) {
	for name, reply := range map[string]string{
		"length":        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart",
		"chunked":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
		"invalid chunk": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\nzz\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			url := script(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := head(r); err == nil {
					io.WriteString(c, reply)
				}
			})
			got, err := io.ReadAll(do(t, open(t, poolOf(url)), get("/")))
			if lost, ok := errors.AsType[*LostError](err); !ok || lost.Endpoint != url || string(got) != "part" {
				t.Errorf("read %q, %v; want part and a LostError", got, err)
			}
		})
	}
}

func TestUploadGoesOnAfterTheReplyBegan(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.(http.Flusher).Flush()
		buf := make([]byte, 10)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	pr, pw := io.Pipe()
	req := post("")
	req.Length, req.Body = -1, pr
	resp := do(t, open(t, poolOf(s.URL)), req)
	buf := make([]byte, 10)
	for _, word := range []string{"ping", "pong"} {
		io.WriteString(pw, word)
		if n, err := resp.Read(buf); string(buf[:n]) != word {
			t.Fatalf("echo %q, %v; want %q", buf[:n], err, word)
		}
	}
	pw.Close()
	if _, err := resp.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("end of echo: %v, want io.EOF", err)
	}
}

func TestRefusalOfAnUploadIsReadThoughWritingFails(t *testing.T) {
	const refusal = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\n\r\ntoo large"
	for range 20 {
		url := script(t, func(c net.Conn, r *bufio.Reader) {
			if _, err := head(r); err == nil {
				io.WriteString(c, refusal)
				c.(*net.TCPConn).SetLinger(-1) // closing with unread bytes resets
			}
		})
		req := post("")
		req.Length, req.Body = 64<<20, zeros{}
		resp := do(t, open(t, poolOf(url)), req)
		if got := text(t, resp); resp.Status != 413 || got != "too large" {
			t.Fatalf("reply %d %q, want 413 too large", resp.Status, got)
		}
	}
}

// stubborn is a client's body that blocks until interrupted, and knows who is
// inside.
type stubborn struct {
	inside      atomic.Int32
	entered     chan struct{} // a value for each Read
	interrupted chan struct{}
}

func newStubborn() *stubborn {
	return &stubborn{entered: make(chan struct{}, 16), interrupted: make(chan struct{})}
}

func (s *stubborn) Read([]byte) (int, error) {
	s.inside.Add(1)
	defer s.inside.Add(-1)
	s.entered <- struct{}{}
	<-s.interrupted
	<-time.After(20 * time.Millisecond) // late, as a read of a socket may be
	return 0, errors.New("interrupted")
}

func (s *stubborn) request(length int64) *Request {
	req := post("")
	req.Length, req.Body, req.Interrupt = length, s, func() { close(s.interrupted) }
	return req
}

func TestCloseLeavesNobodyInTheClientsBody(t *testing.T) {
	body := newStubborn()
	url := script(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			<-body.entered // or a reply that came whole has the body not begun at all
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly")
			<-closedByPeer(r)
		}
	})
	resp := do(t, open(t, poolOf(url)), body.request(-1))
	if got := text(t, resp); got != "early" {
		t.Errorf("reply %q, want early", got)
	}
	if n := body.inside.Load(); n != 0 {
		t.Errorf("%d goroutines read the body after Close, want 0", n)
	}
}

func TestLossOfAnEndpointDoesNotWaitForTheClient(t *testing.T) {
	body := newStubborn()
	url := script(t, func(_ net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			<-body.entered
		}
	})
	p := open(t, poolOf(url))
	failed := make(chan error, 1)
	go func() {
		_, err := p.Do(t.Context(), body.request(-1))
		failed <- err
	}()
	err := within(t, patience, "Do", failed)
	if _, ok := errors.AsType[*LostError](err); !ok || body.inside.Load() != 0 {
		t.Errorf("error %v with %d inside, want a LostError with 0", err, body.inside.Load())
	}
}

// A small body is read before there is a connection, a large one while the reply
// may come already.
func TestEndOfARequestDoesNotWaitForTheClient(t *testing.T) {
	s := serve(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	p := open(t, poolOf(s.URL))
	enough := errors.New("enough")
	for name, length := range map[string]int64{"small": 10, "large": 1 << 30, "unknown length": -1} {
		for _, by := range []string{"context", "Canceler"} {
			t.Run(name+" by "+by, func(t *testing.T) {
				body := newStubborn()
				req := body.request(length)
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				end := func() { cancel(enough) }
				if by == "Canceler" {
					ctx, req.Canceler = context.Background(), new(exchange.Canceler)
					end = func() { req.Canceler.Cancel(enough) }
				}
				failed := make(chan error, 1)
				go func() {
					_, err := p.Do(ctx, req)
					failed <- err
				}()
				within(t, patience, "upload", body.entered)
				end()
				if err := within(t, prompt, "Do", failed); !errors.Is(err, enough) || body.inside.Load() != 0 {
					t.Errorf("error %v with %d inside, want %v with 0", err, body.inside.Load(), enough)
				}
			})
		}
	}
	if n := p.endpoints[0].inflight.Load(); n != 0 {
		t.Errorf("inflight %d after the end, want 0", n)
	}
}

func TestCancelerAbortsAReply(t *testing.T) {
	url, left := endless(t)
	req := get("/")
	req.Canceler = new(exchange.Canceler)
	resp := do(t, open(t, poolOf(url)), req)
	buf := make([]byte, 10)
	resp.Read(buf)
	gone := errors.New("client gone")
	req.Canceler.Cancel(gone)
	within(t, prompt, "endpoint sees the client leave", left)
	if _, err := resp.Read(buf); !errors.Is(err, gone) {
		t.Errorf("Read: %v, want %v", err, gone)
	}
}

// What ends late must not hit whoever uses a Canceler's memory next.
func TestNothingCancelsAfterClose(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	p := open(t, poolOf(s.URL))
	for range 200 {
		var canceler exchange.Canceler
		ctx, cancel := context.WithCancel(t.Context())
		req := get("/")
		req.Canceler = &canceler
		resp, err := p.Do(ctx, req)
		if err != nil {
			t.Fatal(err)
		}
		go cancel()
		io.Copy(io.Discard, resp)
		resp.Close()
		canceler = exchange.Canceler{} // a race with a Cancel that comes late
	}
}

func TestCancelledRequestIsNotSent(t *testing.T) {
	p := open(t, poolOf(refused(t))) // would be a DialError
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	if _, err := p.Do(ctx, get("/")); !errors.Is(err, enough) {
		t.Errorf("context: %v, want %v", err, enough)
	}
	req := get("/")
	req.Canceler = new(exchange.Canceler)
	req.Canceler.Cancel(enough)
	if _, err := p.Do(t.Context(), req); !errors.Is(err, enough) {
		t.Errorf("Canceler: %v, want %v", err, enough)
	}
}

// recycled is a body whose owner uses its memory again after the end, as a
// front that pools does. The race detector sees any late Read.
type recycled struct{ data []byte }

func (r *recycled) Read(p []byte) (int, error) {
	n := copy(p, r.data)
	r.data = r.data[n:]
	if len(r.data) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// forward is a front that does nothing else.
func forward(p *Pool) http.HandlerFunc {
	return exchange.ToHTTP(func(e *exchange.Exchange) {
		resp, err := p.Do(e.Context(), &Request{
			Method: e.Method, Target: e.Target, Host: e.Host, Length: e.Length, Body: e, Interrupt: e.Interrupt,
		})
		if err != nil {
			e.Abort()
			return
		}
		e.Status = resp.Status
		if !e.Detach(resp) {
			exchange.Pump(e, resp)
		}
	}, nil).ServeHTTP
}

func TestClientThatStopsUploadingGetsAnEarlyReplyWhole(t *testing.T) {
	url := script(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n")
			<-closedByPeer(r)
		}
	})
	front := serve(t, forward(open(t, poolOf(url))))
	c, err := net.Dial("tcp", front.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	io.WriteString(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\npart")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusUnauthorized || string(got) != "no" || err != nil {
		t.Errorf("reply %d %q, %v; want 401 no", resp.StatusCode, got, err)
	}
}

// A Transport reads the body once more after the reply began, and gives up the
// connection when that fails: golang/go#40747. The endpoint's head comes at once,
// before the front has read the body.
func TestStreamsThatBeginAtOnceAreComplete(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.(http.Flusher).Flush()
		io.Copy(io.Discard, r.Body)
		for range 3 {
			io.WriteString(w, "data: x\n\n")
			w.(http.Flusher).Flush()
		}
	})
	p := open(t, poolOf(s.URL))
	front := serve(t, forward(p))
	var lost atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				resp, err := front.Client().Post(front.URL, "application/json", strings.NewReader(`{"stream":true}`))
				if err != nil {
					lost.Add(1)
					continue
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(b, bytes.Repeat([]byte("data: x\n\n"), 3)) {
					lost.Add(1)
				}
			}
		})
	}
	wg.Wait()
	front.Client().CloseIdleConnections()
	if n := lost.Load(); n != 0 {
		t.Errorf("%d of 400 streams lost, want 0", n)
	}
}

func TestBodyIsNotTouchedAfterClose(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.WriteString(w, "early")
	})
	p := open(t, poolOf(s.URL))
	var body recycled
	memory := make([]byte, 256<<10)
	for range 50 {
		body.data = memory
		req := post("")
		req.Length, req.Body = -1, &body
		resp, err := p.Do(t.Context(), req)
		if err == nil {
			resp.Close()
		}
		clear(memory) // a race with a late Read
	}
}

func TestAbandonedExchangesLeaveNoGoroutine(t *testing.T) {
	url, left := endless(t)
	p := open(t, poolOf(url))
	before := goleak.IgnoreCurrent()
	for range 20 {
		do(t, p, get("/")).Close()
		within(t, prompt, "endpoint sees the client leave", left)
	}
	goleak.VerifyNone(t, before)
}
