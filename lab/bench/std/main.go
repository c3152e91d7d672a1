// Command std is a reverse proxy made of nothing but the standard library,
// tuned: the baseline that people know. It forwards and does nothing else: no
// routes, no limits, no retries, no log. Not for use outside the lab.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

const (
	headTime   = time.Minute
	idleTime   = 10 * time.Minute
	maxStreams = 1000 // of one HTTP/2 connection, as the other peers have it
)

// settings is the command line.
type settings struct{ listen, backend, h2c, certs string }

func main() {
	var s settings
	flag.StringVar(&s.listen, "listen", "127.0.0.1:28443", "TLS `address`")
	flag.StringVar(&s.backend, "backend", "127.0.0.1:28000", "HTTP/1.1 `address`")
	flag.StringVar(&s.h2c, "h2c", "127.0.0.1:28002", "h2c `address` for /grpc/")
	flag.StringVar(&s.certs, "certs", "certs", "`directory` of ec.crt, ec.key, rsa.crt, rsa.key")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, s)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "std:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, s settings) error {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, name := range []string{"ec", "rsa"} {
		base := filepath.Join(s.certs, name)
		pair, err := tls.LoadX509KeyPair(base+".crt", base+".key")
		if err != nil {
			return err
		}
		config.Certificates = append(config.Certificates, pair)
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", s.listen)
	if err != nil {
		return err
	}
	server := newServer(newProxy(s.backend, s.h2c), config)
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ServeTLS(ln, "", ""); ctx.Err() == nil {
		return err
	}
	return nil
}

// newServer is tuned for HTTP/2: larger frames and windows than the defaults.
func newServer(h http.Handler, config *tls.Config) *http.Server {
	return &http.Server{
		Handler: h, TLSConfig: config, ReadHeaderTimeout: headTime, IdleTimeout: idleTime, ErrorLog: quiet(),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReadFrameSize:              64 << 10,
			MaxReceiveBufferPerConnection: 4 << 20,
			MaxReceiveBufferPerStream:     1 << 20,
		},
	}
}
