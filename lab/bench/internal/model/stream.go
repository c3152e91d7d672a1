package model

import (
	"io"
	"math/rand/v2"
	"net/url"
	"strconv"
	"time"
)

const streamHead = "HTTP/1.1 200 OK\r\ndate: Mon, 23 Nov 2026 04:40:00 GMT\r\nserver: uvicorn\r\ncontent-type: text/event-stream\r\n" +
	"cache-control: no-cache\r\nx-accel-buffering: no\r\nopenai-version: 2020-10-01\r\nx-request-id: req_1\r\ntransfer-encoding: chunked\r\n\r\n"

const lastEvent = "data: [DONE]\n\n"

// stream sends the head at once, as engines do that accept before they decode,
// and then an event a chunk and a write.
func (c *conn) stream(q url.Values) error {
	if _, err := io.WriteString(c.c, streamHead); err != nil {
		return err
	}
	err := emit(q, func(event []byte) error {
		b := strconv.AppendInt(c.out[:0], int64(len(event)), 16)
		b = append(b, "\r\n"...)
		b = append(b, event...)
		b = append(b, "\r\n"...)
		c.out = b
		_, err := c.c.Write(b)
		return err
	})
	if err != nil {
		return err
	}
	_, err = io.WriteString(c.c, "0\r\n\r\n")
	return err
}

// emit calls send with each event of the stream that q asks for, when it is due.
func emit(q url.Values, send func(event []byte) error) error {
	pad := min(number(q, "pad", 5), len(filler))
	p := newPacer(q)
	var event []byte
	for i := range number(q, "n", 100) {
		p.wait()
		event = appendEvent(event[:0], i, pad)
		if err := send(event); err != nil {
			return err
		}
	}
	return send([]byte(lastEvent))
}

// appendEvent appends one SSE event stamped with the time.
func appendEvent(b []byte, i, pad int) []byte {
	b = append(b, `data: {"t":`...)
	b = strconv.AppendInt(b, time.Now().UnixNano(), 10)
	b = append(b, `,"i":`...)
	b = strconv.AppendInt(b, int64(i), 10)
	b = append(b, `,"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"`...)
	b = append(b, filler[:pad]...)
	return append(b, "\"},\"finish_reason\":null}]}\n\n"...)
}

// pacer yields the instants at which a stream emits.
type pacer struct {
	next time.Time
	gap  time.Duration
}

func newPacer(q url.Values) *pacer {
	p := &pacer{gap: duration(q, "gap")}
	start := time.Now().Add(duration(q, "ttft"))
	if p.gap > 0 && q.Get("step") == "1" {
		start = start.Truncate(p.gap).Add(p.gap)
	} else if p.gap > 0 && q.Get("jitter") != "0" {
		start = start.Add(rand.N(p.gap)) //nolint:gosec // no secret
	}
	p.next = start
	return p
}

func (p *pacer) wait() {
	if d := time.Until(p.next); d > 0 {
		<-time.After(d)
	}
	p.next = p.next.Add(p.gap)
}
