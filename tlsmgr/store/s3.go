package store

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/logging"
)

// s3Driver keeps objects in a bucket of S3, or of what speaks its protocol and
// knows conditional writes. A version is the ETag without its quotes.
type s3Driver struct {
	bucketURL

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
	d := &s3Driver{pageSize: pageSize}
	var err error
	d.bucketURL, err = parseBucket(u, bucketRules{ //nolint:gosec // no credentials, but where they are set
		noun: "bucket", names: bucketName, set: d.set,
		secrets: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or use a role",
		example: "s3://bucket/prefix?region=eu-west-1&endpoint=https://host&path_style=true",
	})
	if err != nil {
		return nil, "", err
	}
	if d.endpoint != "" && !d.query.Has("path_style") {
		d.pathStyle = true
	}
	return d, d.String(), nil
}

// set applies one option of the URL.
func (d *s3Driver) set(option, value string) error {
	var err error
	switch option {
	case "region":
		if !regexp.MustCompile(`^[a-z0-9-]{1,32}$`).MatchString(value) {
			return &fault{message: "region is no region", hint: "region=eu-west-1"}
		}
		d.region = value
	case "endpoint":
		if err := checkEndpoint(value); err != nil {
			return err
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
		WithTimeout(attemptTimeout).
		WithDialerOptions(func(n *net.Dialer) { n.Timeout = dialTimeout }).
		WithTransportOptions(func(t *http.Transport) {
			t.TLSHandshakeTimeout = dialTimeout
			t.MaxIdleConnsPerHost = maxRequests
		})
	options := []func(*config.LoadOptions) error{
		config.WithHTTPClient(builder),
		config.WithLogger(logging.Nop{}),
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts = attempts
				o.MaxBackoff = maxBackoff
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
		Timeout:       attemptTimeout,
		CheckRedirect: stay,
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

func (d *s3Driver) get(ctx context.Context, key string) ([]byte, Version, error) {
	client, err := d.connect(ctx)
	if err != nil {
		return nil, "", err
	}
	out, err := client.GetObject(ctx, &s3.GetObjectInput{Bucket: &d.bucket, Key: aws.String(d.name(key))})
	if err != nil {
		return nil, "", d.explain(err)
	}
	defer func() { _ = out.Body.Close() }()
	value, err := readObject(out.Body, out.ContentLength)
	if err != nil {
		return nil, "", d.explain(err)
	}
	return value, version(out.ETag), nil
}

func (d *s3Driver) put(ctx context.Context, key string, value []byte, cond condition) (Version, bool, error) {
	client, err := d.connect(ctx)
	if err != nil {
		return "", false, err
	}
	in := &s3.PutObjectInput{Bucket: &d.bucket, Key: aws.String(d.name(key)), Body: bytes.NewReader(value)}
	if cond.absent {
		in.IfNoneMatch = aws.String("*")
	}
	if cond.match != "" {
		in.IfMatch = aws.String(`"` + string(cond.match) + `"`)
	}
	ctx, sent := counting(ctx)
	out, err := client.PutObject(ctx, in)
	if err != nil {
		err = d.explain(err)
		unclear := sent.Load() > 1 || !isRefusal(err)
		if cond != (condition{}) && isConflict(err) {
			err = ErrConflict
		}
		return "", unclear, err
	}
	if out.ETag == nil {
		return "", false, errNoVersion("bucket", d.bucket, "an ETag")
	}
	return version(out.ETag), false, nil
}

// remove takes no condition: servers of S3 that do not know conditional deletes
// ignore it, or refuse it.
func (d *s3Driver) remove(ctx context.Context, key string, _ Version) error {
	client, err := d.connect(ctx)
	if err != nil {
		return err
	}
	_, err = client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &d.bucket, Key: aws.String(d.name(key))})
	return ignoreMissing(d.explain(err))
}

func (d *s3Driver) list(ctx context.Context, dir, token string) (page, error) {
	in := &s3.ListObjectsV2Input{Prefix: aws.String(d.below(dir)), MaxKeys: aws.Int32(d.pageSize)}
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
		key, ok := d.key(aws.ToString(o.Key))
		if !ok {
			continue
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
	p, err := d.listPage(ctx, &s3.ListObjectsV2Input{Prefix: aws.String(d.name(key)), MaxKeys: aws.Int32(1)})
	if err != nil {
		return Object{}, false, err
	}
	if len(p.objects) > 0 && p.objects[0].Key == key { // the shortest name comes first
		return p.objects[0], true, nil
	}
	return statDirectory(ctx, d, key)
}

func version(etag *string) Version {
	return Version(strings.Trim(aws.ToString(etag), `"`))
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
