package exchange_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"edge/proxy/exchange"
)

func ExampleFromHTTP() {
	files := http.FileServer(http.Dir("testdata"))
	h := exchange.FromHTTP(files)

	srv := httptest.NewServer(exchange.ToHTTP(h, nil))
	defer srv.Close()
	res, err := srv.Client().Get(srv.URL + "/none")
	if err != nil {
		fmt.Println(err)
		return
	}
	res.Body.Close()
	fmt.Println(res.Status)
	// Output: 404 Not Found
}

// serveForeign serves h behind both rims.
func serveForeign(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := newServer(t, exchange.FromHTTP(h), false, false)
	t.Cleanup(srv.Close)
	return srv
}

func fetch(t *testing.T, srv *httptest.Server, method, target string, body io.Reader) (*http.Response, string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, srv.URL+target, body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := srv.Client().Do(r)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res, string(b), err
}

func TestForeignHandlerSeesTheRequestOfNetHTTP(t *testing.T) {
	var got, want string
	describe := func(r *http.Request) string {
		local := r.Context().Value(http.LocalAddrContextKey)
		b, err := io.ReadAll(r.Body)
		return fmt.Sprintln(r.Method, r.URL, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.RequestURI, r.Host, r.Proto, r.ProtoMajor,
			r.ProtoMinor, r.ContentLength, r.Header, r.RemoteAddr, local, r.TLS != nil, string(b), err, r.Trailer)
	}
	outer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("direct") {
			want = describe(r)
			return
		}
		r.RequestURI += "&direct"
		r.URL.RawQuery += "&direct"
		inner := exchange.FromHTTP(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = describe(r) }))
		exchange.ToHTTP(inner, nil).ServeHTTP(w, r)
	})
	srv := httptest.NewServer(outer)
	defer srv.Close()
	for _, path := range []string{"/x%2Fy/%C3%A4", "/%C3%A4", "//x"} {
		testSameRequest(t, srv, path, &got, &want)
	}
}

func testSameRequest(t *testing.T, srv *httptest.Server, path string, got, want *string) {
	t.Helper()
	for _, query := range []string{"?a=%zz;b", "?a=%zz;b&direct"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL+path+query, io.MultiReader(strings.NewReader("hello")))
		if err != nil {
			t.Fatal(err)
		}
		r.Header["X-Dup"] = []string{"2", "1"}
		r.Trailer = http.Header{"X-Sum": {"42"}}
		res, err := srv.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	if *got != *want {
		t.Errorf("the request is\n%swant\n%s", *got, *want)
	}
}

func TestForeignReplyIsThatOfNetHTTP(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/guessed":
			io.WriteString(w, "<html>")
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "hello")
			w.(http.Flusher).Flush()
			w.Header().Set("X-Sum", "42")
			w.Header().Set(http.TrailerPrefix+"X-More", "43")
			w.Header().Set("X-Late", "44")
		case "/hints":
			w.Header().Add("Link", "</a>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
		case "/none":
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("body of a 204: %v, want ErrBodyNotAllowed", err)
			}
		case "/echo":
			io.Copy(w, r.Body)
			if _, err := r.Body.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("read after the end: %v, want EOF", err)
			}
		}
	}
	foreign := serveForeign(t, h)
	plain := httptest.NewServer(http.HandlerFunc(h))
	defer plain.Close()
	for _, path := range []string{"/guessed", "/trailers", "/hints", "/none", "/echo", "/empty"} {
		var all [2]string
		for i, srv := range []*httptest.Server{plain, foreign} {
			res, body, err := fetch(t, srv, http.MethodPost, path, strings.NewReader("hello"))
			if err != nil {
				t.Fatal(err)
			}
			res.Header.Del("Date")
			all[i] = fmt.Sprintln(res.Status, res.Header, res.ContentLength, body, res.Trailer)
		}
		if all[0] != all[1] {
			t.Errorf("%s: the reply is\n%swant\n%s", path, all[1], all[0])
		}
	}
}

func TestForeignAbortAndPanicBreakTheReply(t *testing.T) {
	srv := serveForeign(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hello")
		w.(http.Flusher).Flush()
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
		panic("broken")
	})
	for _, path := range []string{"/abort", "/panic"} {
		if _, body, err := fetch(t, srv, http.MethodGet, path, nil); err == nil {
			t.Errorf("%s: %q ended cleanly, want a broken reply", path, body)
		}
	}
}

// TestForeignHandlerMayKeepItsRequest is what pooled requests got wrong.
func TestForeignHandlerMayKeepItsRequest(t *testing.T) {
	type kept struct {
		r    *http.Request
		w    http.ResponseWriter
		name string
	}
	var mu sync.Mutex
	var all []kept
	srv := serveForeign(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, kept{r, w, r.URL.Path})
	})
	for i := range 50 {
		if _, _, err := fetch(t, srv, http.MethodPost, fmt.Sprint("/", i), strings.NewReader("hello")); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for _, k := range all {
		if k.r.URL.Path != k.name {
			t.Errorf("%s became %s", k.name, k.r.URL.Path)
		}
		if _, err := k.r.Body.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the body can be read after the end", k.name)
		}
		if _, err := k.w.Write([]byte("x")); err == nil {
			t.Errorf("%s: the reply can be written after the end", k.name)
		}
		if k.r.Context().Err() == nil {
			t.Errorf("%s: the context is alive after the end", k.name)
		}
	}
}

func TestReverseProxyBreaksReplyOfBrokenBackend(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "hello")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}))
	defer backend.Close()
	u, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u) }, FlushInterval: -1}
	proxy.ErrorLog = discard()
	srv := serveForeign(t, proxy.ServeHTTP)
	if _, body, err := fetch(t, srv, http.MethodGet, "/", nil); err == nil {
		t.Errorf("%q ended cleanly, want a broken reply", body)
	}
}
