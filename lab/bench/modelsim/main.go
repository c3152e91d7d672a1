// Command modelsim is the model server of the bench lab: see package model for
// what it answers. It speaks HTTP/1.1 on -listen, the same over TLS on -tls
// (for a baseline without a proxy) and HTTP/2 with prior knowledge on -h2c.
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
	"syscall"
	"time"

	"edge/lab/bench/internal/model"
)

// headTime bounds the head of a request over h2c.
const headTime = 30 * time.Second

// addresses to listen on; an empty one is not served.
type addresses struct{ plain, tls, h2c string }

func main() {
	var at addresses
	flag.StringVar(&at.plain, "listen", "127.0.0.1:28000", "HTTP/1.1 `address`")
	flag.StringVar(&at.tls, "tls", "", "HTTP/1.1 over TLS `address`")
	flag.StringVar(&at.h2c, "h2c", "", "h2c `address`")
	cert := flag.String("cert", "certs/ec.crt", "certificate `file`")
	key := flag.String("key", "certs/ec.key", "key `file`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, at, *cert, *key)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "modelsim:", err)
		os.Exit(1)
	}
}

// run serves until ctx ends or a listener fails.
func run(ctx context.Context, at addresses, cert, key string) error {
	failed := make(chan error, 3)
	listen := func(address string, config *tls.Config, serve func(net.Listener) error) error {
		if address == "" {
			return nil
		}
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			return err
		}
		if config != nil {
			ln = tls.NewListener(ln, config)
		}
		go func() { failed <- serve(ln) }()
		return nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13}
	if at.tls != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	h2 := &http.Server{Handler: http.HandlerFunc(model.H2), Protocols: new(http.Protocols), ReadHeaderTimeout: headTime}
	h2.Protocols.SetUnencryptedHTTP2(true)
	for _, err := range []error{
		listen(at.plain, nil, model.Serve), listen(at.tls, config, model.Serve), listen(at.h2c, nil, h2.Serve),
	} {
		if err != nil {
			return err
		}
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}
