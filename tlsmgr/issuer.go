package tlsmgr

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"edge/config"
	"edge/tlsmgr/dns"

	"github.com/mholt/acmez/v3/acme"
)

// issuer is a CA with what it takes to convince it. It is made anew by each
// Prepare, so that it sees changed secrets.
type issuer struct {
	config *config.Issuer
	client *acme.Client
	solver *dns.Solver
}

// forOrder is the issuer with a client of its own for one order. acmez reads the
// CA's directory once for each client, and a process lives for months.
func (i *issuer) forOrder() *issuer {
	next := *i
	next.client = &acme.Client{Directory: i.client.Directory, UserAgent: i.client.UserAgent, HTTPClient: i.client.HTTPClient}
	return &next
}

// newIssuer reads the files and secrets of an issuer. It touches no network.
func (m *Manager) newIssuer(cfg *config.Config, issuerName string) (*issuer, error) {
	c := cfg.Issuers[issuerName]
	if c == nil {
		return nil, fmt.Errorf("no issuer %q (issuers: %s)", issuerName, strings.Join(slices.Sorted(maps.Keys(cfg.Issuers)), ", "))
	}
	roots, err := readRoots(c.CA)
	if err != nil {
		return nil, fmt.Errorf("issuers.%s.ca: %w", c.Name, err)
	}
	o := dns.Options{
		Logger: m.log, Resolvers: c.Resolvers, Authoritative: c.Authoritative,
		Poll: m.options.DNSPoll, Timeout: m.options.DNSTimeout,
	}
	if m.options.DNSClient != nil {
		o.HTTPClient = m.options.DNSClient
	}
	for _, name := range c.Providers {
		if p := cfg.Providers[name]; p != nil {
			o.Providers = append(o.Providers, p)
		}
	}
	solver, err := dns.New(o)
	if err != nil {
		return nil, fmt.Errorf("issuers.%s: %w", c.Name, err)
	}
	return &issuer{
		config: c,
		solver: solver,
		client: &acme.Client{
			Directory:  c.Directory,
			UserAgent:  "edge/" + cmp.Or(m.options.Version, "dev"),
			HTTPClient: newACMEClient(roots),
		},
	}, nil
}

// readRoots reads a PEM file of certificates; "" is nil, the system's.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // nil is how crypto/tls spells the system's roots
	}
	data, err := readBounded(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate (want PEM)", path)
	}
	return roots, nil
}

// newACMEClient is an HTTP client that gives up. Its timeouts are short because
// acmez holds a process-wide lock while it fetches a directory.
func newACMEClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Timeout: 30 * time.Second,
		Transport: &acmeTransport{&http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:    10 * time.Second,
			ResponseHeaderTimeout:  20 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			IdleConnTimeout:        30 * time.Second,
			MaxIdleConnsPerHost:    maxAuthz,
			ForceAttemptHTTP2:      true,
		}},
	}
}

// acmeTransport does what acmez does not: it bounds the answers, notes for the
// attempt whose context a request carries how long the CA's last answer asked it
// to wait, and keeps the download of a chain from asking for renewal information
// as well.
type acmeTransport struct{ next http.RoundTripper }

// retryAfterKey is the context's key of an *atomic.Int64, a time.Duration.
type retryAfterKey struct{}

// onlyChainKey marks the context of the download of a chain. acmez cannot do it
// without a GET for renewal information (RFC 9773), and spends seven seconds on
// it when the CA's answer is not to its liking: too long for a certificate that
// exists nowhere else yet. It gets an answer that is thrown away.
type onlyChainKey struct{}

func someRenewalInfo(req *http.Request, now time.Time) *http.Response {
	const format = `{"suggestedWindow":{"start":%q,"end":%q}}`
	body := fmt.Sprintf(format, now.UTC().Format(time.RFC3339), now.Add(time.Hour).UTC().Format(time.RFC3339))
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: req,
		Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
}

const maxACMEResponse = 1 << 20 // bytes; a chain or an order of a hundred names is some kilobytes

// RoundTrip implements http.RoundTripper.
func (t *acmeTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet && req.Context().Value(onlyChainKey{}) != nil {
		return someRenewalInfo(req, time.Now()), nil
	}
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxACMEResponse)
	if note, ok := req.Context().Value(retryAfterKey{}).(*atomic.Int64); ok {
		note.Store(int64(askedToWait(resp, time.Now())))
	}
	return resp, nil
}

// askedToWait is how long a CA that is busy, or that limits rates, wants to be
// left alone; 0 is any other answer. Not every such answer is an ACME problem:
// a load balancer has pages of its own.
func askedToWait(resp *http.Response, now time.Time) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	return parseRetryAfter(resp.Header.Get("Retry-After"), now)
}

// parseRetryAfter reads both forms of the field (RFC 9110 section 10.2.3); 0 is
// none.
func parseRetryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(s); err == nil {
		return time.Duration(min(max(n, 0), int(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(s); err == nil {
		return min(max(at.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// maxRetryAfter bounds how long a CA can make edge wait: after a day it is
// worth asking again, whatever it said.
const maxRetryAfter = 24 * time.Hour

// profile chooses the profile of orders (draft-ietf-acme-profiles): the
// configured one, else the one for TLS servers, else the CA's usual one, else
// the first by name. None where the CA lists none. It is always the same one:
// a CA is free to choose another for each order that names none.
func (i *issuer) profile(ctx context.Context) (string, error) {
	dir, err := i.client.GetDirectory(ctx)
	if err != nil {
		return "", i.explain("read the directory", err)
	}
	var listed []string
	if dir.Meta != nil {
		listed = slices.Sorted(maps.Keys(dir.Meta.Profiles))
	}
	return chooseProfile(i.config.Profile, listed)
}

func chooseProfile(configured string, listed []string) (string, error) {
	if configured != "" {
		if len(listed) == 0 {
			return "", fmt.Errorf("the CA has no profiles (remove profile %q)", configured)
		}
		if !slices.Contains(listed, configured) {
			return "", fmt.Errorf("the CA has no profile %q (profiles: %s)", configured, strings.Join(listed, ", "))
		}
		return configured, nil
	}
	for _, usual := range []string{"tlsserver", "default", "classic"} {
		if slices.Contains(listed, usual) {
			return usual, nil
		}
	}
	if len(listed) > 0 {
		return listed[0], nil
	}
	return "", nil
}

// isLost reports whether the CA does not know the account of a request.
func isLost(err error) bool {
	p, ok := problemOf(err)
	return ok && p.Type == acme.ProblemTypeAccountDoesNotExist
}

// problemOf finds the ACME problem in err, which acmez wraps both by value and
// by pointer.
func problemOf(err error) (acme.Problem, bool) {
	if p, ok := errors.AsType[acme.Problem](err); ok {
		return p, true
	}
	if p, ok := errors.AsType[*acme.Problem](err); ok && p != nil {
		return *p, true
	}
	return acme.Problem{}, false
}
