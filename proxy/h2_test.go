package proxy_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2conn is an HTTP/2 connection on which a test writes frames by hand.
type h2conn struct {
	*http2.Framer
	conn  *tls.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
	dec   *hpack.Decoder
}

func (e *edge) h2(tb testing.TB) *h2conn {
	tb.Helper()
	conn, err := tls.Dial("tcp", e.addr, clientTLS("a.example.com", http2.NextProtoTLS))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		tb.Fatal(err)
	}
	c := &h2conn{Framer: http2.NewFramer(conn, bufio.NewReader(conn)), conn: conn, dec: hpack.NewDecoder(4096, nil)}
	c.enc = hpack.NewEncoder(&c.block)
	if err := c.WriteSettings(); err != nil {
		tb.Fatal(err)
	}
	return c
}

// headers opens a stream with fields in the order given.
func (c *h2conn) headers(tb testing.TB, id uint32, end bool, fields ...string) {
	tb.Helper()
	c.encode(tb, fields)
	if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block.Bytes(), EndStream: end, EndHeaders: true}); err != nil {
		tb.Fatal(err)
	}
}

func (c *h2conn) encode(tb testing.TB, fields []string) {
	tb.Helper()
	c.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		if err := c.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			tb.Fatal(err)
		}
	}
}

// ended waits for the end of the connection; it is false when the patience of
// the test ran out first.
func (c *h2conn) ended(tb testing.TB) bool {
	tb.Helper()
	for {
		if _, err := c.ReadFrame(); err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// status waits for the response of a stream: its :status, "reset" for a stream
// that was reset, or "gone" for a connection that ended.
func (c *h2conn) status(tb testing.TB, id uint32) string {
	tb.Helper()
	for {
		f, err := c.ReadFrame()
		if errors.Is(err, io.EOF) {
			return "gone"
		}
		if err != nil {
			tb.Fatalf("read frame: %v", err)
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			fields, err := c.dec.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				tb.Fatal(err)
			}
			if f.StreamID == id && len(fields) > 0 && fields[0].Name == ":status" {
				return fields[0].Value
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset"
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return "gone"
			}
		}
	}
}

// oneSession is a session cache that keeps one session for whatever name.
type oneSession struct{ tls.ClientSessionCache }

func (s oneSession) Get(string) (*tls.ClientSessionState, bool) { return s.ClientSessionCache.Get("") }

func (s oneSession) Put(_ string, state *tls.ClientSessionState) { s.ClientSessionCache.Put("", state) }

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }
