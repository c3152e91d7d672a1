package store_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/store/storetest"
)

func TestGCSStoreKeepsTheContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return acmelab.NewGCS(t, bucket).StoreURL(bucket, "some/prefix")
	})
}

// newGCS starts a GCS server and opens a store on it.
func newGCS(t *testing.T) (*acmelab.GCS, *store.Store) {
	t.Helper()
	g := acmelab.NewGCS(t, bucket)
	return g, newStore(t, g.StoreURL(bucket, "prefix"), store.Options{})
}

func gcsURL(bucket, endpoint string) string {
	return "gs://" + bucket + "/prefix?endpoint=" + url.QueryEscape(endpoint)
}

// newGCSStore opens a store on handler.
func newGCSStore(t *testing.T, handler http.Handler) *store.Store {
	t.Helper()
	return newStore(t, gcsURL(bucket, serve(t, handler)), store.Options{})
}

// onMethod fails requests with this method, the first n of them.
func onMethod(method string, n int32, status int) func(*http.Request) int {
	var seen atomic.Int32
	return func(r *http.Request) int {
		if r.Method == method && seen.Add(1) <= n {
			return status
		}
		return 0
	}
}

func TestListingOfGCSReadsEveryPage(t *testing.T) {
	g, err := acmelab.StartGCS(acmelab.GCSOptions{Buckets: []string{bucket}, PageSize: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	s := newStore(t, g.StoreURL(bucket, "prefix"), store.Options{})
	const objects = 10
	for i := range objects {
		if err := s.Store(t.Context(), fmt.Sprintf("d/%02d", i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.ListVersions(t.Context(), "d")
	if err != nil || len(got) != objects || got[objects-1].Key != "d/09" {
		t.Errorf("got %d objects, %v; want %d", len(got), err, objects)
	}
	if n := g.Count(http.MethodGet, "/"+bucket+"?list"); n != 4 {
		t.Errorf("got %d LIST requests, want 4", n)
	}
}

// Google may answer with fewer objects than there are, even with none, and say
// how the listing goes on.
func TestEmptyPagesOfGCSAreNotTheEnd(t *testing.T) {
	s := newGCSStore(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.EscapedPath(), "/prefix%2Fd"):
			http.Error(w, "No such object: edge-test/prefix/d", http.StatusNotFound)
		case r.URL.Query().Get("pageToken") == "":
			fmt.Fprint(w, `{"nextPageToken":"2"}`)
		default:
			fmt.Fprint(w, `{"items":[{"name":"prefix/d/"},{"name":"prefix/d/a","generation":"7","size":"1","updated":"2026-01-02T03:04:05Z"}]}`)
		}
	}))
	info, err := s.Stat(t.Context(), "d")
	if err != nil || info.IsTerminal {
		t.Errorf("got %+v, %v; want a directory", info, err)
	}
	got, err := s.ListVersions(t.Context(), "d")
	if err != nil || len(got) != 1 || got[0].Version != "7" || got[0].Size != 1 || got[0].Modified.Year() != 2026 {
		t.Errorf("got %+v, %v; want the one object", got, err)
	}
}

func TestListingOfGCSWithoutItsEndIsRefused(t *testing.T) {
	s := newGCSStore(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.EscapedPath(), "/o") {
			fmt.Fprint(w, `{"nextPageToken":"again"}`)
			return
		}
		http.NotFound(w, r)
	}))
	const want = "the storage does not say how a long listing goes on"
	_, err := s.ListVersions(t.Context(), "d")
	wantText(t, err, want)
	_, err = s.Stat(t.Context(), "d")
	wantText(t, err, want)
}

// refusingGCS answers every request as Google does when it refuses.
func refusingGCS(status int, reason, message string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"errors":[{"domain":"global","reason":%q}]}}`, status, message, reason)
	})
}

func TestRefusalsOfGCSSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		handler http.Handler
		want    string
	}{
		{
			refusingGCS(403, "forbidden", "edge@acme.iam.gserviceaccount.com does not have storage.objects.create access"),
			"access to bucket edge-test is denied: edge@acme.iam.gserviceaccount.com does not have storage.objects.create access (grant roles/storage.objectUser on the bucket)",
		},
		{refusingGCS(401, "authError", "Invalid Credentials"), "the credentials for bucket edge-test are not accepted (check GOOGLE_APPLICATION_CREDENTIALS"},
		{refusingGCS(404, "notFound", "The specified bucket does not exist."), "bucket edge-test does not exist (create it"},
		{refusingGCS(429, "rateLimitExceeded", "The object exceeded the rate limit for object mutation operations."), "bucket edge-test asks to slow down"},
		{refusingGCS(403, "userRateLimitExceeded", "…"), "bucket edge-test asks to slow down"},
		{refusingGCS(503, "backendError", "…"), "bucket edge-test is overloaded (edge tries again by itself)"},
		{refusingGCS(501, "notImplemented", "…"), "lacks a feature (edge needs ifGenerationMatch)"},
		{refusingGCS(400, "odd", "two\nlines"), "bucket edge-test answered 400 odd: two lines"},
		{refusing(500, "Odd", "text"), "bucket edge-test answered 500 : not in Google's way"},
		{http.RedirectHandler("http://elsewhere.invalid/", http.StatusFound), "bucket edge-test answered 302"},
		{http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) }), "bucket edge-test answers without a generation (edge needs a storage with conditional writes)"},
	} {
		err := newGCSStore(t, c.handler).Probe(t.Context())
		wantText(t, err, c.want, "probe storage gs://edge-test/prefix?endpoint=")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%v reads like an answer about a key", err)
		}
	}
}

func TestMissingBucketOfGCSIsNoAnswerAboutAKey(t *testing.T) {
	g := acmelab.NewGCS(t)
	s := newStore(t, g.StoreURL(bucket, ""), store.Options{})
	_, loadErr := s.Load(t.Context(), "key")
	_, listErr := s.ListVersions(t.Context(), "")
	_, swapErr := s.Swap(t.Context(), "key", nil, "1")
	for _, err := range []error{loadErr, listErr, swapErr, s.Delete(t.Context(), "key")} {
		wantText(t, err, "bucket edge-test does not exist (create it")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%v reads like an answer about a key", err)
		}
	}
}

func TestRequestsToGCSAreRepeatedWithinBounds(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]int{408: 3, 429: 3, 500: 3, 503: 3, acmelab.Cut: 3, 400: 1, 403: 1, 412: 1} {
		g, s := newGCS(t)
		g.SetFail(onMethod(http.MethodGet, 100, status))
		_, err := s.Load(t.Context(), "key")
		if n := g.Count("", ""); err == nil || n != want {
			t.Errorf("%d: got %v after %d requests, want an error after %d", status, err, n, want)
		}
	}
}

func TestServerThatAsksForTimeGetsIt(t *testing.T) {
	t.Parallel()
	var first atomic.Int64
	s := newGCSStore(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if first.CompareAndSwap(0, time.Now().UnixNano()) {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.Header().Set("X-Goog-Generation", "1")
	}))
	if _, err := s.Load(t.Context(), "key"); err != nil {
		t.Fatal(err)
	}
	if waited := time.Since(time.Unix(0, first.Load())); waited < time.Second {
		t.Errorf("asked again after %s, want a second", waited)
	}
}

func TestTruncatedReadOfGCSIsRepeated(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	s := newGCSStore(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Goog-Generation", "1")
		w.Header().Set("Content-Length", "10")
		if requests.Add(1) == 1 {
			fmt.Fprint(w, "01234")
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, "0123456789")
	}))
	if got, err := s.Load(t.Context(), "key"); err != nil || string(got) != "0123456789" {
		t.Errorf("got %q, %v; want the whole object", got, err)
	}
}

func TestWriteToGCSWhoseReplyWasLostSucceeds(t *testing.T) {
	t.Parallel()
	g, s := newGCS(t)
	var v store.Version
	for _, value := range []string{"1", "2"} {
		g.SetFail(onMethod(http.MethodPost, 1, acmelab.Lose))
		next, err := s.Swap(t.Context(), "key", []byte(value), v)
		if err != nil {
			t.Fatal(err)
		}
		got, found, err := s.LoadVersion(t.Context(), "key")
		if err != nil || string(got) != value || found != next {
			t.Errorf("got %q, version %q, %v; want %s, %q", got, found, err, value, next)
		}
		v = next
	}
	g.SetFail(onMethod(http.MethodPost, 1, http.StatusInternalServerError))
	if _, err := s.Swap(t.Context(), "key", []byte("3"), ""); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want a conflict with another writer, also after a retry", err)
	}
	g.SetFail(onMethod(http.MethodDelete, 1, acmelab.Lose))
	if err := s.Delete(t.Context(), "key"); err != nil {
		t.Error(err)
	}
}

func TestForeignVersionConflictsWithoutARequest(t *testing.T) {
	g, s := newGCS(t)
	for _, v := range []store.Version{"0", "-1", "007", "+7", "d41d8cd98f00b204", "99999999999999999999"} {
		if _, err := s.Swap(t.Context(), "key", nil, v); !errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: got %v, want a conflict", v, err)
		}
	}
	if n := g.Count("", ""); n != 0 {
		t.Errorf("got %d requests, want none", n)
	}
}

func TestVersionOfGCSIsOneWrite(t *testing.T) {
	_, s := newGCS(t)
	first, err := s.Swap(t.Context(), "key", []byte("a"), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Store(t.Context(), "key", []byte("b")), s.Store(t.Context(), "key", []byte("a"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Swap(t.Context(), "key", []byte("c"), first); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want a conflict although the value is the same again", err)
	}
}

func TestLargeObjectsOfGCSAreNotRead(t *testing.T) {
	for _, length := range []string{"", strconv.Itoa(store.MaxObject + 1)} {
		var requests atomic.Int32
		s := newGCSStore(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			requests.Add(1)
			w.Header().Set("X-Goog-Generation", "1")
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			_, _ = w.Write(make([]byte, store.MaxObject+1))
		}))
		if _, err := s.Load(t.Context(), "key"); !errors.Is(err, store.ErrTooLarge) || requests.Load() != 1 {
			t.Errorf("length %q: got %v after %d requests, want %v after one", length, err, requests.Load(), store.ErrTooLarge)
		}
	}
}

func TestProbeRefusesGCSThatIgnoresConditions(t *testing.T) {
	for _, c := range []struct {
		want    string
		ignores func(generation string) bool
	}{
		{"ignoring If-None-Match or ifGenerationMatch=0", func(g string) bool { return g == "0" }},
		{"ignoring If-Match or ifGenerationMatch ", func(g string) bool { return g != "0" }},
	} {
		g, s := newGCS(t)
		g.SetFail(func(r *http.Request) int {
			query := r.URL.Query()
			if r.Method == http.MethodPost && c.ignores(query.Get("ifGenerationMatch")) {
				query.Del("ifGenerationMatch")
				r.URL.RawQuery = query.Encode()
			}
			return 0
		})
		err := s.Probe(t.Context())
		if !errors.Is(err, store.ErrUnsafe) {
			t.Errorf("got %v, want %v", err, store.ErrUnsafe)
		}
		wantText(t, err, c.want, "(use a storage with conditional writes")
		if left, err := s.List(t.Context(), "", true); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

func TestEmulatorOfTheEnvironmentIsUsed(t *testing.T) {
	g := acmelab.NewGCS(t, bucket)
	for _, host := range []string{g.Endpoint, strings.TrimPrefix(g.Endpoint, "http://")} {
		t.Setenv("STORAGE_EMULATOR_HOST", host)
		if err := newStore(t, "gs://"+bucket, store.Options{}).Probe(t.Context()); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	t.Setenv("STORAGE_EMULATOR_HOST", "ftp://hunter2")
	wantText(t, newStore(t, "gs://"+bucket, store.Options{}).Probe(t.Context()), "STORAGE_EMULATOR_HOST is no usable address (unset it")
}

func TestSilentGCSEndsWithTheContext(t *testing.T) {
	s := newGCSStore(t, http.HandlerFunc(hang))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Load(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the caller's deadline", err)
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	_, err := newStore(t, gcsURL(bucket, closed.URL), store.Options{}).Load(t.Context(), "key")
	wantText(t, err, closed.URL+" refuses connections (is the storage running")
}
