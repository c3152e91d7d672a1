package acmelab

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// cloudflareHost is the name of the real API.
const cloudflareHost = "api.cloudflare.com"

// CloudflareToken is the API token that the fake takes unless told otherwise.
const CloudflareToken = "lab-token-0123456789abcdefghijklmnopqrst"

// CloudflareOptions are the settings of a fake Cloudflare.
type CloudflareOptions struct {
	Addr  string // to listen on; "" is a free port of 127.0.0.1
	DNS   *DNS   // where the records go; its zones are those of the account
	Token string // that may do all; "" is CloudflareToken

	// ZoneToken, if not empty, may list zones and do nothing else, and Token may
	// not list them any more.
	ZoneToken string
}

// Cloudflare is a strict fake of the part of the Cloudflare API that an ACME
// client needs: list zones, list, create and delete DNS records. Fields and
// query parameters that the API does not have are refused.
//
// The host name of the API is fixed in clients: HTTPClient sends it here.
type Cloudflare struct {
	URL string // of the API, with its path /client/v4

	front            *front
	dns              *DNS
	token, zoneToken string

	mu       sync.Mutex
	last     int // record id
	records  map[string]*cfRecord
	requests map[string]int
	delay    time.Duration
	fail     func(op string) (status, code int, message string)
}

// cfRecord is a DNS record of the API; the fields that a client sends and those
// that only answers have are the same type there too.
type cfRecord struct {
	ID         string          `json:"id,omitempty"`
	ZoneID     string          `json:"zone_id,omitempty"`
	ZoneName   string          `json:"zone_name,omitempty"`
	Name       string          `json:"name"`
	Type       string          `json:"type"`
	Content    string          `json:"content"`
	TTL        int             `json:"ttl"`
	Priority   *int            `json:"priority,omitempty"`
	Proxiable  bool            `json:"proxiable"`
	Proxied    bool            `json:"proxied"`
	Locked     bool            `json:"locked,omitempty"`
	Comment    *string         `json:"comment,omitempty"`
	Tags       []string        `json:"tags,omitempty"`
	Settings   json.RawMessage `json:"settings,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`
	Meta       json.RawMessage `json:"meta,omitempty"`
	CreatedOn  time.Time       `json:"created_on"`
	ModifiedOn time.Time       `json:"modified_on"`
}

type cfError struct {
	Code    int       `json:"code"`
	Message string    `json:"message"`
	Chain   []cfError `json:"error_chain,omitempty"`
}

type cfInfo struct {
	Page       int `json:"page"`
	PerPage    int `json:"per_page"`
	Count      int `json:"count"`
	TotalCount int `json:"total_count"`
	TotalPages int `json:"total_pages"`
}

type cfEnvelope struct {
	Success  bool      `json:"success"`
	Errors   []cfError `json:"errors"`
	Messages []string  `json:"messages"`
	Result   any       `json:"result"`
	Info     *cfInfo   `json:"result_info,omitempty"`
}

// StartCloudflare runs a fake Cloudflare. The caller must Close it.
func StartCloudflare(o CloudflareOptions) (*Cloudflare, error) {
	f := &Cloudflare{dns: o.DNS, token: o.Token, zoneToken: o.ZoneToken, records: map[string]*cfRecord{}, requests: map[string]int{}}
	if f.token == "" {
		f.token = CloudflareToken
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /client/v4/zones", f.op("list zones", f.listZones, "name", "status", "page", "per_page", "account.id", "order", "direction", "match"))
	mux.HandleFunc("GET /client/v4/zones/{zone}/dns_records", f.op("list records", f.listRecords,
		"type", "name", "name.exact", "content", "content.exact", "content.contains", "page", "per_page", "order", "direction", "match"))
	mux.HandleFunc("POST /client/v4/zones/{zone}/dns_records", f.op("create record", f.create))
	mux.HandleFunc("DELETE /client/v4/zones/{zone}/dns_records/{record}", f.op("delete record", f.remove))
	mux.HandleFunc("/", f.op("unknown", func(w http.ResponseWriter, r *http.Request) {
		cfFail(w, http.StatusBadRequest, 7003, "Could not route to "+r.URL.Path+", perhaps your object identifier is invalid?")
	}))
	var err error
	if f.front, err = serve(o.Addr, nil, mux); err != nil {
		return nil, err
	}
	f.URL = f.front.url + "/client/v4"
	return f, nil
}

// Close ends the server.
func (f *Cloudflare) Close() error { return f.front.close() }

// HTTPClient returns a client that reaches the fake as api.cloudflare.com and
// nothing else.
func (f *Cloudflare) HTTPClient() *http.Client {
	return &http.Client{
		Timeout:   time.Minute,
		Transport: &cfTransport{host: strings.TrimPrefix(f.front.url, "http://"), inner: &http.Transport{DisableKeepAlives: true}},
	}
}

type cfTransport struct {
	host  string
	inner *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *cfTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" || r.URL.Host != cloudflareHost {
		return nil, fmt.Errorf("acmelab: %s://%s is not https://%s", r.URL.Scheme, r.URL.Host, cloudflareHost)
	}
	r = r.Clone(r.Context())
	r.URL.Scheme, r.URL.Host = "http", t.host
	return t.inner.RoundTrip(r)
}

// Requests counts requests by operation: "list zones", "list records", "create
// record", "delete record", "unknown"; refused ones are counted too.
func (f *Cloudflare) Requests() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.requests)
}

// SetDelay makes each request wait before it is handled.
func (f *Cloudflare) SetDelay(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay = d
}

// SetFail installs fn, which is asked first about each operation: a status
// other than 0 is answered with the code and message. nil removes it.
func (f *Cloudflare) SetFail(fn func(op string) (status, code int, message string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fn
}

var bearer = regexp.MustCompile(`^Bearer ([A-Za-z0-9_-]{20,})$`)

// op wraps a handler with what all operations have in common.
func (f *Cloudflare) op(name string, h http.HandlerFunc, params ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.requests[name]++
		delay, fail := f.delay, f.fail
		f.mu.Unlock()
		if !wait(r.Context(), delay) {
			return
		}
		if fail != nil {
			if status, code, message := fail(name); status != 0 {
				cfFail(w, status, code, message)
				return
			}
		}
		token := bearer.FindStringSubmatch(r.Header.Get("Authorization"))
		allowed := f.token
		if name == "list zones" && f.zoneToken != "" {
			allowed = f.zoneToken
		}
		switch {
		case token == nil:
			cfWrite(w, http.StatusBadRequest, cfEnvelope{Errors: []cfError{{
				Code: 6003, Message: "Invalid request headers",
				Chain: []cfError{{Code: 6111, Message: "Invalid format for Authorization header"}},
			}}})
			return
		case token[1] != f.token && token[1] != f.zoneToken:
			cfFail(w, http.StatusForbidden, 9109, "Invalid access token")
			return
		case token[1] != allowed:
			cfFail(w, http.StatusForbidden, 10000, "Authentication error")
			return
		}
		if err := knownQuery(r.URL.Query(), params...); err != nil {
			cfFail(w, http.StatusBadRequest, 1004, err.Error())
			return
		}
		h(w, r)
	}
}

func (f *Cloudflare) listZones(w http.ResponseWriter, r *http.Request) {
	var all []any
	for _, zone := range f.dns.Zones() {
		name := strings.TrimSuffix(zone, ".")
		if want := r.URL.Query().Get("name"); want == "" || want == name {
			all = append(all, map[string]any{"id": zoneID(zone), "name": name, "status": "active", "paused": false, "type": "full"})
		}
	}
	cfPage(w, r.URL.Query(), all, 20, 50)
}

// zone finds the zone of a request; it answers itself when there is none.
func (f *Cloudflare) zone(w http.ResponseWriter, r *http.Request) (string, bool) {
	for _, zone := range f.dns.Zones() {
		if zoneID(zone) == r.PathValue("zone") {
			return zone, true
		}
	}
	cfFail(w, http.StatusNotFound, 7003, "Could not route to "+r.URL.Path+", perhaps your object identifier is invalid?")
	return "", false
}

func (f *Cloudflare) listRecords(w http.ResponseWriter, r *http.Request) {
	zone, ok := f.zone(w, r)
	if !ok {
		return
	}
	q := r.URL.Query()
	match := func(have string, exact ...string) bool {
		return !slices.ContainsFunc(exact, func(param string) bool { return q.Get(param) != "" && !strings.EqualFold(q.Get(param), have) })
	}
	f.mu.Lock()
	var all []any
	for _, id := range slices.Sorted(maps.Keys(f.records)) {
		rec := f.records[id]
		if rec.ZoneID == zoneID(zone) && match(rec.Type, "type") && match(rec.Name, "name", "name.exact") &&
			match(rec.Content, "content", "content.exact") && strings.Contains(rec.Content, q.Get("content.contains")) {
			all = append(all, *rec)
		}
	}
	f.mu.Unlock()
	cfPage(w, q, all, 100, 5_000_000)
}

func (f *Cloudflare) create(w http.ResponseWriter, r *http.Request) {
	zone, ok := f.zone(w, r)
	if !ok {
		return
	}
	var rec cfRecord
	if err := strictJSON(w, r, &rec); err != nil {
		cfFail(w, http.StatusBadRequest, 9207, "Failed to parse request body: "+err.Error())
		return
	}
	if code, message := rec.complete(zone); code != 0 {
		cfFail(w, http.StatusBadRequest, code, message)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, old := range f.records {
		if old.ZoneID == rec.ZoneID && old.Name == rec.Name && old.Type == rec.Type && old.Content == rec.Content {
			cfFail(w, http.StatusBadRequest, 81058, "An identical record already exists.")
			return
		}
	}
	if err := f.dns.Add(rec.line()); err != nil {
		cfFail(w, http.StatusBadRequest, 9005, "Content for "+rec.Type+" record is invalid.")
		return
	}
	f.last++
	rec.ID = fmt.Sprintf("%032x", f.last)
	f.records[rec.ID] = &rec
	cfWrite(w, http.StatusOK, cfEnvelope{Result: rec})
}

func (f *Cloudflare) remove(w http.ResponseWriter, r *http.Request) {
	zone, ok := f.zone(w, r)
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	rec := f.records[r.PathValue("record")]
	if rec == nil || rec.ZoneID != zoneID(zone) {
		cfFail(w, http.StatusNotFound, 81044, "Record does not exist.")
		return
	}
	if err := f.dns.Remove(rec.line()); err != nil {
		cfFail(w, http.StatusInternalServerError, 1000, err.Error())
		return
	}
	delete(f.records, rec.ID)
	cfWrite(w, http.StatusOK, cfEnvelope{Result: map[string]string{"id": rec.ID}})
}

// complete checks a record that a client sends and fills in what the API adds.
func (r *cfRecord) complete(zone string) (code int, message string) {
	apex := strings.TrimSuffix(zone, ".")
	name := strings.ToLower(strings.TrimSuffix(r.Name, "."))
	switch {
	case name == "":
		return 9000, "DNS name is invalid."
	case name == "@":
		name = apex
	case name != apex && !strings.HasSuffix(name, "."+apex): // a name without the zone is one below it
		name += "." + apex
	}
	switch {
	case r.Content == "":
		return 9009, "Content for " + r.Type + " record is required."
	case dns.StringToType[r.Type] == 0:
		return 9004, "DNS record type " + strconv.Quote(r.Type) + " is invalid."
	case r.TTL != 0 && r.TTL != 1 && (r.TTL < 60 || r.TTL > 86400):
		return 9021, "Invalid TTL. Must be between 60 and 86,400 seconds, or 1 for Automatic."
	case r.Proxied && r.Type == "TXT":
		return 9004, "This record type cannot be proxied."
	}
	r.Name, r.TTL = name, max(r.TTL, 1)
	r.ZoneID, r.ZoneName = zoneID(zone), apex
	r.Data, r.Meta = nil, nil
	r.CreatedOn = time.Now().UTC()
	r.ModifiedOn = r.CreatedOn
	return 0, ""
}

// line is the record in a zone file. The TTL of DNS is 1 for "automatic" too.
func (r *cfRecord) line() string {
	content := r.Content
	if r.Type == "TXT" && !strings.HasPrefix(content, `"`) {
		content = strconv.Quote(content)
	}
	return r.Name + ". " + strconv.Itoa(r.TTL) + " IN " + r.Type + " " + content
}

// zoneID makes 32 hexadecimal digits of a name.
func zoneID(zone string) string {
	h := fnv.New128a()
	_, _ = io.WriteString(h, zone)
	return hex.EncodeToString(h.Sum(nil))
}

// strictJSON decodes one value without unknown fields and nothing behind it.
func strictJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCloudRequest))
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is something behind the object")
	}
	return nil
}

// cfPage answers with one page of all.
func cfPage(w http.ResponseWriter, q url.Values, all []any, size, most int) {
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(q.Get(name)); err == nil && n > 0 {
			return n
		}
		return otherwise
	}
	page, per := number("page", 1), min(number("per_page", size), most)
	from := min(len(all), (page-1)*per)
	rows := append([]any{}, all[from:min(len(all), from+per)]...)
	cfWrite(w, http.StatusOK, cfEnvelope{Result: rows, Info: &cfInfo{
		Page: page, PerPage: per, Count: len(rows), TotalCount: len(all), TotalPages: (len(all) + per - 1) / per,
	}})
}

// cfFail answers with an error in the envelope of the API.
func cfFail(w http.ResponseWriter, status, code int, message string) {
	cfWrite(w, status, cfEnvelope{Errors: []cfError{{Code: code, Message: message}}})
}

func cfWrite(w http.ResponseWriter, status int, e cfEnvelope) {
	e.Success = len(e.Errors) == 0
	e.Messages = []string{}
	if e.Errors == nil {
		e.Errors = []cfError{}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e) // the client may be gone
}
