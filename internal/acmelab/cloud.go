package acmelab

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// gate is what the fakes of cloud APIs have in common: requests are counted,
// delayed, and made to fail.
type gate struct {
	mu       sync.Mutex
	requests map[string]int
	delay    time.Duration
	fail     func(op string) *Refusal
}

// Requests counts requests by operation; refused ones are counted too.
func (g *gate) Requests() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.requests)
}

// SetDelay makes each request wait before it is handled.
func (g *gate) SetDelay(d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.delay = d
}

// Refusal is how a fake is told to refuse a request.
type Refusal struct {
	Status     int
	Code       string // of the API
	RetryAfter string // in seconds; "" is not to say so
}

// SetFail installs fn, which is asked first about each operation; nil from it is
// to go on. nil removes it.
func (g *gate) SetFail(fn func(op string) *Refusal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fail = fn
}

// enter counts and delays a request. It returns what it was told to refuse, and
// false when the client has gone.
func (g *gate) enter(r *http.Request, op string) (refusal *Refusal, ok bool) {
	g.mu.Lock()
	if g.requests == nil {
		g.requests = map[string]int{}
	}
	g.requests[op]++
	delay, fail := g.delay, g.fail
	g.mu.Unlock()
	if !wait(r.Context(), delay) {
		return nil, false
	}
	if fail != nil {
		return fail(op), true
	}
	return nil, true
}

// tell writes how long to wait into the header of an answer.
func (r *Refusal) tell(w http.ResponseWriter) {
	if r.RetryAfter != "" {
		w.Header().Set("Retry-After", r.RetryAfter)
	}
}

// elsewhere sends requests for hosts whose names are fixed in clients to a
// server of the lab, and refuses all others.
type elsewhere struct {
	hosts  []string
	server string // host:port
	inner  *http.Transport
}

func toLab(url string, hosts ...string) *http.Client {
	return &http.Client{
		Timeout: time.Minute,
		Transport: &elsewhere{
			hosts: hosts, server: strings.TrimPrefix(url, "http://"), inner: &http.Transport{DisableKeepAlives: true},
		},
	}
}

// RoundTrip implements http.RoundTripper.
func (t *elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || !slices.Contains(t.hosts, r.URL.Host) {
		return nil, fmt.Errorf("acmelab: %s://%s is none of https://%s", r.URL.Scheme, r.URL.Host, strings.Join(t.hosts, ", "))
	}
	r = r.Clone(r.Context())
	r.Header.Set("X-Lab-Host", r.URL.Host)
	r.URL.Scheme, r.URL.Host = "http", t.server
	return t.inner.RoundTrip(r)
}
