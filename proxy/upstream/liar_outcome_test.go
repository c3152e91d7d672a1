package upstream_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

// fate is what became of a request.
type fate string

const (
	replied   fate = "reply"     // complete
	refused   fate = "refused"   // Do: LostError around ErrInvalidResponse
	lost      fate = "lost"      // Do: LostError without it
	late      fate = "late"      // Do: ErrFirstByteTimeout
	cut       fate = "cut"       // Read: LostError without ErrInvalidResponse
	corrupt   fate = "corrupt"   // Read: LostError around ErrInvalidResponse
	elsewhere fate = "elsewhere" // sent again, and answered
	tunnelled fate = "tunnel"
	unsent    fate = "unsent" // Do: ErrBadRequest
	hung      fate = "hung"   // never right, but of a reply without an end
)

// reuse says whether a connection may carry the next request.
type reuse int

const (
	either reuse = iota // the RFC leaves it open
	kept
	closed
)

// outcome is what has to become of a request, or what became of it.
type outcome struct {
	fate    fate
	status  int
	body    string // complete; for cut and corrupt what may have been seen before
	trailer string // "name: value" lines
	header  string // a field of the reply that must be there
	length  int64  // declared; 0 is not looked at
	interim []int
	reason  string // part of the error's text
	reuse   reuse
	seen    int32     // requests that the lying server read
	stop    string    // HTTP/2: what the client sent to end the stream or the connection; "" is not looked at
	or      []outcome // others that are right as well
}

func reply(status int, body string) outcome {
	return outcome{fate: replied, status: status, body: body, reuse: kept, seen: 1}
}

func fails(f fate, reason string) outcome {
	return outcome{fate: f, reason: reason, reuse: closed, seen: 1}
}

func refuses(reason string) outcome { return fails(refused, reason) }

// cuts is a reply of 200 that breaks off after body at the latest.
func cuts(body string) outcome {
	return outcome{fate: cut, status: 200, body: body, reuse: closed, seen: 1}
}

// corrupts is one whose body is not in the protocol.
func corrupts(body, reason string) outcome {
	return outcome{fate: corrupt, status: 200, body: body, reason: reason, reuse: closed, seen: 1}
}

func (o outcome) elsewhere() outcome          { return outcome{fate: elsewhere, seen: 1} }
func (o outcome) coded(status int) outcome    { o.status = status; return o }
func (o outcome) once() outcome               { o.reuse = closed; return o }
func (o outcome) onward() outcome             { o.reuse = kept; return o }
func (o outcome) maybe() outcome              { o.reuse = either; return o }
func (o outcome) trailing(s string) outcome   { o.trailer = s; return o }
func (o outcome) with(field string) outcome   { o.header = field; return o }
func (o outcome) declared(n int64) outcome    { o.length = n; return o }
func (o outcome) after(codes ...int) outcome  { o.interim = codes; return o }
func (o outcome) stopped(how string) outcome  { o.stop = how; return o }
func (o outcome) orElse(also outcome) outcome { o.or = append(o.or, also); return o }

// matches returns what is wrong with got, or "".
func (o outcome) matches(got outcome) string {
	wrong := o.differs(got)
	for _, also := range o.or {
		if wrong != "" && also.differs(got) == "" {
			return ""
		}
	}
	return wrong
}

func (o outcome) differs(got outcome) string {
	broken := o.fate == cut || o.fate == corrupt
	switch {
	case got.fate != o.fate:
		return fmt.Sprintf("fate %s (%s), want %s", got.fate, got.reason, o.fate)
	case o.fate == replied && (got.status != o.status || got.body != o.body):
		return fmt.Sprintf("reply %d %.200q, want %d %.200q", got.status, got.body, o.status, o.body)
	case broken && (got.status != o.status || !strings.HasPrefix(o.body, got.body)):
		return fmt.Sprintf("broken reply %d %.200q, want %d and no more than %.200q", got.status, got.body, o.status, o.body)
	case got.trailer != o.trailer:
		return fmt.Sprintf("trailer %q, want %q", got.trailer, o.trailer)
	case o.header != "" && !strings.Contains(got.header, o.header+"\n"):
		return fmt.Sprintf("header %q, want %q in it", got.header, o.header)
	case o.length != 0 && got.length != o.length:
		return fmt.Sprintf("declared length %d, want %d", got.length, o.length)
	case !slices.Equal(got.interim, o.interim):
		return fmt.Sprintf("interim %v, want %v", got.interim, o.interim)
	case !strings.Contains(got.reason, o.reason):
		return fmt.Sprintf("reason %q, want %q in it", got.reason, o.reason)
	case got.seen != o.seen:
		return fmt.Sprintf("the server read %d requests, want %d", got.seen, o.seen)
	case o.reuse != either && got.reuse != o.reuse:
		return fmt.Sprintf("the next request reused the connection: %v, want %v", got.reuse == kept, o.reuse == kept)
	case o.stop != "" && got.stop != o.stop:
		return fmt.Sprintf("the client ended it with %q, want %q", got.stop, o.stop)
	}
	return ""
}

// blame sorts an error of Do or Read.
func blame(err error, invalid, gone fate) fate {
	_, isLost := errors.AsType[*upstream.LostError](err)
	switch {
	case isLost && errors.Is(err, upstream.ErrInvalidResponse):
		return invalid
	case isLost:
		return gone
	case errors.Is(err, upstream.ErrFirstByteTimeout):
		return late
	case errors.Is(err, upstream.ErrBadRequest):
		return unsent
	}
	return hung
}

func lines(f exchange.Fields) string {
	var b strings.Builder
	for _, x := range f {
		fmt.Fprintf(&b, "%s: %s\n", strings.ToLower(x.Name), x.Value)
	}
	return b.String()
}
