package acmelab

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// What the fake Azure takes.
const (
	AzureTenant       = "11111111-2222-3333-4444-555555555555"
	AzureSubscription = "66666666-7777-8888-9999-000000000000"
	AzureGroup        = "lab-group"
	AzureClientID     = "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
	AzureClientSecret = "lab~secret0123456789abcdefghijklmnop"
)

const (
	azureHost      = "management.azure.com"
	azureLoginHost = "login.microsoftonline.com"
	azureToken     = "lab-azure-token-0123456789abcdef" //nolint:gosec // G101: of a fake
	azureVersion   = "2018-05-01"
	azureRecords   = 20 // of a record set, at most
)

// AzureOptions are the settings of a fake Azure DNS.
type AzureOptions struct {
	Addr string // to listen on; "" is a free port of 127.0.0.1
	DNS  *DNS   // where the records go; its zones are those of AzureGroup
}

// Azure is a strict fake of the part of Azure DNS that an ACME client needs, by
// the model of API version 2018-05-01: get, create or update, and delete a
// record set of type TXT, with ETags and their conditions; and of the token
// endpoint of Microsoft Entra for a client secret. Fields and query parameters
// that the API does not have are refused.
//
// The host names are fixed in clients: HTTPClient sends them here.
type Azure struct {
	gate

	URL string

	front *front
	dns   *DNS
	sets  map[string]azureSet // by canonical name; guarded by gate.mu
	etags int
}

// azureSet is a RecordSet of the API.
type azureSet struct {
	ID         string           `json:"id,omitempty"`
	Name       string           `json:"name,omitempty"`
	Type       string           `json:"type,omitempty"`
	Etag       string           `json:"etag,omitempty"`
	Properties *azureProperties `json:"properties"`
}

// azureProperties are the RecordSetProperties of a set of type TXT.
type azureProperties struct {
	Metadata          map[string]string `json:"metadata,omitempty"`
	TTL               *int64            `json:"TTL"`
	FQDN              string            `json:"fqdn,omitempty"`
	ProvisioningState string            `json:"provisioningState,omitempty"`
	TargetResource    *struct {
		ID string `json:"id,omitempty"`
	} `json:"targetResource,omitempty"`
	TXTRecords []azureTXT `json:"TXTRecords,omitempty"`
}

type azureTXT struct {
	Value []string `json:"value"`
}

// StartAzure runs a fake Azure DNS. The caller must Close it.
func StartAzure(o AzureOptions) (*Azure, error) {
	f := &Azure{dns: o.DNS, sets: map[string]azureSet{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /common/discovery/instance", func(w http.ResponseWriter, _ *http.Request) {
		azureJSON(w, http.StatusOK, map[string]any{
			"tenant_discovery_endpoint": "https://" + azureLoginHost + "/" + AzureTenant + "/v2.0/.well-known/openid-configuration", "api-version": "1.1",
			"metadata": []map[string]any{{"preferred_network": azureLoginHost, "preferred_cache": azureLoginHost, "aliases": []string{azureLoginHost}}},
		})
	})
	mux.HandleFunc("GET /{tenant}/v2.0/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		base := "https://" + azureLoginHost + "/" + r.PathValue("tenant")
		azureJSON(w, http.StatusOK, map[string]any{
			"token_endpoint": base + "/oauth2/v2.0/token", "authorization_endpoint": base + "/oauth2/v2.0/authorize", "issuer": base + "/v2.0",
		})
	})
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", f.token)
	set := "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/dnsZones/{zone}/TXT/{name}"
	mux.HandleFunc("GET "+set, f.op("get", f.get))
	mux.HandleFunc("PUT "+set, f.op("put", f.put))
	mux.HandleFunc("DELETE "+set, f.op("delete", f.remove))
	mux.HandleFunc("/", f.op("unknown", func(w http.ResponseWriter, r *http.Request, _, _ string) {
		azureFail(w, http.StatusNotFound, "InvalidResourceType", "unknown "+r.Method+" "+r.URL.Path)
	}))
	var err error
	if f.front, err = serve(o.Addr, nil, mux); err != nil {
		return nil, err
	}
	f.URL = f.front.url
	return f, nil
}

// Close ends the server.
func (f *Azure) Close() error { return f.front.close() }

// HTTPClient returns a client that reaches the fake as Azure's hosts, and
// nothing else.
func (f *Azure) HTTPClient() *http.Client { return toLab(f.URL, azureHost, azureLoginHost) }

// Put makes a TXT record set of another user, with metadata.
func (f *Azure) Put(name string, ttl int64, values ...string) error {
	set := azureSet{Properties: &azureProperties{TTL: &ttl, Metadata: map[string]string{"owner": "somebody"}}}
	for _, v := range values {
		set.Properties.TXTRecords = append(set.Properties.TXTRecords, azureTXT{Value: []string{v}})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.storeLocked(dns.CanonicalName(name), &set)
}

// Properties tells the TTL and the metadata "owner" of the TXT record set at
// name.
func (f *Azure) Properties(name string) (ttl int64, owner string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if set, ok := f.sets[dns.CanonicalName(name)]; ok {
		return *set.Properties.TTL, set.Properties.Metadata["owner"]
	}
	return 0, ""
}

// token gives a token for a client secret (RFC 6749, section 4.4).
func (f *Azure) token(w http.ResponseWriter, r *http.Request) {
	if _, ok := f.enter(r, "token"); !ok {
		return
	}
	refuse := func(code, text string) {
		azureJSON(w, http.StatusUnauthorized, map[string]any{"error": code, "error_description": text, "error_codes": []int{7000215}})
	}
	err := r.ParseForm()
	switch scopes := strings.Fields(r.Form.Get("scope")); {
	case err != nil || r.Form.Get("grant_type") != "client_credentials":
		refuse("unsupported_grant_type", "AADSTS70003: The app requested an unsupported grant type.")
	case r.PathValue("tenant") != AzureTenant:
		refuse("invalid_request", "AADSTS90002: Tenant '"+r.PathValue("tenant")+"' not found. Check to make sure you have the correct tenant ID.")
	case r.Form.Get("client_id") != AzureClientID || r.Form.Get("client_secret") != AzureClientSecret:
		refuse("invalid_client", "AADSTS7000215: Invalid client secret provided. Ensure the secret being sent in the request is the client secret value.")
	case !slices.Contains(scopes, "https://management.core.windows.net//.default") && !slices.Contains(scopes, "https://management.azure.com/.default"):
		refuse("invalid_scope", "AADSTS70011: The provided value for scope is not valid.")
	default:
		azureJSON(w, http.StatusOK, map[string]any{"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": azureToken})
	}
}

// op wraps a handler with what all operations have in common.
func (f *Azure) op(name string, h func(w http.ResponseWriter, r *http.Request, zone, owner string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		failed, ok := f.enter(r, name)
		if !ok {
			return
		}
		zone := dns.CanonicalName(r.PathValue("zone"))
		owner := dns.CanonicalName(r.PathValue("name") + "." + zone)
		if r.PathValue("name") == "@" {
			owner = zone
		}
		err := knownQuery(r.URL.Query(), "api-version")
		switch {
		case failed != nil:
			failed.tell(w)
			azureFail(w, failed.Status, failed.Code, "acmelab was told to fail.")
		case r.Header.Get("Authorization") != "Bearer "+azureToken:
			azureFail(w, http.StatusUnauthorized, "AuthenticationFailed", "Authentication failed.")
		case err != nil || r.URL.Query().Get("api-version") != azureVersion:
			azureFail(w, http.StatusBadRequest, "InvalidApiVersionParameter", "query parameters: "+r.URL.RawQuery)
		case name == "unknown":
			h(w, r, "", "")
		case r.PathValue("subscription") != AzureSubscription:
			azureFail(w, http.StatusNotFound, "SubscriptionNotFound", "The subscription '"+r.PathValue("subscription")+"' could not be found.")
		case r.PathValue("group") != AzureGroup:
			azureFail(w, http.StatusNotFound, "ResourceGroupNotFound", "Resource group '"+r.PathValue("group")+"' could not be found.")
		case !slices.Contains(f.dns.Zones(), zone):
			azureFail(w, http.StatusNotFound, "ParentResourceNotFound", "Can not perform requested operation on nested resource. Parent resource '"+zone+"' not found.")
		default:
			h(w, r, zone, owner)
		}
	}
}

func azureFail(w http.ResponseWriter, status int, code, message string) {
	azureJSON(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func azureJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

func (f *Azure) get(w http.ResponseWriter, r *http.Request, _, owner string) {
	f.mu.Lock()
	set, ok := f.sets[owner]
	f.mu.Unlock()
	if !ok {
		azureFail(w, http.StatusNotFound, "NotFound", "The resource record '"+r.PathValue("name")+"' does not exist in resource group '"+AzureGroup+"'.")
		return
	}
	azureJSON(w, http.StatusOK, set)
}

// metLocked tells whether the conditions of a request hold (RFC 9110, section
// 13.1). The empty If-None-Match is none.
func (f *Azure) metLocked(r *http.Request, owner string) bool {
	old, exists := f.sets[owner]
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	return (match == "" || exists && (match == "*" || match == old.Etag)) && (none != "*" || !exists)
}

func (f *Azure) put(w http.ResponseWriter, r *http.Request, _, owner string) {
	var set azureSet
	if err := strictJSON(w, r, &set); err != nil {
		azureFail(w, http.StatusBadRequest, "InvalidRequestContent", err.Error())
		return
	}
	if text := set.invalid(); text != "" {
		azureFail(w, http.StatusBadRequest, "BadRequest", text)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.metLocked(r, owner) {
		azureFail(w, http.StatusPreconditionFailed, "PreconditionFailed", "The condition for the record set is not met.")
		return
	}
	status := http.StatusCreated
	if _, exists := f.sets[owner]; exists {
		status = http.StatusOK
	}
	set.ID, set.Name, set.Type = r.URL.Path, r.PathValue("name"), "Microsoft.Network/dnszones/TXT"
	if err := f.storeLocked(owner, &set); err != nil {
		azureFail(w, http.StatusInternalServerError, "InternalServerError", err.Error())
		return
	}
	azureJSON(w, status, set)
}

func (f *Azure) remove(w http.ResponseWriter, r *http.Request, _, owner string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old, exists := f.sets[owner]
	switch {
	case !exists:
		w.WriteHeader(http.StatusNoContent)
	case !f.metLocked(r, owner):
		azureFail(w, http.StatusPreconditionFailed, "PreconditionFailed", "The condition for the record set is not met.")
	default:
		if err := f.dns.replace(old.lines(owner), nil); err != nil {
			azureFail(w, http.StatusInternalServerError, "InternalServerError", err.Error())
			return
		}
		delete(f.sets, owner)
		w.WriteHeader(http.StatusOK)
	}
}

// storeLocked puts a record set in place of the one that is there.
func (f *Azure) storeLocked(owner string, set *azureSet) error {
	old := f.sets[owner]
	if err := f.dns.replace(old.lines(owner), set.lines(owner)); err != nil {
		return err
	}
	f.etags++
	set.Etag = fmt.Sprintf("00000000-0000-0000-0000-%012d", f.etags)
	set.Properties.FQDN, set.Properties.ProvisioningState = owner, "Succeeded"
	f.sets[owner] = *set
	return nil
}

// invalid says what is wrong with a record set that a client sends.
func (s *azureSet) invalid() string {
	if s.Properties == nil || s.Properties.TTL == nil || *s.Properties.TTL < 1 || *s.Properties.TTL > 1<<31-1 {
		return "The TTL property is missing or out of range."
	}
	if n := len(s.Properties.TXTRecords); n == 0 || n > azureRecords {
		return fmt.Sprintf("The record set has %d records, it must have 1 to %d.", n, azureRecords)
	}
	seen := map[string]bool{}
	for _, r := range s.Properties.TXTRecords {
		text := strings.Join(r.Value, "")
		if len(r.Value) == 0 || slices.ContainsFunc(r.Value, func(s string) bool { return len(s) > 255 }) {
			return "A TXT record has no string or one that is too long."
		}
		if seen[text] {
			return "The record set has the record '" + text + "' twice."
		}
		seen[text] = true
	}
	return ""
}

// lines are the records in the form of a zone file.
func (s *azureSet) lines(owner string) []string {
	if s.Properties == nil {
		return nil
	}
	var lines []string
	for _, r := range s.Properties.TXTRecords {
		quoted := make([]string, 0, len(r.Value))
		for _, text := range r.Value {
			quoted = append(quoted, `"`+strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)+`"`)
		}
		lines = append(lines, fmt.Sprintf("%s %d IN TXT %s", owner, *s.Properties.TTL, strings.Join(quoted, " ")))
	}
	return lines
}
