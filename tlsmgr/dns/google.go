package dns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"edge/config"

	"github.com/libdns/libdns"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

const (
	googleAPI   = "https://dns.googleapis.com/dns/v1/projects/"
	googleScope = "https://www.googleapis.com/auth/ndev.clouddns.readwrite"
)

// cloudDNS is Google Cloud DNS, whose unit is the record set. One request,
// changes.create, takes record sets out of a zone and puts others in, all or
// none, and refuses when what it should take out is not exactly what is there:
// that is a compare-and-swap of as many names as an order has, so no value of
// another writer is lost and no lease is needed.
//
// The first try is made on the guess that nobody else has values at the names,
// unread. So an order of 25 names costs one request to add and one to delete,
// and where the guess is wrong one more for each name to read it, eight at once:
// at 200 ms a request 0.2 s, and 1.2 s (TestRequestsOfABundle). The zone is
// looked up once in five minutes.
type cloudDNS struct {
	client  paced
	zones   *zoneCache // managed zones by name
	project string     // "" means that of the credentials

	mu          sync.Mutex
	credentials func() (*googleCredentials, error)
	found       *googleCredentials
}

// googleCredentials are where tokens come from.
type googleCredentials struct {
	tokens  oauth2.TokenSource
	project string
}

// useGoogle prepares Google Cloud DNS with a service account, or with the
// application default credentials. Those are looked for when they are needed,
// since the machine may have to be asked for them.
func (p *provider) useGoogle(c *config.GoogleCloudDNS, hc HTTPClient, pc *pace) error {
	hc = httpClient(hc)
	g := &cloudDNS{client: paced{hc, pc}, zones: newZoneCache(), project: c.Project}
	tokens, ok := hc.(*http.Client)
	if !ok {
		tokens = &http.Client{Timeout: apiTimeout, Transport: roundTripper{hc}}
	}
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, tokens) // of every token to come
	g.credentials = func() (*googleCredentials, error) {
		found, err := google.FindDefaultCredentials(ctx, googleScope)
		if err != nil {
			return nil, &credentialsError{err}
		}
		return &googleCredentials{found.TokenSource, found.ProjectID}, nil
	}
	if c.Credentials.Ref != "" {
		text, err := c.Credentials.Load()
		if err != nil {
			return fmt.Errorf("googleclouddns credentials: %w", err)
		}
		account, err := google.JWTConfigFromJSON([]byte(text), googleScope)
		var file struct {
			Project    string `json:"project_id"`
			PrivateKey string `json:"private_key"`
		}
		if err != nil || json.Unmarshal([]byte(text), &file) != nil { // a decoder's message may show a piece of it
			return errors.New("googleclouddns credentials are not the JSON of a service account's key " +
				"(gcloud iam service-accounts keys create; for workload identity leave credentials out)")
		}
		g.found = &googleCredentials{account.TokenSource(ctx), file.Project}
		p.secrets = []string{text, file.PrivateKey}
	}
	p.kind = "googleclouddns"
	p.backend = g
	p.explain = explainGoogle
	return nil
}

// roundTripper makes an HTTPClient a transport.
type roundTripper struct{ HTTPClient }

// RoundTrip implements http.RoundTripper.
func (t roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return t.Do(req) }

// credentialsError says that there are no credentials.
type credentialsError struct{ error }

func (e *credentialsError) Unwrap() error { return e.error }

// AppendRecords adds the values that are not there.
func (g *cloudDNS) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	ours := setsOf(zone, records)
	var guess googleChange
	for _, name := range sortedKeys(ours) {
		guess.Additions = append(guess.Additions, googleSetOf(name, ours[name]))
	}
	return records, g.change(ctx, zone, guess, ours, with)
}

// DeleteRecords deletes the values that are there.
func (g *cloudDNS) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	ours := setsOf(zone, records)
	var guess googleChange
	for _, name := range sortedKeys(ours) {
		guess.Deletions = append(guess.Deletions, googleSetOf(name, ours[name]))
	}
	return records, g.change(ctx, zone, guess, ours, without)
}

// change applies merge to the record sets of ours. The first try is the guess.
func (g *cloudDNS) change(ctx context.Context, zone string, guess googleChange, ours sets, merge func(have, ours []string) []string) error {
	return settle(ctx, func(try int) error {
		managed, err := g.managedZone(ctx, zone)
		if err != nil {
			return err
		}
		next := guess
		if try > 0 {
			if next, err = g.compose(ctx, managed, ours, merge); err != nil {
				return err
			}
		}
		if len(next.Additions)+len(next.Deletions) == 0 {
			return nil
		}
		err = g.call(ctx, http.MethodPost, managed+"/changes", nil, next, nil)
		said, refused := errors.AsType[*googleError](err)
		switch {
		case refused && said.conflict():
			return fmt.Errorf("%w: %w", errChanged, err)
		case refused && said.status == http.StatusNotFound:
			g.zones.drop(zone) // it may have been made anew
		}
		return err
	})
}

// compose reads the record sets and makes the change of them.
func (g *cloudDNS) compose(ctx context.Context, managed string, ours sets, merge func(have, ours []string) []string) (googleChange, error) {
	names := sortedKeys(ours)
	found := make([]*googleSet, len(names))
	err := forNames(names, apiParallel, func(name string) error {
		var page struct {
			Sets []*googleSet `json:"rrsets"`
		}
		err := g.call(ctx, http.MethodGet, managed+"/rrsets", url.Values{"name": {name}, "type": {"TXT"}}, nil, &page)
		if err == nil && len(page.Sets) > 0 {
			i, _ := slices.BinarySearch(names, name)
			found[i] = page.Sets[0]
		}
		return err
	})
	var next googleChange
	for i, name := range names {
		old := found[i]
		if old == nil {
			old = &googleSet{Name: name, Type: "TXT", TTL: int64(recordTTL.Seconds())}
		}
		set := old.merged(ours[name], merge)
		if slices.Equal(set.Data, old.Data) {
			continue
		}
		if len(old.Data) > 0 {
			next.Deletions = append(next.Deletions, *old)
		}
		if len(set.Data) > 0 {
			next.Additions = append(next.Additions, set)
		}
	}
	return next, err
}

// managedZone finds the URL of the public zone of that name.
func (g *cloudDNS) managedZone(ctx context.Context, zone string) (string, error) {
	project, err := g.projectID()
	if err != nil {
		return "", err
	}
	path := googleAPI + url.PathEscape(project) + "/managedZones"
	if name, ok := g.zones.get(zone); ok {
		return path + "/" + name, nil
	}
	var page struct {
		Zones []struct {
			Name       string `json:"name"`
			Visibility string `json:"visibility"`
		} `json:"managedZones"`
	}
	if err := g.call(ctx, http.MethodGet, path, url.Values{"dnsName": {zone}}, nil, &page); err != nil {
		return "", err
	}
	var public []string
	for _, z := range page.Zones {
		if z.Visibility != "private" {
			public = append(public, url.PathEscape(z.Name))
		}
	}
	switch {
	case len(public) == 0 && len(page.Zones) > 0:
		return "", &googleError{message: "the managed zone of this name in project " + project + " is private, which no CA sees", reason: "noZone"}
	case len(public) == 0:
		return "", &googleError{message: "project " + project + " has no managed zone of this name, or it is not shown to these credentials", reason: "noZone"}
	case len(public) > 1:
		return "", &googleError{message: "project " + project + " has several public managed zones of this name: " + strings.Join(public, ", "), reason: "twoZones"}
	}
	g.zones.put(zone, public[0])
	return path + "/" + public[0], nil
}

// load finds the credentials, once when that succeeds.
func (g *cloudDNS) load() (*googleCredentials, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.found == nil {
		found, err := g.credentials()
		if err != nil {
			return nil, err
		}
		g.found = found
	}
	return g.found, nil
}

func (g *cloudDNS) projectID() (string, error) {
	if g.project != "" {
		return g.project, nil
	}
	c, err := g.load()
	if err == nil && c.project == "" {
		err = &googleError{message: "the credentials do not say which project", reason: "noProject"}
	}
	if err != nil {
		return "", err
	}
	return c.project, nil
}

// call sends one request and decodes the answer into out, unless that is nil.
func (g *cloudDNS) call(ctx context.Context, method, address string, query url.Values, in, out any) error {
	c, err := g.load()
	if err != nil {
		return err
	}
	token, err := c.tokens.Token()
	if err != nil {
		return &credentialsError{err}
	}
	var body []byte
	if in != nil {
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	if len(query) > 0 {
		address += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return err
	}
	token.SetAuthHeader(req)
	req.Header.Set("Content-Type", "application/json")
	resp, err := g.client.Do(req)
	if err != nil {
		return err
	}
	answer, err := answerOf(resp)
	switch {
	case resp.StatusCode >= http.StatusMultipleChoices:
		return newGoogleError(resp, answer)
	case err != nil || out == nil:
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("read the answer of %s: %w", req.URL.Host, err)
	}
	return nil
}

// googleSet is a ResourceRecordSet of the API, as far as one of TXT has it.
type googleSet struct {
	Name string   `json:"name"`
	Type string   `json:"type"`
	TTL  int64    `json:"ttl"`
	Data []string `json:"rrdatas"` // in the form of a zone file
}

// googleChange is a Change of the API.
type googleChange struct {
	Additions []googleSet `json:"additions,omitempty"`
	Deletions []googleSet `json:"deletions,omitempty"`
}

func googleSetOf(name string, values []string) googleSet {
	set := googleSet{Name: name, Type: "TXT", TTL: int64(recordTTL.Seconds())}
	for _, v := range values {
		set.Data = append(set.Data, `"`+v+`"`) // Record.check: nothing in it needs a backslash
	}
	return set
}

// merged is the set with its values changed; those that stay keep their form.
func (s *googleSet) merged(ours []string, merge func(have, ours []string) []string) googleSet {
	forms := map[string]string{}
	var have []string
	for _, data := range s.Data {
		v := unquoted(data)
		forms[v] = data
		have = append(have, v)
	}
	out := *s
	out.Data = nil
	for _, v := range merge(have, ours) {
		data := forms[v]
		if data == "" {
			data = `"` + v + `"`
		}
		out.Data = append(out.Data, data)
	}
	return out
}

// unquoted joins the character strings of a TXT record.
func unquoted(data string) string {
	data = strings.TrimSuffix(strings.TrimPrefix(data, `"`), `"`)
	return strings.ReplaceAll(data, `" "`, "")
}

// googleError is an answer that is not 2xx, or a zone that is not there.
type googleError struct {
	status          int
	reason, message string
	retryAfter      string
}

func newGoogleError(resp *http.Response, body []byte) *googleError {
	e := &googleError{status: resp.StatusCode, retryAfter: resp.Header.Get("Retry-After")}
	var said struct {
		Error struct {
			Message string `json:"message"`
			Status  string `json:"status"`
			Errors  []struct {
				Reason string `json:"reason"`
			} `json:"errors"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &said) != nil { // a gateway's page, of no interest
		return e
	}
	e.message, e.reason = said.Error.Message, said.Error.Status
	if len(said.Error.Errors) > 0 {
		e.reason = said.Error.Errors[0].Reason
	}
	return e
}

func (e *googleError) Error() string {
	if e.status == 0 {
		return e.message
	}
	return oneLine(strings.TrimSpace(fmt.Sprintf("HTTP %d %s", e.status, e.reason)) + ": " + strings.TrimRight(e.message, "."))
}

// conflict tells a change whose record sets are not what it says: to be added
// and there, or to be deleted and not there or with other values.
func (e *googleError) conflict() bool {
	return e.status == http.StatusConflict || e.status == http.StatusPreconditionFailed ||
		e.status == http.StatusNotFound && strings.Contains(e.message, "entity.change")
}

// explainGoogle reads refusals of the API and of the token service.
func explainGoogle(err error) refusal {
	const rights = "the least that edge needs on the project: dns.managedZones.list, dns.resourceRecordSets.list, .create, .update and .delete, " +
		"and dns.changes.create; roles/dns.admin has them"
	if said, ok := errors.AsType[*googleError](err); ok {
		switch {
		case said.reason == "noZone":
			return refusal{said.message, "the zone has to be public; project names the project that it is in, and " + rights}
		case said.reason == "twoZones":
			return refusal{said.message, "delete the one that the name is not delegated to, or lead the challenge name elsewhere by CNAME"}
		case said.reason == "noProject":
			return refusal{said.message, "set project"}
		case said.reason == "accessNotConfigured", said.reason == "SERVICE_DISABLED":
			return refusal{said.Error(), "enable it: gcloud services enable dns.googleapis.com"}
		case said.status == http.StatusUnauthorized:
			return refusal{"the credentials are refused: " + said.Error(), "is the service account's key deleted or disabled, or this machine's clock off?"}
		case said.status == http.StatusTooManyRequests, strings.HasSuffix(said.reason, "ateLimitExceeded"):
			return refusal{"too many requests: " + said.Error() + after(said.retryAfter), "lower rate in the provider, or raise the project's quota of Cloud DNS"}
		case said.status == http.StatusForbidden:
			return refusal{"not allowed: " + said.Error(), rights}
		case said.status >= http.StatusInternalServerError:
			return refusal{"Google Cloud DNS is in trouble: " + said.Error(), "see status.cloud.google.com"}
		case said.conflict():
			return refusal{errChanged.Error() + ": " + said.Error(), "who else writes to this zone?"}
		}
		return refusal{reason: said.Error()}
	}
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		var said struct { // the SDK reads it for some kinds of credentials only
			Code string `json:"error"`
			Text string `json:"error_description"`
		}
		_ = json.Unmarshal(refused.Body, &said) // else a gateway's page, of no interest
		return refusal{strings.TrimRight("no token for these credentials: "+oneLine(said.Code+" "+said.Text), ". "), "is the service account's key deleted or disabled, or this machine's clock off?"}
	}
	if _, ok := errors.AsType[*credentialsError](err); ok && !isNetwork(err) {
		return refusal{
			"no Google credentials: " + oneLine(err.Error()),
			"give the machine a service account or workload identity, set GOOGLE_APPLICATION_CREDENTIALS, or set credentials",
		}
	}
	if isNetwork(err) {
		return refusal{"Google Cloud DNS cannot be reached: " + reason(err), "edge needs HTTPS to dns.googleapis.com and oauth2.googleapis.com, HTTPS_PROXY is heeded"}
	}
	return refusal{reason: oneLine(err.Error())}
}

// after tells how long an API wants to be left alone.
func after(retryAfter string) string {
	if retryAfter == "" {
		return ""
	}
	return ", Retry-After: " + oneLine(retryAfter)
}
