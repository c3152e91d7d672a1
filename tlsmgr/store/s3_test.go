package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"edge/tlsmgr/store"
	"edge/tlsmgr/store/storetest"
)

const bucket = "edge-test"

// newS3 starts an S3 server with one bucket.
func newS3(t *testing.T) http.Handler {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket(bucket); err != nil {
		t.Fatal(err)
	}
	return gofakes3.New(backend, gofakes3.WithLogger(gofakes3.DiscardLog())).Server()
}

// serve returns the endpoint of handler.
func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

func s3URL(bucket, prefix, endpoint string) string {
	return "s3://" + bucket + "/" + prefix + "?region=us-east-1&endpoint=" + url.QueryEscape(endpoint)
}

// newS3Store opens a store on handler.
func newS3Store(t *testing.T, handler http.Handler) *store.Store {
	t.Helper()
	return newStore(t, s3URL(bucket, "prefix", serve(t, handler)), store.Options{})
}

func TestS3StoreKeepsTheContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return s3URL(bucket, "some/prefix", serve(t, newS3(t)))
	})
}

func TestPrefixesSeparateStoresInOneBucket(t *testing.T) {
	endpoint := serve(t, newS3(t))
	root := newStore(t, s3URL(bucket, "", endpoint), store.Options{})
	a := newStore(t, s3URL(bucket, "/a/", endpoint), store.Options{})
	ab := newStore(t, s3URL(bucket, "ab", endpoint), store.Options{})
	for _, s := range []*store.Store{a, ab} {
		if err := s.Store(t.Context(), "key", []byte(s.URL())); err != nil {
			t.Fatal(err)
		}
	}
	for s, want := range map[*store.Store]string{root: "a a/key ab ab/key", a: "key", ab: "key"} {
		got, err := s.List(t.Context(), "", true)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: got %q, %v; want %s", s.URL(), got, err, want)
		}
	}
}

func TestFolderMarkersOfConsolesAreNotObjects(t *testing.T) {
	handler := newS3(t)
	s := newS3Store(t, handler)
	put := httptest.NewRequest(http.MethodPut, "/"+bucket+"/prefix/folder/", nil)
	handler.ServeHTTP(httptest.NewRecorder(), put)
	if s.Exists(t.Context(), "folder") {
		t.Error("an empty folder exists")
	}
	if err := s.Store(t.Context(), "folder/key", nil); err != nil {
		t.Fatal(err)
	}
	info, err := s.Stat(t.Context(), "folder")
	if err != nil || info.IsTerminal {
		t.Errorf("got %+v, %v; want a directory", info, err)
	}
	if got, err := s.List(t.Context(), "", true); err != nil || strings.Join(got, " ") != "folder folder/key" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestListingReadsEveryPage(t *testing.T) {
	t.Parallel()
	var lists atomic.Int32
	handler := newS3(t)
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("list-type") == "2" {
			lists.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	const objects = 2001
	for i := range objects {
		put := httptest.NewRequest(http.MethodPut, fmt.Sprintf("/%s/prefix/d/%04d", bucket, i), strings.NewReader("x"))
		put.Header.Set("Content-Length", "1")
		handler.ServeHTTP(httptest.NewRecorder(), put)
	}
	got, err := s.ListVersions(t.Context(), "d")
	if err != nil || len(got) != objects || got[objects-1].Key != "d/2000" {
		t.Errorf("got %d objects, %v; want %d", len(got), err, objects)
	}
	if lists.Load() != 3 {
		t.Errorf("got %d LIST requests, want 3", lists.Load())
	}
	if err := s.Delete(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	if s.Exists(t.Context(), "d") {
		t.Error("d exists after its delete")
	}
}

func TestListingWithoutItsEndIsRefused(t *testing.T) {
	for name, token := range map[string]string{"no token": "", "the same again": "<NextContinuationToken>t</NextContinuationToken>"} {
		s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `<ListBucketResult><IsTruncated>true</IsTruncated>`+token+
				`<Contents><Key>prefix/d/a</Key><ETag>"v"</ETag></Contents></ListBucketResult>`)
		}))
		objects, err := s.ListVersions(t.Context(), "d")
		if len(objects) > 0 {
			t.Errorf("%s: got %v, want none of a listing without its end", name, objects)
		}
		wantText(t, err, `list "d": the storage does not say how a long listing goes on (edge needs listings in pages, in S3 ListObjectsV2)`)
	}
}

// refusing answers every request as S3 does when it refuses.
func refusing(status int, code, message string, header ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>%s</Message>`+
			`<AWSAccessKeyId>test-key</AWSAccessKeyId><StringToSign>test-secret-value</StringToSign><RequestId>1</RequestId></Error>`, code, message)
	})
}

func TestRefusalsOfS3SayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		handler http.Handler
		want    []string
	}{
		{
			refusing(403, "AccessDenied", "Access Denied"),
			[]string{"access to bucket edge-test is denied", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"},
		},
		{refusing(403, "SomethingNew", "No."), []string{"access to bucket edge-test is denied"}},
		{refusing(400, "ExpiredToken", "The provided token has expired."), []string{"credentials for bucket edge-test have expired (log in again"}},
		{refusing(403, "InvalidAccessKeyId", "The AWS Access Key Id test-key does not exist"), []string{"access key for bucket edge-test is unknown (check AWS_ACCESS_KEY_ID"}},
		{refusing(403, "SignatureDoesNotMatch", "…"), []string{"secret key for bucket edge-test is wrong (check AWS_SECRET_ACCESS_KEY)"}},
		{refusing(403, "RequestTimeTooSkewed", "…"), []string{"clock is too far", "NTP"}},
		{refusing(404, "NoSuchBucket", "The specified bucket does not exist"), []string{"bucket edge-test does not exist (create it"}},
		{refusing(301, "PermanentRedirect", "…", "X-Amz-Bucket-Region", "eu-west-1"), []string{"bucket edge-test is in region eu-west-1 (set region=eu-west-1"}},
		{
			refusing(400, "AuthorizationHeaderMalformed", "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-north-1'"),
			[]string{"is in region eu-north-1"},
		},
		{refusing(307, "TemporaryRedirect", "…", "Location", "http://elsewhere.invalid/"), []string{"bucket edge-test is in another region (check region and endpoint"}},
		{refusing(503, "SlowDown", "Please reduce your request rate."), []string{"bucket edge-test asks to slow down"}},
		{refusing(501, "NotImplemented", "A header you provided implies …"), []string{"lacks a feature", "conditional writes"}},
		{refusing(400, "Odd", "two\nlines"), []string{"bucket edge-test answered 400 Odd: two lines"}},
	} {
		s := newS3Store(t, c.handler)
		err := s.Probe(t.Context())
		wantText(t, err, append(c.want, "probe storage s3://edge-test/prefix?endpoint=")...)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%v reads like an answer about a key", err)
		}
	}
}

func TestEveryOperationExplainsItsRefusal(t *testing.T) {
	s := newS3Store(t, refusing(403, "AccessDenied", "Access Denied"))
	const want = `: access to bucket edge-test is denied (grant `
	_, err := s.Load(t.Context(), "key")
	wantText(t, err, `load "key"`+want)
	wantText(t, s.Store(t.Context(), "key", nil), `store "key"`+want)
	_, err = s.Swap(t.Context(), "key", nil, "v")
	wantText(t, err, `swap "key"`+want)
	wantText(t, s.Delete(t.Context(), "key"), `delete "key"`+want)
	_, err = s.List(t.Context(), "dir", true)
	wantText(t, err, `list "dir"`+want)
	_, err = s.ListVersions(t.Context(), "dir")
	wantText(t, err, `list "dir"`+want)
	_, err = s.Stat(t.Context(), "key")
	wantText(t, err, `stat "key"`+want)
	_, err = s.Acquire(t.Context(), "x")
	wantText(t, err, `acquire lease "x"`+want)
	if s.Exists(t.Context(), "key") {
		t.Error("key exists though it cannot be seen")
	}
}

func TestMissingBucketOfARealServer(t *testing.T) {
	s := newStore(t, s3URL("no-such-bucket", "", serve(t, newS3(t))), store.Options{})
	wantText(t, s.Probe(t.Context()), "bucket no-such-bucket does not exist (create it")
	_, err := s.Swap(t.Context(), "key", nil, "version")
	if errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want no conflict", err)
	}
}

func TestMissingCredentialsAreExplained(t *testing.T) {
	handler := newS3(t)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	s := newStore(t, s3URL(bucket, "", serve(t, handler)), store.Options{})
	wantText(t, s.Probe(t.Context()), "no credentials for bucket edge-test (set AWS_ACCESS_KEY_ID")
	t.Setenv("AWS_PROFILE", "missing")
	s = newStore(t, s3URL(bucket, "", serve(t, handler)), store.Options{})
	wantText(t, s.Probe(t.Context()), "AWS configuration: ", "(check AWS_PROFILE")
	t.Setenv("AWS_PROFILE", "")
	s = newStore(t, "s3://edge-test", store.Options{})
	wantText(t, s.Probe(t.Context()), "no region is set (add ?region=")
}

func TestUnreachableEndpointsAreExplained(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + listener.Addr().String()
	_ = listener.Close()
	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	hangsUp := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	for endpoint, want := range map[string]string{
		hangsUp:                       hangsUp + " closed the connection (edge tries again by itself",
		closed:                        closed + " refuses connections (is the storage running",
		"http://s3.edge-test.invalid": "host s3.edge-test.invalid of the storage cannot be resolved (check endpoint",
		untrusted.URL:                 "certificate that is not trusted (set AWS_CA_BUNDLE",
	} {
		s := newStore(t, s3URL(bucket, "", endpoint), store.Options{})
		wantText(t, s.Probe(t.Context()), want)
	}
}

func TestSilentServerEndsWithTheContext(t *testing.T) {
	s := newS3Store(t, http.HandlerFunc(hang))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Load(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the caller's deadline", err)
	}
	if err := s.Probe(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the caller's deadline", err)
	}
	reason := errors.New("lease lost")
	ctx, end := context.WithCancelCause(t.Context())
	time.AfterFunc(10*time.Millisecond, func() { end(reason) })
	if _, err := s.Load(ctx, "key"); !errors.Is(err, reason) {
		t.Errorf("got %v, want the cause of the context", err)
	}
}

func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

func TestWriteWhoseReplyWasLostSucceeds(t *testing.T) {
	t.Parallel()
	var puts atomic.Int32
	handler := newS3(t)
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && puts.Add(1)%2 == 1 {
			handler.ServeHTTP(httptest.NewRecorder(), r) // it is written …
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		handler.ServeHTTP(w, r) // … and the SDK's second attempt conflicts
	}))
	v, err := s.Swap(t.Context(), "key", []byte("1"), "")
	if err != nil {
		t.Fatal(err)
	}
	v, err = s.Swap(t.Context(), "key", []byte("2"), v)
	if err != nil || puts.Load() != 4 {
		t.Fatalf("got %v after %d PUTs, want success after 4", err, puts.Load())
	}
	got, found, err := s.LoadVersion(t.Context(), "key")
	if err != nil || string(got) != "2" || found != v {
		t.Errorf("got %q, version %q, %v; want 2, %q", got, found, err, v)
	}
	l, err := s.Acquire(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Renew(t.Context()), l.Release(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestConflictWithAnotherWriterStaysAConflictAfterARetry(t *testing.T) {
	t.Parallel()
	var puts atomic.Int32
	handler := newS3(t)
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && puts.Add(1) == 2 { // the first attempt is lost
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	if err := s.Store(t.Context(), "key", []byte("theirs")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Swap(t.Context(), "key", []byte("ours"), ""); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
}

func TestConcurrentWritesAtS3AreConflicts(t *testing.T) {
	s := newS3Store(t, refusing(409, "ConditionalRequestConflict", "…"))
	if _, err := s.Swap(t.Context(), "key", nil, ""); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
	s = newS3Store(t, refusing(404, "NoSuchKey", "…"))
	if _, err := s.Swap(t.Context(), "key", nil, "version"); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
}

func TestObjectsOfAnySizeAreNotRead(t *testing.T) {
	for _, known := range []bool{true, false} {
		var sent atomic.Int64
		s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			const size = 1 << 28
			if known {
				w.Header().Set("Content-Length", fmt.Sprint(size))
			}
			chunk := make([]byte, 1<<16)
			for sent.Load() < size {
				n, err := w.Write(chunk)
				if sent.Add(int64(n)); err != nil {
					return
				}
			}
		}))
		if _, err := s.Load(t.Context(), "key"); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("length known %v: got %v, want %v", known, err, store.ErrTooLarge)
		}
	}
}

func TestRequestsAreCappedAndLeasesHaveTheirOwn(t *testing.T) {
	var now, most atomic.Int32
	var once sync.Once
	full, release := make(chan struct{}), make(chan struct{})
	handler := newS3(t)
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/locks/") {
			handler.ServeHTTP(w, r)
			return
		}
		n := now.Add(1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		if n == 32 {
			once.Do(func() { close(full) })
		}
		<-release
		now.Add(-1)
		w.Header().Set("ETag", `"v"`)
	}))
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := s.Load(t.Context(), "key"); err != nil {
				t.Error(err)
			}
		})
	}
	<-full
	l, err := s.Acquire(t.Context(), "x")
	if err == nil {
		err = errors.Join(l.Renew(t.Context()), l.Release(t.Context()))
	}
	if err != nil {
		t.Errorf("lease while all requests are taken: %v", err)
	}
	close(release)
	wg.Wait()
	if most.Load() != 32 {
		t.Errorf("got %d requests at a time, want 32", most.Load())
	}
}

func TestConditionsAreSentAsS3WantsThem(t *testing.T) {
	headers := make(chan http.Header, 1)
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		headers <- r.Header
		w.Header().Set("ETag", `"v2"`)
	}))
	for old, want := range map[store.Version][2]string{"": {"*", ""}, "v1": {"", `"v1"`}} {
		v, err := s.Swap(t.Context(), "key", []byte("x"), old)
		if err != nil || v != "v2" {
			t.Errorf("got %q, %v; want v2", v, err)
		}
		h := <-headers
		if got := [2]string{h.Get("If-None-Match"), h.Get("If-Match")}; got != want {
			t.Errorf("old %q: got conditions %q, want %q", old, got, want)
		}
		if h.Get("X-Amz-Trailer") != "" || h.Get("Content-Encoding") != "" { // unknown to older servers
			t.Errorf("got headers %v, want no trailing checksum", h)
		}
	}
}

// without serves handler but hides headers from it, as an old server would.
func without(handler http.Handler, headers ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range headers {
			r.Header.Del(h)
		}
		handler.ServeHTTP(w, r)
	})
}

func TestProbeRefusesStorageThatIgnoresConditions(t *testing.T) {
	for header, want := range map[string]string{
		"If-None-Match": "ignoring If-None-Match",
		"If-Match":      "ignoring If-Match",
	} {
		var requests atomic.Int32
		old := without(newS3(t), header)
		s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requests.Add(1)
			old.ServeHTTP(w, r)
		}))
		err := s.Probe(t.Context())
		if !errors.Is(err, store.ErrUnsafe) {
			t.Errorf("got %v, want %v", err, store.ErrUnsafe)
		}
		wantText(t, err, "storage does not keep its promises", want, "(use a storage with conditional writes")
		before := requests.Load()
		if again := s.Probe(t.Context()); !errors.Is(again, err) || requests.Load() != before {
			t.Errorf("second probe: got %v and %d requests, want the same verdict and none", again, requests.Load()-before)
		}
		if left, err := s.List(t.Context(), "", true); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

func TestProbeRefusesStorageThatShowsOldData(t *testing.T) {
	handler := newS3(t)
	for want, change := range map[string]func(body []byte, r *http.Request) []byte{
		"a read does not show the last write": func(body []byte, _ *http.Request) []byte {
			return bytes.ReplaceAll(body, []byte("probe 3"), []byte("probe 1"))
		},
		"a listing does not show the last write and its version": func(body []byte, r *http.Request) []byte {
			if !r.URL.Query().Has("list-type") {
				return body
			}
			return bytes.ReplaceAll(body, []byte("ETag"), []byte("Nope"))
		},
	} {
		s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, r)
			for name := range recorder.Header() {
				w.Header().Set(name, recorder.Header().Get(name))
			}
			w.WriteHeader(recorder.Code)
			w.Write(change(recorder.Body.Bytes(), r))
		}))
		wantText(t, s.Probe(t.Context()), want)
	}
}

func TestProbeIsRepeatedAfterAnOutageAndNotAfterSuccess(t *testing.T) {
	var down atomic.Bool
	var requests atomic.Int32
	handler := newS3(t)
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if down.Load() {
			refusing(403, "AccessDenied", "").ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	down.Store(true)
	wantText(t, s.Probe(t.Context()), "access to bucket")
	down.Store(false)
	for range 3 {
		if err := s.Probe(t.Context()); err != nil {
			t.Error(err)
		}
	}
	const want = 1 + 4 + 1 + 1 + 2 // refused; writes, read, listing, removal
	if requests.Load() != want {
		t.Errorf("got %d requests, want %d", requests.Load(), want)
	}
}

func TestProbeNeedsThePermissionToDelete(t *testing.T) {
	handler := newS3(t)
	s := newS3Store(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			refusing(403, "AccessDenied", "").ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	wantText(t, s.Probe(t.Context()), "delete ", "s3:DeleteObject")
}
