package acmelab_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/internal/acmelab"
)

// send sends a request to the GCS server and returns status and body.
func send(t *testing.T, method, target, body string, header ...string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(text))
}

func gcsInsert(g *acmelab.GCS, name, query string) string {
	return g.Endpoint + "/upload/storage/v1/b/certs/o?uploadType=media&name=" + url.QueryEscape(name) + query
}

func gcsObject(g *acmelab.GCS, name, query string) string {
	return g.Endpoint + "/storage/v1/b/certs/o/" + url.PathEscape(name) + query
}

func TestGenerationsOfGCSHaveOneWinner(t *testing.T) {
	t.Parallel()
	g := acmelab.NewGCS(t, "certs")
	status, first := send(t, http.MethodPost, gcsInsert(g, "a/b", "&ifGenerationMatch=0&fields=generation"), "one")
	generation := strings.Trim(strings.TrimPrefix(first, `{"generation":`), `"}`)
	if status != http.StatusOK || len(generation) < 16 {
		t.Fatalf("create: %d %s", status, first)
	}
	for _, c := range []struct {
		what, method, target string
		want                 int
	}{
		{"a second create", http.MethodPost, gcsInsert(g, "a/b", "&ifGenerationMatch=0"), 412},
		{"a write of what changed", http.MethodPost, gcsInsert(g, "a/b", "&ifGenerationMatch=1"), 412},
		{"a write of what is gone", http.MethodPost, gcsInsert(g, "gone", "&ifGenerationMatch=1"), 412},
		{"a delete of what changed", http.MethodDelete, gcsObject(g, "a/b", "?ifGenerationMatch=1"), 412},
		{"a write of the right one", http.MethodPost, gcsInsert(g, "a/b", "&ifGenerationMatch="+generation), 200},
		{"a read", http.MethodGet, gcsObject(g, "a/b", "?alt=media"), 200},
		{"a delete", http.MethodDelete, gcsObject(g, "a/b", ""), 204},
		{"a second delete", http.MethodDelete, gcsObject(g, "a/b", ""), 404},
	} {
		if status, text := send(t, c.method, c.target, "two"); status != c.want {
			t.Errorf("%s: got %d %s, want %d", c.what, status, text, c.want)
		}
	}
	var wins atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			if status, _ := send(t, http.MethodPost, gcsInsert(g, "race", "&ifGenerationMatch=0"), "x"); status == http.StatusOK {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 || g.Count(http.MethodPost, "/certs/race") != 16 {
		t.Errorf("%d winners of %d", wins.Load(), g.Count(http.MethodPost, "/certs/race"))
	}
}

func TestGCSRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	g := acmelab.NewGCS(t, "certs")
	list := g.Endpoint + "/storage/v1/b/certs/o"
	for _, c := range []struct {
		method, target string
		want           int
		text           string
	}{
		{http.MethodGet, list + "?delimiter=/", 400, "Invalid parameter: delimiter"},
		{http.MethodGet, list + "?prefix=a&prefix=b", 400, "Invalid parameter: prefix"},
		{http.MethodGet, list + "?maxResults=many", 400, "Invalid value"},
		{http.MethodGet, list + "?pageToken=guess", 400, "Invalid value"},
		{http.MethodGet, list + "?fields=items(title)", 400, "Invalid field selection"},
		{http.MethodGet, list + "?fields=items(name", 400, "Invalid field selection"},
		{http.MethodGet, list + "?a=%zz", 400, "Invalid query"},
		{http.MethodPost, gcsInsert(g, "a", "&ifMetagenerationMatch=1"), 400, "Invalid parameter: ifMetagenerationMatch"},
		{http.MethodPost, gcsInsert(g, "a", "&ifGenerationMatch=new"), 400, "Invalid value for ifGenerationMatch"},
		{http.MethodPost, gcsInsert(g, "", ""), 400, "Invalid object name"},
		{http.MethodPost, gcsInsert(g, "a\nb", ""), 400, "Invalid object name"},
		{http.MethodPost, strings.Replace(gcsInsert(g, "a", ""), "media", "resumable", 1), 400, "Only media uploads"},
		{http.MethodPut, gcsObject(g, "a", ""), 405, "Method not allowed"},
		{http.MethodGet, list + "/a/b", 404, "Not Found"}, // an unescaped slash
		{http.MethodGet, gcsObject(g, "a", "?alt=xml"), 400, "Invalid value for alt"},
		{http.MethodGet, gcsObject(g, "a", "?alt=media"), 404, "No such object: certs/a"},
		{http.MethodGet, gcsObject(g, "a", ""), 404, "No such object: certs/a"},
		{http.MethodGet, g.Endpoint + "/storage/v1/b/other/o", 404, "The specified bucket does not exist."},
		{http.MethodGet, g.Endpoint + "/", 404, "Not Found"},
	} {
		if status, text := send(t, c.method, c.target, "x"); status != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s %s: got %d %s, want %d %s", c.method, c.target, status, text, c.want, c.text)
		}
	}
	if status, text := send(t, http.MethodPost, gcsInsert(g, "a", ""), "x", "Content-Type", ""); status != 400 || !strings.Contains(text, "Content-Type is missing") {
		t.Errorf("got %d %s", status, text)
	}
}

func TestGCSListsInPages(t *testing.T) {
	t.Parallel()
	g, err := acmelab.StartGCS(acmelab.GCSOptions{Buckets: []string{"certs"}, PageSize: 2, Token: "t"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	bearer := []string{"Authorization", "Bearer t"}
	for i := range 5 {
		if status, text := send(t, http.MethodPost, gcsInsert(g, fmt.Sprint("d/", i), ""), "x", bearer...); status != 200 {
			t.Fatalf("%d %s", status, text)
		}
	}
	list := g.Endpoint + "/storage/v1/b/certs/o?prefix=d/&maxResults=100&fields=" + url.QueryEscape("items(name,size),nextPageToken")
	for query, want := range map[string]string{
		"":                     `{"items":[{"name":"d/0","size":"1"},{"name":"d/1","size":"1"}],"nextPageToken":"after:d/1"}`,
		"&pageToken=after:d/3": `{"items":[{"name":"d/4","size":"1"}]}`,
		"&pageToken=after:d/4": `{}`,
	} {
		if status, text := send(t, http.MethodGet, list+query, "", bearer...); status != 200 || text != want {
			t.Errorf("%s: got %d %s, want %s", query, status, text, want)
		}
	}
	if status, _ := send(t, http.MethodGet, list, ""); status != http.StatusUnauthorized {
		t.Errorf("without a token: got %d, want 401", status)
	}
	if n := g.Requests()["GET /certs?list"]; n != 4 {
		t.Errorf("counted %d LIST, want 4", n)
	}
}

func TestGCSOutagesAreAsScripted(t *testing.T) {
	t.Parallel()
	g := acmelab.NewGCS(t, "certs")
	for _, c := range []struct {
		status, want int
		text         string
	}{
		{http.StatusForbidden, 403, `"reason":"forbidden"`},
		{http.StatusNotFound, 404, "bucket does not exist"},
		{http.StatusTooManyRequests, 429, "rateLimitExceeded"},
		{http.StatusInternalServerError, 500, "backendError"},
		{acmelab.Cut, 0, "EOF"},
		{acmelab.Lose, 0, "EOF"},
	} {
		g.SetFail(func(*http.Request) int { return c.status })
		if got, text := send(t, http.MethodPost, gcsInsert(g, fmt.Sprint("o", c.status), ""), "x"); got != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%d: got %d %s, want %d %s", c.status, got, text, c.want, c.text)
		}
	}
	g.SetFail(nil)
	g.SetDelay(50 * time.Millisecond)
	begin := time.Now()
	_, text := send(t, http.MethodGet, g.Endpoint+"/storage/v1/b/certs/o?fields="+url.QueryEscape("items(name)"), "")
	if text != `{"items":[{"name":"o-2"}]}` || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("got %s after %s, want only what was lost on the way back, and late", text, time.Since(begin))
	}
	g.SetDown(true)
	if status, _ := send(t, http.MethodGet, g.Endpoint, ""); status != 0 {
		t.Errorf("down: got %d", status)
	}
	if got := g.StoreURL("certs", "a/b"); !strings.HasPrefix(got, "gs://certs/a/b?endpoint=http%3A%2F%2F127.0.0.1%3A") {
		t.Error(got)
	}
}
