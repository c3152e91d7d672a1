package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unicode"
)

// Bounds of one request to a cloud; requestTimeout bounds all its attempts.
const (
	attempts       = 3
	minBackoff     = 200 * time.Millisecond
	maxBackoff     = time.Second
	attemptTimeout = 15 * time.Second
	dialTimeout    = 5 * time.Second

	maxReply = 8 << 20 // bytes; of a page of a listing, the largest, whose names are bounded
)

var errReply = &fault{message: "an answer is larger than any of a storage", hint: "is that a storage?"}

// newHTTPClient returns a client with these bounds. It follows no redirects:
// they would lead requests with credentials elsewhere.
func newHTTPClient() *http.Client {
	return &http.Client{
		Timeout:       attemptTimeout,
		CheckRedirect: stay,
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:   dialTimeout,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   2 * maxRequests,
			IdleConnTimeout:       90 * time.Second,
			ExpectContinueTimeout: time.Second,
			DisableCompression:    true, // a body that ends early must not pass for a whole one
		},
	}
}

func stay(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// sentKey is the context key of a counter of requests on the wire.
type sentKey struct{}

// counting returns a context in which countedClient counts.
func counting(ctx context.Context) (context.Context, *atomic.Int32) {
	var sent atomic.Int32
	return context.WithValue(ctx, sentKey{}, &sent), &sent
}

// countedClient counts the attempts of one operation and bounds their answers.
// The SDKs do not tell attempts when the operation fails, and whether a conflict
// can be with our own write depends on it.
type countedClient struct {
	client interface {
		Do(r *http.Request) (*http.Response, error)
	}
}

// Do implements the client interfaces of the SDKs.
func (c countedClient) Do(r *http.Request) (*http.Response, error) {
	if sent, ok := r.Context().Value(sentKey{}).(*atomic.Int32); ok {
		sent.Add(1)
	}
	resp, err := c.client.Do(r)
	if err == nil {
		resp.Body = &boundedBody{resp.Body, maxReply}
	}
	return resp, err
}

// boundedBody ends with an error what is too long. The SDKs keep listings and
// errors in memory, as long as the server sends.
type boundedBody struct {
	io.ReadCloser
	left int64
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errReply
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// responseError is a fault with the status of the response.
type responseError struct {
	fault
	status int
}

// isRefusal reports whether the server answered that it did not do it.
func isRefusal(err error) bool {
	f, ok := errors.AsType[*responseError](err)
	return ok && f.status < http.StatusInternalServerError && f.status != http.StatusRequestTimeout
}

func hasStatus(err error, status int) bool {
	f, ok := errors.AsType[*responseError](err)
	return ok && f.status == status
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// credentialsError marks what went wrong before there was a request, which the
// SDKs report in many ways.
type credentialsError struct{ cause error }

func (e *credentialsError) Error() string { return "no credentials: " + e.cause.Error() }
func (e *credentialsError) Unwrap() error { return e.cause }

// peer is the far end of a request, for explanations.
type peer struct {
	where   string // an endpoint or a product
	options string // of the storage URL that say where it is
	trust   string // how to make its certificate trusted
}

const systemTrust = "add its CA to those of the system, or set SSL_CERT_FILE to a file with it"

// explain is about requests that got no answer.
func (p peer) explain(err error) error {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return &fault{fmt.Sprintf("host %s of the storage cannot be resolved", dns.Name), "check " + p.options + " in the storage URL, and DNS", err}
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &fault{p.where + " shows a certificate that is not trusted", p.trust, err}
	}
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return &fault{p.where + " refuses connections", "is the storage running, and is endpoint in the storage URL right?", err}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return &fault{p.where + " did not answer in time", "check the network and endpoint in the storage URL", err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return &fault{p.where + " closed the connection", "edge tries again by itself; if it lasts, look at the storage and at proxies before it", err}
	}
	return &fault{p.where + ": " + oneLine(innermost(err).Error()), "", err}
}

func innermost(err error) error {
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return err
}

// oneLine makes foreign text fit for a log line.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
