// Package storetest holds the one suite that every kind of storage behind
// store.Open has to pass:
//
//	func TestFile(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) string { return "file://" + t.TempDir() })
//	}
//
// It knows nothing of the kinds. It opens several handles on the same data, as
// several replicas do, and lets them meet.
package storetest

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"testing"
	"time"

	"edge/tlsmgr/store"
)

// TTL is what the suite uses for leases; slow storage makes it flaky when it
// is shorter.
const TTL = 600 * time.Millisecond

// patience bounds every wait of the suite.
const patience = 30 * time.Second

// Run tests the storage that location names. location returns the URL of a
// fresh, empty place each time it is called.
func Run(t *testing.T, location func(t *testing.T) string) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(*testing.T, opener)
	}{
		{"Keys", testKeys},
		{"Swap", testSwap},
		{"Lease", testLease},
		{"Sweep", testSweep},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.test(t, func(t *testing.T) *place {
				t.Helper()
				return &place{url: location(t)}
			})
		})
	}
}

// opener makes a fresh place.
type opener func(t *testing.T) *place

// place is data that several handles share.
type place struct{ url string }

// handle opens the place once more, as another replica would.
func (p *place) handle(t *testing.T, owner string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), p.url, store.Options{Owner: owner, LeaseTTL: TTL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// pass lets time pass.
func pass(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func wantMissing(t *testing.T, what string, got error) {
	t.Helper()
	wantErr(t, what, got, fs.ErrNotExist)
}

func wantKeys(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}
