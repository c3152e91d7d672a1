package memnet

import (
	"net"
	"testing"
)

// Pair returns both ends of a connection, which are closed when the test ends.
func Pair(tb testing.TB) (client, server *Conn) {
	tb.Helper()
	var n Network
	l, err := n.Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // it is closed once
	dialled, err := n.Dial(tb.Context(), "tcp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	client, server = mustConn(tb, dialled), mustConn(tb, accepted)
	tb.Cleanup(func() {
		_ = client.Close()
		_ = server.Close()
	})
	return client, server
}

func mustConn(tb testing.TB, c net.Conn) *Conn {
	tb.Helper()
	conn, ok := c.(*Conn)
	if !ok {
		tb.Fatalf("memnet: a connection of type %T", c)
	}
	return conn
}
