package fakegcs

import (
	"net/url"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/fsouza/fake-gcs-server/fakestorage"

	"edge/tlsmgr/store/storetest"
)

const bucket = "edge-test"

// newServer starts fake-gcs-server, in memory, with one bucket.
func newServer(t *testing.T) string {
	t.Helper()
	s, err := fakestorage.NewServerWithOptions(fakestorage.Options{Scheme: "http", Host: "127.0.0.1", Writer: testWriter{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	s.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: bucket})
	return s.URL()
}

type testWriter struct{ t *testing.T }

func (testWriter) Write(p []byte) (int, error) { return len(p), nil }

func storeURL(endpoint, prefix string) string {
	return "gs://" + bucket + "/" + prefix + "?endpoint=" + url.QueryEscape(endpoint)
}

func TestFakeGCSServerKeepsTheContract(t *testing.T) {
	endpoint := newServer(t)
	var places atomic.Int32
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return storeURL(endpoint, "some/prefix/"+strconv.Itoa(int(places.Add(1))))
	})
}

func TestMain(m *testing.M) { os.Exit(m.Run()) }
