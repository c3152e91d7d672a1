package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"edge/config"

	"github.com/libdns/cloudflare"
	"github.com/libdns/libdns"
	"golang.org/x/sync/errgroup"
)

// cloudflareParallel bounds the requests to Cloudflare under way at once.
const cloudflareParallel = 8

// Error codes of Cloudflare's API that are no failure for us.
const (
	cloudflareRecordExists  = 81057 // "Record already exists."
	cloudflareIdentical     = 81058 // "An identical record already exists."
	cloudflareRecordMissing = 81044 // "Record does not exist."
)

// useCloudflare prepares Cloudflare's API with a scoped token.
func (p *provider) useCloudflare(c *config.Cloudflare, hc HTTPClient, pc *pace) error {
	ref := c.Token
	if ref.Ref == "" {
		ref.Ref = "env:CLOUDFLARE_API_TOKEN"
	}
	token, err := ref.Load()
	if err != nil {
		return fmt.Errorf("cloudflare token: %w", err)
	}
	token = strings.TrimSpace(token)
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errors.New("cloudflare token is no API token (make one with the permissions Zone:Zone:Read and Zone:DNS:Edit)")
	}
	p.kind = "cloudflare"
	p.secrets = []string{token}
	p.backend = flare{&cloudflare.Provider{APIToken: token, HTTPClient: apiClient{paced{httpClient(hc), pc}}}}
	p.explain = explainCloudflare
	return nil
}

// flare gives the library one record at a time: it posts them singly anyway,
// and stops at one that exists already. Its API adds and deletes single records,
// so that no lease is needed.
//
// An order of 25 names costs 26 requests to add and 50 to delete, eight at once:
// at 200 ms a request 1.0 s and 1.6 s (TestRequestsOfABundle).
type flare struct {
	api *cloudflare.Provider
}

// AppendRecords adds each record that is not there.
func (f flare) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return f.each(ctx, zone, records, f.api.AppendRecords, cloudflareRecordExists, cloudflareIdentical)
}

// DeleteRecords deletes each record that is there with just this value.
func (f flare) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return f.each(ctx, zone, records, f.api.DeleteRecords, cloudflareRecordMissing)
}

func (f flare) each(ctx context.Context, zone string, records []libdns.Record,
	do func(context.Context, string, []libdns.Record) ([]libdns.Record, error), harmless ...int,
) ([]libdns.Record, error) {
	var eg errgroup.Group
	var failed atomic.Bool
	eg.SetLimit(cloudflareParallel)
	for _, r := range records {
		eg.Go(func() error {
			if failed.Load() { // those under way are let finish: see unhurried
				return nil
			}
			_, err := do(ctx, bare(zone), []libdns.Record{r}) // the API writes zone names without the dot
			if said, ok := errors.AsType[*cloudflareError](err); ok && slices.ContainsFunc(harmless, said.has) {
				return nil
			}
			failed.Store(failed.Load() || err != nil)
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	return records, nil
}

// apiClient bounds responses and turns refusals into *cloudflareError, which
// the library hands through as it is; left alone, it makes text of them.
type apiClient struct {
	next HTTPClient
}

// Do sends one request.
func (c apiClient) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.next.Do(req)
	if err != nil {
		return nil, err
	}
	body := io.LimitReader(resp.Body, maxAPIAnswer)
	if resp.StatusCode < 300 {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{body, resp.Body}
		return resp, nil
	}
	defer resp.Body.Close() //nolint:errcheck // nothing more is wanted of it
	said := &cloudflareError{status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After")}
	var envelope struct {
		Errors []cloudflareProblem `json:"errors"`
	}
	if json.NewDecoder(body).Decode(&envelope) == nil { // else a gateway's page, of no interest
		said.problems = envelope.Errors
	}
	return nil, said
}

// cloudflareError is a response that is not 2xx.
type cloudflareError struct {
	status     int
	problems   []cloudflareProblem
	retryAfter string
}

type cloudflareProblem struct {
	Code    int                 `json:"code"`
	Message string              `json:"message"`
	Chain   []cloudflareProblem `json:"error_chain"`
}

func (e *cloudflareError) Error() string {
	words := []string{fmt.Sprintf("HTTP %d", e.status)}
	for _, p := range e.problems {
		for _, p := range append([]cloudflareProblem{p}, p.Chain...) {
			words = append(words, fmt.Sprintf("%d %s", p.Code, strings.TrimRight(p.Message, ".")))
		}
	}
	return oneLine(strings.Join(words, ", "))
}

func (e *cloudflareError) has(code int) bool {
	return slices.ContainsFunc(e.problems, func(p cloudflareProblem) bool { return p.Code == code })
}

// explainCloudflare reads refusals of the API. A token that is malformed is
// answered with 400 and code 6003.
func explainCloudflare(err error) refusal {
	const permissions = "the token needs the permissions Zone:Zone:Read and Zone:DNS:Edit for this zone, and must not have expired"
	if said, ok := errors.AsType[*cloudflareError](err); ok {
		switch {
		case said.status == http.StatusUnauthorized, said.status == http.StatusForbidden, said.has(6003), said.has(9109), said.has(10000):
			return refusal{"the token is refused: " + said.Error(), permissions}
		case said.status == http.StatusTooManyRequests:
			return refusal{"too many requests: " + said.Error() + after(said.retryAfter), "Cloudflare allows 1200 in 5 minutes; who else uses this account? Lower rate in the provider"}
		case said.status >= http.StatusInternalServerError:
			return refusal{"Cloudflare is in trouble: " + said.Error(), "see www.cloudflarestatus.com"}
		}
		return refusal{reason: said.Error()}
	}
	switch {
	case strings.Contains(err.Error(), "expected 1 zone, got 0"):
		return refusal{"the token sees no such zone", permissions}
	case strings.Contains(err.Error(), "expected 1 zone"):
		return refusal{"the token sees several zones of this name", "restrict it to one account"}
	case isNetwork(err):
		return refusal{"api.cloudflare.com cannot be reached: " + reason(err), "edge needs HTTPS to it, HTTPS_PROXY is heeded"}
	}
	return refusal{reason: oneLine(err.Error())}
}
