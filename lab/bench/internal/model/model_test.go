package model

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"edge/lab/bench/internal/h1"
)

// start serves on loopback and returns the address.
func start(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- Serve(ln) }()
	t.Cleanup(func() {
		ln.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve ended with %v, want nil", err)
		}
	})
	return ln.Addr().String()
}

func get(t *testing.T, client *http.Client, method, target string, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, target, body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s, %v", method, target, resp.Status, err)
	}
	return resp, b
}

func TestRepliesHaveTheSizeThatIsAskedFor(t *testing.T) {
	addr := "http://" + start(t)
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for _, size := range []int{512, 8192} {
		_, b := get(t, client, "POST", addr+"/v1/chat/completions?size="+strconv.Itoa(size), strings.NewReader("{}"))
		if len(b) != size || !json.Valid(b) {
			t.Errorf("got %d bytes, valid JSON %v, want %d", len(b), json.Valid(b), size)
		}
	}
	if _, b := get(t, client, "POST", addr+"/sink", bytes.NewReader(make([]byte, 100_000))); string(b) != "100000" {
		t.Errorf("sink says %q, want 100000", b)
	}
	if _, b := get(t, client, "GET", addr+"/bytes?n=200001", nil); len(b) != 200_001 {
		t.Errorf("got %d bytes, want 200001", len(b))
	}
}

func TestStreamSendsStampedEventsAndAnEnd(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(H2))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	plain := &http.Client{Transport: &http.Transport{}}
	defer plain.CloseIdleConnections()
	for name, c := range map[string]struct {
		client *http.Client
		addr   string
	}{"h1": {plain, "http://" + start(t)}, "h2": {server.Client(), server.URL}} {
		before := time.Now()
		resp, b := get(t, c.client, "POST", c.addr+"/v1/chat/completions?stream=1&n=3&gap=1ms&jitter=0", strings.NewReader("{}"))
		events := strings.Split(strings.TrimSuffix(string(b), "\n\n"), "\n\n")
		if len(events) != 4 || events[3] != "data: [DONE]" || resp.Header.Get("Content-Type") != "text/event-stream" {
			t.Fatalf("%s: got %q as %s, want three events and [DONE]", name, events, resp.Header.Get("Content-Type"))
		}
		for i, e := range events[:3] {
			var v struct {
				T int64
				I int
			}
			if err := json.Unmarshal([]byte(strings.TrimPrefix(e, "data: ")), &v); err != nil {
				t.Fatalf("%s: %q: %v", name, e, err)
			}
			if at := time.Unix(0, v.T); v.I != i || at.Before(before) || at.After(time.Now()) {
				t.Errorf("%s: event %d says %d at %v", name, i, v.I, at)
			}
		}
	}
}

func TestStepMakesStreamsEmitTogether(t *testing.T) {
	q := url.Values{"gap": {"100ms"}, "step": {"1"}}
	for range 3 {
		p := newPacer(q)
		if !p.next.Equal(p.next.Truncate(p.gap)) || !p.next.After(time.Now()) {
			t.Errorf("first event at %v, want the next multiple of %v", p.next, p.gap)
		}
	}
	now := time.Now()
	if p := newPacer(url.Values{"gap": {"1h"}, "jitter": {"0"}, "ttft": {"1h"}}); p.next.Before(now.Add(time.Hour)) || p.next.After(time.Now().Add(time.Hour)) {
		t.Errorf("without jitter the first event is at %v, want in ttft", p.next.Sub(now))
	}
}

func TestGRPCPathSendsBackWhatComes(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(H2))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	body, in := io.Pipe()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/grpc/echo", body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, msg := range []string{"one", "two"} {
		io.WriteString(in, msg)
		b := make([]byte, len(msg))
		if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != msg {
			t.Fatalf("got %q, %v, want %q", b, err, msg)
		}
	}
	in.Close()
	if _, err := io.ReadAll(resp.Body); err != nil || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("trailer %v, %v, want grpc-status 0", resp.Trailer, err)
	}
}

func TestWebsocketEchoesUnmasked(t *testing.T) {
	c, err := net.Dial("tcp", start(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	br := bufio.NewReader(c)
	var h h1.Head
	if err := h1.ReadHead(br, &h); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(h.Raw, []byte("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")) { // the example of RFC 6455 section 1.3
		t.Errorf("got %q, want the accept key of RFC 6455", h.Raw)
	}
	mask := []byte{1, 2, 3, 4}
	for _, n := range []int{5, 125, 126, 300} {
		want := filler[:n]
		frame := []byte{0x82, 0x80 | byte(min(n, 126))}
		if n >= 126 {
			frame = append(frame, byte(n>>8), byte(n))
		}
		frame = append(frame, mask...)
		for i, b := range want {
			frame = append(frame, b^mask[i&3])
		}
		c.Write(frame)
		got := make([]byte, len(frame)-len(mask))
		if _, err := io.ReadFull(br, got); err != nil {
			t.Fatal(err)
		}
		if got[1] != byte(min(n, 126)) || !bytes.Equal(got[len(got)-n:], want) {
			t.Errorf("%d bytes: got %q", n, got)
		}
	}
	c.Write([]byte{0x88, 0x80, 1, 2, 3, 4})
	if got, err := io.ReadAll(br); err != nil || !bytes.Equal(got, []byte{0x88, 0}) {
		t.Errorf("close: got %x, %v, want a close frame and the end", got, err)
	}
}
