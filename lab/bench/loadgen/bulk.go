package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

const mib = 1 << 20

// startUploads sends a body of -body bytes again and again on each connection;
// a unit is a MiB.
func (l *load) startUploads(ctx context.Context) error {
	body := bytes.Repeat([]byte("0123456789abcdef"), l.body/16)
	return l.startBulk(ctx, http.MethodPost, "/sink", body, len(body))
}

// startDownloads asks for -body bytes again and again; a unit is a MiB.
func (l *load) startDownloads(ctx context.Context) error {
	return l.startBulk(ctx, http.MethodGet, "/bytes?n="+strconv.Itoa(l.body), nil, l.body)
}

func (l *load) startBulk(ctx context.Context, method, path string, body []byte, size int) error {
	if size < mib {
		return fmt.Errorf("a body of %d bytes: want a MiB at least", size)
	}
	for range l.conns {
		t := &http.Transport{
			TLSClientConfig: l.tls.Clone(), ForceAttemptHTTP2: l.proto == "h2", DisableCompression: true,
			WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10, TLSHandshakeTimeout: handshakeTime,
		}
		once := func() error {
			start := time.Now()
			if err := l.transfer(ctx, t, method, path, body); err != nil {
				return err
			}
			l.done(size/mib, time.Since(start))
			return nil
		}
		if err := once(); err != nil {
			return err
		}
		l.running.Go(func() {
			defer t.CloseIdleConnections()
			for ctx.Err() == nil {
				l.fail(once())
			}
		})
	}
	return nil
}

func (l *load) transfer(ctx context.Context, t *http.Transport, method, path string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+l.addr+l.target(path), nil)
	if err != nil {
		return err
	}
	r.Host = l.name
	if body != nil {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	resp, err := t.RoundTrip(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // read only
	l.handshake.Store(resp.TLS)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s", errReply, resp.Status)
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
