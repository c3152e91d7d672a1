package acmelab

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	googleHost      = "dns.googleapis.com"
	googleTokenHost = "oauth2.googleapis.com" //nolint:gosec // G101: a host
	googleAccount   = "edge@lab-project.iam.gserviceaccount.com"
	googleToken     = "ya29.lab-token-0123456789abcdef" //nolint:gosec // G101: of a fake
	googleQuota     = 1000                              // record sets in a change, and records in a set below it
)

// GoogleProject is the project of the fake's zones.
const GoogleProject = "lab-project"

// GoogleOptions are the settings of a fake Google Cloud DNS.
type GoogleOptions struct {
	Addr    string   // to listen on; "" is a free port of 127.0.0.1
	DNS     *DNS     // where the records go; its zones are the public managed zones
	Private []string // zones with a private twin of the same name
}

// Google is a strict fake of the part of Google Cloud DNS v1 that an ACME client
// needs, by the API's discovery document: managedZones.list,
// resourceRecordSets.list and changes.create, and of the token service. Fields
// and query parameters that the API does not have are refused. A change is
// applied as a whole or not at all: what it deletes must be exactly what is
// there, and what it adds must not be.
//
// The host names are fixed in clients: HTTPClient sends them here. Credentials is
// the key of a service account in the form that Google gives out.
type Google struct {
	gate

	URL         string
	Credentials string

	front *front
	dns   *DNS
	key   *rsa.PrivateKey

	private []string
	sets    map[setKey]googleSet // guarded by gate.mu
	changes int
}

// googleSet is a ResourceRecordSet.
type googleSet struct {
	Kind             string          `json:"kind,omitempty"`
	Name             string          `json:"name"`
	Type             string          `json:"type"`
	TTL              *int64          `json:"ttl,omitempty"`
	Data             []string        `json:"rrdatas,omitempty"`
	SignatureRrdatas []string        `json:"signatureRrdatas,omitempty"`
	RoutingPolicy    json.RawMessage `json:"routingPolicy,omitempty"`
}

// googleChange is a Change.
type googleChange struct {
	Kind      string      `json:"kind,omitempty"`
	ID        string      `json:"id,omitempty"`
	StartTime string      `json:"startTime,omitempty"`
	Status    string      `json:"status,omitempty"`
	IsServing *bool       `json:"isServing,omitempty"`
	Additions []googleSet `json:"additions,omitempty"`
	Deletions []googleSet `json:"deletions,omitempty"`
}

// googleError is an error of the API.
type googleError struct {
	status          int
	reason, message string
}

// StartGoogle runs a fake Google Cloud DNS. The caller must Close it.
func StartGoogle(o GoogleOptions) (*Google, error) {
	f := &Google{dns: o.DNS, sets: map[setKey]googleSet{}}
	for _, p := range o.Private {
		f.private = append(f.private, dns.CanonicalName(p))
	}
	var err error
	if f.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, fmt.Errorf("acmelab: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(f.key)
	if err != nil {
		return nil, fmt.Errorf("acmelab: %w", err)
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": GoogleProject, "private_key_id": "lab", "client_email": googleAccount, "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		"token_uri":   "https://" + googleTokenHost + "/token",
	})
	if err != nil {
		return nil, fmt.Errorf("acmelab: %w", err)
	}
	f.Credentials = string(account)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", f.token)
	zones := "/dns/v1/projects/{project}/managedZones"
	mux.HandleFunc("GET "+zones, f.op("managedZones.list", f.listZones, "dnsName", "maxResults", "pageToken"))
	mux.HandleFunc("GET "+zones+"/{zone}/rrsets", f.op("resourceRecordSets.list", f.listSets, "name", "type", "maxResults", "pageToken"))
	mux.HandleFunc("POST "+zones+"/{zone}/changes", f.op("changes.create", f.createChange, "clientOperationId"))
	mux.HandleFunc("/", f.op("unknown", func(_ http.ResponseWriter, r *http.Request) *googleError {
		return &googleError{http.StatusNotFound, "notFound", "unknown " + r.Method + " " + r.URL.Path}
	}))
	if f.front, err = serve(o.Addr, nil, mux); err != nil {
		return nil, err
	}
	f.URL = f.front.url
	return f, nil
}

// Close ends the server.
func (f *Google) Close() error { return f.front.close() }

// HTTPClient returns a client that reaches the fake as Google's hosts, and
// nothing else.
func (f *Google) HTTPClient() *http.Client { return toLab(f.URL, googleHost, googleTokenHost) }

// Put makes a TXT record set of another user. The values are in the form of a
// zone file.
func (f *Google) Put(name string, ttl int64, data ...string) error {
	name = dns.CanonicalName(name)
	return f.apply(f.dns.zoneOf(name), googleChange{Additions: []googleSet{{Name: name, Type: "TXT", TTL: &ttl, Data: data}}}, true)
}

// TTL is that of the TXT record set at name, 0 when there is none.
func (f *Google) TTL(name string) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	set, ok := f.sets[setKey{dns.CanonicalName(name), "TXT"}]
	if !ok {
		return 0
	}
	return *set.TTL
}

// token gives a token for an assertion that the account has signed (RFC 7523).
func (f *Google) token(w http.ResponseWriter, r *http.Request) {
	if _, ok := f.enter(r, "token"); !ok {
		return
	}
	refuse := func(text string) {
		googleJSON(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant", "error_description": text})
	}
	if err := r.ParseForm(); err != nil || r.Form.Get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		refuse("bad grant_type")
		return
	}
	signed, signature, _ := cutLast(r.Form.Get("assertion"), ".")
	_, payload, _ := strings.Cut(signed, ".")
	sum := sha256.Sum256([]byte(signed))
	sig, err := base64.RawURLEncoding.DecodeString(signature)
	if err != nil || rsa.VerifyPKCS1v15(&f.key.PublicKey, crypto.SHA256, sum[:], sig) != nil {
		refuse("Invalid JWT Signature.")
		return
	}
	var claims struct {
		Issuer   string `json:"iss"`
		Scope    string `json:"scope"`
		Audience string `json:"aud"`
		Expires  int64  `json:"exp"`
	}
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	switch {
	case err != nil || json.Unmarshal(raw, &claims) != nil:
		refuse("Invalid JWT.")
	case claims.Issuer != googleAccount || claims.Audience != "https://"+googleTokenHost+"/token" || claims.Expires < time.Now().Unix():
		refuse("Invalid JWT: account, audience or time.")
	case claims.Scope != "https://www.googleapis.com/auth/ndev.clouddns.readwrite":
		refuse("Invalid OAuth scope or ID token audience provided.")
	default:
		googleJSON(w, http.StatusOK, map[string]any{"access_token": googleToken, "token_type": "Bearer", "expires_in": 3599})
	}
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// op wraps a handler with what all operations have in common.
func (f *Google) op(name string, h func(http.ResponseWriter, *http.Request) *googleError, params ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		failed, ok := f.enter(r, name)
		if !ok {
			return
		}
		var refusal *googleError
		project := r.PathValue("project")
		err := knownQuery(r.URL.Query(), append(params, "alt", "prettyPrint", "fields")...)
		switch {
		case failed != nil:
			failed.tell(w)
			refusal = &googleError{failed.Status, failed.Code, "acmelab was told to fail."}
		case r.Header.Get("Authorization") != "Bearer "+googleToken:
			refusal = &googleError{http.StatusUnauthorized, "authError", "Request had invalid authentication credentials."}
		case project != "" && project != GoogleProject:
			refusal = &googleError{http.StatusForbidden, "forbidden", "Forbidden"}
		case err != nil:
			refusal = &googleError{http.StatusBadRequest, "invalidParameter", err.Error()}
		default:
			refusal = h(w, r)
		}
		if refusal != nil {
			googleJSON(w, refusal.status, map[string]any{"error": map[string]any{
				"code": refusal.status, "message": refusal.message,
				"errors": []map[string]string{{"message": refusal.message, "domain": "global", "reason": refusal.reason}},
			}})
		}
	}
}

func googleJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

// managedZone is the user's name of a zone: lower case, digits and hyphens.
func managedZone(zone string) string {
	return "lab-" + strings.ReplaceAll(strings.TrimSuffix(zone, "."), ".", "-")
}

func (f *Google) listZones(w http.ResponseWriter, r *http.Request) *googleError {
	zones := []map[string]any{}
	for i, zone := range f.dns.Zones() {
		if want := r.URL.Query().Get("dnsName"); want != "" && want != zone {
			continue
		}
		entry := map[string]any{
			"kind": "dns#managedZone", "id": fmt.Sprint(1000 + i), "name": managedZone(zone), "dnsName": zone, "description": "", "visibility": "public",
			"nameServers": []string{"ns1." + zone}, "creationTime": "2026-01-01T00:00:00.000Z",
		}
		if slices.Contains(f.private, zone) {
			twin := maps.Clone(entry)
			twin["name"], twin["visibility"] = managedZone(zone)+"-private", "private"
			zones = append(zones, twin)
		}
		zones = append(zones, entry)
	}
	googleJSON(w, http.StatusOK, map[string]any{"kind": "dns#managedZonesListResponse", "managedZones": zones})
	return nil
}

// zone finds the zone of a request.
func (f *Google) zone(r *http.Request) (string, *googleError) {
	for _, zone := range f.dns.Zones() {
		if managedZone(zone) == r.PathValue("zone") {
			return zone, nil
		}
	}
	return "", &googleError{http.StatusNotFound, "notFound", "The 'parameters.managedZone' resource named '" + r.PathValue("zone") + "' does not exist."}
}

func (f *Google) listSets(w http.ResponseWriter, r *http.Request) *googleError {
	zone, refusal := f.zone(r)
	if refusal != nil {
		return refusal
	}
	q := r.URL.Query()
	if q.Get("type") != "" && q.Get("name") == "" {
		return &googleError{http.StatusBadRequest, "invalidParameter", "type is only allowed with name"}
	}
	found := []googleSet{}
	f.mu.Lock()
	for _, key := range slices.SortedFunc(maps.Keys(f.sets), compareKeys) {
		if dns.IsSubDomain(zone, key.name) && (q.Get("name") == "" || q.Get("name") == key.name) && (q.Get("type") == "" || q.Get("type") == key.kind) {
			set := f.sets[key]
			set.Kind = "dns#resourceRecordSet"
			found = append(found, set)
		}
	}
	f.mu.Unlock()
	googleJSON(w, http.StatusOK, map[string]any{"kind": "dns#resourceRecordSetsListResponse", "rrsets": found})
	return nil
}

func (f *Google) createChange(w http.ResponseWriter, r *http.Request) *googleError {
	zone, refusal := f.zone(r)
	if refusal != nil {
		return refusal
	}
	var change googleChange
	if err := strictJSON(w, r, &change); err != nil {
		return &googleError{http.StatusBadRequest, "parseError", "Invalid JSON payload received: " + err.Error()}
	}
	if len(change.Additions)+len(change.Deletions) == 0 {
		return &googleError{http.StatusBadRequest, "required", "The 'entity.change' parameter is required but was missing."}
	}
	if len(change.Additions) > googleQuota || len(change.Deletions) > googleQuota {
		return &googleError{http.StatusForbidden, "quotaExceeded", "The change would exceed quota for additions per change."}
	}
	if err := f.apply(zone, change, false); err != nil {
		if refusal, ok := errors.AsType[*googleError](err); ok {
			return refusal
		}
		return &googleError{http.StatusInternalServerError, "backendError", err.Error()}
	}
	f.mu.Lock()
	f.changes++
	change.ID = fmt.Sprint(f.changes)
	f.mu.Unlock()
	change.Kind, change.Status, change.StartTime = "dns#change", "pending", time.Now().UTC().Format(time.RFC3339)
	googleJSON(w, http.StatusOK, change)
	return nil
}

func (r *googleError) Error() string { return r.message }

// apply makes a change, all of it or nothing. force replaces what is there.
func (f *Google) apply(zone string, change googleChange, force bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := maps.Clone(f.sets)
	for i, set := range change.Deletions {
		where := fmt.Sprintf("entity.change.deletions[%d]", i)
		old, ok := next[setKey{set.Name, set.Type}]
		switch {
		case set.invalid(zone) != "":
			return &googleError{http.StatusBadRequest, "invalid", "Invalid value for '" + where + set.invalid(zone)}
		case !ok:
			return &googleError{http.StatusNotFound, "notFound", "The '" + where + "' resource named '" + set.Name + " (" + set.Type + ")' does not exist."}
		case *old.TTL != *set.TTL || !slices.Equal(slices.Sorted(slices.Values(old.Data)), slices.Sorted(slices.Values(set.Data))):
			return &googleError{http.StatusPreconditionFailed, "conditionNotMet", "Precondition not met for '" + where + "'"}
		}
		delete(next, setKey{set.Name, set.Type})
	}
	for i, set := range change.Additions {
		where := fmt.Sprintf("entity.change.additions[%d]", i)
		if text := set.invalid(zone); text != "" {
			return &googleError{http.StatusBadRequest, "invalid", "Invalid value for '" + where + text}
		}
		if _, ok := next[setKey{set.Name, set.Type}]; ok && !force {
			return &googleError{http.StatusConflict, "alreadyExists", "The resource '" + where + "' named '" + set.Name + " (" + set.Type + ")' already exists"}
		}
		next[setKey{set.Name, set.Type}] = set
	}
	if err := f.dns.replace(googleLines(f.sets, next), googleLines(next, f.sets)); err != nil {
		return err
	}
	f.sets = next
	return nil
}

// invalid says what is wrong with a set of TXT records; nothing else is taken.
func (s *googleSet) invalid(zone string) string {
	switch {
	case s.Name != dns.CanonicalName(s.Name) || !dns.IsSubDomain(zone, s.Name):
		return ".name': '" + s.Name + "'"
	case s.Type != "TXT":
		return ".type': '" + s.Type + "'"
	case s.TTL == nil || *s.TTL < 0:
		return ".ttl'"
	case len(s.Data) == 0 || len(s.Data) > 100 || s.RoutingPolicy != nil:
		return ".rrdata'"
	}
	seen := map[string]bool{}
	for _, data := range s.Data {
		if !txtValue.MatchString(data) || seen[data] {
			return ".rrdata': '" + data + "'"
		}
		seen[data] = true
	}
	return ""
}

// googleLines writes the record sets of a that are not the same in b.
func googleLines(a, b map[setKey]googleSet) []string {
	var lines []string
	for key, set := range a {
		if other, ok := b[key]; ok && *other.TTL == *set.TTL && slices.Equal(other.Data, set.Data) {
			continue
		}
		for _, data := range set.Data {
			lines = append(lines, fmt.Sprintf("%s %d IN TXT %s", key.name, *set.TTL, data))
		}
	}
	return lines
}

// zoneOf returns the apex of the zone that name is in, "" if there is none.
func (d *DNS) zoneOf(name string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if soa := d.zoneLocked(name); soa != nil {
		return soa.Hdr.Name
	}
	return ""
}
