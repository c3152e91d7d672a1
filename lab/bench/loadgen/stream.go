package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"edge/lab/bench/internal/h1"
)

// settle is how long streams have to start before the warm-up.
const settle = 200 * time.Millisecond

func (l *load) streamPath() string {
	return fmt.Sprintf("/v1/chat/completions?stream=1&jitter=0&n=%d&gap=%s&step=%d", l.events, l.gap, map[bool]int{true: 1}[l.step])
}

// stampDigits is the length of a time in nanoseconds, until the year 2286.
const stampDigits = 19

// eventHead is how a stamped event begins.
const eventHead = `data: {"t":`

// events finds the stamped events in an SSE byte stream. The zero value is at
// its start.
type events struct{ carry []byte }

// feed takes the next bytes and calls f with the stamp of each event that is
// complete.
func (e *events) feed(b []byte, f func(sent time.Time)) {
	if len(e.carry) > 0 {
		e.carry = append(e.carry, b...)
		b = e.carry
	}
	for {
		i := bytes.Index(b, []byte("\n\n"))
		if i < 0 {
			break
		}
		if v, ok := bytes.CutPrefix(b[:i], []byte(eventHead)); ok && len(v) > stampDigits {
			if n, err := strconv.ParseInt(string(v[:stampDigits]), 10, 64); err == nil {
				f(time.Unix(0, n))
			}
		}
		b = b[i+2:]
	}
	e.carry = append(e.carry[:0], b...)
}

// startStreams opens event streams, again when they end; a unit is an event,
// its latency the time since the model server stamped it.
func (l *load) startStreams(ctx context.Context) error {
	if l.proto == "h2" {
		return l.startStreamsH2(ctx)
	}
	req := l.post(l.target(l.streamPath()), prompt(l.body))
	within := max(l.gap, time.Second) // not after all dials: proxies close connections that say nothing
	err := each(l.conns, func(int) error {
		c, err := l.dialH1(ctx, l.tls)
		if err != nil {
			return err
		}
		l.running.Go(func() {
			pause(ctx, rand.N(within)) //nolint:gosec // no secret
			for {
				if err := l.streamOnce(c, req); err != nil {
					l.fail(err)
					return
				}
			}
		})
		return nil
	})
	pause(ctx, within+settle)
	return err
}

func (l *load) streamOnce(c *h1conn, req []byte) error {
	start := time.Now()
	if err := c.head(req, "200"); err != nil {
		return err
	}
	first := true
	var e events
	return h1.Body(c.br, &c.h, true, func(b []byte) error {
		now := time.Now()
		e.feed(b, func(sent time.Time) {
			if first {
				l.ttft.Add(now.Sub(start))
				first = false
			}
			l.done(1, now.Sub(sent))
		})
		return nil
	})
}
