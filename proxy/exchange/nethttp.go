package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

// ToHTTP makes net/http the engine of h: a handler for http.Server, HTTP/1 and
// HTTP/2. conn returns what is known of the request's connection, such as what
// http.Server.ConnContext put in its context; nil, or a nil result, has it
// built from the request. Set http.Server.DisableGeneralOptionsHandler, or
// net/http answers OPTIONS * itself.
//
// net/http keeps the order of fields of one name only; others come sorted by
// name. Those of a reply keep their spelling, but for the few that it looks for. It sends what is left in its buffers, and the last chunk, after the
// handler returned, so that OnEnd functions run shortly before; a client that
// does not read holds the goroutine for 5 s more over TLS. Its exchanges are not pooled: a Transport may still read the body of a
// request when its handler has long returned.
func ToHTTP(h Handler, conn func(*http.Request) *Conn) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g := &httpEngine{w: w, r: r, ctl: http.NewResponseController(w), h1: r.ProtoMajor == 1}
		if r.Body == nil || r.Body == http.NoBody {
			g.body.Store(bodyRead)
		}
		if g.h1 {
			// Without it the first Write closes the request's body, and a
			// Transport that is about to see its EOF breaks the reply
			// (golang/go#40747).
			_ = g.ctl.EnableFullDuplex() // not of a recorder
		}
		e := New(g)
		g.e = e
		g.request(e)
		if conn != nil {
			e.Conn = conn(r)
		}
		if e.Conn == nil {
			e.Conn = connOf(r)
		}
		if !e.Serve(h) {
			g.cut()
			panic(http.ErrAbortHandler)
		}
	})
}

// httpEngine is the Engine of one net/http request.
type httpEngine struct {
	w       http.ResponseWriter
	r       *http.Request
	ctl     *http.ResponseController
	e       *Exchange
	h1      bool
	begun   bool         // the reply has a head
	flushed bool         // and it was sent
	bare    bool         // HTTP/2: the head is to end the stream, so it waits for Finish
	body    atomic.Int32 // how far the request's body was read

	readDeadline atomic.Int64 // in ns since 1970; 0 when there is none
}

const (
	bodyUntouched = iota
	bodyBegun
	bodyRead
	bodyFailed
)

// request fills in what was asked.
func (g *httpEngine) request(e *Exchange) {
	r := g.r
	e.Method, e.Target, e.Host, e.Length, e.Start = r.Method, r.RequestURI, r.Host, r.ContentLength, time.Now()
	if e.Target == "" { // made by hand
		e.Target = r.URL.RequestURI()
	}
	e.Path, e.Query = SplitTarget(e.Method, e.Target)
	e.Header = fieldsOf(r.Header, make(Fields, 0, len(r.Header)+4))
	if len(r.Trailer) > 0 { // net/http takes the announcement out of the header
		names := make([]string, 0, len(r.Trailer))
		for name := range r.Trailer {
			names = append(names, name)
		}
		slices.Sort(names)
		e.Header.Add("Trailer", strings.Join(names, ", "))
	}
}

// fieldsOf appends h to f, sorted by name.
func fieldsOf(h http.Header, f Fields) Fields {
	for name, values := range h {
		for _, v := range values {
			f = append(f, Field{name, v})
		}
	}
	slices.SortStableFunc(f, func(a, b Field) int { return strings.Compare(a.Name, b.Name) })
	return f
}

// connOf is the Conn of a server that keeps none.
func connOf(r *http.Request) *Conn {
	c := &Conn{Protocol: r.Proto, TLS: r.TLS != nil, TLSState: r.TLS, ClientCertificate: VerifiedLeaf(r.TLS)}
	c.Peer, _ = netip.ParseAddrPort(r.RemoteAddr)
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		c.Local, _ = netip.ParseAddrPort(a.String())
	}
	if r.TLS != nil {
		c.ServerName = r.TLS.ServerName
	}
	return c
}

func (g *httpEngine) Read(p []byte) (int, error) {
	if g.r.Body == nil {
		return 0, io.EOF
	}
	g.body.CompareAndSwap(bodyUntouched, bodyBegun)
	n, err := g.r.Body.Read(p)
	switch {
	case err == io.EOF:
		g.body.Store(bodyRead)
		g.readDeadline.Store(0) // net/http took it away, to watch for the client leaving
	case err != nil:
		g.body.Store(bodyFailed)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			g.readDeadline.Store(0)
		}
	}
	return n, err
}

func (g *httpEngine) Trailer() Fields {
	if g.body.Load() != bodyRead {
		return nil
	}
	return fieldsOf(g.r.Trailer, nil)
}

func (g *httpEngine) Interim(status int, f Fields) error {
	h := g.w.Header()
	for _, x := range f {
		h.Add(x.Name, x.Value)
	}
	g.w.WriteHeader(status)
	clear(h)
	return nil
}

func (g *httpEngine) Commit(status int, reply Fields, length int64) error {
	g.begun = true
	g.bare = !g.h1 && bodiless(g.r.Method, status)
	h := g.w.Header()
	values := make([]string, len(reply)) // one allocation for all
	for i, f := range reply {
		name := spelling(f.Name)
		if !g.passes(name, f.Value) {
			continue
		}
		values[i] = f.Value
		if old := h[name]; old != nil {
			h[name] = append(old, f.Value)
		} else {
			h[name] = values[i : i+1 : i+1]
		}
	}
	if length >= 0 {
		h["Content-Length"] = []string{strconv.FormatInt(length, 10)}
	}
	if g.h1 && g.body.Load() == bodyFailed {
		h["Connection"] = []string{"close"}
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or net/http guesses one
	}
	g.w.WriteHeader(status)
	return nil
}

// spelling gives the fields that net/http looks for the spelling in which it does.
// All others keep theirs.
func spelling(name string) string {
	for _, known := range knownBySize(len(name)) {
		if equalFold(name, known) {
			return known
		}
	}
	return name
}

func knownBySize(n int) []string {
	switch n {
	case 4:
		return []string{"Date"}
	case 7:
		return []string{"Trailer", "Upgrade"}
	case 10:
		return []string{"Connection", "Keep-Alive"}
	case 12:
		return []string{"Content-Type"}
	case 14:
		return []string{"Content-Length"}
	case 16:
		return []string{"Content-Encoding", "Proxy-Connection"}
	case 17:
		return []string{"Transfer-Encoding"}
	}
	return nil
}

// passes keeps the fields that belong to the connection for the engine, and
// names out that net/http has another meaning for (http.TrailerPrefix).
func (g *httpEngine) passes(name, value string) bool {
	switch name {
	case "Content-Length", "Transfer-Encoding", "Keep-Alive", "Proxy-Connection":
		return false
	case "Connection":
		return equalFold(value, "close") // on HTTP/2 both servers make a GOAWAY of it
	case "Upgrade":
		return g.h1 // RFC 9113 8.2.2
	}
	return !strings.Contains(name, ":")
}

func (g *httpEngine) Write(p []byte) (int, error) { return g.w.Write(p) }

func (g *httpEngine) Flush() error {
	if g.bare {
		return nil
	}
	g.flushed = true
	if err := g.ctl.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

func (g *httpEngine) Finish(trailer Fields) error {
	if g.flushed {
		if err := g.Flush(); err != nil { // before waiting for a body that nobody wants
			return err
		}
	}
	g.settleBody()
	if len(trailer) == 0 {
		return nil
	}
	if !g.flushed {
		if err := g.Flush(); err != nil { // commits net/http to chunks, which can have trailers
			return err
		}
	}
	h := g.w.Header()
	for _, f := range trailer {
		if httpguts.ValidTrailerHeader(f.Name) {
			name := http.TrailerPrefix + http.CanonicalHeaderKey(f.Name)
			h[name] = append(h[name], f.Value)
		}
	}
	return nil
}

// How much, and how long, the rest of a request's body is waited for when the
// handler did not want it. It is read so that the connection can be used again;
// failing that, so that closing it does not reset it before the client has read
// the reply.
const (
	drainBytes = 256 << 10
	drainTime  = 50 * time.Millisecond
	lingerTime = 500 * time.Millisecond
)

// settleBody deals with an unread body on HTTP/1. net/http would read up to 256
// KiB of it, for as long as the client likes, and then take what follows for
// the next request even when the body was malformed or the read timed out: with
// full duplex it makes that decision only if the head is still unsent. Nor
// is an interrupted connection used again, as net/http has cancelled its context.
func (g *httpEngine) settleBody() {
	state := g.body.Load()
	if g.e.interrupted.Load() {
		state = bodyFailed
	}
	if !g.h1 || state == bodyRead {
		return
	}
	waits := state == bodyUntouched && httpguts.HeaderValuesContainsToken(g.r.Header["Expect"], "100-continue")
	fits := g.e.Length-g.e.received.Load() <= drainBytes
	if state != bodyFailed && !waits && fits {
		_ = g.SetReadDeadline(time.Now().Add(drainTime))
		_, _ = io.CopyN(io.Discard, readerFunc(g.Read), drainBytes+1) // the state tells
		if g.body.Load() == bodyRead {
			return
		}
	}
	closeAfterReply(g.w)
	_ = g.SetReadDeadline(time.Now().Add(lingerTime))
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// closeAfterReply has net/http close an HTTP/1 connection when the reply is
// out, even when its head is out already. Running into the limit of a
// MaxBytesReader is the only way to tell it.
func closeAfterReply(w http.ResponseWriter) {
	for {
		inner, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = inner.Unwrap()
	}
	var b [1]byte
	_, _ = http.MaxBytesReader(w, io.NopCloser(strings.NewReader("x")), 0).Read(b[:])
}

// Abort has the reads and writes under way fail, which on HTTP/2 resets the
// stream. Closing the connection is left to the panic of ToHTTP.
func (g *httpEngine) Abort() {
	past := time.Unix(1, 0)
	_ = g.SetReadDeadline(past)
	_ = g.SetWriteDeadline(past)
}

// cut closes an HTTP/1 connection in the middle of a reply, past TLS, which
// would wait 5 s to say goodbye to a client that does not read. Before HTTP/1.1
// closing is the end of a body without a length; there the connection is reset.
func (g *httpEngine) cut() {
	if !g.h1 || !g.begun {
		return
	}
	conn, _, err := g.ctl.Hijack()
	if err != nil {
		return
	}
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	if l, ok := conn.(interface{ SetLinger(sec int) error }); ok && g.r.ProtoMinor == 0 {
		_ = l.SetLinger(0)
	}
	_ = conn.Close()
}

// tunnelHeadTime bounds the sending of the head of a 101.
const tunnelHeadTime = 10 * time.Second

func (g *httpEngine) Tunnel(reply Fields) (io.ReadWriteCloser, error) {
	if !g.r.ProtoAtLeast(1, 1) || !g.h1 {
		return nil, fmt.Errorf("%w: %s has no upgrade", ErrNoTunnel, g.r.Proto)
	}
	conn, rw, err := g.ctl.Hijack() // clears the deadlines
	switch {
	case errors.Is(err, http.ErrNotSupported):
		return nil, fmt.Errorf("%w: %w", ErrNoTunnel, err)
	case err != nil:
		return nil, fmt.Errorf("take over connection: %w", err)
	}
	head := http.Header{"Connection": {"Upgrade"}}
	for _, f := range reply {
		if !equalFold(f.Name, "connection") && !equalFold(f.Name, "content-length") && !equalFold(f.Name, "transfer-encoding") {
			head[f.Name] = append(head[f.Name], f.Value)
		}
	}
	early := make([]byte, rw.Reader.Buffered())
	_, _ = rw.Read(early) // cannot fail: it is there
	_ = conn.SetWriteDeadline(time.Now().Add(tunnelHeadTime))
	_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\n")
	_ = head.Write(rw)
	_, _ = rw.WriteString("\r\n")
	if err := rw.Flush(); err != nil { // reports what failed before, too
		_ = conn.Close()
		return nil, fmt.Errorf("send 101: %w", err)
	}
	_ = conn.SetWriteDeadline(time.Time{})
	return &hijacked{Conn: conn, early: early}, nil
}

func (g *httpEngine) SetReadDeadline(t time.Time) error {
	ns := int64(0)
	if !t.IsZero() {
		ns = t.UnixNano()
	}
	g.readDeadline.Store(ns)
	return g.ctl.SetReadDeadline(t)
}

func (g *httpEngine) SetWriteDeadline(t time.Time) error { return g.ctl.SetWriteDeadline(t) }
func (g *httpEngine) Context() context.Context           { return g.r.Context() }

// OnLeave does not believe a context that ends when the read deadline has
// passed: on HTTP/1 net/http takes any failed read for the client's leaving.
func (g *httpEngine) OnLeave(f func()) (stop func() bool) {
	return context.AfterFunc(g.r.Context(), func() {
		if d := g.readDeadline.Load(); d == 0 || time.Now().UnixNano() < d {
			f()
		}
	})
}

// hijacked is a connection with the bytes that net/http had read ahead.
type hijacked struct {
	net.Conn
	early []byte
}

func (h *hijacked) Read(p []byte) (int, error) {
	if len(h.early) == 0 {
		return h.Conn.Read(p)
	}
	n := copy(p, h.early)
	h.early = h.early[n:]
	return n, nil
}

// CloseWrite sends the end of the stream, in TLS close_notify.
func (h *hijacked) CloseWrite() error {
	if c, ok := h.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}
