package exchange_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"edge/proxy/exchange"
)

// A layer that counts bytes: what it does at the end is registered before next
// runs, since the reply may outlive the handler.
func Example() {
	count := func(next exchange.Handler) exchange.Handler {
		return func(e *exchange.Exchange) {
			e.OnEnd(func(e *exchange.Exchange) {
				fmt.Println(e.Method, e.Path, e.Status, "received", e.Received, "sent", e.Sent)
			})
			next(e)
		}
	}
	shout := func(e *exchange.Exchange) {
		body, err := io.ReadAll(e)
		if err != nil {
			e.Abort()
			return
		}
		e.Status = http.StatusOK
		e.Reply.Set("content-type", "text/plain")
		io.WriteString(e, strings.ToUpper(string(body)))
	}

	srv := httptest.NewServer(exchange.ToHTTP(count(shout), nil))
	res, err := srv.Client().Post(srv.URL+"/shout", "text/plain", strings.NewReader("hello"))
	if err != nil {
		fmt.Println(err)
		return
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	srv.Close()
	fmt.Printf("%s\n", body)
	// Output:
	// POST /shout 200 received 5 sent 5
	// HELLO
}

func ExampleSplitTarget() {
	fmt.Println(exchange.SplitTarget("GET", "/a%2Fb?x=1;y=2"))
	fmt.Println(exchange.SplitTarget("GET", "http://example.com?q"))
	fmt.Println(exchange.SplitTarget("OPTIONS", "*"))
	// Output:
	// /a%2Fb x=1;y=2
	// / q
	// *
}

func TestTargetsSplitAsInRFC9112(t *testing.T) {
	for _, x := range []struct{ method, target, path, query string }{
		{"GET", "/", "/", ""},
		{"GET", "//a//b", "//a//b", ""},
		{"GET", "/a?b?c", "/a", "b?c"},
		{"GET", "/a?", "/a", ""},
		{"GET", "/a?u=http://x/y", "/a", "u=http://x/y"},
		{"GET", "http://h", "/", ""},
		{"GET", "http://h:8080/a?b", "/a", "b"},
		{"GET", "HTTPS://h?b/c", "/", "b/c"},
		{"GET", "?b", "/", "b"},
		{"GET", "", "/", ""},
		{"OPTIONS", "*", "*", ""},
		{"OPTIONS", "http://h", "*", ""},
		{"OPTIONS", "http://h/", "/", ""},
		{"CONNECT", "h:443", "", ""},
	} {
		path, query := exchange.SplitTarget(x.method, x.target)
		if path != x.path || query != x.query {
			t.Errorf("%s %s is %q, %q, want %q, %q", x.method, x.target, path, query, x.path, x.query)
		}
	}
}

// record serves one request without a server.
func record(r *http.Request, h exchange.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	exchange.ToHTTP(h, nil).ServeHTTP(w, r)
	return w
}

func TestUntrustworthyContentLengthIsDropped(t *testing.T) {
	for value, want := range map[string]string{
		"5": "5", "5|5": "5", "5|6": "", "+5": "", "-1": "", "": "", "5, 5": "", "0x5": "", "99999999999999999999": "",
	} {
		w := record(httptest.NewRequest(http.MethodGet, "/", http.NoBody), func(e *exchange.Exchange) {
			for v := range strings.SplitSeq(value, "|") {
				e.Reply.Add("Content-Length", v)
			}
			io.WriteString(e, "hello")
		})
		if got := strings.Join(w.Header()["Content-Length"], "|"); got != want {
			t.Errorf("content-length %q became %q, want %q", value, got, want)
		}
		if got := w.Body.String(); got != "hello" {
			t.Errorf("content-length %q: body is %q", value, got)
		}
	}
}

func TestStatusMustBeFinal(t *testing.T) {
	for status, want := range map[int]int{0: 200, 100: 500, 101: 500, -1: 500, 1000: 500, 999: 999, 404: 404} {
		w := record(httptest.NewRequest(http.MethodGet, "/", http.NoBody), func(e *exchange.Exchange) { e.Status = status })
		if w.Code != want {
			t.Errorf("status %d became %d, want %d", status, w.Code, want)
		}
	}
}

func TestTimeoutsAreIgnoredWhereThereIsNoConnection(t *testing.T) {
	w := record(httptest.NewRequest(http.MethodPost, "/", strings.NewReader("hello")), func(e *exchange.Exchange) {
		e.SetReadTimeout(time.Nanosecond)
		e.SetWriteTimeout(time.Nanosecond)
		if _, err := io.Copy(e, e); err != nil {
			t.Error(err)
		}
		e.SetReadTimeout(0)
		if err := e.Flush(); err != nil {
			t.Error(err)
		}
		if _, err := e.Tunnel(); err == nil {
			t.Error("a recorder has no tunnel")
		}
	})
	if got := w.Body.String(); got != "hello" {
		t.Errorf("body is %q, want hello", got)
	}
}

func TestHotCallsDoNotAllocate(t *testing.T) {
	srv := newServer(t, func(e *exchange.Exchange) {
		e.SetReadTimeout(time.Minute)
		part := make([]byte, 1)
		if n := testing.AllocsPerRun(100, func() {
			if _, err := e.Read(part); err != nil {
				t.Error(err)
			}
			if e.Committed() || e.Header.Get("authorization") != "" {
				t.Error("wrong value")
			}
		}); n != 0 {
			t.Errorf("%v allocations, want 0", n)
		}
		_ = e.Context()
		if n := testing.AllocsPerRun(100, func() { _, _ = e.Context(), e.Done() }); n != 0 {
			t.Errorf("Context once more: %v allocations, want 0", n)
		}
	}, false, false)
	defer srv.Close()
	if _, _, err := fetch(t, srv, http.MethodPost, "/", strings.NewReader(strings.Repeat("x", 1000))); err != nil {
		t.Fatal(err)
	}
}
