package exchange

import (
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
)

// FromHTTP serves an exchange with a foreign handler. The handler gets a fresh
// *http.Request each time, as handlers may keep theirs; body and writer fail
// once it has returned. Flush, full duplex, 1xx and trailers work as in
// net/http; Hijack and deadlines do not, they are the exchange's own. A handler
// that panics with http.ErrAbortHandler aborts the exchange.
func FromHTTP(h http.Handler) Handler {
	return func(e *Exchange) {
		r := requestOf(e)
		body := &foreignBody{r: r}
		w := &foreignWriter{header: http.Header{}}
		body.e.Store(e)
		w.e.Store(e)
		if e.Length != 0 {
			r.Body = body
		}
		defer func() {
			body.e.Store(nil)
			w.e.Store(nil)
			if v := recover(); v == http.ErrAbortHandler { //nolint:errorlint // a recovered value
				e.Abort()
			} else if v != nil {
				panic(v)
			}
		}()
		h.ServeHTTP(w, r)
		w.commit(http.StatusOK)
		e.ReplyTrailer = append(e.ReplyTrailer, w.trailers()...)
	}
}

// requestOf makes the request that net/http would have made.
func requestOf(e *Exchange) *http.Request {
	ctx := e.Context()
	if ctx.Value(http.ServerContextKey) == nil {
		// httputil.ReverseProxy aborts a broken reply only under a server.
		ctx = context.WithValue(ctx, http.ServerContextKey, new(http.Server))
	}
	if ctx.Value(http.LocalAddrContextKey) == nil {
		ctx = context.WithValue(ctx, http.LocalAddrContextKey, net.Addr(net.TCPAddrFromAddrPort(e.Conn.Local)))
	}
	major, minor, _ := http.ParseHTTPVersion(e.Conn.Protocol)
	r := (&http.Request{
		Method:        e.Method,
		URL:           urlOf(e),
		Proto:         e.Conn.Protocol,
		ProtoMajor:    major,
		ProtoMinor:    minor,
		Header:        make(http.Header, len(e.Header)),
		Body:          http.NoBody,
		ContentLength: e.Length,
		Host:          e.Host,
		RemoteAddr:    e.Conn.Peer.String(),
		RequestURI:    e.Target,
		TLS:           e.Conn.TLSState,
	}).WithContext(ctx)
	for _, f := range e.Header {
		r.Header.Add(f.Name, f.Value)
	}
	for _, names := range r.Header["Trailer"] { // announced: the values come with the end of the body
		if r.Trailer == nil {
			r.Trailer = http.Header{}
		}
		for name := range strings.SplitSeq(names, ",") {
			r.Trailer[http.CanonicalHeaderKey(strings.TrimSpace(name))] = nil
		}
	}
	delete(r.Header, "Trailer")
	return r
}

// urlOf parses the target; a path that cannot be unescaped is taken literally.
func urlOf(e *Exchange) *url.URL {
	if e.Method == http.MethodConnect {
		return &url.URL{Host: e.Host}
	}
	u := &url.URL{Path: e.Path, RawQuery: e.Query}
	if p, err := url.PathUnescape(e.Path); err == nil {
		u.Path = p
		if u.EscapedPath() != e.Path {
			u.RawPath = e.Path // only then, as in url.Parse
		}
	}
	return u
}

// foreignBody is the body of a foreign handler's request.
type foreignBody struct {
	e   atomic.Pointer[Exchange]
	r   *http.Request
	eof bool
}

func (b *foreignBody) Read(p []byte) (int, error) {
	if b.eof {
		return 0, io.EOF
	}
	e := b.e.Load()
	if e == nil {
		return 0, http.ErrBodyReadAfterClose
	}
	n, err := e.Read(p)
	if err != io.EOF { //nolint:errorlint // io.EOF is never wrapped
		return n, err
	}
	b.eof = true
	for _, f := range e.Trailer() {
		if b.r.Trailer == nil {
			b.r.Trailer = http.Header{}
		}
		b.r.Trailer.Add(f.Name, f.Value)
	}
	return n, err
}

// Close gives up the body; the engine sees to what is unread.
func (b *foreignBody) Close() error {
	b.e.Store(nil)
	return nil
}

// foreignWriter is the http.ResponseWriter of a foreign handler.
type foreignWriter struct {
	e         atomic.Pointer[Exchange]
	header    http.Header
	declared  http.Header // trailers that the head announced
	committed bool
}

func (w *foreignWriter) Header() http.Header { return w.header }

func (w *foreignWriter) WriteHeader(status int) {
	e := w.e.Load()
	if e == nil || w.committed {
		return
	}
	if status >= 100 && status < 200 {
		e.Interim(status, fieldsOf(w.header, nil))
		return
	}
	w.commit(status)
}

// commit copies the head to the exchange, once.
func (w *foreignWriter) commit(status int) {
	e := w.e.Load()
	if e == nil || w.committed {
		return
	}
	w.committed = true
	head := maps.Clone(w.header)
	maps.DeleteFunc(head, func(name string, _ []string) bool { return strings.HasPrefix(name, http.TrailerPrefix) })
	for _, names := range head["Trailer"] {
		if w.declared == nil {
			w.declared = http.Header{}
		}
		for name := range strings.SplitSeq(names, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			w.declared[name] = nil
			delete(head, name)
		}
	}
	e.Status, e.Reply = status, fieldsOf(head, e.Reply[:0])
}

func (w *foreignWriter) Write(p []byte) (int, error) {
	e := w.e.Load()
	if e == nil {
		return 0, http.ErrHandlerTimeout
	}
	w.commit(http.StatusOK)
	if !allowsBody(e.Status) {
		return 0, http.ErrBodyNotAllowed
	}
	if !e.Committed() && len(p) > 0 {
		_, typed := w.header["Content-Type"]
		if !typed && w.header.Get("Content-Encoding") == "" {
			e.Reply.Set("Content-Type", http.DetectContentType(p)) // as net/http does
		}
	}
	return e.Write(p)
}

func allowsBody(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// Flush is what http.Flusher asks for.
func (w *foreignWriter) Flush() { _ = w.FlushError() }

// FlushError is what http.ResponseController asks for.
func (w *foreignWriter) FlushError() error {
	e := w.e.Load()
	if e == nil {
		return http.ErrHandlerTimeout
	}
	w.commit(http.StatusOK)
	return e.Flush()
}

// EnableFullDuplex is always on.
func (w *foreignWriter) EnableFullDuplex() error { return nil }

// trailers collects what the handler left for the end, in both of net/http's ways.
func (w *foreignWriter) trailers() Fields {
	t := http.Header{}
	for name, values := range w.header {
		if bare, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			t[bare] = append(t[bare], values...)
		} else if _, ok := w.declared[name]; ok {
			t[name] = append(t[name], values...)
		}
	}
	return fieldsOf(t, nil)
}
