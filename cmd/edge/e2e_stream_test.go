package main_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/modelserver"
)

const streamBody = `{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}`

// ask starts a streamed chat; key names the gate that its tokens wait at.
func ask(ctx context.Context, client *http.Client, key string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://chat.example.test/v1/chat/completions", strings.NewReader(streamBody))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(modelserver.KeyHeader, key)
	resp, err := client.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", resp.Status, b)
	}
	return resp, err
}

// events returns the data of each server-sent event, as it comes.
func events(body io.Reader) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for sc := bufio.NewScanner(body); sc.Scan(); {
			if data, ok := strings.CutPrefix(sc.Text(), "data: "); ok && !yield(data) {
				return
			}
		}
	}
}

var protocols = []struct {
	name string
	h2   bool
}{{"h1", false}, {"h2", true}}

// The model server sends a token only after the client has confirmed the one
// before, out of band. Whatever collects tokens on the way stops the stream.
func TestEveryTokenPassesBeforeTheNextIsMade(t *testing.T) {
	t.Parallel()
	const tokens = 50
	w := newWorld(t, acmelab.Options{}, modelserver.Options{Script: modelserver.Script{Tokens: strings.Split(strings.Repeat("x ", tokens-1)+"x", " "), Gate: true}})
	_, addr := w.start(w.config("a", settings{}))
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			resp, err := ask(ctx, w.client(addr, p.h2), p.name)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if want := map[bool]int{false: 1, true: 2}[p.h2]; resp.ProtoMajor != want {
				t.Errorf("protocol %s, want HTTP/%d", resp.Proto, want)
			}
			seen, done := 0, false
			for data := range events(resp.Body) {
				if done = data == "[DONE]"; done {
					break
				}
				if strings.Contains(data, `"content":"x"`) {
					seen++
				}
				w.model.ConfirmKey(p.name, 1)
			}
			if seen != tokens || !done {
				t.Errorf("%d tokens, done %v; want %d and the end: the stream stopped waiting for a token that was held back", seen, done, tokens)
			}
		})
	}
}

func TestAClientThatLeavesIsSeenUpstreamWithinASecond(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{Script: modelserver.Script{Gate: true, EarlyHead: true}})
	_, addr := w.start(w.config("a", settings{}))
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			resp, err := ask(ctx, w.client(addr, p.h2), "leave-"+p.name)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if _, err := resp.Body.Read(make([]byte, 1)); err != nil { // the first token is here, the model is silent now
				t.Fatal(err)
			}
			left := time.Now()
			leave()
			select {
			case a := <-w.model.Aborted():
				if d := a.At.Sub(left); d > reactTime {
					t.Errorf("seen upstream after %v, want within %v", d, reactTime)
				}
			case <-time.After(5 * time.Second):
				t.Error("the model server never learned that the client had left")
			}
		})
	}
}

// A hundred streams are in progress, half of them h2, while the configuration
// is reloaded with another route and the old one changed. None breaks.
func TestAReloadBreaksNoStream(t *testing.T) {
	t.Parallel()
	const streams = 100
	w := newWorld(t, acmelab.Options{}, modelserver.Options{Script: modelserver.Script{Gate: true}})
	config := w.config("a", settings{})
	p, addr := w.start(config)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()

	clients := map[bool]*http.Client{false: w.client(addr, false), true: w.client(addr, true)}
	var started, ended sync.WaitGroup
	errs := make(chan error, streams)
	for n := range streams {
		key := fmt.Sprint("reload-", n)
		started.Add(1)
		ended.Go(func() {
			resp, err := ask(ctx, clients[n%2 == 0], key)
			if err != nil {
				started.Done()
				errs <- err
				return
			}
			defer resp.Body.Close()
			first, done := true, false
			for data := range events(resp.Body) {
				if first {
					first = false
					started.Done()
				}
				done = data == "[DONE]"
			}
			if first {
				started.Done()
			}
			if !done {
				errs <- fmt.Errorf("stream %d was cut", n)
			}
		})
	}
	started.Wait()
	for round := range 3 {
		w.config("a", settings{routes: fmt.Sprintf("  - {host: [example.test, \"*.example.test\"], path: /v%d, endpoints: [%q]}\n", round+2, w.model.URL)})
		if r, err := p.Reload(ctx); err != nil || len(r.Problems) > 0 {
			t.Fatalf("reload: %+v, %v", r, err)
		}
	}
	// The routes of the streams are gone: a new request is not served any more.
	if resp, err := ask(ctx, clients[true], "x"); err == nil {
		resp.Body.Close()
		t.Error("a route that is gone still serves new requests")
	} else if !strings.Contains(err.Error(), "404") {
		t.Error(err)
	}
	for n := range streams {
		w.model.ConfirmKey(fmt.Sprint("reload-", n), 10)
	}
	ended.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

func TestAWebsocketCrossesWithItsEarlyBytes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{Script: modelserver.Script{Greeting: "welcome"}})
	_, addr := w.start(w.config("a", settings{}))
	d := tls.Dialer{Config: &tls.Config{RootCAs: w.roots, ServerName: "chat.example.test", NextProtos: []string{"http/1.1"}}}
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))

	// The first frame goes in the same write as the handshake.
	hello := modelserver.Frame{Fin: true, Op: modelserver.OpText, Payload: []byte("early")}
	request := "GET /ws HTTP/1.1\r\nHost: chat.example.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
	if _, err := conn.Write(append([]byte(request), hello.Bytes(true)...)); err != nil {
		t.Fatal(err)
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	for _, want := range []string{"welcome", "early"} {
		f, _, err := modelserver.ReadFrame(br)
		if err != nil || string(f.Payload) != want {
			t.Fatalf("frame %q, %v; want %q", f.Payload, err, want)
		}
	}
}

func TestOtherUpgradesAreNotForwarded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	_, addr := w.start(w.config("a", settings{}))
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://chat.example.test/echo?a=1;b=2", http.NoBody)
	req.Header.Set("Connection", "Upgrade, HTTP2-Settings, X-Secret")
	req.Header.Set("Upgrade", "h2c")
	req.Header.Set("Http2-Settings", "AAMAAABkAAQAAP__")
	req.Header.Set("X-Secret", "hop by hop")
	req.Header.Set("X-Forwarded-For", "6.6.6.6")
	req.Header.Set("X-Kept", "end to end")
	resp, err := w.client(addr, false).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", resp.Status, body)
	}
	for _, gone := range []string{"h2c", "AAMAAABk", "hop by hop", "6.6.6.6"} {
		if bytes.Contains(body, []byte(gone)) {
			t.Errorf("the backend saw %q in %s", gone, body)
		}
	}
	for _, kept := range []string{"end to end", "a=1;b=2", "chat.example.test"} {
		if !bytes.Contains(body, []byte(kept)) {
			t.Errorf("the backend did not see %q in %s", kept, body)
		}
	}
}

// SIGTERM lets a stream end; a new connection is refused meanwhile.
func TestAStopLetsStreamsEnd(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{Script: modelserver.Script{Gate: true}})
	p, addr := w.start(w.config("a", settings{}))
	resp, err := ask(t.Context(), w.client(addr, true), "stop")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stopped := make(chan error, 1)
	go func() { stopped <- p.Close() }()
	eventually(t, 5*time.Second, "the listener is still open", func() bool {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	w.model.ConfirmKey("stop", 10)
	b, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(b, []byte("[DONE]")) {
		t.Errorf("the stream was cut: %v after %q", err, b)
	}
	if err := <-stopped; err != nil {
		t.Errorf("stop: %v", err)
	}
}

// A dead backend is passed over, with the body of the POST replayed; when all
// are dead the client is told so in its own dialect, without an address.
func TestADeadBackendIsPassedOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := "http://" + ln.Addr().String()
	ln.Close()
	routes := fmt.Sprintf("  - {host: [example.test, \"*.example.test\"], endpoints: [%q, %q]}\n  - {host: \"*.example.test\", path: /v1/dead, endpoints: [%q]}\n", dead, w.model.URL, dead)
	_, addr := w.start(w.config("a", settings{routes: routes}))
	client := w.client(addr, true)
	for range 10 {
		resp, err := ask(t.Context(), client, "")
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !bytes.Contains(b, []byte("[DONE]")) {
			t.Fatalf("%v, %q", err, b)
		}
	}
	for _, r := range w.model.Requests() {
		if r.BodySize != int64(len(streamBody)) {
			t.Errorf("the backend got %d bytes of body, want %d", r.BodySize, len(streamBody))
		}
	}
	resp, err := client.Post("https://chat.example.test/v1/dead", "application/json", strings.NewReader(streamBody))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusBadGateway || !bytes.Contains(b, []byte("upstream_unreachable")) || bytes.Contains(b, []byte("127.0.0.1")) {
		t.Errorf("%s: %s; want 502 with a reason and no address", resp.Status, b)
	}
}

// The backend dies in the middle of a stream: the client must be able to tell.
func TestABrokenStreamLooksBroken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{Script: modelserver.Script{AbortAfter: 2}})
	_, addr := w.start(w.config("a", settings{}))
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			resp, err := ask(t.Context(), w.client(addr, p.h2), "")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a clean end after %q, want an error", b)
			}
		})
	}
}
