package dns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/libdns/libdns"
	miekg "github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// Bounds of changes that meet those of other writers.
const (
	changeTries = 10 // of one change, each on what was read afresh
	firstGap    = 50 * time.Millisecond
	longestGap  = 2 * time.Second
)

// errChanged says that a record set is not what it was when it was read: the
// change has to be made on what it is now.
var errChanged = errors.New("another writer changes these records all the time")

// sets are TXT values by canonical name: a record set each, which is the unit
// of some APIs.
type sets map[string][]string

// setsOf groups the records of a zone by name.
func setsOf(zone string, records []libdns.Record) sets {
	out := sets{}
	for _, r := range records {
		rr := r.RR()
		name := miekg.CanonicalName(libdns.AbsoluteName(rr.Name, zone))
		if !slices.Contains(out[name], rr.Data) {
			out[name] = append(out[name], rr.Data)
		}
	}
	return out
}

// with is have and those of more that are not in it; without is have but for
// those of less. Both keep the order, so that nothing is changed needlessly.
func with(have, more []string) []string {
	out := slices.Clone(have)
	for _, v := range more {
		if !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func without(have, less []string) []string {
	return slices.DeleteFunc(slices.Clone(have), func(v string) bool { return slices.Contains(less, v) })
}

// settle makes a change by compare-and-swap: do reads, changes what it read, and
// returns an error that is errChanged when somebody was faster.
func settle(ctx context.Context, do func(try int) error) error {
	gap := firstGap
	for try := range changeTries {
		err := do(try)
		if !errors.Is(err, errChanged) {
			return err
		}
		if !pause(ctx, rand.N(gap)) { //nolint:gosec // G404: jitter
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		gap = min(2*gap, longestGap)
	}
	return errChanged
}

// forNames calls do for each name, some at once. After an error no more are
// begun; those under way are let finish: see unhurried.
func forNames(names []string, parallel int, do func(name string) error) error {
	var eg errgroup.Group
	eg.SetLimit(parallel)
	failed := make(chan struct{}, len(names))
	for _, name := range names {
		eg.Go(func() error {
			if len(failed) > 0 {
				return nil
			}
			err := do(name)
			if err != nil {
				failed <- struct{}{}
			}
			return err
		})
	}
	return eg.Wait()
}

// leaseFunc is Options.Lease.
type leaseFunc func(ctx context.Context, name string) (release func(), err error)

// hold takes the lease of each name of a zone, in order, so that two replicas
// never wait for each other.
func (l leaseFunc) hold(ctx context.Context, zone string, names []string) (release func(), err error) {
	var held []func()
	release = func() {
		for _, r := range slices.Backward(held) {
			r()
		}
	}
	if l == nil {
		return release, nil
	}
	for _, name := range slices.Sorted(slices.Values(names)) {
		r, err := l(ctx, leaseName(zone, name))
		if err != nil {
			release()
			return nil, fmt.Errorf("lease of %s, which keeps other replicas from its records: %w", bare(name), err)
		}
		held = append(held, r)
	}
	return release, nil
}

// leaseName is the lease under which the records of name are changed.
func leaseName(zone, name string) string {
	return "dns/" + bare(zone) + "/" + bare(name)
}

// isPlain tells names that stand in a URL as they are. Others cannot be hosts,
// but the target of a CNAME may be anything.
func isPlain(name string) bool {
	return !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
	})
}
