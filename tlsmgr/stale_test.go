package tlsmgr

import (
	"crypto/tls"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// What is left of the past: names that nobody wants any more, a storage that
// went back in time, objects that cannot be read.

func TestQuarantineOfANameThatIsNotWantedAnyMoreIsForgotten(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Blocked: []string{"bad.example.test"}}})
	m := start(t, labConfig(t, lab, "a.example.test", "bad.example.test"), func(o *Options) {
		o.Backoff = func(int) time.Duration { return time.Hour }
	})
	m.until(t, "example.test", StepLoaded)
	commit(t, m.Manager, labConfig(t, lab, "a.example.test"))
	if s := m.one(t); s.Error != "" || len(s.LeftOut) > 0 || s.State != StateValid {
		t.Errorf("status %+v, want nothing about a name that is gone", s)
	}
	now := time.Now()
	j := &journal{record: vault.Order{Quarantine: map[string]vault.Quarantined{
		"a": {Next: now.Add(-48 * time.Hour)}, "soon": {Next: now.Add(time.Hour)}, "due": {Next: now.Add(-time.Hour)}, "old": {Next: now.Add(-48 * time.Hour)},
	}}}
	j.release([]string{"a"}, now)
	if got := j.leftOut([]string{"a", "due", "old", "soon"}); !slices.Equal(got, []string{"a", "due", "soon"}) {
		t.Errorf("%v are left in quarantine", got)
	}
}

// A backup of the storage is restored that is older than the lifetime.
func TestStorageThatGoesBackToAnExpiredCertificateDoesNotTakeTheValidOneAway(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := stock(t, lab, ca, "a.example.test")
	m := start(t, cfg, func(o *Options) { o.Backoff = func(int) time.Duration { return time.Hour } })
	m.until(t, "a.example.test", StepLoaded)
	lab.CA.SetDown(true)
	old := ca.certificate(t, "a.example.test", config.P256, time.Now().Add(-100*time.Hour), time.Now().Add(-time.Hour), "a.example.test")
	rewrite(t, m.Manager, "a.example.test", func(o *vault.Certificate) { o.Chain, o.PrivateKey = old.object.Chain, old.object.PrivateKey })
	m.until(t, "a.example.test", StepLoaded)
	roots := ca.pool()
	if _, err := shake(t, m.Manager, &tls.Config{ServerName: "a.example.test", RootCAs: roots}); err != nil {
		t.Errorf("handshake: %v", err)
	}
}

func TestJournalThatCannotBeReadDoesNotStopTheOthers(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := ready(t, labConfig(t, lab, "a.example.test"), nil)
	v := m.vaultInUse()
	if _, err := vault.Save(t.Context(), v, "other", &vault.Order{Format: vault.Format, ID: "other"}, ""); err != nil {
		t.Fatal(err)
	}
	lab.S3.SetFail(func(r *http.Request) int {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/orders/other.json") {
			return http.StatusForbidden
		}
		return 0
	})
	m.run(t)
	m.until(t, "example.test", StepLoaded)
}

func TestDigestIsOfWhatTheStorageHas(t *testing.T) {
	ca, now := newTestCA(t), time.Now()
	m, other := New(Options{Owner: "a"}), New(Options{Owner: "b"})
	c := ca.certificate(t, "b", config.P256, now, now.Add(time.Hour), "a.test")
	gone := ca.certificate(t, "gone", config.P256, now, now.Add(time.Hour), "b.test")
	for _, x := range []*Manager{m, other} {
		x.loaded["b"] = &stored{version: store.Version("1"), cert: c}
	}
	m.loaded["gone"] = &stored{cert: gone} // deleted from the storage, and still served
	if m.digestLocked() != other.digestLocked() {
		t.Error("replicas that started before and after an object was deleted differ")
	}
}
