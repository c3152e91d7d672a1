package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	gcsEndpoint = "https://storage.googleapis.com"
	gcsEmulator = "STORAGE_EMULATOR_HOST"
)

// gcsDriver keeps objects in a bucket of Google Cloud Storage by its JSON API
// (https://cloud.google.com/storage/docs/json_api/v1). A version is an
// object's generation, and so names one write, not a content.
//
// Google's own client library is not used: it costs the binary twice as much
// as all of the calls below with their credentials.
type gcsDriver struct {
	bucketURL

	endpoint    string // "" is Google, or the emulator of the environment
	credentials string // "" is the default chain, unless there is an endpoint
	pageSize    int

	mu     sync.Mutex
	base   string // URL without a slash at the end; "" before the first use
	tokens *tokens
	http   *http.Client
}

// gcsBucketName is https://cloud.google.com/storage/docs/buckets#naming; names
// with dots may be longer.
var gcsBucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$`)

func openGCS(u *url.URL) (driver, string, error) {
	d := &gcsDriver{pageSize: pageSize, http: newHTTPClient()}
	var err error
	d.bucketURL, err = parseBucket(u, bucketRules{ //nolint:gosec // no credentials, but where they are set
		noun: "bucket", names: gcsBucketName, set: d.set,
		secrets: "set GOOGLE_APPLICATION_CREDENTIALS, add credentials=/path/of/key.json, or use workload identity",
		example: "gs://bucket/prefix?credentials=/etc/edge/key.json",
	})
	if err != nil {
		return nil, "", err
	}
	if d.credentials != "" && leaksTokens(d.endpoint) {
		return nil, "", &fault{message: "credentials would be sent unencrypted", hint: "use an https endpoint"}
	}
	return d, d.String(), nil
}

// set applies one option of the URL.
func (d *gcsDriver) set(option, value string) error {
	switch option {
	case "endpoint":
		if err := checkEndpoint(value); err != nil {
			return err
		}
		d.endpoint = value
	case "credentials":
		if value != defaultChain && (!path.IsAbs(value) || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' })) {
			return &fault{message: "credentials is neither an absolute path nor " + defaultChain, hint: "credentials=/etc/edge/key.json"}
		}
		d.credentials = value
	default:
		return &fault{message: "unknown option", hint: "known are endpoint and credentials"}
	}
	return nil
}

// connect chooses the server and what to show it, by the environment at first
// use. An error is tried again at the next call.
func (d *gcsDriver) connect() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.base != "" {
		return nil
	}
	base, credentials := d.endpoint, d.credentials
	if host := os.Getenv(gcsEmulator); base == "" && host != "" {
		if !strings.Contains(host, "://") {
			host = "http://" + host
		}
		if checkEndpoint(host) != nil || credentials != "" && leaksTokens(host) {
			return &fault{message: gcsEmulator + " is no usable address", hint: "unset it, or set it to http://host:port"}
		}
		base = host
	}
	if base == "" {
		credentials = cmp.Or(credentials, defaultChain)
	}
	if credentials != "" {
		d.tokens = &tokens{path: credentials, client: newHTTPClient()}
	}
	d.base = strings.TrimRight(cmp.Or(base, gcsEndpoint), "/")
	return nil
}

func (d *gcsDriver) close() error {
	d.http.CloseIdleConnections()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tokens != nil {
		d.tokens.client.CloseIdleConnections()
	}
	return nil
}

// gcsObject is the part of an object's resource that fields asks for.
type gcsObject struct {
	Name       string    `json:"name"`
	Generation string    `json:"generation"`
	Size       string    `json:"size"`
	Updated    time.Time `json:"updated"`
}

const gcsFields = "name,generation,size,updated"

func (o gcsObject) object(key string) Object {
	size, _ := strconv.ParseInt(o.Size, 10, 64) // 0 is as good as any for what does not say
	return Object{Key: key, Version: Version(o.Generation), Size: size, Modified: o.Updated}
}

// objectPath is the path of an object's resource; the name is one segment.
func (d *gcsDriver) objectPath(key string) string {
	return d.listPath() + "/" + url.PathEscape(d.name(key))
}

func (d *gcsDriver) listPath() string { return "/storage/v1/b/" + d.bucket + "/o" }

func (d *gcsDriver) get(ctx context.Context, key string) ([]byte, Version, error) {
	reply, _, err := d.do(ctx, gcsRequest{method: http.MethodGet, path: d.objectPath(key), query: url.Values{"alt": {"media"}}, read: readObject})
	if err != nil {
		return nil, "", err
	}
	v := Version(reply.header.Get("X-Goog-Generation"))
	if !v.isGeneration() {
		return nil, "", errNoVersion("bucket", d.bucket, "X-Goog-Generation")
	}
	return reply.body, v, nil
}

func (d *gcsDriver) put(ctx context.Context, key string, value []byte, cond condition) (Version, bool, error) {
	query := url.Values{"uploadType": {"media"}, "name": {d.name(key)}, "fields": {"generation"}}
	switch {
	case cond.absent:
		query.Set("ifGenerationMatch", "0")
	case cond.match != "":
		if !cond.match.isGeneration() {
			return "", false, ErrConflict // the version of another kind of storage
		}
		query.Set("ifGenerationMatch", string(cond.match))
	}
	reply, sent, err := d.do(ctx, gcsRequest{method: http.MethodPost, path: "/upload" + d.listPath(), query: query, body: value, read: readReply})
	if err != nil {
		unclear := sent > 1 || !isRefusal(err)
		if cond != (condition{}) && hasStatus(err, http.StatusPreconditionFailed) {
			err = ErrConflict
		}
		return "", unclear, err
	}
	var o gcsObject
	if err := json.Unmarshal(reply.body, &o); err != nil || !Version(o.Generation).isGeneration() {
		return "", true, errNoVersion("bucket", d.bucket, "a generation")
	}
	return Version(o.Generation), false, nil
}

// isGeneration accepts the positive numbers as Google writes them. 0 must not
// pass: as a condition it means that there is no object.
func (v Version) isGeneration() bool {
	n, err := strconv.ParseInt(string(v), 10, 64)
	return err == nil && n > 0 && strconv.FormatInt(n, 10) == string(v)
}

func (d *gcsDriver) remove(ctx context.Context, key string, match Version) error {
	query := url.Values{}
	if match != "" {
		if !match.isGeneration() {
			return ErrConflict
		}
		query.Set("ifGenerationMatch", string(match))
	}
	_, _, err := d.do(ctx, gcsRequest{method: http.MethodDelete, path: d.objectPath(key), query: query, read: readReply})
	if match != "" && hasStatus(err, http.StatusPreconditionFailed) {
		// Perhaps because it is gone: by our own request, whose reply was lost.
		_, _, err = d.do(ctx, gcsRequest{method: http.MethodGet, path: d.objectPath(key), query: url.Values{"fields": {gcsFields}}, read: readReply})
		if err == nil {
			return ErrConflict
		}
	}
	return ignoreMissing(err)
}

func (d *gcsDriver) list(ctx context.Context, dir, token string) (page, error) {
	query := url.Values{
		"prefix": {d.below(dir)}, "maxResults": {strconv.Itoa(d.pageSize)},
		"fields": {"items(" + gcsFields + "),nextPageToken"},
	}
	if token != "" {
		query.Set("pageToken", token)
	}
	reply, _, err := d.do(ctx, gcsRequest{method: http.MethodGet, path: d.listPath(), query: query, read: readReply})
	if err != nil {
		return page{}, err
	}
	var found struct {
		Items         []gcsObject `json:"items"`
		NextPageToken string      `json:"nextPageToken"`
	}
	if err := json.Unmarshal(reply.body, &found); err != nil {
		return page{}, d.explain(fmt.Errorf("listing: %w", err))
	}
	p := page{next: found.NextPageToken}
	for _, o := range found.Items {
		if key, ok := d.key(o.Name); ok {
			p.objects = append(p.objects, o.object(key))
		}
	}
	return p, nil
}

func (d *gcsDriver) stat(ctx context.Context, key string) (Object, bool, error) {
	reply, _, err := d.do(ctx, gcsRequest{method: http.MethodGet, path: d.objectPath(key), query: url.Values{"fields": {gcsFields}}, read: readReply})
	if ignoreMissing(err) != nil {
		return Object{}, false, err
	}
	if err != nil {
		return statDirectory(ctx, d, key)
	}
	var o gcsObject
	if err := json.Unmarshal(reply.body, &o); err != nil {
		return Object{}, false, d.explain(err)
	}
	return o.object(key), true, nil
}

// gcsRequest is one request, to be sent as often as it takes.
type gcsRequest struct {
	method, path string
	query        url.Values
	body         []byte // nil is none
	read         func(body io.Reader, length *int64) ([]byte, error)
}

type gcsReply struct {
	header http.Header
	body   []byte
}

// do sends r until it is answered, up to attempts times, and says how often it
// was sent. All of our requests may be repeated
// (https://cloud.google.com/storage/docs/retry-strategy): reads and deletes,
// and writes because put reports their outcome as unclear.
func (d *gcsDriver) do(ctx context.Context, r gcsRequest) (reply gcsReply, sent int, err error) {
	if err := d.connect(); err != nil {
		return gcsReply{}, 0, err
	}
	for sent = 1; ; sent++ {
		reply, err = d.attempt(ctx, r)
		if err == nil || sent == attempts || !retriable(err) || !pauseBefore(ctx, sent, err) {
			return reply, sent, d.explain(err)
		}
	}
}

func (d *gcsDriver) attempt(ctx context.Context, r gcsRequest) (gcsReply, error) {
	target := d.base + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	var body io.Reader
	if r.body != nil || r.method == http.MethodPost {
		body = bytes.NewReader(r.body)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return gcsReply{}, err
	}
	req.Header.Set("User-Agent", "edge")
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	if d.tokens != nil {
		token, err := d.tokens.get(ctx)
		if err != nil {
			return gcsReply{}, err
		}
		token.SetAuthHeader(req)
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return gcsReply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return gcsReply{}, readGCSError(resp)
	}
	content, err := r.read(resp.Body, &resp.ContentLength)
	return gcsReply{resp.Header, content}, err
}

// readReply reads what is not an object of ours.
func readReply(body io.Reader, _ *int64) ([]byte, error) {
	return io.ReadAll(io.LimitReader(body, maxReply))
}

// pauseBefore waits before the next attempt, longer each time, and no less than
// the server asked for. It is false when ctx ends before.
func pauseBefore(ctx context.Context, sent int, err error) bool {
	most := min(minBackoff<<(sent-1), maxBackoff)
	wait := most/2 + rand.N(most/2) //nolint:gosec // jitter, nothing depends on it being unpredictable
	timer := time.NewTimer(max(wait, askedFor(err)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
