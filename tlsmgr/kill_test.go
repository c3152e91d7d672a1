package tlsmgr

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"edge/internal/acmelab"
)

// The exhaustive kill test: a replica that orders is killed, or stopped for
// longer than its lease lasts, at each request of an issuance in turn, before
// its effect and after it, while two more replicas run.

const (
	killBundle = "example.test"   // id of the one bundle of a world
	killTTL    = time.Second      // of leases
	killLimit  = 30 * time.Second // from the death to the new certificate on every replica, and for every trace to be gone
	killRate   = 200              // handshakes a second at a survivor
	killQuiet  = time.Second      // without a request: five looks at the storage that found nothing to do
	killWorlds = 8                // at once; they mostly wait
)

// A fate is what happens to the replica that orders.
type fate struct {
	stop    bool   // SIGSTOP for longer than the lease, then SIGCONT; else SIGKILL
	renewal bool   // of a certificate that the others serve
	storage string // "s3" or "file"
	after   bool   // the request has had its effect
	k       int    // at which request; 0 is never
}

func (f fate) String() string {
	word := func(is bool, yes, no string) string {
		if is {
			return yes
		}
		return no
	}
	return fmt.Sprintf("%s-%s-%s-%s-%d", word(f.stop, "stop", "kill"), f.storage, word(f.renewal, "renewal", "first"), word(f.after, "after", "before"), f.k)
}

// chosen reports whether f runs: all fates with EDGE_KILL=all (six minutes).
// With EDGE_CI=1 (three minutes, five with -race) every request × killed or
// stopped × before or after its effect with a storage in S3, a first issue and a
// renewal in turns, and half of that with one on disk. Else one of six, spread
// evenly (a minute), and with -short one of sixty. n counts all fates.
func (f fate) chosen(n int) bool {
	turn := f.k
	for _, is := range []bool{f.stop, f.after} {
		if is {
			turn++
		}
	}
	switch {
	case os.Getenv("EDGE_KILL") == "all":
		return true
	case testing.Short():
		return (n+n/60)%60 == 0
	case os.Getenv("EDGE_CI") == "1":
		return f.renewal == (turn%2 == 1) && (f.storage == "s3" || (turn/2)%2 == 0)
	default:
		return (n+n/6)%6 == 0
	}
}

// TestKilledOrStoppedAtAnyRequestLeavesOneCertificate: see fate.chosen for what
// runs when.
//
// Numbered is what belongs to the issuance: the probe of the storage, leases,
// account, journal, budget, every request to the CA, every question and update
// of DNS, the certificate, and the look at the CA's renewal information. What goes by the
// clock has no number: listings, heartbeats of replicas and of leases. To die at
// one of those is to die between two that have numbers. The number of polls of
// the CA is a matter of its speed, so a few of the last numbers may not be
// reached; then the world must be as if nothing had happened.
func TestKilledOrStoppedAtAnyRequestLeavesOneCertificate(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("needs /proc to see a process stop")
	}
	lab := acmelab.New(t, acmelab.Options{})
	var fates []fate
	for _, storage := range []string{"s3", "file"} {
		for _, renewal := range []bool{false, true} {
			dry := fate{storage: storage, renewal: renewal}
			last := 0
			t.Run("dry-"+dry.String(), func(t *testing.T) { last = newKillWorld(t, lab, dry).run(t) })
			t.Logf("%s: %d requests", dry, last)
			for k := range last {
				for n := range 4 {
					fates = append(fates, fate{storage: storage, renewal: renewal, k: k + 1, stop: n/2 == 1, after: n%2 == 1})
				}
			}
		}
	}
	var unreached atomic.Int32
	var group errgroup.Group
	group.SetLimit(killWorlds)
	worlds := 0
	for n, f := range fates {
		if !f.chosen(n) {
			continue
		}
		worlds++
		group.Go(func() error {
			t.Run(f.String(), func(t *testing.T) {
				if w := newKillWorld(t, lab, f); w.run(t) < f.k {
					unreached.Add(1)
				}
			})
			return nil
		})
	}
	_ = group.Wait()
	if n := int(unreached.Load()); n > worlds/10 {
		t.Errorf("%d of %d worlds did not reach their request", n, worlds)
	}
}
