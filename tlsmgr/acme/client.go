package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Bounds of speaking with a CA.
const (
	maxAnswer     = 1 << 20          // bytes; a chain or an order of a hundred names is some kilobytes
	maxParallel   = 8                // requests of one order at once
	stepTimeout   = 2 * time.Minute  // for a step that waits for nothing, with all repetitions
	directoryTTL  = time.Hour        // then the directory is read again
	directoryWait = time.Minute      // between attempts to do so when the CA is away
	retryPause    = time.Second / 4  // before a GET is repeated
	maxGets       = 3                // attempts of a GET
	maxNonces     = 2                // repetitions of a step for its nonce, besides acmez's own
	maxPollWait   = 30 * time.Second // that a CA can put between two looks
	maxRetryAfter = 24 * time.Hour   // that a CA can make edge wait: after a day it is worth asking again
)

// newHTTPClient is an HTTP client that gives up.
func newHTTPClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    10 * time.Second,
			ResponseHeaderTimeout:  20 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConnsPerHost:    maxParallel,
			ForceAttemptHTTP2:      true,
		},
	}
}

// bounded is client with a transport that bounds answers and takes notes.
func bounded(client *http.Client) *http.Client {
	next := *client
	if next.Transport == nil {
		next.Transport = http.DefaultTransport
	}
	next.Transport = &transport{next.Transport}
	return &next
}

// note is what a step wants to know about the CA's last answer to it, which
// acmez does not tell. It travels in the context and is not shared by goroutines.
type note struct {
	found      bool          // the CA's directory was read
	status     int           // of HTTP; 0 when there was no answer
	retryAfter time.Duration // 0 is none
	left       int           // requests until the CA is cut off, which is at 1; 0 is no limit
}

type noteKey struct{}

// noting is ctx with a note.
func noting(ctx context.Context) (context.Context, *note) {
	n := new(note)
	return context.WithValue(ctx, noteKey{}, n), n
}

// statusOf is the HTTP status of the last answer to the step of ctx.
func statusOf(ctx context.Context) int {
	if n, ok := ctx.Value(noteKey{}).(*note); ok {
		return n.status
	}
	return 0
}

var errTooMany = errors.New("the CA wants too many requests for one step")

// transport does what acmez does not.
type transport struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	n, _ := req.Context().Value(noteKey{}).(*note)
	if n != nil && n.left == 1 {
		return nil, errTooMany
	}
	if n != nil && n.left > 1 {
		n.left--
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		if n != nil {
			n.status, n.retryAfter = 0, 0
		}
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	if n != nil {
		n.status, n.retryAfter = resp.StatusCode, parseRetryAfter(resp.Header.Get("Retry-After"), time.Now())
	}
	return resp, nil
}

// parseRetryAfter reads both forms of the field (RFC 9110 section 10.2.3); 0 is
// none.
func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseFloat(s, 64); err == nil || errors.Is(err, strconv.ErrRange) { // some write a fraction
		if !(n > 0) { // also what is no number
			return 0
		}
		return time.Duration(min(n, maxRetryAfter.Seconds()) * float64(time.Second))
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// request names a step for its errors.
type request struct {
	op    string
	names []string // that it is about
	left  int      // more than it has HTTP requests; 0 is no bound
}

// do runs one step, bounded, and explains what went wrong.
func (c *CA) do(ctx context.Context, r request, f func(context.Context, *session) error) error {
	_, err := c.note(ctx, r, f)
	return err
}

// note is do, and how long the CA's last answer asked to wait.
func (c *CA) note(ctx context.Context, r request, f func(context.Context, *session) error) (time.Duration, error) {
	bound, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	bound, n := noting(bound)
	s, err := c.session(bound)
	if err == nil {
		n.found, n.status, n.left = true, 0, r.left
		err = f(bound, s)
		// acmez repeats ten times, which is too few for many requests at a CA
		// that likes no nonces. A request with a bad one has no effect.
		for n := 0; n < maxNonces && isBadNonce(err); n++ {
			err = f(bound, s)
		}
	}
	if err != nil {
		return n.retryAfter, c.explain(r, err, n)
	}
	return n.retryAfter, nil
}

// Bounds of waiting for a CA to make up its mind.
const (
	pollTimeout = 5 * time.Minute
	pollFirst   = time.Second / 4
	pollMost    = 5 * time.Second
)

var errUndecided = errors.New("the CA has not decided")

// poll looks until look is done or fails; after timeout it is errUndecided. look
// tells how long the CA wants to be left alone; 0 is not at all, then the pauses
// grow.
func poll(ctx context.Context, timeout time.Duration, look func(context.Context) (done bool, wait time.Duration, err error)) error {
	bound, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	pause := pollFirst
	for {
		done, wait, err := look(bound)
		if done {
			return nil
		}
		if err == nil {
			if wait <= 0 {
				wait, pause = pause, min(pause*3/2, pollMost)
			}
			err = sleep(bound, min(wait, maxPollWait))
		}
		if err != nil && bound.Err() != nil && ctx.Err() == nil {
			return errUndecided
		}
		if err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
