package acmelab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"

	"edge/internal/acmelab"
)

// dialer connects to one address whatever is asked for.
type dialer struct{ to string }

func (d *dialer) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, network, d.to)
}

// put writes an object on a condition: "" creates only, else it is the ETag
// that must be current. ok is false when the condition did not hold.
func put(ctx context.Context, srv *acmelab.S3, key, value, cond string) (etag string, ok bool, err error) {
	in := &s3.PutObjectInput{Bucket: aws.String("certs"), Key: &key, Body: strings.NewReader(value)}
	if cond == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = &cond
	}
	out, err := srv.Client.PutObject(ctx, in)
	if api, is := errors.AsType[smithy.APIError](err); is {
		switch api.ErrorCode() {
		case "PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey":
			return "", false, nil
		}
	}
	if err != nil {
		return "", false, err
	}
	return aws.ToString(out.ETag), true, nil
}

func TestConditionalPutsHaveOneWinner(t *testing.T) {
	t.Parallel()
	srv := acmelab.NewS3(t, "certs")
	ctx := t.Context()
	v1, ok, err := put(ctx, srv, "k", "one", "")
	if err != nil || !ok || v1 == "" {
		t.Fatalf("create: %q %v %v", v1, ok, err)
	}
	v2, ok, err := put(ctx, srv, "k", "two", v1)
	if err != nil || !ok || v2 == v1 {
		t.Fatalf("replace: %q %v %v", v2, ok, err)
	}
	for what, cond := range map[string][2]string{
		"a second create": {"k", ""}, "a replace of an old version": {"k", v1}, "a replace of a missing object": {"missing", v1},
	} {
		if _, ok, err := put(ctx, srv, cond[0], "three", cond[1]); ok || err != nil {
			t.Errorf("%s: %v %v", what, ok, err)
		}
	}
	var wins atomic.Int32
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			_, ok, err := put(ctx, srv, "race", fmt.Sprint(i), "")
			if err != nil {
				t.Error(err)
			}
			if ok {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("%d winners of a race to create", wins.Load())
	}
	out, err := srv.Client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String("certs"), Key: aws.String("k")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	if b, _ := io.ReadAll(out.Body); string(b) != "two" {
		t.Errorf("object is %q", b)
	}
	if _, err := srv.Client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: aws.String("certs")}); err != nil {
		t.Error(err)
	}
	if puts, race, lists := srv.Count(http.MethodPut, "/certs/"), srv.Requests()["PUT /certs/race"], srv.Count("", "/certs?list"); puts < 21 || race < 16 || lists != 1 {
		t.Errorf("counted %d PUT, %d of race, %d LIST in %v", puts, race, lists, srv.Requests())
	}
}

func TestS3OutagesAreAsScripted(t *testing.T) {
	t.Parallel()
	srv := acmelab.NewS3(t, "certs")
	once := func(o *s3.Options) { o.RetryMaxAttempts = 1 }
	try := func() error {
		_, err := srv.Client.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("certs"), Key: aws.String("k"), Body: strings.NewReader("v")}, once)
		return err
	}
	exists := func() bool {
		_, err := srv.Client.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String("certs"), Key: aws.String("k")}, once)
		return err == nil
	}
	onPut := func(status int) func(*http.Request) int {
		return func(r *http.Request) int {
			if r.Method == http.MethodPut {
				return status
			}
			return 0
		}
	}
	for status, code := range map[int]string{
		http.StatusForbidden: "AccessDenied", http.StatusNotFound: "NoSuchBucket", http.StatusConflict: "ConditionalRequestConflict",
		http.StatusPreconditionFailed: "PreconditionFailed", http.StatusServiceUnavailable: "SlowDown", http.StatusInternalServerError: "InternalError",
	} {
		srv.SetFail(onPut(status))
		if api, ok := errors.AsType[smithy.APIError](try()); !ok || api.ErrorCode() != code {
			t.Errorf("%d: got %v, want %s", status, api, code)
		}
	}
	srv.SetFail(onPut(acmelab.Cut))
	if err := try(); err == nil || exists() {
		t.Errorf("cut: error %v, object exists: %v", err, exists())
	}
	srv.SetFail(onPut(acmelab.Lose))
	if err := try(); err == nil || !exists() {
		t.Errorf("lost answer: error %v, object exists: %v", err, exists())
	}
	srv.SetFail(nil)
	srv.SetDown(true)
	if try() == nil {
		t.Error("a server that is down answered")
	}
	srv.SetDown(false)
	srv.SetDelay(20 * time.Millisecond)
	begin := time.Now()
	if err := try(); err != nil || time.Since(begin) < 20*time.Millisecond {
		t.Errorf("delayed: %v after %v", err, time.Since(begin))
	}
	srv.SetDelay(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := srv.Client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: aws.String("certs")}); err == nil {
		t.Error("an answer after an hour")
	}
}

func TestStoreURLSaysWhereTheBucketIs(t *testing.T) {
	t.Parallel()
	srv := acmelab.NewS3(t, "certs")
	u, err := url.Parse(srv.StoreURL("certs", "edge/prod"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	if u.Scheme != "s3" || u.Host != "certs" || u.Path != "/edge/prod" || q.Get("endpoint") != srv.Endpoint || q.Get("path_style") != "true" || q.Get("region") == "" {
		t.Errorf("got %s", u)
	}
	if !strings.Contains(strings.Join(srv.Env(), " "), "AWS_ACCESS_KEY_ID="+acmelab.AccessKeyID) {
		t.Errorf("environment %q has no key", srv.Env())
	}
	if _, err := acmelab.StartS3(acmelab.S3Options{Buckets: []string{"twice", "twice"}}); err == nil {
		t.Error("a bucket was made twice")
	}
}
