package fakegcs

import (
	"io"
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
	s, err := fakestorage.NewServerWithOptions(fakestorage.Options{Scheme: "http", Host: "127.0.0.1", Writer: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	s.CreateBucketWithOpts(fakestorage.CreateBucketOpts{Name: bucket})
	return s.URL()
}

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

func TestLeasesOnFakeGCSServerStandTorture(t *testing.T) {
	endpoint := newServer(t)
	storetest.Torture(t, func(t *testing.T) string {
		t.Helper()
		return storeURL(endpoint, t.Name())
	})
}

func TestMain(m *testing.M) {
	_ = os.Setenv(storetest.DeletesEnv, "unconditional") // fake-gcs-server ignores conditions of deletes
	if !storetest.Contend() {
		os.Exit(m.Run())
	}
}
