package proxy

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"runtime/debug"
	"time"
)

// maxHandshakes bounds the goroutines of a front that do nothing but a
// handshake. What comes above it is served all the same, see handshakes.
const maxHandshakes = 1024

// handshakes is a net.Listener of *tls.Conn whose handshakes run in goroutines
// of their own. A handshake grows a stack to 16 KiB or more, and the garbage
// collector takes it back by halves, never below four times what is in use: left
// on the goroutine of the connection, it stays with every idle connection of
// HTTP/2 (docs/decisions/0014). The goroutine of the connection,
// which net/http starts, waits in tls.Conn.HandshakeContext for the one here to
// end, and finds the result. So all that is known of a connection before its
// handshake has ended, its deadline, its ConnState, its end by Close, is as if
// it did the handshake itself; which it does when there are too many, and when
// it happens to be first.
type handshakes struct {
	net.Listener
	config *tls.Config
	log    *slog.Logger
	slots  chan struct{}
}

func newHandshakes(ln net.Listener, config *tls.Config, log *slog.Logger) *handshakes {
	return &handshakes{Listener: ln, config: config, log: log, slots: make(chan struct{}, maxHandshakes)}
}

// Accept implements net.Listener. It waits for no client.
func (h *handshakes) Accept() (net.Conn, error) {
	c, err := h.Listener.Accept()
	if err != nil {
		return nil, err
	}
	t := tls.Server(c, h.config)
	select {
	case h.slots <- struct{}{}:
	default:
		return t, nil
	}
	_ = c.SetDeadline(time.Now().Add(headTimeout)) // net/http sets the same, and takes it away
	begun := make(chan struct{})
	go h.shake(t, begun)
	<-begun
	return t, nil
}

// shake ends when the handshake does: by its deadline, or because the
// connection was closed. A panic ends the connection, not the process, as it
// would in net/http.
func (h *handshakes) shake(t *tls.Conn, begun chan<- struct{}) {
	ctx := context.Background()
	defer func() { <-h.slots }()
	defer func() {
		if v := recover(); v != nil {
			h.log.LogAttrs(ctx, slog.LevelError, "panic in a handshake", slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			_ = t.NetConn().Close()
		}
	}()
	close(begun)
	_ = t.HandshakeContext(ctx) // whoever asks again is told the result
}
