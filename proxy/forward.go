package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/http2"

	"edge/config"
	"edge/proxy/dialect"
	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

// forward sends the request to r's pool and hands the reply on. It is what the
// layers of a route end in.
func forward(s *Server, r *route) exchange.Handler {
	return func(e *exchange.Exchange) {
		t := r.config.Timeouts
		f := &passage{upload: upload{e: e}}
		f.total = exchange.NewWatch(t.Request, func() { f.canceler.Cancel(errTotal) })
		f.total.Begin()
		f.outgoing(t)
		e.Bind(&f.canceler)
		// The Canceler is what ends the request; a context would cost more than
		// all else here.
		resp, err := r.pool.Do(context.Background(), &f.request)
		if err != nil {
			reason := blame(f.canceler.Cause(), err)
			switch {
			case errors.Is(f.upload.err, os.ErrDeadlineExceeded):
				reason = RequestTimeout
			case reason == UpstreamLost && outOfTime(e):
				reason = UpstreamTimeout
			}
			f.total.Stop()
			noteAttempts(e, err)
			fail(e, reason, err)
			return
		}
		e.FirstByte = time.Now()
		// A client that listens need not talk: from here on it is the reply's
		// silence that counts.
		e.SetReadTimeout(0)
		e.Endpoint, e.Attempts = resp.Endpoint, resp.Attempts
		answer(e, resp)
		if resp.Status == http.StatusSwitchingProtocols {
			f.total.Stop() // a tunnel is no longer the request
			s.tunnel(e, resp, t.StreamIdle)
			_ = resp.Close()
			return
		}
		src := &f.reply
		src.passage, src.resp, src.silence = f, resp, t.StreamIdle
		e.SetSourceTimeout(firstSilence(t))
		if !e.Detach(src) {
			_ = exchange.Pump(e, src)
		}
	}
}

// passage is one request on its way to a backend and back, in one piece.
type passage struct {
	upload   upload
	request  upstream.Request
	canceler exchange.Canceler
	total    *exchange.Watch
	reply    reply
}

// outgoing makes the request as the backend gets it: target and Host as they came,
// trailers only for gRPC, the only protocol that has a use for them; elsewhere
// they are a way around the checks on fields.
func (f *passage) outgoing(t config.Timeouts) {
	e := f.upload.e
	f.request = upstream.Request{
		Method:    e.Method,
		Target:    originForm(e),
		Host:      e.Host,
		Header:    e.Header,
		Length:    e.Length,
		Interim:   interim(e),
		Upgrade:   e.Header.Has("upgrade"), // admit leaves it for websocket only
		FirstByte: t.FirstByte,
		Canceler:  &f.canceler,
	}
	if e.Length != 0 {
		f.request.Body = &f.upload
		f.request.Interrupt = e.Interrupt
		f.request.Continue = e.Header.Has("expect") // admit leaves 100-continue only
		if dialect.IsGRPC(e.Header.Get("content-type")) {
			f.request.Trailer = func() exchange.Fields { return cleanTrailer(e.Trailer()) }
		}
	}
}

// upload is the request body on its way to the backend. It keeps the error that
// it ended with, because net/http takes a read that timed out for a client that
// left, and cancels the exchange before anyone else can say what happened.
type upload struct {
	e   *exchange.Exchange
	err error // may be looked at when Do has failed: nothing reads any more then
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	n, err := u.e.Read(p)
	if err != nil {
		u.err = err
	}
	return n, err
}

// originForm returns the target without scheme and authority, which a client
// may send as if edge were a forward proxy (RFC 9112 section 3.2.2).
func originForm(e *exchange.Exchange) string {
	switch {
	case strings.HasPrefix(e.Target, "/"):
		return e.Target
	case e.Query != "":
		return e.Path + "?" + e.Query
	}
	return e.Path
}

// interim passes informational replies on, but 100: the front answered Expect
// when the body was first read.
func interim(e *exchange.Exchange) func(int, exchange.Fields) {
	return func(status int, f exchange.Fields) {
		if status != http.StatusContinue {
			e.Interim(status, endToEnd(f))
		}
	}
}

// answer puts the head of resp into e. What edge says itself (the request id,
// the end of the connection) stands before the backend's word.
func answer(e *exchange.Exchange, resp *upstream.Response) {
	e.Status = resp.Status
	length := false
	own := len(e.Reply)
	e.Reply = slices.Grow(e.Reply, len(resp.Header)+1)
	for _, f := range endToEnd(resp.Header) {
		if slices.ContainsFunc(e.Reply[:own], func(o exchange.Field) bool { return strings.EqualFold(o.Name, f.Name) }) {
			continue
		}
		length = length || strings.EqualFold(f.Name, "content-length")
		e.Reply = append(e.Reply, f)
	}
	if !length && resp.Length >= 0 && hasBody(e.Method, resp.Status) {
		e.Reply.Add("Content-Length", strconv.FormatInt(resp.Length, 10))
	}
}

func hasBody(method string, status int) bool {
	return method != http.MethodHead && status >= http.StatusOK &&
		status != http.StatusNoContent && status != http.StatusNotModified
}

// endToEnd returns f without the fields about the backend's connection. Length
// stays: the engine holds the body to it.
func endToEnd(f exchange.Fields) exchange.Fields {
	named := connectionNamed(f)
	return slices.DeleteFunc(f, func(x exchange.Field) bool {
		if isHopByHop(x.Name) {
			return !strings.EqualFold(x.Name, "content-length")
		}
		return slices.ContainsFunc(named, func(n string) bool { return strings.EqualFold(n, x.Name) })
	})
}

// reply is a backend's reply under way to the client. Its reads are bounded by
// the silence that the route allows, and it says why it broke off.
type reply struct {
	passage *passage
	resp    *upstream.Response
	silence time.Duration // that is allowed once the body has begun
	begun   bool
}

// Read implements exchange.Source.
func (s *reply) Read(p []byte) (int, error) {
	n, err := s.resp.Read(p)
	e := s.passage.upload.e
	if n > 0 && !s.begun {
		s.begun = true
		e.SetSourceTimeout(s.silence)
	}
	if err != nil && err != io.EOF && e.Reason == "" { //nolint:errorlint // io.EOF is never wrapped by a Reader
		e.Reason, e.Err = string(blame(s.passage.canceler.Cause(), err)), err
	}
	return n, err
}

// Trailer implements exchange.Source.
func (s *reply) Trailer() exchange.Fields { return endToEnd(s.resp.Trailer()) }

// Close implements exchange.Source.
func (s *reply) Close() error {
	s.passage.total.Stop()
	return s.resp.Close()
}

// blame says whose fault err is: a wait that was too long or the client that left,
// which is the cause of having given up, or the client that sent nonsense, or
// else the backend.
func blame(cause, err error) Reason {
	if cause != nil {
		switch {
		case errors.Is(cause, errTotal):
			return TotalTimeout
		case errors.Is(cause, exchange.ErrSilent):
			return StreamIdle
		case errors.Is(cause, exchange.ErrAborted):
			return ClientStalled
		}
		return ClientLeft
	}
	if body, ok := errors.AsType[*upstream.BodyError](err); ok {
		return blameBody(body)
	}
	dial, isDial := errors.AsType[*upstream.DialError](err)
	switch {
	case errors.Is(err, upstream.ErrNoEndpoint):
		return NoEndpoint
	case errors.Is(err, upstream.ErrBadRequest):
		return BadRequest
	case errors.Is(err, upstream.ErrFirstByteTimeout):
		return UpstreamTimeout
	case isDial && dial != nil:
		return UpstreamUnreachable
	}
	return UpstreamLost
}

// blameBody says why the client's body could not be read.
func blameBody(err error) Reason {
	reset, isReset := errors.AsType[http2.StreamError](err)
	switch {
	case errors.Is(err, exchange.ErrTooLarge):
		return BodyTooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return RequestTimeout
	case errors.Is(err, exchange.ErrClientGone), errors.Is(err, exchange.ErrAborted), isReset && reset.Code == http2.ErrCodeCancel,
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET): // in the middle of the body
		return ClientLeft
	}
	return BadRequest
}

// noteAttempts records what a failed Do tells about the endpoint it tried.
func noteAttempts(e *exchange.Exchange, err error) {
	if dial, ok := errors.AsType[*upstream.DialError](err); ok {
		e.Endpoint, e.Attempts = dial.Endpoint, dial.Attempts
	}
	if lost, ok := errors.AsType[*upstream.LostError](err); ok {
		e.Endpoint, e.Attempts = lost.Endpoint, lost.Attempts
	}
	if try, ok := errors.AsType[*upstream.TryError](err); ok {
		e.Endpoint, e.Attempts = try.Endpoint, try.Attempts
	}
}
