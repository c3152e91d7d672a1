package upstream

import (
	"errors"
	"net/http"
	"time"

	"edge/proxy/exchange"
)

const (
	// idleRace is how long after our last byte the end of a kept-alive connection
	// still counts as one that had begun before the request arrived.
	idleRace = 250 * time.Millisecond

	// maxFresh bounds the tries of a request that do not count as attempts,
	// because it was a kept-alive connection that failed and no endpoint. HTTP/1
	// needs one, as the next connection is a new one; HTTP/2 may lend another that
	// is just as old.
	maxFresh = 2
)

// verdict is what becomes of a request after a try that failed.
type verdict int

const (
	final     verdict = iota // the error is the answer
	elsewhere                // to an endpoint that was not tried, if Retry.Attempts leaves one
	afresh                   // to the same endpoint on a fresh connection
)

// setback is what the rule looks at.
type setback struct {
	err        error // of the engine
	method     string
	replayable bool // nothing of the body is missing
	short      bool // no more than Retry.Replay of it was read
	only       bool // the pool has no other endpoint
	fresh      int  // tries afresh so far
}

// judge is the rule of the package comment.
func (s setback) judge() verdict {
	_, unconnected := errors.AsType[*exchange.DialError](s.err)
	lost, isLost := errors.AsType[*exchange.LostError](s.err)
	switch {
	case !s.replayable:
		return final
	case unconnected:
		return elsewhere
	case !isLost || lost.Answered || !lost.Unsent && !s.short:
		return final
	case s.fresh < maxFresh && (stale(lost) || s.only && lost.Unsent):
		return afresh
	case lost.Unsent || safe(s.method):
		return elsewhere
	}
	return final
}

// stale reports whether a kept-alive connection failed the request, and no
// endpoint.
func stale(lost *exchange.LostError) bool {
	raced := lost.Closed && lost.After <= idleRace
	return lost.Reused && !lost.Answered && (lost.Unsent || raced)
}

// guilty reports whether err speaks against the endpoint.
func guilty(err error) bool {
	if lost, ok := errors.AsType[*exchange.LostError](err); ok {
		return !stale(lost)
	}
	_, body := errors.AsType[*BodyError](err)
	return !body && !errors.Is(err, ErrBadRequest)
}

// safe methods (RFC 9110 section 9.2.1) may be repeated.
func safe(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}
