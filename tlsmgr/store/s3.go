package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

// Bounds of one request to S3; requestTimeout bounds all its attempts.
const (
	s3Attempts       = 3
	s3MaxBackoff     = time.Second
	s3AttemptTimeout = 15 * time.Second
	s3DialTimeout    = 5 * time.Second
	s3MaxPrefix      = 400 // with MaxKey below the 1024 bytes of a key in S3
	s3PageSize       = 1000
)

// s3Driver keeps objects in a bucket of S3, or of what speaks its protocol and
// knows conditional writes. A version is the ETag without its quotes.
type s3Driver struct {
	bucket    string
	prefix    string // of every key: "" or with a slash at the end
	region    string // "" is the environment's
	endpoint  string // "" is AWS
	pathStyle bool
	pageSize  int32

	mu     sync.Mutex
	client *s3.Client // made at first use, like http
	http   *http.Client
}

// bucketName is the naming rule of S3.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

func openS3(u *url.URL) (driver, string, error) {
	const hint = "s3://bucket/prefix?region=eu-west-1&endpoint=https://host&path_style=true"
	switch {
	case u.User != nil:
		return nil, "", &fault{message: "a storage URL holds no credentials", hint: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or use a role"}
	case !bucketName.MatchString(u.Host):
		return nil, "", &fault{message: "no valid bucket name", hint: hint}
	case u.Fragment != "":
		return nil, "", &fault{message: "a storage URL has no #fragment", hint: hint}
	}
	d := &s3Driver{bucket: u.Host, pageSize: s3PageSize}
	if prefix := strings.Trim(u.Path, "/"); prefix != "" {
		if err := checkKey(prefix); err != nil || len(prefix) > s3MaxPrefix {
			return nil, "", &fault{message: "the prefix is no valid key", hint: hint, cause: err}
		}
		d.prefix = prefix + "/"
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, "", &fault{message: "the options cannot be parsed", hint: hint}
	}
	for option, values := range query {
		if len(values) != 1 {
			return nil, "", &fault{message: "an option is given twice", hint: hint}
		}
		if err := d.set(option, values[0]); err != nil {
			return nil, "", err
		}
	}
	if d.endpoint != "" && !query.Has("path_style") {
		d.pathStyle = true
	}
	return d, d.url(query), nil
}

// set applies one option of the URL. A value that is refused is not shown: it
// may be a secret in the wrong place.
func (d *s3Driver) set(option, value string) error {
	var err error
	switch option {
	case "region":
		if !regexp.MustCompile(`^[a-z0-9-]{1,32}$`).MatchString(value) {
			return &fault{message: "region is no region", hint: "region=eu-west-1"}
		}
		d.region = value
	case "endpoint":
		e, parseErr := url.Parse(value)
		if parseErr != nil || e.Scheme != "http" && e.Scheme != "https" || e.Host == "" ||
			e.User != nil || e.RawQuery != "" || e.Fragment != "" {
			return &fault{message: "endpoint is no http or https URL without user and options", hint: "endpoint=https://minio.example.com:9000"}
		}
		d.endpoint = value
	case "path_style":
		if d.pathStyle, err = strconv.ParseBool(value); err != nil {
			return &fault{message: "path_style is neither true nor false", hint: "path_style=true"}
		}
	default:
		return &fault{message: "unknown option", hint: "known are region, endpoint and path_style"}
	}
	return nil
}

// url is the URL with what set has accepted, and nothing else.
func (d *s3Driver) url(query url.Values) string {
	u := url.URL{Scheme: "s3", Host: d.bucket, Path: "/" + strings.TrimSuffix(d.prefix, "/"), RawQuery: query.Encode()}
	return u.String()
}

// connect returns the client. Loading the configuration reads the environment
// and the files of the AWS tools but no network; an error is tried again at
// the next call.
func (d *s3Driver) connect(ctx context.Context) (*s3.Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.client != nil {
		return d.client, nil
	}
	builder := awshttp.NewBuildableClient().
		WithTimeout(s3AttemptTimeout).
		WithDialerOptions(func(n *net.Dialer) { n.Timeout = s3DialTimeout }).
		WithTransportOptions(func(t *http.Transport) {
			t.TLSHandshakeTimeout = s3DialTimeout
			t.MaxIdleConnsPerHost = maxRequests
		})
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(builder),
		config.WithLogger(logging.Nop{}),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts = s3Attempts
				o.MaxBackoff = s3MaxBackoff
			})
		}),
	}
	if d.region != "" {
		options = append(options, config.WithRegion(d.region))
	}
	cfg, err := config.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, &fault{"AWS configuration: " + oneLine(innermost(err).Error()), "check AWS_PROFILE and the files in ~/.aws", err}
	}
	if cfg.Region == "" {
		if d.endpoint == "" {
			return nil, &fault{message: "no region is set", hint: "add ?region=… to the storage URL or set AWS_REGION"}
		}
		cfg.Region = "us-east-1" // what compatible servers expect
	}
	if cfg.Credentials != nil {
		cfg.Credentials = markedCredentials{cfg.Credentials}
	}
	d.http = &http.Client{
		Timeout:       s3AttemptTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if b, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		d.http.Transport = b.GetTransport() // with AWS_CA_BUNDLE
	}
	d.client = s3.NewFromConfig(cfg, func(o *s3.Options) {
		o.HTTPClient = countedClient{d.http} // our own, so that close can end its connections
		o.UsePathStyle = d.pathStyle
		// Trailing checksums are news to many compatible servers.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		if d.endpoint != "" {
			o.BaseEndpoint = aws.String(d.endpoint)
		}
	})
	return d.client, nil
}

func (d *s3Driver) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.http != nil {
		d.http.CloseIdleConnections()
	}
	return nil
}

func (d *s3Driver) name(key string) *string { return aws.String(d.prefix + key) }

func (d *s3Driver) get(ctx context.Context, key string) ([]byte, Version, error) {
	client, err := d.connect(ctx)
	if err != nil {
		return nil, "", err
	}
	out, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &d.bucket, Key: d.name(key)})
	if err != nil {
		return nil, "", d.explain(err)
	}
	defer func() { _ = out.Body.Close() }()
	if aws.ToInt64(out.ContentLength) > MaxObject {
		return nil, "", ErrTooLarge
	}
	value, err := io.ReadAll(io.LimitReader(out.Body, MaxObject+1))
	if err != nil {
		return nil, "", d.explain(err)
	}
	if len(value) > MaxObject {
		return nil, "", ErrTooLarge
	}
	return value, version(out.ETag), nil
}

func (d *s3Driver) put(ctx context.Context, key string, value []byte, cond condition) (Version, bool, error) {
	client, err := d.connect(ctx)
	if err != nil {
		return "", false, err
	}
	in := &s3.PutObjectInput{Bucket: &d.bucket, Key: d.name(key), Body: bytes.NewReader(value)}
	if cond.absent {
		in.IfNoneMatch = aws.String("*")
	}
	if cond.match != "" {
		in.IfMatch = aws.String(`"` + string(cond.match) + `"`)
	}
	var sent atomic.Int32
	out, err := client.PutObject(context.WithValue(ctx, sentKey{}, &sent), in)
	if err != nil {
		err = d.explain(err)
		unclear := sent.Load() > 1 || !isRefusal(err)
		if cond != (condition{}) && isConflict(err) {
			err = ErrConflict
		}
		return "", unclear, err
	}
	if out.ETag == nil {
		return "", false, &fault{message: fmt.Sprintf("bucket %q answers writes without an ETag", d.bucket), hint: "edge needs a storage with conditional writes"}
	}
	return version(out.ETag), false, nil
}

func (d *s3Driver) remove(ctx context.Context, key string) error {
	client, err := d.connect(ctx)
	if err != nil {
		return err
	}
	_, err = client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &d.bucket, Key: d.name(key)})
	return ignoreMissing(d.explain(err))
}

func (d *s3Driver) list(ctx context.Context, dir, token string) (page, error) {
	in := &s3.ListObjectsV2Input{Prefix: &d.prefix, MaxKeys: aws.Int32(d.pageSize)}
	if dir != "" {
		in.Prefix = d.name(dir + "/")
	}
	if token != "" {
		in.ContinuationToken = &token
	}
	return d.listPage(ctx, in)
}

func (d *s3Driver) listPage(ctx context.Context, in *s3.ListObjectsV2Input) (page, error) {
	client, err := d.connect(ctx)
	if err != nil {
		return page{}, err
	}
	in.Bucket = &d.bucket
	out, err := client.ListObjectsV2(ctx, in)
	if err != nil {
		return page{}, d.explain(err)
	}
	var p page
	for _, o := range out.Contents {
		key, ok := strings.CutPrefix(aws.ToString(o.Key), d.prefix)
		if !ok || checkKey(key) != nil {
			continue // such as the "dir/" that consoles create
		}
		p.objects = append(p.objects, Object{
			Key: key, Version: version(o.ETag), Size: aws.ToInt64(o.Size), Modified: aws.ToTime(o.LastModified),
		})
	}
	if aws.ToBool(out.IsTruncated) {
		if p.next = aws.ToString(out.NextContinuationToken); p.next == "" {
			return page{}, errEndless
		}
	}
	return p, nil
}

// stat lists instead of asking with HEAD, whose errors have no text.
func (d *s3Driver) stat(ctx context.Context, key string) (Object, bool, error) {
	p, err := d.listPage(ctx, &s3.ListObjectsV2Input{Prefix: d.name(key), MaxKeys: aws.Int32(1)})
	if err != nil {
		return Object{}, false, err
	}
	if len(p.objects) > 0 && p.objects[0].Key == key { // the shortest name comes first
		return p.objects[0], true, nil
	}
	// Two, since the first may be the marker that consoles create.
	p, err = d.listPage(ctx, &s3.ListObjectsV2Input{Prefix: d.name(key + "/"), MaxKeys: aws.Int32(2)})
	if err != nil {
		return Object{}, false, err
	}
	if len(p.objects) == 0 {
		return Object{}, false, fs.ErrNotExist
	}
	return Object{Key: key}, false, nil
}

func version(etag *string) Version {
	return Version(strings.Trim(aws.ToString(etag), `"`))
}

// sentKey is the context key of a counter of requests on the wire.
type sentKey struct{}

// countedClient counts the attempts of one operation. The SDK does not tell
// them when the operation fails, and whether a conflict can be with our own
// write depends on it.
type countedClient struct{ s3.HTTPClient }

func (c countedClient) Do(r *http.Request) (*http.Response, error) {
	if sent, ok := r.Context().Value(sentKey{}).(*atomic.Int32); ok {
		sent.Add(1)
	}
	return c.HTTPClient.Do(r)
}

// markedCredentials lets explain recognise that there are no credentials,
// which the SDK reports in many ways.
type markedCredentials struct{ aws.CredentialsProvider }

func (m markedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := m.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return c, &credentialsError{err}
	}
	return c, nil
}

type credentialsError struct{ cause error }

func (e *credentialsError) Error() string { return "no credentials: " + e.cause.Error() }
func (e *credentialsError) Unwrap() error { return e.cause }
