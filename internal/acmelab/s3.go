package acmelab

import (
	"fmt"
	"net/http"
	"net/url"

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

	scripted
}

// StartS3 runs an S3 server. The caller must Close it.
func StartS3(o S3Options) (*S3, error) {
	back := s3mem.New()
	for _, b := range o.Buckets {
		if err := back.CreateBucket(b); err != nil {
			return nil, fmt.Errorf("acmelab: bucket %s: %w", b, err)
		}
	}
	s := &S3{scripted: scripted{
		// Without this logger gofakes3 would be quiet too, but warn about it.
		inner: gofakes3.New(back, gofakes3.WithLogger(gofakes3.DiscardLog())).Server(),
		label: labelS3, refuse: refuseS3,
	}}
	if err := s.listen(o.Addr); err != nil {
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

func labelS3(r *http.Request) string {
	key := r.Method + " " + r.URL.Path
	if r.URL.Query().Has("list-type") {
		key += "?list"
	}
	return key
}

func refuseS3(w http.ResponseWriter, _ *http.Request, status int) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>acmelab was told to fail</Message></Error>`, s3Code(status))
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
