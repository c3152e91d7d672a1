package acme

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
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
	if n, err := time.ParseDuration(s + "s"); err == nil && s != "" { // a number of seconds, some write a fraction
		return min(max(n, 0), maxRetryAfter)
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// directory is the CA's index (RFC 8555 section 7.1.1).
type directory struct {
	acme.Directory
	renewalInfo string
}

// session is an acmez client for one content of the CA's directory.
//
// Left to itself, acmez reads the directory into a cache of the whole process and
// never again, holding a lock of the whole process meanwhile, under which every
// other CA waits too. So edge reads it, and acmez gets a copy without network,
// under an URL that changes with the content. The copy has no renewalInfo: with
// it acmez asks for renewal information whenever it downloads a chain, for seven
// seconds when the answer is not to its liking, and that chain exists nowhere
// else yet.
type session struct {
	client  *acme.Client
	dir     directory
	refresh time.Time // when the directory is due again
}

func (s *session) meta() Meta {
	m := Meta{ARI: s.dir.renewalInfo != ""}
	if d := s.dir.Meta; d != nil {
		m.Profiles, m.CAAIdentities = d.Profiles, d.CAAIdentities
		m.EABRequired, m.TermsOfService = d.ExternalAccountRequired, d.TermsOfService
	}
	return m
}

// session is the current one. One caller reads a directory that is due, the
// others wait for it or for their context. A CA that is away keeps its old
// directory: the next request will say what is wrong.
func (c *CA) session(ctx context.Context) (*session, error) {
	if s := c.fresh(); s != nil {
		return s, nil
	}
	select {
	case c.fetching <- struct{}{}:
		defer func() { <-c.fetching }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s := c.fresh(); s != nil {
		return s, nil
	}
	next, err := c.fetch(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.current = next
	case c.current == nil || ctx.Err() != nil:
		return nil, err
	default:
		old := *c.current
		old.refresh = time.Now().Add(directoryWait)
		c.current = &old
	}
	return c.current, nil
}

func (c *CA) fresh() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil || !time.Now().Before(c.current.refresh) {
		return nil
	}
	return c.current
}

// fetch reads the directory.
func (c *CA) fetch(ctx context.Context) (*session, error) {
	var dir directory
	if err := c.get(ctx, c.config.Directory, &dir.Directory); err != nil {
		return nil, err
	}
	if dir.NewNonce == "" || dir.NewAccount == "" || dir.NewOrder == "" {
		return nil, errNoDirectory
	}
	dir.renewalInfo, dir.RenewalInfo = dir.RenewalInfo, ""
	content, err := json.Marshal(dir.Directory)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	source := &feed{url: c.config.Directory + "#" + hex.EncodeToString(sum[:8]), content: string(content), next: c.http.Transport}
	client := *c.http
	client.Transport = source
	return &session{
		dir:     dir,
		refresh: time.Now().Add(directoryTTL),
		client: &acme.Client{
			Directory: source.url, HTTPClient: &client, UserAgent: c.userAgent,
			PollTimeout: -1, // edge looks itself, with a bound for what the CA may ask
		},
	}, nil
}

// feed answers one URL from memory.
type feed struct {
	url, content string
	next         http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (f *feed) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || req.URL.String() != f.url {
		return f.next.RoundTrip(req)
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header:        http.Header{"Content-Type": {"application/json"}},
		Body:          io.NopCloser(strings.NewReader(f.content)),
		ContentLength: int64(len(f.content)),
	}, nil
}

// get reads JSON that needs no signature, again when the CA has a hiccup.
func (c *CA) get(ctx context.Context, url string, into any) (err error) {
	for n := range maxGets {
		if n > 0 {
			if err := sleep(ctx, retryPause); err != nil {
				return err
			}
		}
		var again bool
		if again, err = c.getOnce(ctx, url, into); !again || errors.Is(err, errTooMany) {
			return err
		}
	}
	return err
}

func (c *CA) getOnce(ctx context.Context, url string, into any) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err
	}
	req.Header.Set("User-Agent", c.userAgent)
	resp, err := c.http.Do(req)
	if err != nil {
		return ctx.Err() == nil && !isCertificate(err), err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return false, err
	}
	if resp.StatusCode/100 != 2 {
		var p acme.Problem
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") && json.Unmarshal(body, &p) == nil {
			p.Status = resp.StatusCode
			return false, p
		}
		return resp.StatusCode >= http.StatusInternalServerError && resp.Header.Get("Retry-After") == "", fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return false, fmt.Errorf("%s instead of JSON", oneLine(orNothing(resp.Header.Get("Content-Type"))))
	}
	return false, nil
}

func orNothing(contentType string) string {
	if contentType == "" {
		return "something"
	}
	return contentType
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
