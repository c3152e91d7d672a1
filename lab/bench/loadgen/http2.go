package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	maxWindow  = 1<<31 - 1 // of flow control (RFC 9113 section 6.9.1): the proxy never waits for it
	openWindow = 65535     // what a connection starts with
	giveBack   = 1 << 20   // credit is returned in pieces of this size
)

// h2conn is one HTTP/2 connection driven by a single goroutine: it reads
// frames, and what it wants to send is flushed when nothing more is buffered.
type h2conn struct {
	net.Conn
	host  string
	br    *bufio.Reader
	bw    *bufio.Writer
	fr    *http2.Framer
	enc   *hpack.Encoder
	dec   *hpack.Decoder
	block bytes.Buffer
	next  uint32
	taken int // bytes of DATA not yet given back
	live  map[uint32]*h2stream
	err   error // the first that a write had

	data func(s *h2stream, b []byte) // takes DATA; nil drops it
	end  func(s *h2stream)           // called when a stream ends
}

type h2stream struct {
	id     uint32
	start  time.Time
	events events
	first  bool
	got    int
}

func (l *load) dialH2(ctx context.Context) (*h2conn, error) {
	nc, err := l.dial(ctx, l.tls)
	if err != nil {
		return nil, err
	}
	c := &h2conn{
		Conn: nc, host: l.name, br: bufio.NewReaderSize(nc, 32<<10), bw: bufio.NewWriterSize(nc, 32<<10),
		dec: hpack.NewDecoder(4096, nil), next: 1, live: map[uint32]*h2stream{},
	}
	c.fr = http2.NewFramer(c.bw, c.br)
	c.fr.SetReuseFrames()
	c.enc = hpack.NewEncoder(&c.block)
	_, err = io.WriteString(c.bw, http2.ClientPreface)
	c.wrote(err)
	c.wrote(c.fr.WriteSettings(
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxWindow}))
	c.wrote(c.fr.WriteWindowUpdate(0, maxWindow-openWindow))
	return c, c.flush()
}

func (c *h2conn) wrote(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *h2conn) flush() error {
	c.wrote(c.bw.Flush())
	return c.err
}

func (c *h2conn) put(name, value string) {
	c.wrote(c.enc.WriteField(hpack.HeaderField{Name: name, Value: value}))
}

// send opens a stream with a POST. A nil body leaves the request open.
func (c *h2conn) send(path, contentType string, body []byte) *h2stream {
	c.block.Reset()
	c.put(":method", "POST")
	c.put(":scheme", "https")
	c.put(":authority", c.host)
	c.put(":path", path)
	for _, f := range clientFields {
		c.put(f.name, f.value)
	}
	c.put("content-type", contentType)
	if body != nil {
		c.put("content-length", strconv.Itoa(len(body)))
	} else {
		c.put("te", "trailers")
	}
	s := &h2stream{id: c.next, start: time.Now(), first: true}
	c.live[s.id] = s
	c.next += 2
	c.wrote(c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: c.block.Bytes(), EndHeaders: true}))
	if body != nil {
		c.wrote(c.fr.WriteData(s.id, true, body))
	}
	return s
}

// serve reads frames until an error.
func (c *h2conn) serve() error {
	for {
		if c.br.Buffered() == 0 && c.bw.Buffered() > 0 {
			if err := c.flush(); err != nil {
				return err
			}
		}
		f, err := c.fr.ReadFrame()
		if err != nil {
			return err
		}
		if err := c.frame(f); err != nil {
			return err
		}
	}
}

func (c *h2conn) frame(f http2.Frame) error {
	ended := false
	s := c.live[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if !f.IsAck() {
			c.wrote(c.fr.WriteSettingsAck())
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			c.wrote(c.fr.WritePing(true, f.Data))
		}
	case *http2.GoAwayFrame:
		return fmt.Errorf("GOAWAY %v %q", f.ErrCode, f.DebugData())
	case *http2.RSTStreamFrame:
		return fmt.Errorf("RST_STREAM %v", f.ErrCode)
	case *http2.HeadersFrame:
		fields, err := c.dec.DecodeFull(f.HeaderBlockFragment())
		if err != nil {
			return err
		}
		if len(fields) > 0 && fields[0].Name == ":status" && fields[0].Value != "200" {
			return fmt.Errorf("%w: status %s", errReply, fields[0].Value)
		}
		ended = f.StreamEnded()
	case *http2.DataFrame:
		c.take(s, f)
		ended = f.StreamEnded()
	}
	if ended && s != nil {
		delete(c.live, s.id)
		c.end(s)
	}
	return nil
}

// take hands DATA on. Only the connection's window is ever used up: a stream's
// is larger than any stream here.
func (c *h2conn) take(s *h2stream, f *http2.DataFrame) {
	if c.taken += int(f.Header().Length); c.taken >= giveBack {
		c.wrote(c.fr.WriteWindowUpdate(0, uint32(c.taken))) //nolint:gosec // about giveBack
		c.taken = 0
	}
	if s != nil && c.data != nil {
		c.data(s, f.Data())
	}
}

// startRequestsH2 keeps -streams requests in flight on each connection.
func (l *load) startRequestsH2(ctx context.Context) error {
	path, body := l.target("/v1/chat/completions"), prompt(l.body)
	return each(l.conns, func(int) error {
		c, err := l.dialH2(ctx)
		if err != nil {
			return err
		}
		c.end = func(s *h2stream) {
			l.done(1, time.Since(s.start))
			c.send(path, "application/json", body)
		}
		for range l.streams {
			c.send(path, "application/json", body)
		}
		l.running.Go(func() { l.fail(c.serve()) })
		return nil
	})
}

func (l *load) startStreamsH2(ctx context.Context) error {
	path, body := l.target(l.streamPath()), prompt(l.body)
	err := each(l.conns, func(int) error {
		c, err := l.dialH2(ctx)
		if err != nil {
			return err
		}
		c.data = func(s *h2stream, b []byte) {
			now := time.Now()
			s.events.feed(b, func(sent time.Time) {
				if s.first {
					l.ttft.Add(now.Sub(s.start))
					s.first = false
				}
				l.done(1, now.Sub(sent))
			})
		}
		c.end = func(*h2stream) { c.send(path, "application/json", body) }
		// The streams of one connection start together: one goroutine owns it.
		pause(ctx, rand.N(max(l.gap, 1))) //nolint:gosec // no secret
		for range l.streams {
			c.send(path, "application/json", body)
		}
		l.running.Go(func() { l.fail(c.serve()) })
		return nil
	})
	pause(ctx, max(l.gap, time.Second)+settle)
	return err
}

// startGRPC plays ping-pong on long bidirectional streams; a unit is a
// message, of which a round trip has two.
func (l *load) startGRPC(ctx context.Context) error {
	size := l.body
	msg := append([]byte{0, byte(size >> 24), byte(size >> 16), byte(size >> 8), byte(size)}, make([]byte, size)...) //nolint:gosec // the bytes of a number
	return each(l.conns, func(int) error {
		c, err := l.dialH2(ctx)
		if err != nil {
			return err
		}
		c.data = func(s *h2stream, b []byte) {
			if s.got += len(b); s.got < len(msg) {
				return
			}
			s.got -= len(msg)
			now := time.Now()
			l.done(2, now.Sub(s.start))
			s.start = now
			c.wrote(c.fr.WriteData(s.id, false, msg))
		}
		c.end = func(*h2stream) { l.fail(io.ErrUnexpectedEOF) }
		for range l.streams {
			s := c.send(l.target("/grpc/echo"), "application/grpc", nil)
			c.wrote(c.fr.WriteData(s.id, false, msg))
		}
		l.running.Go(func() { l.fail(c.serve()) })
		return nil
	})
}
