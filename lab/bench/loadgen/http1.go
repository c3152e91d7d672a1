package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"edge/lab/bench/internal/h1"
)

// errReply reports a status that was not asked for.
var errReply = errors.New("unexpected reply")

// prompt returns an OpenAI-style request body of about n bytes.
func prompt(n int) []byte {
	const head, tail = `{"model":"m","stream":true,"messages":[{"role":"user","content":"`, `"}]}`
	return []byte(head + strings.Repeat("a", max(0, n-len(head)-len(tail))) + tail)
}

// field is a header field, its name in lower case.
type field struct{ name, value string }

// clientFields are the headers that an OpenAI client sends.
var clientFields = []field{
	{"accept-encoding", "gzip, deflate"},
	{"accept", "application/json"},
	{"user-agent", "OpenAI/Python 1.99.0"},
	{"x-stainless-lang", "python"},
	{"x-stainless-package-version", "1.99.0"},
	{"x-stainless-os", "Linux"},
	{"x-stainless-arch", "x64"},
	{"x-stainless-runtime", "CPython"},
	{"x-stainless-runtime-version", "3.12.4"},
	{"authorization", "Bearer sk-0123456789abcdef0123456789abcdef"},
	{"x-stainless-retry-count", "0"},
}

// post returns the bytes of a request.
func (l *load) post(path string, body []byte) []byte {
	b := []byte("POST " + path + " HTTP/1.1\r\nHost: " + l.name + "\r\n")
	for _, f := range clientFields {
		b = append(b, f.name+": "+f.value+"\r\n"...)
	}
	b = append(b, "content-type: application/json\r\ncontent-length: "+strconv.Itoa(len(body))+"\r\n\r\n"...)
	return append(b, body...)
}

// h1conn is a client's HTTP/1.1 connection.
type h1conn struct {
	net.Conn
	br *bufio.Reader
	h  h1.Head
}

func (l *load) dialH1(ctx context.Context, config *tls.Config) (*h1conn, error) {
	c, err := l.dial(ctx, config)
	if err != nil {
		return nil, err
	}
	return &h1conn{Conn: c, br: bufio.NewReaderSize(c, 4<<10)}, nil
}

// head sends req and reads the head of the reply, which must have the status.
func (c *h1conn) head(req []byte, status string) error {
	if _, err := c.Write(req); err != nil {
		return err
	}
	if err := h1.ReadHead(c.br, &c.h); err != nil {
		return err
	}
	if f := bytes.Fields(c.h.Line); len(f) < 2 || string(f[1]) != status {
		return fmt.Errorf("%w: %s", errReply, c.h.Line)
	}
	return nil
}

func (c *h1conn) exchange(req []byte) error {
	if err := c.head(req, "200"); err != nil {
		return err
	}
	return h1.Body(c.br, &c.h, true, h1.Discard)
}

// startRequests sends requests one after the other on each connection; a unit
// is a request.
func (l *load) startRequests(ctx context.Context) error {
	if l.proto == "h2" {
		return l.startRequestsH2(ctx)
	}
	req := l.post(l.target("/v1/chat/completions"), prompt(l.body))
	return each(l.conns, func(int) error {
		c, err := l.dialH1(ctx, l.tls)
		if err != nil {
			return err
		}
		if err := c.exchange(req); err != nil {
			return err
		}
		l.running.Go(func() { l.fail(l.repeat(ctx, func() error { return c.exchange(req) })) })
		return nil
	})
}

// repeat calls once until it fails or ctx ends, at the rate if there is one.
func (l *load) repeat(ctx context.Context, once func() error) error {
	var every time.Duration
	var next time.Time
	if l.rate > 0 {
		every = time.Duration(l.conns) * time.Second / time.Duration(l.rate)
		next = time.Now().Add(rand.N(every)) //nolint:gosec // no secret
	}
	for ctx.Err() == nil {
		if every > 0 {
			pause(ctx, time.Until(next))
			next = next.Add(every)
		}
		t := time.Now()
		if err := once(); err != nil {
			return err
		}
		l.done(1, time.Since(t))
	}
	return nil
}

// startConnections opens, uses once and closes connections; a unit is a
// handshake with the one request that proves it.
func (l *load) startConnections(ctx context.Context) error {
	req := []byte("GET " + l.target("/v1/models?size=200") + " HTTP/1.1\r\nHost: " + l.name + "\r\nConnection: close\r\n\r\n")
	for range l.conns {
		config := l.tls.Clone()
		if l.resume {
			config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		}
		once := func() error {
			within, cancel := context.WithCancel(ctx)
			defer cancel() // or the context would hold every connection there was
			c, err := l.dialH1(within, config)
			if err != nil {
				return err
			}
			if err := c.exchange(req); err != nil {
				return err
			}
			_ = c.Close() // the proxy may have been quicker
			return nil
		}
		if err := once(); err != nil {
			return err
		}
		l.running.Go(func() {
			for ctx.Err() == nil {
				t := time.Now()
				if err := once(); err != nil {
					l.fail(err)
					continue
				}
				l.done(1, time.Since(t))
			}
		})
	}
	return nil
}

// startIdle opens connections, uses each once, and leaves them open.
func (l *load) startIdle(ctx context.Context) error {
	req := l.post(l.target("/v1/chat/completions"), prompt(l.body))
	return each(l.conns, func(int) error {
		c, err := l.dialH1(ctx, l.tls)
		if err != nil {
			return err
		}
		return c.exchange(req)
	})
}

// startWebsockets plays ping-pong; a unit is a message, of which a round trip
// has two.
func (l *load) startWebsockets(ctx context.Context) error {
	upgrade := []byte("GET /ws HTTP/1.1\r\nHost: " + l.name + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if l.body < 126 || l.body > 0xffff {
		return fmt.Errorf("a message of %d bytes: want 126 to 65535", l.body)
	}
	frame := append([]byte{0x82, 0x80 | 126, byte(l.body >> 8), byte(l.body), 0, 0, 0, 0}, make([]byte, l.body)...) //nolint:gosec // in range
	return each(l.conns, func(int) error {
		c, err := l.dialH1(ctx, l.tls)
		if err != nil {
			return err
		}
		if err := c.head(upgrade, "101"); err != nil {
			return err
		}
		l.running.Go(func() {
			for {
				t := time.Now()
				if _, err := c.Write(frame); err != nil {
					l.fail(err)
					return
				}
				if _, err := c.br.Discard(4 + l.body); err != nil { // echoed unmasked
					l.fail(err)
					return
				}
				l.done(2, time.Since(t))
			}
		})
		return nil
	})
}
