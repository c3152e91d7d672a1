package modelserver_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"edge/internal/modelserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client is an HTTP client of its own, so that no test meets another's
// connections.
func client(tb testing.TB) *http.Client {
	tb.Helper()
	c := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
	tb.Cleanup(c.CloseIdleConnections)
	return c
}

func request(tb testing.TB, ctx context.Context, method, url, body string) *http.Request { //nolint:revive // tb comes first, as in every helper
	tb.Helper()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	return req
}

func do(tb testing.TB, c *http.Client, method, url, body string) (*http.Response, string) {
	tb.Helper()
	resp, err := c.Do(request(tb, tb.Context(), method, url, body))
	if err != nil {
		tb.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatal(err)
	}
	return resp, string(text)
}

const (
	chatPath  = "/v1/chat/completions"
	plainChat = `{"model":"m","messages":[{"role":"user","content":"one two three"}]}`
	streaming = `{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"one two three"}]}`
)

// chunk is what tests look at in a JSON answer or an event.
type chunk struct {
	Object            string
	Model             string
	SystemFingerprint string `json:"system_fingerprint"`
	Choices           []struct {
		Message, Delta struct{ Role, Content string }
		FinishReason   *string `json:"finish_reason"`
	}
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		TotalTokens      int `json:"total_tokens"`
	}
}

// event reads one server-sent event; done is that of [DONE].
func event(tb testing.TB, r *bufio.Reader) (c chunk, done bool) {
	tb.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	if blank, err := r.ReadString('\n'); err != nil || blank != "\n" {
		tb.Fatalf("after %q came %q, %v", line, blank, err)
	}
	data, ok := strings.CutPrefix(line, "data: ")
	if !ok {
		tb.Fatalf("line %q is no event", line)
	}
	if data == "[DONE]\n" {
		return c, true
	}
	if err := json.Unmarshal([]byte(data), &c); err != nil {
		tb.Fatalf("event %q: %v", data, err)
	}
	return c, false
}

func TestChatAnswersInOnePiece(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{Name: "gpu1", Script: modelserver.Script{Header: http.Header{"X-Cache": {"hit"}}}})
	resp, text := do(t, client(t), http.MethodPost, s.URL+chatPath, plainChat)
	var c chunk
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	if c.Object != "chat.completion" || c.Model != "m" || c.SystemFingerprint != "gpu1" || c.Choices[0].Message.Content != "Hello, world!" {
		t.Errorf("got %s", text)
	}
	if c.Usage.PromptTokens != 3 || c.Usage.CompletionTokens != 4 || c.Usage.TotalTokens != 7 {
		t.Errorf("usage %+v", *c.Usage)
	}
	if resp.Header.Get(modelserver.NameHeader) != "gpu1" || resp.Header.Get("X-Cache") != "hit" {
		t.Errorf("header %v", resp.Header)
	}
	seen := s.Requests()
	if len(seen) != 1 || seen[0].Method != http.MethodPost || seen[0].Target != chatPath || string(seen[0].Body) != plainChat || seen[0].BodySize != int64(len(plainChat)) {
		t.Errorf("seen %+v", seen)
	}
}

func TestChatStreamsEventsUsageAndTrailers(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{Script: modelserver.Script{
		Tokens: []string{"a", "b"}, Delay: time.Millisecond, Trailer: http.Header{"X-Done": {"yes"}},
	}})
	resp, err := client(t).Do(request(t, t.Context(), http.MethodPost, s.URL+chatPath, streaming))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	var text strings.Builder
	var last chunk
	for {
		c, done := event(t, r)
		if done {
			break
		}
		for _, choice := range c.Choices {
			text.WriteString(choice.Delta.Content)
		}
		last = c
	}
	if text.String() != "ab" || last.Usage == nil || last.Usage.CompletionTokens != 2 || len(last.Choices) != 0 {
		t.Errorf("text %q, last chunk %+v", text.String(), last)
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) != 0 {
		t.Errorf("after [DONE] came %q, %v", rest, err)
	}
	if got := resp.Trailer.Get("X-Done"); got != "yes" {
		t.Errorf("trailer %v", resp.Trailer)
	}
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type %q", got)
	}
}

func TestGateLetsOneTokenThroughPerConfirmation(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{Script: modelserver.Script{Gate: true, Tokens: []string{"a", "b", "c"}}})
	c := client(t)
	for _, key := range []string{"", "k1"} {
		req := request(t, t.Context(), http.MethodPost, s.URL+chatPath, streaming)
		req.Header.Set(modelserver.KeyHeader, key)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(resp.Body)
		for i := range 3 {
			if got, _ := event(t, r); got.Choices[0].Delta.Content != string(rune('a'+i)) {
				t.Fatalf("token %d is %+v", i, got)
			}
			if n := r.Buffered(); n != 0 {
				t.Fatalf("%d bytes came before token %d was confirmed", n, i)
			}
			if key == "" && i == 0 {
				s.Confirm()
			} else if resp, text := do(t, c, http.MethodPost, s.URL+"/confirm?n=1&key="+key, ""); resp.StatusCode != http.StatusNoContent {
				t.Fatalf("confirm: %s %s", resp.Status, text)
			}
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Error(err)
		}
		resp.Body.Close()
	}
	if resp, _ := do(t, c, http.MethodPost, s.URL+"/confirm?n=x", ""); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("n=x: %s", resp.Status)
	}
	if s.ConfirmKey("flood", 1<<20) {
		t.Error("a million confirmations were kept")
	}
}

func TestClientThatLeavesIsNoticed(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]modelserver.Script{
		"at the gate":      {Gate: true, EarlyHead: true},
		"between tokens":   {Delay: time.Hour, EarlyHead: true},
		"before the head":  {HeadDelay: time.Hour},
		"while it hangs":   {Hang: true},
		"while it streams": {Tokens: slowTokens(), Delay: time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := modelserver.New(t, modelserver.Options{Script: script})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			gone := make(chan struct{})
			go func() {
				defer close(gone)
				resp, err := client(t).Do(request(t, ctx, http.MethodPost, s.URL+chatPath, streaming))
				if err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}()
			if err := s.Wait(ctx, 1); err != nil {
				t.Fatal(err)
			}
			select {
			case a := <-s.Aborted():
				t.Fatalf("%+v although the client is there", a)
			default:
			}
			left := time.Now()
			cancel()
			a := <-s.Aborted()
			if a.At.Before(left) || a.Target != chatPath {
				t.Errorf("abort %+v, client left at %v", a, left)
			}
			<-gone
		})
	}
}

func slowTokens() []string { return strings.Split(strings.Repeat("word ", 50_000), " ") }

func TestBodyBreaksWhereTheScriptSays(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script modelserver.Script
		body   string
		want   error
		events int
	}{
		"stream after two tokens":  {modelserver.Script{AbortAfter: 2}, streaming, io.ErrUnexpectedEOF, 2},
		"stream after its head":    {modelserver.Script{AbortAfter: -1}, streaming, io.ErrUnexpectedEOF, 0},
		"stream by reset":          {modelserver.Script{AbortAfter: 1, Reset: true}, streaming, syscall.ECONNRESET, -1},
		"JSON half way":            {modelserver.Script{AbortAfter: 1}, plainChat, io.ErrUnexpectedEOF, 0},
		"JSON after its head only": {modelserver.Script{AbortAfter: -1}, plainChat, io.ErrUnexpectedEOF, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := modelserver.New(t, modelserver.Options{Script: c.script})
			resp, err := client(t).Do(request(t, t.Context(), http.MethodPost, s.URL+chatPath, c.body))
			if err != nil {
				if c.events < 0 && errors.Is(err, c.want) { // the reset overtook the head
					return
				}
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if got := bytes.Count(text, []byte("data: ")); c.events >= 0 && got != c.events {
				t.Errorf("%d events in %q, want %d", got, text, c.events)
			}
		})
	}
}

func TestScriptIsChosenByRequest(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{Choose: func(seen modelserver.Seen) modelserver.Script {
		return modelserver.Script{
			Status: map[string]int{"busy": 503}[seen.Header.Get("X-Case")], Header: http.Header{"Retry-After": {"7"}},
			SkipBody: seen.Header.Get("X-Case") == "early", EarlyHints: http.Header{"Link": {"</x>"}},
		}
	}})
	c := client(t)
	var hints []string
	trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
		hints = append(hints, h.Get("Link"))
		return nil
	}})
	for name, want := range map[string]int{"busy": 503, "early": 200, "": 400} {
		req := request(t, trace, http.MethodPost, s.URL+chatPath, "no JSON")
		req.Header.Set("X-Case", name)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != want || want != 200 != strings.Contains(string(text), `"error"`) {
			t.Errorf("%q: %s %s, want %d", name, resp.Status, text, want)
		}
		if want == 503 && resp.Header.Get("Retry-After") != "7" {
			t.Errorf("header %v", resp.Header)
		}
	}
	if len(hints) != 3 || hints[0] != "</x>" {
		t.Errorf("early hints %q, want three", hints)
	}
}

func TestHealthIsSwitched(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{Models: []string{"a", "b"}})
	c := client(t)
	for _, want := range []int{200, 503, 200} {
		s.SetHealth(want)
		if resp, _ := do(t, c, http.MethodGet, s.URL+"/health", ""); resp.StatusCode != want {
			t.Errorf("got %s, want %d", resp.Status, want)
		}
	}
	s.SetHealth(0)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if resp, err := c.Do(request(t, ctx, http.MethodGet, s.URL+"/health", "")); err == nil {
		resp.Body.Close()
		t.Errorf("a hanging health check answered %s", resp.Status)
	}
	if _, text := do(t, c, http.MethodGet, s.URL+"/v1/models", ""); !strings.Contains(text, `"id":"b"`) {
		t.Errorf("models %s", text)
	}
	if s.HealthChecks() != 4 || s.Count() != 1 {
		t.Errorf("%d health checks, %d requests, want 4 and 1", s.HealthChecks(), s.Count())
	}
}

func TestEchoTellsWhatHasArrived(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{})
	req := request(t, t.Context(), http.MethodPut, s.URL+"/echo/a%2Fb?x=1;y=2", "")
	req.Body = io.NopCloser(strings.NewReader("payload"))
	req.ContentLength = -1
	req.Header["X-Two"] = []string{"1", "2"}
	req.Trailer = http.Header{"X-Sum": {"9"}}
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var e modelserver.Echo
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil {
		t.Fatal(err)
	}
	two := e.Header("X-Two")
	if e.Method != http.MethodPut || e.Target != "/echo/a%2Fb?x=1;y=2" || string(e.Body) != "payload" || len(two) != 2 || two[1] != "2" {
		t.Errorf("got %+v", e)
	}
	if e.ContentLength != -1 || len(e.TransferEncoding) != 1 || len(e.Trailers) != 1 || e.Trailers[0] != [2]string{"X-Sum", "9"} {
		t.Errorf("framing %+v", e)
	}
}

func TestDuplexAnswersBeforeTheBodyEnds(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{})
	pr, pw := io.Pipe()
	req := request(t, t.Context(), http.MethodPost, s.URL+"/duplex", "")
	req.Body, req.ContentLength = pr, -1
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, word := range []string{"one", "two"} {
		if _, err := io.WriteString(pw, word); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(word))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != word {
			t.Fatalf("got %q, %v, want %q", got, err, word)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func TestIdleConnectionIsClosedInTime(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{IdleTimeout: 20 * time.Millisecond})
	conn, err := net.Dial("tcp", s.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("got %v, want the server to close", err)
	}
	if s.Connections() != 1 {
		t.Errorf("%d connections, want 1", s.Connections())
	}
}

func TestClosedServerRefusesAndComesBackAtItsAddress(t *testing.T) {
	t.Parallel()
	s := modelserver.New(t, modelserver.Options{Script: modelserver.Script{Hang: true}})
	failed := make(chan error, 1)
	c := client(t)
	go func() {
		resp, err := c.Do(request(t, t.Context(), http.MethodPost, s.URL+chatPath, plainChat))
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	if err := s.Wait(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err == nil {
		t.Error("a closed server answered")
	}
	if _, err := net.Dial("tcp", s.Addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want refused", err)
	}
	select {
	case a := <-s.Aborted():
		t.Errorf("the client was blamed for the end of the server: %+v", a)
	default:
	}
	again := modelserver.New(t, modelserver.Options{Addr: s.Addr})
	do(t, c, http.MethodPost, again.URL+chatPath, plainChat)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := again.Wait(ctx, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a deadline", err)
	}
	if _, err := modelserver.Start(modelserver.Options{Addr: again.Addr}); err == nil {
		t.Error("two servers at one address")
	}
}
