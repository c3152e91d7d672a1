package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"edge/proxy/exchange"

	"golang.org/x/net/http/httpguts"
)

// attempt is one request to one endpoint, from pick to the end of the reply.
type attempt struct {
	// Immutable.
	pool   *Pool
	ep     *endpoint
	req    *Request
	body   *body // nil without
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the reply is complete, failed or closed

	clock     clock
	conn      atomic.Pointer[conn]
	connected atomic.Bool // a connection was obtained
	answered  atomic.Bool // a byte of a reply arrived
	overOnce  sync.Once

	mu       sync.Mutex
	interims int
	headed   bool // the head is in or will never be: no Interim any more
}

// send does the round trip. After an error the attempt is over.
func (a *attempt) send(ctx context.Context) (*http.Response, error) {
	own, cancel := context.WithCancelCause(ctx)
	a.cancel = cancel
	a.clock.limit = a.req.FirstByte
	a.clock.expire = func() { cancel(ErrFirstByteTimeout) }
	traced := context.WithValue(own, connectKey{}, &a.pool.connect)
	traced = httptrace.WithClientTrace(traced, &httptrace.ClientTrace{
		GotConn:              a.gotConn,
		WroteRequest:         a.wroteRequest,
		GotFirstResponseByte: a.gotFirstByte,
		Got1xxResponse:       a.got1xx,
	})
	resp, err := a.ep.backend.transport.RoundTrip(a.request(traced))
	a.clock.stop()
	a.mu.Lock()
	a.headed = true
	a.mu.Unlock()
	if err == nil && errors.Is(context.Cause(own), ErrFirstByteTimeout) {
		_ = resp.Body.Close() // the clock won the race and has cut the connection
		err = ErrFirstByteTimeout
	}
	if err == nil {
		return resp, nil
	}
	err = a.explain(ctx, own, err)
	a.over()
	return nil, err
}

// over ends everything that waits for this attempt. It may be called often.
func (a *attempt) over() {
	a.overOnce.Do(func() {
		close(a.done)
		a.cancel(nil)
		if c := a.conn.Load(); c != nil {
			c.user.CompareAndSwap(a, nil)
		}
	})
}

func (a *attempt) gotConn(info httptrace.GotConnInfo) {
	if c, ok := info.Conn.(*conn); ok {
		if old := a.conn.Swap(c); old != nil {
			old.user.CompareAndSwap(a, nil)
		}
		c.user.Store(a)
		if info.Reused {
			c.drained()
		}
	}
	a.connected.Store(true)
}

func (a *attempt) wroteRequest(httptrace.WroteRequestInfo) { a.clock.restart() }

func (a *attempt) gotFirstByte() { a.answered.Store(true) }

// got1xx bounds the interim replies: net/http does not once they are looked at.
func (a *attempt) got1xx(status int, h textproto.MIMEHeader) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.interims++
	if a.interims > maxInterim {
		return fmt.Errorf("more than %d interim replies", maxInterim)
	}
	if !a.headed && a.req.Interim != nil {
		a.req.Interim(status, fields(http.Header(h)))
	}
	return nil
}

// explain turns an error of RoundTrip into one of this package's.
func (a *attempt) explain(ctx, own context.Context, err error) error {
	if failed := a.body.failure(); failed != nil {
		return &BodyError{failed}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("request to %s: %w", a.ep.url, context.Cause(ctx))
	}
	if errors.Is(context.Cause(own), ErrFirstByteTimeout) {
		return fmt.Errorf("request to %s: %w", a.ep.url, ErrFirstByteTimeout)
	}
	if u, ok := errors.AsType[unconnected](err); ok {
		return &DialError{Endpoint: a.ep.url, Err: u.error}
	}
	if !a.connected.Load() {
		return fmt.Errorf("%w: %w", ErrBadRequest, err)
	}
	answered := a.answered.Load()
	if answered && !broken(err) {
		err = fmt.Errorf("%w: %w", ErrInvalidResponse, err)
	}
	return &LostError{Endpoint: a.ep.url, Err: err, answered: answered}
}

// broken reports whether err is an end of the connection, not of patience with
// what it carried.
func broken(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.As(err, &op)
}

// request builds what the Transport sends.
func (a *attempt) request(ctx context.Context) *http.Request {
	r := &http.Request{
		Method: a.req.Method,
		URL:    requestURL(a.ep.backend.key, a.req.Target),
		Host:   a.req.Host,
		Header: header(a.req),
	}
	if a.body != nil {
		r.ContentLength = a.req.Length
		if a.req.Trailer != nil && a.req.Length < 0 {
			r.Trailer = make(http.Header)
		}
		r.Body = a.body.view(a, r.Trailer)
		r.GetBody = func() (io.ReadCloser, error) {
			if !a.body.replayable() {
				return nil, errors.New("request body is gone")
			}
			return a.body.view(a, r.Trailer), nil
		}
	}
	return r.WithContext(ctx)
}

// requestURL makes a URL whose RequestURI is target, byte for byte. Only a path
// that begins with two slashes has to take the detour through url.URL's own
// escaping, which leaves valid paths alone.
func requestURL(key backendKey, target string) *url.URL {
	u := &url.URL{Scheme: key.scheme, Host: key.address, Opaque: target}
	if strings.HasPrefix(target, "//") {
		path, query, found := strings.Cut(target, "?")
		u.Opaque, u.RawPath, u.RawQuery, u.ForceQuery = "", path, query, found
		u.Path, _ = url.PathUnescape(path) // an invalid escape is escaped itself
		if u.Path == "" {
			u.Path = path
		}
	}
	return u
}

// check refuses what would not arrive as it was meant.
func check(req *Request) error {
	if req.Method == "" || req.Method == http.MethodConnect {
		return fmt.Errorf("%w: method %q", ErrBadRequest, req.Method)
	}
	if req.Target != "*" && !strings.HasPrefix(req.Target, "/") {
		return fmt.Errorf("%w: target is not in origin form", ErrBadRequest)
	}
	for i := range len(req.Target) {
		if c := req.Target[i]; c <= ' ' || c == 0x7f {
			return fmt.Errorf("%w: space or control character in target", ErrBadRequest)
		}
	}
	for i := range len(req.Host) {
		if req.Host[i] >= 0x80 {
			return fmt.Errorf("%w: host is not ASCII", ErrBadRequest)
		}
	}
	if !httpguts.ValidHostHeader(req.Host) {
		return fmt.Errorf("%w: invalid host", ErrBadRequest)
	}
	return nil
}

// header copies the fields that are not the connection's or the framing's.
func header(req *Request) http.Header {
	h := make(http.Header, len(req.Header)+2)
	addHeader(h, req.Header)
	for _, name := range [...]string{
		"Host", "Content-Length", "Transfer-Encoding", "Trailer", "Expect",
		"Connection", "Upgrade", "Keep-Alive", "Proxy-Connection",
	} {
		delete(h, name)
	}
	// net/http would take these as a licence to repeat a POST whose bytes
	// were accepted. It looks for the canonical spelling only.
	for _, name := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, ok := h[name]; ok {
			delete(h, name)
			h[strings.ToLower(name)] = v
		}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = nil // or net/http sends its own
	}
	if req.Upgrade {
		h["Connection"] = []string{"Upgrade"}
		h["Upgrade"] = []string{"websocket"}
	}
	return h
}

// addHeader adds f to h under canonical names, in order.
func addHeader(h http.Header, f exchange.Fields) {
	values := make([]string, len(f)) // one array for all single values
	for i := range f {
		name := textproto.CanonicalMIMEHeaderKey(f[i].Name)
		if had := h[name]; had != nil {
			h[name] = append(had, f[i].Value)
			continue
		}
		values[i] = f[i].Value
		h[name] = values[i : i+1 : i+1]
	}
}

// fields is the way back.
func fields(h http.Header) exchange.Fields {
	if len(h) == 0 {
		return nil
	}
	f := make(exchange.Fields, 0, len(h)+2)
	for name, values := range h {
		for _, v := range values {
			f = append(f, exchange.Field{Name: name, Value: v})
		}
	}
	return f
}
