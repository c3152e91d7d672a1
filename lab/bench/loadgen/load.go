package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"edge/lab/bench/internal/meter"
)

const (
	dialTime      = 5 * time.Second
	handshakeTime = 20 * time.Second // a thousand of them share the cores
	dialsAtOnce   = 32
)

// load is a running workload: what its goroutines share.
type load struct {
	options
	tls *tls.Config

	units, failures atomic.Int64
	open            atomic.Bool // the window is open: latencies count
	stopping        atomic.Bool // errors are ours
	latency, ttft   meter.Hist
	firstError      atomic.Pointer[string]
	handshake       atomic.Pointer[tls.ConnectionState]
	running         sync.WaitGroup
}

func clientTLS(o options) *tls.Config {
	config := &tls.Config{InsecureSkipVerify: true, ServerName: o.name, MinVersion: tls.VersionTLS13} //nolint:gosec // the lab's certificates are self-signed
	if !o.mlkem {
		config.CurvePreferences = []tls.CurveID{tls.X25519}
	}
	config.NextProtos = []string{"http/1.1"}
	if o.proto == "h2" {
		config.NextProtos = []string{"h2"}
	}
	return config
}

// wait returns when every goroutine of the load has ended. Its context must
// have: that closes the connections they read from.
func (l *load) wait() { l.running.Wait() }

// fail counts an error and keeps the first. Nil and errors of the end do not count.
func (l *load) fail(err error) {
	if l.stopping.Load() || err == nil {
		return
	}
	s := err.Error()
	l.firstError.CompareAndSwap(nil, &s)
	l.failures.Add(1)
}

// done counts n units that took d.
func (l *load) done(n int, d time.Duration) {
	l.units.Add(int64(n))
	if l.open.Load() {
		l.latency.Add(d)
	}
}

// note says what went wrong first, or else what TLS agreed on. A report that
// lacks the expected word is for something else than the work that was asked
// for, and loses its figures.
func (l *load) note(r *meter.Report) {
	r.Errors = l.failures.Load()
	if e := l.firstError.Load(); e != nil {
		r.Note = *e
	} else if s := l.handshake.Load(); s != nil {
		r.Note = fmt.Sprintf("%s %v resumed=%v %s", tls.CipherSuiteName(s.CipherSuite), s.CurveID, s.DidResume, s.PeerCertificates[0].PublicKeyAlgorithm)
	}
	if l.expect != "" && !slices.Contains(strings.Fields(r.Note), l.expect) {
		r.Units, r.CPU = 0, 0
		r.Note = "not " + l.expect + ": " + r.Note
	}
}

// dial opens a connection to the proxy and completes the handshake. The end
// of ctx closes it, without a word of TLS.
func (l *load) dial(ctx context.Context, config *tls.Config) (net.Conn, error) {
	raw, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "tcp", l.addr)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { _ = raw.Close() })
	c := tls.Client(raw, config)
	within, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	if err := c.HandshakeContext(within); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	s := c.ConnectionState()
	l.handshake.Store(&s)
	if l.proto == "h2" && s.NegotiatedProtocol != "h2" {
		_ = raw.Close()
		return nil, fmt.Errorf("h2 not negotiated: %q", s.NegotiatedProtocol)
	}
	return c, nil
}

// target is the path to ask for.
func (l *load) target(otherwise string) string {
	if l.path != "" {
		return l.path
	}
	return otherwise
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// each runs f for n indices, a bounded number at once, and returns the first
// error.
func each(n int, f func(i int) error) error {
	var running sync.WaitGroup
	errs := make(chan error, n)
	slots := make(chan struct{}, dialsAtOnce)
	for i := range n {
		slots <- struct{}{}
		running.Go(func() {
			errs <- f(i)
			<-slots
		})
	}
	running.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
