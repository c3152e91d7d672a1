package http1

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
)

// NoteEOF wraps a connection that is to carry TLS. crypto/tls reports a bare FIN
// between two records as io.EOF, as if the peer had said goodbye with
// close_notify; what the wrapper saw tells them apart. Without it a reply over
// TLS that ends with its connection is never taken for complete.
func NoteEOF(c net.Conn) net.Conn { return &noteEOF{Conn: c} }

type noteEOF struct {
	net.Conn
	eof atomic.Bool
}

// Read notes the end of the stream.
func (n *noteEOF) Read(p []byte) (int, error) {
	k, err := n.Conn.Read(p)
	if err == io.EOF { //nolint:errorlint // as connections return it
		n.eof.Store(true)
	}
	return k, err
}

// NetConn returns what was wrapped.
func (n *noteEOF) NetConn() net.Conn { return n.Conn }

// CloseWrite ends the direction to the peer.
func (n *noteEOF) CloseWrite() error { return closeWrite(n.Conn) }

func closeWrite(c net.Conn) error {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
