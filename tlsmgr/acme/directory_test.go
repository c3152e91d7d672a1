package acme_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"edge/config"
	"edge/tlsmgr/acme"
)

// directory is a CA's directory without a network: what it says and how often
// it was asked.
type directory struct {
	body  atomic.Pointer[string] // nil is a CA that is away
	reads atomic.Int32
	slow  time.Duration
}

func (d *directory) says(terms string) {
	body := fmt.Sprintf(`{"newNonce":"https://ca.test/n","newAccount":"https://ca.test/a","newOrder":"https://ca.test/o","meta":{"termsOfService":%q}}`, terms)
	d.body.Store(&body)
}

func (d *directory) RoundTrip(req *http.Request) (*http.Response, error) {
	d.reads.Add(1)
	select {
	case <-time.After(d.slow):
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	body := d.body.Load()
	if body == nil {
		return nil, io.ErrUnexpectedEOF
	}
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(*body)), Request: req,
	}, nil
}

func (d *directory) ca(t *testing.T, url string) *acme.CA {
	t.Helper()
	return at(t, url, &http.Client{Transport: d})
}

func TestDirectoryIsReadOncePerHourAndChangesAreSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &directory{slow: time.Second}
		d.says("old")
		ca := d.ca(t, "https://ca.test/hourly")
		terms := func() string {
			t.Helper()
			meta, err := ca.Meta(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return meta.TermsOfService
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { terms() })
		}
		wg.Wait()
		d.says("new")
		time.Sleep(59 * time.Minute)
		if got := terms(); got != "old" || d.reads.Load() != 1 {
			t.Errorf("terms %q after %d reads, want old after one", got, d.reads.Load())
		}
		time.Sleep(2 * time.Minute)
		if got := terms(); got != "new" || d.reads.Load() != 2 {
			t.Errorf("terms %q after %d reads, want new after two", got, d.reads.Load())
		}
	})
}

func TestDirectoryOfACAThatIsAwayIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := new(directory)
		ca := d.ca(t, "https://ca.test/away")
		if _, err := ca.Meta(t.Context()); err == nil {
			t.Error("a CA that is away has a directory")
		}
		d.says("kept")
		for range 2 {
			if meta, err := ca.Meta(t.Context()); err != nil || meta.TermsOfService != "kept" {
				t.Errorf("meta %+v, %v", meta, err)
			}
			d.body.Store(nil)
			time.Sleep(2 * time.Hour)
		}
		reads := d.reads.Load()
		for range 5 { // not at each request
			if _, err := ca.Meta(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if got := d.reads.Load() - reads; got != 3 {
			t.Errorf("%d reads, want 3, of one attempt", got)
		}
		d.says("back")
		time.Sleep(2 * time.Minute)
		if meta, err := ca.Meta(t.Context()); err != nil || meta.TermsOfService != "back" {
			t.Errorf("meta %+v, %v, want the new one", meta, err)
		}
	})
}

// acmez reads directories under a lock of the whole process.
func TestSilentCAKeepsNobodyElseWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		silent, quick := &directory{slow: time.Hour}, new(directory)
		silent.says("never")
		quick.says("at once")
		stuck := silent.ca(t, "https://silent.test/dir")
		done := make(chan error, 1)
		go func() {
			_, err := stuck.Register(t.Context(), nil)
			done <- err
		}()
		synctest.Wait()
		began := time.Now()
		// Nobody answers newAccount sensibly here, but the CA is asked.
		if _, err := quick.ca(t, "https://quick.test/dir").Register(t.Context(), nil); err == nil {
			t.Error("an account out of nowhere")
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the other CA took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := stuck.Meta(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the deadline of whoever waits", err)
		}
		refused(t, <-done, acme.Unreachable, "timeout")
		if took := time.Since(began); took > 3*time.Minute {
			t.Errorf("the silent CA was given %v", took)
		}
	})
}

func TestNewRefusesWhatItCannotUse(t *testing.T) {
	t.Parallel()
	for words, c := range map[string]*config.Issuer{
		"issuers.own: not an ACME issuer": {Name: "own", Internal: &config.Internal{}},
		"issuers.a.acme.ca: open ":        {Name: "a", Directory: "https://ca.test", CA: "/no/such/file"},
		"holds no certificate (want PEM)": {Name: "a", Directory: "https://ca.test", CA: "directory_test.go"},
		"is larger than 1024 KiB":         {Name: "a", Directory: "https://ca.test", CA: "/dev/zero"},
		"issuers.a.acme.eab.key_id: load": {Name: "a", Directory: "https://ca.test", EAB: &config.EAB{KeyID: config.Secret{Ref: "env:LAB_NO_SUCH"}}},
	} {
		if _, err := acme.New(c, acme.Options{}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %q", err, words)
		}
	}
	ca, err := acme.New(&config.Issuer{Name: "a", Directory: "https://ca.test"}, acme.Options{})
	if err != nil || ca.Directory() != "https://ca.test" {
		t.Errorf("got %v, %v", ca, err)
	}
}
