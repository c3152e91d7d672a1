package store_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"edge/tlsmgr/store/storetest"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

const bucket = "edge-test"

// newS3 starts an S3 server with one bucket.
func newS3(t *testing.T) http.Handler {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "test-key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test-secret-value")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
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

func TestS3StoreKeepsTheContract(t *testing.T) {
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return s3URL(bucket, "some/prefix", serve(t, newS3(t)))
	})
}
