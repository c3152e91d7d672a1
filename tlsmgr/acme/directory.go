package acme

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

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
		m.Profiles, m.CAAIdentities = maps.Clone(d.Profiles), slices.Clone(d.CAAIdentities)
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

var errNoDirectory = errors.New("the answer is not an ACME directory")

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
