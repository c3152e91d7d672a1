package proxy

import (
	"errors"
	"io"
	"sync"
	"time"

	"edge/proxy/exchange"
	"edge/proxy/upstream"
)

// tunnelBuffer is for one direction of a websocket: frames of tokens and of
// audio are small.
const tunnelBuffer = 16 << 10

// tunnelLinger is the silence that is left to a tunnel of which one side has
// said its last: enough for an answer, not for a leak.
const tunnelLinger = time.Second

// tunnels are the upgraded connections, which no http.Server knows any more.
type tunnels struct {
	mu   sync.Mutex
	open map[io.Closer]struct{}
	over bool // cut was called
}

// add is false when tunnels are cut already.
func (t *tunnels) add(c io.Closer) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return false
	}
	if t.open == nil {
		t.open = map[io.Closer]struct{}{}
	}
	t.open[c] = struct{}{}
	return true
}

func (t *tunnels) remove(c io.Closer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

// cut closes all tunnels, now and in future.
func (t *tunnels) cut() {
	t.mu.Lock()
	open := t.open
	t.open, t.over = nil, true
	t.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
}

// tunnel joins client and backend after a 101 until one side closes, neither
// says anything for idle (0 is for ever), or the Server is shut down. Bytes that
// either side sent right behind its handshake are part of the tunnel. The end of
// one direction is passed on as such where the connection can, and the other then
// has tunnelLinger of silence left, so that a last answer still arrives.
func (s *Server) tunnel(e *exchange.Exchange, resp *upstream.Response, idle time.Duration) {
	backend := resp.Tunnel()
	e.Reply.Set("Upgrade", "websocket")
	client, err := e.Tunnel()
	if err != nil {
		_ = backend.Close()
		reason := ClientLeft // before it could be told
		if errors.Is(err, exchange.ErrNoTunnel) {
			reason = Internal
		}
		fail(e, reason, err)
		return
	}
	both := &pair{client, backend}
	if !s.tunnels.add(both) {
		_ = both.Close()
		return
	}
	defer s.tunnels.remove(both)
	if idle <= 0 {
		idle = forever
	}
	silence := exchange.NewWatch(idle, func() { _ = both.Close() })
	silence.Begin()
	defer silence.Stop()
	var upload sync.WaitGroup
	upload.Go(func() { transfer(backend, client, both, silence) })
	transfer(client, backend, both, silence)
	upload.Wait()
	_ = both.Close()
}

// pair is the two ends of a tunnel.
type pair struct{ a, b io.Closer }

// Close closes both ends.
func (p *pair) Close() error {
	_ = p.a.Close()
	return p.b.Close()
}

// transfer copies src to dst. At the end of src it half-closes dst if it can;
// else, and on any error, it ends the tunnel.
func transfer(dst io.Writer, src io.Reader, both io.Closer, silence *exchange.Watch) {
	buf := make([]byte, tunnelBuffer)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			silence.Begin()
			if _, werr := dst.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err == nil {
			continue
		}
		half, ok := dst.(interface{ CloseWrite() error })
		if err != io.EOF || !ok || half.CloseWrite() != nil { //nolint:errorlint // io.EOF is never wrapped by a Reader
			_ = both.Close()
		}
		silence.SetLimit(tunnelLinger)
		silence.Begin()
		return
	}
}
