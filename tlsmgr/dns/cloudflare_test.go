package dns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"edge/config"
	"edge/internal/acmelab"
)

const flareToken = "cf-token-0123456789"

// fakeCloudflare answers the calls of libdns/cloudflare for the zone
// example.test, and refuses an identical record as Cloudflare does.
type fakeCloudflare struct {
	mu      sync.Mutex
	zones   int // how many zones the token sees
	next    int
	records map[string]flareRecord // by ID
	calls   map[string]int
	fail    func(method string) (status int, body string) // 0 is no failure
}

type flareRecord struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Name    string `json:"name"`
	Content string `json:"content"`
	TTL     int    `json:"ttl"`
}

func newCloudflare() *fakeCloudflare {
	return &fakeCloudflare{zones: 1, records: map[string]flareRecord{}, calls: map[string]int{}}
}

// Do makes the fake an HTTPClient: the library's base URL is a constant.
func (f *fakeCloudflare) Do(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	f.serve(w, r)
	return w.Result(), nil
}

func (f *fakeCloudflare) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[r.Method]++
	path, ok := strings.CutPrefix(r.URL.Path, "/client/v4/zones")
	if f.fail != nil {
		if status, body := f.fail(r.Method); status != 0 {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
			return
		}
	}
	id := strings.TrimPrefix(path, "/z1/dns_records/")
	switch {
	case !ok || r.URL.Host != "api.cloudflare.com" || r.URL.Scheme != "https":
		refuseFlare(w, http.StatusNotFound, 7003, "Could not route to "+r.URL.String())
	case r.Header.Get("Authorization") != "Bearer "+flareToken: // the real one does not repeat it
		refuseFlare(w, http.StatusForbidden, 9109, "Invalid access token "+r.Header.Get("Authorization"))
	case path == "" && r.URL.Query().Get("name") == "example.test":
		answerFlare(w, slices.Repeat([]any{map[string]any{"id": "z1", "name": "example.test"}}, f.zones))
	case path == "":
		answerFlare(w, []any{})
	case path == "/z1/dns_records" && r.Method == http.MethodPost:
		f.create(w, r)
	case path == "/z1/dns_records":
		f.list(w, r)
	case r.Method == http.MethodDelete && f.records[id].ID != "":
		delete(f.records, id)
		answerFlare(w, map[string]string{"id": id})
	default:
		refuseFlare(w, http.StatusNotFound, 81044, "Record does not exist.")
	}
}

func (f *fakeCloudflare) create(w http.ResponseWriter, r *http.Request) {
	var in flareRecord
	body, _ := io.ReadAll(r.Body)
	if err := json.Unmarshal(body, &in); err != nil || in.Type != "TXT" || in.TTL < 60 || !strings.HasPrefix(in.Content, `"`) {
		refuseFlare(w, http.StatusBadRequest, 9005, "Content for the record is invalid.")
		return
	}
	if in.Name == "@" {
		in.Name = "example.test"
	} else if !strings.HasSuffix(in.Name, ".example.test") {
		in.Name += ".example.test"
	}
	for _, old := range f.records {
		if old.Name == in.Name && old.Content == in.Content {
			refuseFlare(w, http.StatusBadRequest, 81058, "An identical record already exists.")
			return
		}
	}
	f.next++
	in.ID = fmt.Sprintf("r%d", f.next)
	f.records[in.ID] = in
	answerFlare(w, in)
}

func (f *fakeCloudflare) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	out := []flareRecord{}
	for _, id := range sortedKeys(f.records) {
		if rec := f.records[id]; rec.Name == q.Get("name") && rec.Type == q.Get("type") && strings.Contains(rec.Content, q.Get("content.contains")) {
			out = append(out, rec)
		}
	}
	answerFlare(w, out)
}

func answerFlare(w http.ResponseWriter, result any) {
	_ = json.NewEncoder(w).Encode(map[string]any{"success": true, "errors": []any{}, "messages": []any{}, "result": result})
}

func refuseFlare(w http.ResponseWriter, status, code int, message string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"success": false, "errors": []any{map[string]any{"code": code, "message": message}}, "result": nil})
}

// contents of all records, sorted.
func (f *fakeCloudflare) contents() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, r := range f.records {
		out = append(out, r.Name+" "+strings.Trim(r.Content, `"`))
	}
	slices.Sort(out)
	return out
}

func flareSolver(t *testing.T, d *acmelab.DNS, c HTTPClient, token string) *Solver {
	t.Helper()
	return solver(t, d, Options{
		HTTPClient: c,
		Providers:  []*config.Provider{{Name: "cf", Cloudflare: &config.Cloudflare{Token: secret(t, token)}}},
	})
}

func TestCloudflareAddsAndDeletesExactlyOurRecords(t *testing.T) {
	t.Parallel()
	f := newCloudflare()
	f.records["theirs"] = flareRecord{ID: "theirs", Type: "TXT", Name: challenge, Content: `"apex and more"`, TTL: 300}
	f.records["stale"] = flareRecord{ID: "stale", Type: "TXT", Name: challenge, Content: `"wildcard"`, TTL: 60}
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	s := flareSolver(t, d, f, flareToken)
	p := present(t, s, Record{challenge, "apex"}, Record{challenge, "wildcard"}, Record{"_acme-challenge.a.b.example.test", "deep"})
	want := []string{"_acme-challenge.a.b.example.test deep", challenge + " apex", challenge + " apex and more", challenge + " wildcard"}
	if got := f.contents(); !slices.Equal(got, want) {
		t.Errorf("records: %q, want %q", got, want)
	}
	for range 2 {
		if err := p.CleanUp(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if got := f.contents(); !slices.Equal(got, []string{challenge + " apex and more"}) {
		t.Errorf("after CleanUp: %q", got)
	}
	if f.calls[http.MethodPost] != 3 || f.calls[http.MethodDelete] != 3 {
		t.Errorf("calls: %v", f.calls)
	}
}

func TestCloudflareHalfWrittenOrderIsTakenBack(t *testing.T) {
	t.Parallel()
	f := newCloudflare()
	f.fail = func(method string) (int, string) {
		if method == http.MethodPost && f.calls[method] == 3 {
			return http.StatusTooManyRequests, `{"success":false,"errors":[{"code":971,"message":"Please wait"}]}`
		}
		return 0, ""
	}
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	_, err := flareSolver(t, d, f, flareToken).Present(t.Context(), []Record{{challenge, "a"}, {challenge, "b"}, {challenge, "c"}, {challenge, "d"}})
	wantError(t, err, "provider cf (cloudflare)", "too many requests", "HTTP 429, 971 Please wait", "1200 in 5 minutes")
	if got := f.contents(); len(got) != 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestCloudflareRefusalsAreExplainedWithoutTheToken(t *testing.T) {
	t.Parallel()
	const permissions = "Zone:DNS:Edit"
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	for name, c := range map[string]struct {
		token  string
		zones  int
		status int
		body   string
		want   []string
	}{
		"wrong token":     {token: "cf-wrong-token", zones: 1, want: []string{"HTTP 403, 9109 Invalid access token", "[redacted]", permissions}},
		"malformed token": {zones: 1, status: 400, body: `{"errors":[{"code":6003,"message":"Invalid request headers","error_chain":[{"code":6111,"message":"Invalid format for Authorization header"}]}]}`, want: []string{"6111 Invalid format", permissions}},
		"no zone":         {zones: 0, want: []string{"sees no such zone", permissions}},
		"two zones":       {zones: 2, want: []string{"several zones"}},
		"gateway page":    {zones: 1, status: 502, body: "<html>bad gateway</html>", want: []string{"HTTP 502", "cloudflarestatus"}},
		"nonsense":        {zones: 1, status: 200, body: "<html>", want: []string{"invalid character"}},
		"other":           {zones: 1, status: 400, body: `{"errors":[{"code":1004,"message":"DNS Validation\nError"}]}`, want: []string{"HTTP 400, 1004 DNS Validation Error"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newCloudflare()
			f.zones = c.zones
			f.fail = func(string) (int, string) { return c.status, c.body }
			token := c.token
			if token == "" {
				token = flareToken
			}
			_, err := flareSolver(t, d, f, token).Present(t.Context(), []Record{{challenge, "v"}})
			wantError(t, err, append(c.want, "provider cf (cloudflare)", "zone example.test")...)
			if err != nil && strings.Contains(err.Error(), token) {
				t.Errorf("token in %v", err)
			}
		})
	}
}

// refusing is an HTTPClient whose connections are refused.
type refusing struct{}

func (refusing) Do(*http.Request) (*http.Response, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

func TestCloudflareOutOfReachIsExplained(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	_, err := flareSolver(t, d, refusing{}, flareToken).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "api.cloudflare.com cannot be reached: connection refused", "HTTPS_PROXY")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error("the cause is lost")
	}
}

func TestCloudflareResponsesAreBounded(t *testing.T) {
	t.Parallel()
	endless := doer(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(io.MultiReader(strings.NewReader(`{"messages":["`), zeros{}))}, nil
	})
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	_, err := flareSolver(t, d, endless, flareToken).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "unexpected EOF")
}

type doer func(*http.Request) (*http.Response, error)

func (f doer) Do(r *http.Request) (*http.Response, error) { return f(r) }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}
