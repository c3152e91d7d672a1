package tlsmgr

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// The laws of taking over an order, one by one. The kill test finds the
// requests at which they matter; here the dead replica is one that goes as far
// with an order as a test takes it.

type deceased struct {
	*order
	cfg *config.Config
	lab *acmelab.Lab
}

// placed is a replica whose order the CA has taken.
func placed(t *testing.T, hosts ...string) *deceased {
	t.Helper()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, hosts...)
	m := ready(t, cfg, nil).Manager
	t.Cleanup(m.close)
	st := m.state.Load()
	b := st.bundles["example.test"]
	d := &deceased{cfg: cfg, lab: lab, order: &order{
		m: m, vault: m.vaultInUse(), issuer: st.issuers["lab"], id: b.ID, journal: &journal{record: vault.Order{ID: b.ID}},
	}}
	err := d.begin(t.Context(), b, b.Names, "")
	if err == nil {
		d.account, err = m.account(t.Context(), d.vault, d.issuer)
	}
	if err == nil {
		err = d.place(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// showAll shows the CA the records of all names.
func (d *deceased) showAll(t *testing.T, ctx context.Context) (validate func(most int), withdraw func()) { //nolint:revive // the context is one that loses its lease
	t.Helper()
	proofs, err := d.acme.Proofs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if withdraw, err = d.presentRecords(ctx, proofs); err != nil {
		t.Fatal(err)
	}
	return func(most int) {
		if err := d.acme.Validate(t.Context(), proofs[:most], config.DNS01); err != nil {
			t.Fatal(err)
		}
	}, withdraw
}

// restore puts the records of the attempt into DNS.
func (d *deceased) restore(t *testing.T) {
	t.Helper()
	for _, r := range d.attempt().Records {
		if err := d.lab.DNS.Add(fmt.Sprintf("%s. 60 IN TXT %q", r.Name, r.Value)); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.lab.DNS.TXTNames()) == 0 {
		t.Fatal("no record to restore")
	}
}

// heir is another replica, which brings the work to its end and leaves no trace.
// The CA has seen so many orders then.
func (d *deceased) heir(t *testing.T, orders int) *vault.Certificate {
	t.Helper()
	r := start(t, d.cfg, nil)
	r.until(t, d.id, StepLoaded)
	wait(t, func() bool { return d.settled(t) && len(d.lab.DNS.TXTNames()) == 0 })
	if n := d.lab.CA.Orders(); n != orders {
		t.Errorf("%d orders, want %d", n, orders)
	}
	o, _, err := vault.Load[vault.Certificate](t.Context(), d.vault, d.id)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// settled reports whether the journal in the storage has no attempt.
func (d *deceased) settled(t *testing.T) bool {
	t.Helper()
	j, err := readJournal(t.Context(), d.vault, d.id)
	if err != nil {
		t.Fatal(err)
	}
	return !j.open()
}

func TestHeirResumesTheOrderInTheJournal(t *testing.T) {
	t.Parallel()
	d := placed(t, "a.example.test", "b.example.test")
	if o := d.heir(t, 1); o.PrivateKey != d.attempt().PrivateKey || o.OrderURL != d.attempt().URL {
		t.Errorf("the certificate is of order %s, want %s with the key of the journal", o.OrderURL, d.attempt().URL)
	}
}

// The CA took an order and its answer did not come: nobody knows the URL.
func TestHeirOrdersAgainWhenTheURLIsLost(t *testing.T) {
	t.Parallel()
	d := placed(t, "a.example.test")
	d.attempt().URL, d.attempt().Account = "", ""
	if err := d.m.save(t.Context(), d.vault, d.journal); err != nil {
		t.Fatal(err)
	}
	if o := d.heir(t, 2); o.PrivateKey != d.attempt().PrivateKey {
		t.Error("the second order has another key than the journal")
	}
}

func TestOrderThatTheCAFinishedIsDownloadedByTheHeir(t *testing.T) {
	t.Parallel()
	d := placed(t, "a.example.test")
	if err := d.authorize(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.acme.Finalize(t.Context(), d.attempt().CSR); err != nil {
		t.Fatal(err)
	}
	d.heir(t, 1)
	if n := d.lab.CA.Requests(acmelab.PathFinalize); n != 1 {
		t.Errorf("finalized %d times, want once", n)
	}
}

// Of names that are proven the CA wants nothing any more, so the heir knows of
// their records from the journal alone.
func TestHeirRemovesRecordsOfNamesThatAreProven(t *testing.T) {
	t.Parallel()
	for name, proven := range map[string]int{"one of two": 1, "both": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := placed(t, "a.example.test", "b.example.test")
			validate, _ := d.showAll(t, t.Context())
			validate(proven)
			d.heir(t, 1)
		})
	}
}

// An heir that does not get as far as the zone knows of the dead one's records
// as before.
func TestRecordsOfTheDeadAreNotForgottenWhenTheHeirFails(t *testing.T) {
	t.Parallel()
	d := placed(t, "a.example.test")
	d.showAll(t, t.Context())
	proofs, err := d.acme.Proofs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d.lab.DNS.SetFault(func(acmelab.Query) (rcode int, broken bool) { return dns.RcodeRefused, true })
	if _, err := d.presentRecords(t.Context(), proofs); err == nil {
		t.Fatal("presented although the zone cannot be found")
	}
	if len(d.attempt().Records) != 1 {
		t.Errorf("the journal has records %v, want that of the dead one", d.attempt().Records)
	}
	d.lab.DNS.SetFault(nil)
	d.heir(t, 1)
}

// died is a replica that died between the certificate and the journal, and
// whose records stand in DNS.
func died(t *testing.T) *deceased {
	t.Helper()
	d := placed(t, "a.example.test")
	cert, err := d.obtain(t.Context())
	if err == nil {
		_, err = vault.Save(t.Context(), d.vault, d.id, cert, "")
	}
	if err != nil {
		t.Fatal(err)
	}
	d.restore(t)
	return d
}

func TestRecordsAreSweptWhenTheCertificateIsStoredAlready(t *testing.T) {
	t.Parallel()
	died(t).heir(t, 1)
}

// It would be the same certificate again.
func TestFinishedAttemptIsNotResumedByAnOrderOnDemand(t *testing.T) {
	t.Parallel()
	d := died(t)
	r := ready(t, d.cfg, nil)
	t.Cleanup(r.close)
	if err := r.Obtain(t.Context(), nil, true); err != nil {
		t.Fatal(err)
	}
	if o := d.heir(t, 2); o.OrderURL == d.attempt().URL {
		t.Error("the finished order was taken for a new one")
	}
}

// A write of a process that was stopped may come after its heir has cleaned up.
func TestOrphansAreAdoptedWhenTheirOrderHasEnded(t *testing.T) {
	t.Parallel()
	d := placed(t, "a.example.test")
	ctx, lose := context.WithCancelCause(t.Context())
	_, withdraw := d.showAll(t, ctx)
	lose(store.ErrLeaseLost)
	withdraw()
	if len(d.m.orphans) != 1 || len(d.lab.DNS.TXTNames()) == 0 {
		t.Fatalf("%d orphans, records at %v", len(d.m.orphans), d.lab.DNS.TXTNames())
	}
	d.heir(t, 1)
	d.restore(t) // the late write
	wait(t, func() bool {
		d.m.adopt(t.Context(), d.vault) // not while the heir holds the lease
		return len(d.m.orphans) == 0
	})
	if left := d.lab.DNS.TXTNames(); len(left) > 0 {
		t.Errorf("records at %v are left", left)
	}
}

// Whoever goes on with the order needs them.
func TestOrphansOfAnOpenOrderAreLeftToItsHeir(t *testing.T) {
	t.Parallel()
	d := placed(t, "a.example.test")
	ctx, lose := context.WithCancelCause(t.Context())
	_, withdraw := d.showAll(t, ctx)
	lose(store.ErrLeaseLost)
	withdraw()
	if d.m.adopt(t.Context(), d.vault); len(d.m.orphans) != 0 || len(d.lab.DNS.TXTNames()) == 0 {
		t.Errorf("%d orphans, records at %v", len(d.m.orphans), d.lab.DNS.TXTNames())
	}
	d.heir(t, 1)
}

func TestRecordsThatCannotBeRemovedAreRemovedLater(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	var updates atomic.Int32
	lab.DNS.SetFault(func(q acmelab.Query) (rcode int, broken bool) {
		return dns.RcodeServerFailure, q.Update && updates.Add(1) > 1 // the first one adds
	})
	cfg := labConfig(t, lab, "a.example.test")
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepLoaded)
	if len(lab.DNS.TXTNames()) == 0 {
		t.Fatal("removed although the server refused")
	}
	lab.DNS.SetFault(nil)
	start(t, cfg, nil) // any replica
	wait(t, func() bool {
		j, err := readJournal(t.Context(), m.vaultInUse(), "example.test")
		return err == nil && !j.open() && len(lab.DNS.TXTNames()) == 0
	})
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
}
