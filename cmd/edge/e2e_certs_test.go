package main_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/internal/edgetest"
	"edge/internal/modelserver"
)

func TestTwoReplicasOnOneBucketPlaceOneOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	first, second := w.launch(w.config("a", settings{})), w.launch(w.config("b", settings{}))
	addrA, addrB := w.ready(first), w.ready(second)

	a, b := w.leaf(addrA, "chat.example.test"), w.leaf(addrB, "example.test")
	if a.SerialNumber.Cmp(b.SerialNumber) != 0 {
		t.Errorf("serials %x and %x, want one certificate", a.SerialNumber, b.SerialNumber)
	}
	if got, want := slices.Sorted(slices.Values(a.DNSNames)), []string{"*.example.test", "example.test"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	if n := w.lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	if left := w.lab.DNS.TXTNames(); len(left) != 0 {
		t.Errorf("challenge records left behind: %q", left)
	}
}

func TestARestartServesFromTheBucketWithoutAnOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	config := w.config("a", settings{})
	p, addr := w.start(config)
	serial := w.leaf(addr, "example.test").SerialNumber
	if err := p.Close(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	w.lab.CA.SetDown(true) // and with no CA at all
	_, addr = w.start(config)
	if got := w.leaf(addr, "example.test").SerialNumber; got.Cmp(serial) != 0 {
		t.Errorf("serial %x after the restart, want %x", got, serial)
	}
	if n := w.lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}

// A name without a certificate holds up the first start only: later it is one
// of many, and the others are to be served at once.
func TestANameThatFailsDoesNotHoldUpARestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	p, _ := w.start(w.config("a", settings{}))
	if err := p.Close(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	w.lab.CA.SetDown(true)
	p = w.launch(w.config("a", settings{routes: fmt.Sprintf("  - {host: [example.test, \"*.example.test\", www.other.test], endpoints: [%q]}\n", w.model.URL)}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second) // of 60 s of grace
	defer cancel()
	if err := p.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	addr, err := p.Addr(ctx, "https")
	if err != nil {
		t.Fatal(err)
	}
	w.leaf(addr, "chat.example.test")
}

// The process that orders is killed while it holds the lease, in the middle of
// its order: the other one waits for the lease to run out, orders and serves.
func TestAnotherReplicaTakesOverFromAKilledOrderer(t *testing.T) {
	t.Parallel()
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	gate := func(path string) {
		if strings.Contains(path, "finalize") {
			once.Do(func() { close(reached) })
			<-release
		}
	}
	w := newWorld(t, acmelab.Options{CA: acmelab.CAOptions{Gate: gate}}, modelserver.Options{})
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-release:
		default:
			close(release)
		}
	}))
	orderer := w.launch(w.config("a", settings{}))
	wait(t, reached, 30*time.Second, "the first replica did not come to its order's end")
	heir := w.launch(w.config("b", settings{}))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := heir.WaitLine(ctx, func(l edgetest.Line) bool { return l.Text("step") == "waiting_for_other" }); err != nil {
		t.Fatalf("the second replica does not wait: %v", err)
	}
	orderer.Kill()
	close(release)

	addr := w.ready(heir)
	w.leaf(addr, "chat.example.test")
	if n := w.lab.CA.Orders(); n > 2 {
		t.Errorf("%d orders, want at most 2", n)
	}
}

// A certificate of twenty seconds is renewed twice while a client shakes hands
// as fast as it can: no handshake fails, and none gets an expired certificate.
func TestRenewalNeverFailsAHandshake(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{CA: acmelab.CAOptions{Validity: 20 * time.Second}}, modelserver.Options{})
	_, addr := w.start(w.config("a", settings{}))

	serials := map[string]*x509.Certificate{}
	handshakes := 0
	for begin := time.Now(); len(serials) < 3 && time.Since(begin) < time.Minute; {
		leaf, err := w.handshake(addr, "chat.example.test") // verifies the time as well
		if err != nil {
			t.Fatalf("handshake %d: %v", handshakes, err)
		}
		serials[leaf.SerialNumber.String()] = leaf
		handshakes++
	}
	t.Logf("%d handshakes, %d certificates", handshakes, len(serials))
	if len(serials) < 3 {
		t.Errorf("%d certificates in a minute, want at least 3", len(serials))
	}
}

// The account is lost at the CA between two orders: edge registers another and
// the names of a new route get their certificate.
func TestALostAccountIsRegisteredAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{"example.test", "other.test"}}}, modelserver.Options{})
	config := w.config("a", settings{})
	p, addr := w.start(config)
	w.lab.CA.ForgetAccounts()
	w.config("a", settings{routes: fmt.Sprintf("  - {host: [example.test, \"*.example.test\", www.other.test], endpoints: [%q]}\n", w.model.URL)})
	if r, err := p.Reload(t.Context()); err != nil || len(r.Problems) > 0 {
		t.Fatalf("reload: %+v, %v", r, err)
	}
	eventually(t, 30*time.Second, "no certificate for the new name", func() bool {
		_, err := w.handshake(addr, "www.other.test")
		return err == nil
	})
}

func TestASecondNameIsServedAfterAReloadAndTheFirstThroughout(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	route := func(hosts string) settings {
		return settings{routes: fmt.Sprintf("  - {host: [%s], endpoints: [%q]}\n", hosts, w.model.URL)}
	}
	config := w.config("a", route("one.example.test"))
	p, addr := w.start(config)
	if _, err := w.handshake(addr, "two.example.test"); err == nil {
		t.Fatal("a name without a certificate was served")
	}
	var failed atomic.Pointer[error]
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := w.handshake(addr, "one.example.test"); err != nil {
					failed.Store(&err)
				}
			}
		}
	}()
	w.config("a", route("one.example.test, two.example.test"))
	if r, err := p.Reload(t.Context()); err != nil || len(r.Problems) > 0 {
		t.Fatalf("reload: %+v, %v", r, err)
	}
	eventually(t, 30*time.Second, "no certificate for the second name", func() bool {
		_, err := w.handshake(addr, "two.example.test")
		return err == nil
	})
	close(stop)
	<-done
	if err := failed.Load(); err != nil {
		t.Errorf("the first name failed meanwhile: %v", *err)
	}
}

// wait fails the test when c is not closed in time.
func wait(t *testing.T, c <-chan struct{}, limit time.Duration, otherwise string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatal(otherwise)
	}
}

// eventually asks until ok, with a limit.
func eventually(t *testing.T, limit time.Duration, otherwise string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("%s after %v", otherwise, limit)
}

// The real provider code talks to an endpoint that checks every request; what
// it sets is what the CA then finds in DNS.
func TestRoute53ProvesNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, acmelab.Options{}, modelserver.Options{})
	r53 := acmelab.NewRoute53(t, acmelab.Route53Options{DNS: w.lab.DNS})
	_, addr := w.start(w.config("a", settings{provider: "{route53: {region: us-east-1}}"}), r53.Env()...)
	w.leaf(addr, "chat.example.test")
	if left := w.lab.DNS.TXTNames(); len(left) != 0 {
		t.Errorf("challenge records left behind: %q", left)
	}
	t.Log(r53.Requests())
	if n := r53.Requests()["ChangeResourceRecordSets"]; n == 0 {
		t.Error("Route 53 was never asked to change anything")
	}
}
