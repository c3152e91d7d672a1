package store

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A sweep that was stopped between taking a lease and deleting its record
// finds an heir's record there.
func TestSweepDeletesNoRecordOfAnHeir(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		s, heir := newMem(t, d, "sweeper"), newMem(t, d, "heir")
		if err := mustAcquire(t, s, "x").Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		var inherited *Lease
		d.fault = func(_ context.Context, op, _ string) (error, error) {
			if op == "remove" && inherited == nil {
				inherited = mustAcquire(t, heir, "x") // for longer than a TTL nothing else happens
			}
			return nil, nil
		}
		n, err := s.SweepLeases(t.Context(), 0)
		if n != 0 || err == nil || !strings.Contains(err.Error(), `sweep leases: delete "locks/x.json": `) {
			t.Errorf("swept %d, %v; want none and an error", n, err)
		}
		if err := inherited.Renew(t.Context()); err != nil {
			t.Errorf("the heir's lease: %v", err)
		}
		if len(s.queues) > 0 || len(s.held) > 0 {
			t.Errorf("left %d queues, %d leases", len(s.queues), len(s.held))
		}
	})
}

func TestSweepThatCannotDeleteGivesTheLeaseBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		s := newMem(t, d, "a")
		if err := mustAcquire(t, s, "x").Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.fault = func(_ context.Context, op, _ string) (error, error) {
			if op == "remove" {
				return errDown, nil
			}
			return nil, nil
		}
		if n, err := s.SweepLeases(t.Context(), 0); n != 0 || !errors.Is(err, errDown) {
			t.Errorf("swept %d, %v; want none and %v", n, err, errDown)
		}
		if _, ok, err := newMem(t, d, "b").TryAcquire(t.Context(), "x"); !ok || err != nil {
			t.Errorf("afterwards: got %v, %v; want the lease free", ok, err)
		}
	})
}

func TestSweepLeavesALeaseThatItsOwnProcessWants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &memDriver{}
		s := newMem(t, d, "a")
		l := mustAcquire(t, s, "x")
		if n, err := s.SweepLeases(t.Context(), 0); n != 0 || err != nil {
			t.Errorf("held: swept %d, %v; want none", n, err)
		}
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n, err := s.SweepLeases(t.Context(), 2*time.Hour); n != 0 || err != nil {
			t.Errorf("too young by the holder's clock: swept %d, %v; want none", n, err)
		}
		if n, err := s.SweepLeases(t.Context(), 30*time.Minute); n != 1 || err != nil || len(d.objects) > 0 {
			t.Errorf("swept %d, %v, left %d; want the one", n, err, len(d.objects))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := s.SweepLeases(t.Context(), 0)
		if _, leasesErr := s.Leases(t.Context()); !errors.Is(err, ErrClosed) || !errors.Is(leasesErr, ErrClosed) {
			t.Errorf("closed: got %v, %v; want %v", err, leasesErr, ErrClosed)
		}
	})
}
