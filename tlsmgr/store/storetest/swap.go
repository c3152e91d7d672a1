package storetest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"edge/tlsmgr/store"
)

const (
	swapRacers = 16
	swapRounds = 8
)

// testSwap is the contract of versions and of Probe.
func testSwap(t *testing.T, open opener) {
	t.Helper()
	for _, c := range []struct {
		name string
		test func(t *testing.T, a, b *store.Store)
	}{
		{"CreatesOnlyWhatIsMissing", swapCreates},
		{"ReplacesOnlyTheVersionRead", swapReplaces},
		{"DeletedObjectConflicts", swapDeleted},
		{"RemovesOnlyTheVersionRead", removesVersion},
		{"StoreMovesTheVersion", storeMovesVersion},
		{"ListedVersionsAreLoadedVersions", listedVersions},
		{"OneOfManyCreatorsWins", manyCreate},
		{"CountersLoseNoUpdate", manyCount},
		{"ProbePassesAndLeavesNothing", probes},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := open(t)
			c.test(t, p.handle(t, "a"), p.handle(t, "b"))
		})
	}
}

func swapCreates(t *testing.T, a, b *store.Store) {
	t.Helper()
	v, err := a.Swap(t.Context(), "d/key", []byte("1"), "")
	must(t, err)
	if v == "" {
		t.Error("the version of an object is empty")
	}
	_, err = b.Swap(t.Context(), "d/key", []byte("2"), "")
	wantErr(t, "second create", err, store.ErrConflict)
	_, err = b.Swap(t.Context(), "d/key", []byte("1"), "")
	wantErr(t, "second create of the same value", err, store.ErrConflict)
	got, version, err := b.LoadVersion(t.Context(), "d/key")
	if err != nil || string(got) != "1" || version != v {
		t.Errorf("got %q, version %q, %v; want the first write with version %q", got, version, err, v)
	}
}

func swapReplaces(t *testing.T, a, b *store.Store) {
	t.Helper()
	v1, err := a.Swap(t.Context(), "key", []byte("1"), "")
	must(t, err)
	v2, err := b.Swap(t.Context(), "key", []byte("2"), v1)
	must(t, err)
	_, err = a.Swap(t.Context(), "key", []byte("3"), v1)
	wantErr(t, "swap with an old version", err, store.ErrConflict)
	_, err = a.Swap(t.Context(), "key", []byte("3"), "no-such-version")
	wantErr(t, "swap with a foreign version", err, store.ErrConflict)
	got, v, err := a.LoadVersion(t.Context(), "key")
	if err != nil || string(got) != "2" || v != v2 || v1 == v2 {
		t.Errorf("got %q, version %q, %v; want 2 with version %q, not %q", got, v, err, v2, v1)
	}
}

func swapDeleted(t *testing.T, a, b *store.Store) {
	t.Helper()
	v, err := a.Swap(t.Context(), "d/key", []byte("1"), "")
	must(t, err)
	must(t, b.Delete(t.Context(), "d/key"))
	_, err = a.Swap(t.Context(), "d/key", []byte("2"), v)
	wantErr(t, "swap of a deleted object", err, store.ErrConflict)
	_, err = a.Swap(t.Context(), "d/key", []byte("2"), "")
	must(t, err)
}

// DeletesEnv tells, when it is set, that the storage under test is an emulator
// that deletes whatever the condition says. Then Store.Remove relies on leases
// there, as it does on s3.
const DeletesEnv = "EDGE_STORETEST_DELETES"

func removesVersion(t *testing.T, a, b *store.Store) {
	t.Helper()
	old, err := a.Swap(t.Context(), "d/key", []byte("1"), "")
	must(t, err)
	wantErr(t, "remove without a version", a.Remove(t.Context(), "d/key", ""), store.ErrConflict)
	v, err := b.Swap(t.Context(), "d/key", []byte("2"), old)
	must(t, err)
	if !strings.HasPrefix(a.URL(), "s3:") && os.Getenv(DeletesEnv) == "" { // s3 deletes take no condition
		wantErr(t, "remove of the version before", a.Remove(t.Context(), "d/key", old), store.ErrConflict)
	}
	if value, err := a.Load(t.Context(), "d/key"); err != nil || string(value) != "2" {
		t.Errorf("got %q, %v; want what the other wrote", value, err)
	}
	for range 2 { // the second time it is not there
		must(t, a.Remove(t.Context(), "d/key", v))
	}
	_, err = b.Load(t.Context(), "d/key")
	wantMissing(t, "removed", err)
}

func storeMovesVersion(t *testing.T, a, b *store.Store) {
	t.Helper()
	v, err := a.Swap(t.Context(), "key", []byte("1"), "")
	must(t, err)
	must(t, b.Store(t.Context(), "key", []byte("2")))
	_, err = a.Swap(t.Context(), "key", []byte("3"), v)
	wantErr(t, "swap after a store", err, store.ErrConflict)
}

func listedVersions(t *testing.T, a, b *store.Store) {
	t.Helper()
	want := map[string]store.Version{}
	for i := range 20 {
		key := fmt.Sprintf("d/%d/%02d", i%3, i)
		v, err := a.Swap(t.Context(), key, []byte(key), "")
		must(t, err)
		want[key] = v
	}
	must(t, a.Store(t.Context(), "d-else", nil))
	v, err := a.Swap(t.Context(), "d/0/00", []byte("second"), want["d/0/00"])
	must(t, err)
	want["d/0/00"] = v
	objects, err := b.ListVersions(t.Context(), "d")
	must(t, err)
	if len(objects) != len(want) {
		t.Errorf("got %d objects, want %d", len(objects), len(want))
	}
	for _, o := range objects {
		value, v, err := b.LoadVersion(t.Context(), o.Key)
		must(t, err)
		if o.Version != v || o.Version != want[o.Key] || o.Size != int64(len(value)) || o.Modified.IsZero() {
			t.Errorf("listed %+v; loaded version %q of %d bytes, written %q", o, v, len(value), want[o.Key])
		}
	}
	if !slices.IsSortedFunc(objects, func(a, b store.Object) int { return cmpKeys(a.Key, b.Key) }) {
		t.Errorf("not in order: %v", objects)
	}
}

func cmpKeys(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// race runs contestants at once, spread over two handles.
func race(t *testing.T, a, b *store.Store, contestant func(s *store.Store, i int) error) {
	t.Helper()
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range swapRacers {
		s := a
		if i%2 == 1 {
			s = b
		}
		wg.Go(func() {
			<-start
			if err := contestant(s, i); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()
}

func manyCreate(t *testing.T, a, b *store.Store) {
	t.Helper()
	ctx := bounded(t)
	for round := range swapRounds {
		key := fmt.Sprintf("d/%d", round)
		var mu sync.Mutex
		winners := map[string]store.Version{}
		race(t, a, b, func(s *store.Store, i int) error {
			value := strconv.Itoa(i)
			v, err := s.Swap(ctx, key, []byte(value), "")
			if errors.Is(err, store.ErrConflict) {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			winners[value] = v
			return err
		})
		got, v, err := a.LoadVersion(ctx, key)
		must(t, err)
		if w, ok := winners[string(got)]; len(winners) != 1 || !ok || w != v {
			t.Errorf("round %d: winners %v, stored %q version %q; want one winner and its value", round, winners, got, v)
		}
	}
}

func manyCount(t *testing.T, a, b *store.Store) {
	t.Helper()
	ctx := bounded(t)
	_, err := a.Swap(ctx, "counter", []byte("0"), "")
	must(t, err)
	race(t, a, b, func(s *store.Store, _ int) error {
		for {
			value, v, err := s.LoadVersion(ctx, "counter")
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(string(value))
			if err != nil {
				return err
			}
			_, err = s.Swap(ctx, "counter", []byte(strconv.Itoa(n+1)), v)
			if !errors.Is(err, store.ErrConflict) {
				return err
			}
		}
	})
	got, err := b.Load(ctx, "counter")
	if err != nil || string(got) != strconv.Itoa(swapRacers) {
		t.Errorf("got %q, %v; want %d", got, err, swapRacers)
	}
}

func probes(t *testing.T, a, b *store.Store) {
	t.Helper()
	race(t, a, b, func(s *store.Store, _ int) error { return s.Probe(t.Context()) })
	left, err := a.List(t.Context(), "", true)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}
