package proxy

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/net/http2"
)

const (
	// maxContinuations bounds the CONTINUATION frames of one header block. The
	// server bounds their bytes only, so that empty ones could come for ever
	// (CVE-2023-45288 was about full ones). Eight is nghttp2's bound, too.
	maxContinuations = 8

	frameHead  = 9   // RFC 9113 section 4.1
	endHeaders = 0x4 // flag of HEADERS and CONTINUATION, sections 6.2 and 6.10
	preface    = len(http2.ClientPreface)
)

// errContinuations ends a connection.
var errContinuations = errors.New("too many CONTINUATION frames")

// serveHTTP2 gives srv the HTTP/2 server of x/net, which is fixed faster than the
// toolchain's copy of it, and has its connections read and written through a guard.
//
//nolint:staticcheck // deprecated in favour of that copy, which takes no guarded connection
func serveHTTP2(srv *http.Server) error {
	h2 := new(http2.Server)
	if err := http2.ConfigureServer(srv, h2); err != nil {
		return fmt.Errorf("configure http2: %w", err)
	}
	srv.TLSNextProto[http2.NextProtoTLS] = func(hs *http.Server, c *tls.Conn, h http.Handler) {
		clientOf(c).greet()
		opts := &http2.ServeConnOpts{Handler: h, BaseConfig: hs}
		if b, ok := h.(interface{ BaseContext() context.Context }); ok { // how net/http hands the context on
			opts.Context = b.BaseContext()
		}
		h2.ServeConn(newGuard(c), opts)
	}
	return nil
}

// guard is an HTTP/2 connection that follows the frames which its reader reads,
// for two things the server does not see to: a header block may have
// maxContinuations frames more than its first, and headTimeout to be complete.
// Only the server's read loop calls Read. What is written goes through a batch.
type guard struct {
	*tls.Conn
	out *batch

	skip  int             // bytes to pass over: the preface, then payloads
	head  [frameHead]byte // of the next frame, as far as it came
	have  int
	block *time.Timer // runs while a header block is incomplete; closes the connection
	more  int         // CONTINUATION frames of the block
}

func newGuard(c *tls.Conn) *guard {
	g := &guard{Conn: c, skip: preface}
	g.out = newBatch(c, g.cut)
	return g
}

// cut ends the connection past TLS, which would wait to say goodbye.
func (g *guard) cut() { _ = g.Conn.NetConn().Close() }

// Write implements net.Conn.
func (g *guard) Write(p []byte) (int, error) { return g.out.Write(p) }

// SetWriteDeadline does nothing: the batch bounds its writes itself.
func (g *guard) SetWriteDeadline(time.Time) error { return nil }

// Close implements net.Conn.
func (g *guard) Close() error {
	g.out.close()
	return g.Conn.Close()
}

// Read implements net.Conn.
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.Conn.Read(p)
	for b := p[:n]; len(b) > 0; {
		if g.skip > 0 {
			k := min(g.skip, len(b))
			g.skip, b = g.skip-k, b[k:]
			continue
		}
		k := copy(g.head[g.have:], b)
		g.have, b = g.have+k, b[k:]
		if g.have == frameHead {
			g.have = 0
			if err := g.frame(); err != nil {
				return 0, err
			}
		}
	}
	if err != nil {
		g.complete()
	}
	return n, err
}

// frame looks at the frame that begins.
func (g *guard) frame() error {
	g.skip = int(binary.BigEndian.Uint32(g.head[:4]) >> 8)
	kind, flags := http2.FrameType(g.head[3]), g.head[4]
	switch kind { //nolint:exhaustive // the others do not carry header blocks
	case http2.FrameHeaders:
		g.more = 0
	case http2.FrameContinuation:
		if g.more++; g.more > maxContinuations {
			g.complete()
			g.cut()
			return errContinuations
		}
	default:
		return nil
	}
	if flags&endHeaders != 0 {
		g.complete()
	} else if g.block == nil {
		g.block = time.AfterFunc(headTimeout, g.cut)
	}
	return nil
}

// complete ends the wait for a header block.
func (g *guard) complete() {
	if g.block != nil {
		g.block.Stop()
		g.block = nil
	}
}
