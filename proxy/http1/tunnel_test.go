package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"

	"edge/proxy/exchange"
)

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\n"

func websocket() *exchange.Call {
	c := get("/socket")
	c.Upgrade = true
	return c
}

func TestTunnelCarriesBothWays(t *testing.T) {
	serve := func(s *serverConn) {
		if r := s.request(); r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
			t.Errorf("asked with %q", r.Header)
		}
		s.say(switching + "early") // in one packet
		io.Copy(s.Conn, s.br)
		s.say("bye")
	}
	for name, start := range map[string]func(testing.TB) *Client{
		"TCP": func(tb testing.TB) *Client { tb.Helper(); return rawServer(tb, Options{}, serve) },
		"TLS": func(tb testing.TB) *Client { tb.Helper(); return tlsServer(tb, true, serve) },
	} {
		c := start(t)
		reply, err := c.Do(websocket())
		if err != nil || reply.Status != 101 || reply.Tunnel == nil || reply.Header.Get("sec-websocket-accept") != "x" {
			t.Fatalf("%s: %+v, %v", name, reply, err)
		}
		if n, err := reply.Body.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: the body is not empty: %d, %v", name, n, err)
		}
		buf := make([]byte, 100)
		n, err := io.ReadFull(reply.Tunnel, buf[:5])
		if string(buf[:n]) != "early" || err != nil {
			t.Errorf("%s: %q, %v; want what came behind the head", name, buf[:n], err)
		}
		io.WriteString(reply.Tunnel, "ping")
		n, err = io.ReadFull(reply.Tunnel, buf[:4])
		if string(buf[:n]) != "ping" || err != nil {
			t.Errorf("%s: %q, %v; want ping", name, buf[:n], err)
		}
		if err := reply.Tunnel.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Errorf("%s: CloseWrite: %v", name, err)
		}
		rest, err := io.ReadAll(reply.Tunnel)
		if string(rest) != "bye" || err != nil {
			t.Errorf("%s: %q, %v; want the last word", name, rest, err)
		}
		if err := errors.Join(reply.Tunnel.Close(), reply.Tunnel.Close()); err != nil || c.Idle() != 0 {
			t.Errorf("%s: Close: %v, %d idle", name, err, c.Idle())
		}
	}
}

func TestTunnelEndsWithCloseAndWithCancel(t *testing.T) {
	for name, end := range map[string]func(*exchange.Call, exchange.Reply){
		"Close":  func(_ *exchange.Call, r exchange.Reply) { _ = r.Tunnel.Close() },
		"Cancel": func(c *exchange.Call, _ exchange.Reply) { c.Canceler.Cancel(errEnough) },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := memServer(t, Options{}, func(s *serverConn) { s.request(); s.say(switching); io.Copy(io.Discard, s.br) })
			call := websocket()
			reply, err := c.Do(call)
			if err != nil {
				t.Fatal(err)
			}
			var reading sync.WaitGroup
			reading.Go(func() {
				if n, err := reply.Tunnel.Read(make([]byte, 5)); n != 0 || err == nil {
					t.Errorf("%s: the Read under way: %d, %v", name, n, err)
				}
			})
			synctest.Wait()
			end(call, reply)
			reading.Wait()
			if err := reply.Tunnel.Close(); err != nil {
				t.Errorf("%s: Close: %v", name, err)
			}
		})
	}
}

func TestSwitchingHasItsConditions(t *testing.T) {
	for name, tape := range map[string]string{
		"another protocol":  "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"no protocol":       "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
		"no Connection":     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
		"HTTP/1.0":          "HTTP/1.0 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"with a body":       "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\n",
		"with chunks, even": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n\r\n",
	} {
		h := hear(t, tape, websocket(), 1<<20)
		if !errors.Is(h.err, exchange.ErrInvalidReply) || h.reply.Tunnel != nil {
			t.Errorf("%s: %v, want %v", name, h.err, exchange.ErrInvalidReply)
		}
	}
	h := hear(t, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", websocket(), 1<<20)
	if h.err != nil || h.body != "no" || !h.kept {
		t.Errorf("a refusal: %q, kept %v, %v", h.body, h.kept, h.err)
	}
}

// plainConn cannot end one direction.
type plainConn struct{ net.Conn }

func TestCloseWriteNeedsAConnectionThatHasIt(t *testing.T) {
	nc := &tapeConn{reply: switching, piece: 1 << 20}
	c := NewClient(func(context.Context) (net.Conn, error) { return plainConn{nc}, nil }, Options{})
	reply, err := c.Do(websocket())
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Tunnel.Close()
	if err := reply.Tunnel.(interface{ CloseWrite() error }).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloseWrite: %v, want %v", err, errors.ErrUnsupported)
	}
}
