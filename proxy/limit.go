package proxy

import (
	"errors"
	"time"

	"edge/config"
	"edge/proxy/exchange"
)

// errTotal is why forward gives up a request that nobody else ended.
var errTotal = errors.New("the request took longer than allowed")

// deadline bounds each single wait for the client: for the next piece of the
// request body, and for it to take a piece of the reply. The waits for the
// backend (first byte, silence in the reply, the total if asked for) are
// bounded by forward, which alone can end them.
func deadline(r *route) exchange.Layer {
	t := r.config.Timeouts
	return func(next exchange.Handler) exchange.Handler {
		return func(e *exchange.Exchange) {
			e.SetReadTimeout(t.BodyIdle)
			e.SetWriteTimeout(t.StreamIdle)
			next(e)
		}
	}
}

// limit bounds what the client may send: the head, which net/http has bounded
// per listener already, and the body. A body that says its length is refused at
// once, another when it exceeds the limit: forward's read then fails.
func limit(r *route) exchange.Layer {
	l := r.config.Limits
	return func(next exchange.Handler) exchange.Handler {
		return func(e *exchange.Exchange) {
			if l.Headers > 0 && headSize(e) > l.Headers {
				fail(e, HeadersTooLarge, nil)
				return
			}
			if l.Body > 0 {
				if e.Length > l.Body {
					fail(e, BodyTooLarge, nil)
					return
				}
				e.SetReadLimit(l.Body)
			}
			next(e)
		}
	}
}

// headSize is about what the head took on the wire of HTTP/1.1.
func headSize(e *exchange.Exchange) int64 {
	const line = len(": \r\n")
	n := len(e.Method) + len(e.Target) + len(e.Host) + 2*line
	for i := range e.Header {
		n += len(e.Header[i].Name) + len(e.Header[i].Value) + line
	}
	return int64(n)
}

// forever stands for no bound on silence.
const forever = 365 * 24 * time.Hour

// firstSilence bounds the wait for the first byte of a reply's body. Model
// servers send the head of a stream at once and its first token when the prompt
// is through the queue, so this wait is of the kind that FirstByte is for.
func firstSilence(t config.Timeouts) time.Duration {
	switch {
	case t.StreamIdle <= 0:
		return 0
	case t.FirstByte <= 0:
		return forever
	}
	return max(t.FirstByte, t.StreamIdle)
}
