package acmelab

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// Credentials for the S3 server, which takes any: it checks no signature.
const (
	AccessKeyID     = "lab"
	SecretAccessKey = "lab-secret"
)

// region is what clients are told; the server does not look at it.
const region = "us-east-1"

// Statuses beyond HTTP that the function of S3.SetFail may return.
const (
	Cut  = -1 // end the connection without an answer and without effect
	Lose = -2 // carry the request out, then end the connection: the answer is lost
)

// S3Options are the settings of an S3 server.
type S3Options struct {
	Addr    string   // to listen on; "" is a free port of 127.0.0.1
	Buckets []string // that exist
}

// S3 is gofakes3, an S3 server in memory. Its conditional PUTs (If-None-Match,
// If-Match) are atomic. It does not honour a conditional DELETE: it deletes.
type S3 struct {
	Endpoint string // URL of the server; buckets are in the path
	Client   *s3.Client

	front *front
	inner http.Handler

	mu       sync.Mutex
	requests map[string]int
	delay    time.Duration
	fail     func(*http.Request) int
}

// StartS3 runs an S3 server. The caller must Close it.
func StartS3(o S3Options) (*S3, error) {
	back := s3mem.New()
	for _, b := range o.Buckets {
		if err := back.CreateBucket(b); err != nil {
			return nil, fmt.Errorf("acmelab: bucket %s: %w", b, err)
		}
	}
	s := &S3{
		// Without this logger gofakes3 would be quiet too, but warn about it.
		inner:    gofakes3.New(back, gofakes3.WithLogger(gofakes3.DiscardLog())).Server(),
		requests: map[string]int{},
	}
	var err error
	if s.front, err = serve(o.Addr, nil, http.HandlerFunc(s.serveHTTP)); err != nil {
		return nil, err
	}
	s.Endpoint = s.front.url
	// Built by hand: config.LoadDefaultConfig would read the developer's own
	// ~/.aws and ask the metadata service for credentials.
	s.Client = s3.New(s3.Options{
		Region:       region,
		BaseEndpoint: aws.String(s.Endpoint),
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider(AccessKeyID, SecretAccessKey, ""),
		HTTPClient:   &http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	})
	return s, nil
}

// Close ends the server.
func (s *S3) Close() error { return s.front.close() }

// StoreURL is the URL of a certificate store in bucket, below prefix. The store
// takes credentials from the environment; see Env.
func (s *S3) StoreURL(bucket, prefix string) string {
	u := url.URL{Scheme: "s3", Host: bucket, Path: "/" + prefix, RawQuery: url.Values{
		"region": {region}, "endpoint": {s.Endpoint}, "path_style": {"true"},
	}.Encode()}
	return u.String()
}

// Env is what a process needs in its environment to use the store.
func (s *S3) Env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + AccessKeyID,
		"AWS_SECRET_ACCESS_KEY=" + SecretAccessKey,
		"AWS_EC2_METADATA_DISABLED=true",
	}
}

// Requests counts requests by method and path, for example "PUT /certs/a/b",
// with "?list" behind the path of a LIST.
func (s *S3) Requests() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.requests)
}

// Count is the number of requests with this method whose path starts with
// prefix; an empty method counts all.
func (s *S3) Count(method, prefix string) int {
	n := 0
	for key, count := range s.Requests() {
		m, path, _ := strings.Cut(key, " ")
		if (method == "" || m == method) && strings.HasPrefix(path, prefix) {
			n += count
		}
	}
	return n
}

// SetDelay makes each request wait before it is handled.
func (s *S3) SetDelay(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delay = d
}

// SetFail installs f, which is asked first about each request: 0 handles it, a
// status is answered in the form of S3, Cut and Lose end the connection. nil
// removes it.
func (s *S3) SetFail(f func(*http.Request) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// SetDown takes the server off the net, or back on it.
func (s *S3) SetDown(down bool) { s.front.setDown(down) }

func (s *S3) serveHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Method + " " + r.URL.Path
	if r.URL.Query().Has("list-type") {
		key += "?list"
	}
	s.mu.Lock()
	s.requests[key]++
	delay, fail := s.delay, s.fail
	s.mu.Unlock()
	if !wait(r.Context(), delay) {
		return
	}
	status := 0
	if fail != nil {
		status = fail(r)
	}
	switch status {
	case 0:
		s.inner.ServeHTTP(w, r)
	case Cut:
		cut(w)
	case Lose:
		s.inner.ServeHTTP(lost{http.Header{}}, r)
		cut(w)
	default:
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>acmelab was told to fail</Message></Error>`, s3Code(status))
	}
}

// s3Code is the error code that S3 sends with a status.
func s3Code(status int) string {
	switch status {
	case http.StatusForbidden:
		return "AccessDenied"
	case http.StatusNotFound:
		return "NoSuchBucket"
	case http.StatusConflict:
		return "ConditionalRequestConflict"
	case http.StatusPreconditionFailed:
		return "PreconditionFailed"
	case http.StatusServiceUnavailable:
		return "SlowDown"
	}
	return "InternalError"
}

// lost is a response that nobody reads.
type lost struct{ header http.Header }

// Header implements http.ResponseWriter.
func (l lost) Header() http.Header { return l.header }

// Write implements http.ResponseWriter.
func (l lost) Write(p []byte) (int, error) { return len(p), nil }

// WriteHeader implements http.ResponseWriter.
func (l lost) WriteHeader(int) {}
