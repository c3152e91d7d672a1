package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"testing"
)

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// echo accepts a websocket and speaks at once, then returns what it reads.
func echo(t *testing.T) (url string, left chan struct{}) {
	t.Helper()
	left = make(chan struct{}, 1)
	url = script(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err != nil {
			return
		}
		io.WriteString(c, switching+"early")
		io.Copy(c, r)
		io.WriteString(c, "bye")
		left <- struct{}{}
	})
	return url, left
}

func tunnelTo(ctx context.Context, t *testing.T, url string) (*Response, io.ReadWriteCloser) {
	t.Helper()
	req := get("/ws")
	req.Upgrade = true
	resp, err := open(t, poolOf(url)).Do(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Close() })
	if resp.Status != 101 || resp.Header.Get("upgrade") != "websocket" || resp.Tunnel() == nil {
		t.Fatalf("reply %d %v, want 101 with a tunnel", resp.Status, resp.Header)
	}
	return resp, resp.Tunnel()
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("tunnel: %q, %v; want %q", got, err, want)
	}
}

func TestTunnelKeepsWhatFollowsTheHandshakeAndHalfCloses(t *testing.T) {
	url, _ := echo(t)
	resp, tunnel := tunnelTo(t.Context(), t, url)
	if _, err := resp.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("Read of a 101: %v, want io.EOF", err)
	}
	expect(t, tunnel, "early")
	io.WriteString(tunnel, "ping")
	expect(t, tunnel, "ping")
	if err := tunnel.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: %v", err)
	}
	if rest, err := io.ReadAll(tunnel); string(rest) != "bye" || err != nil {
		t.Errorf("after half-close: %q, %v; want bye", rest, err)
	}
}

func TestEndOfContextClosesATunnel(t *testing.T) {
	url, left := echo(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, tunnel := tunnelTo(ctx, t, url)
	expect(t, tunnel, "early")
	cancel()
	within(t, prompt, "endpoint sees the client leave", left)
}

func TestCloseOfTheResponseClosesATunnel(t *testing.T) {
	url, left := echo(t)
	resp, _ := tunnelTo(t.Context(), t, url)
	resp.Close()
	within(t, prompt, "endpoint sees the client leave", left)
}

func TestRefusedUpgradeIsAnOrdinaryReply(t *testing.T) {
	url := script(t, func(c net.Conn, r *bufio.Reader) {
		if _, err := head(r); err == nil {
			io.WriteString(c, "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
		}
	})
	req := get("/ws")
	req.Upgrade = true
	resp := do(t, open(t, poolOf(url)), req)
	if got := text(t, resp); resp.Status != 403 || got != "no" || resp.Tunnel() != nil {
		t.Errorf("reply %d %q, want 403 no without a tunnel", resp.Status, got)
	}
}
