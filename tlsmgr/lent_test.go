package tlsmgr

import (
	"crypto/tls"
	"encoding/json"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

// imported puts a certificate from elsewhere into the bucket of cfg.
func imported(t *testing.T, cfg *config.Config, ca *testCA, name string, from, to time.Time) {
	t.Helper()
	c := ca.certificate(t, name, config.P256, from, to, name)
	c.object.Imported = true
	data, err := json.Marshal(c.object)
	if err != nil {
		t.Fatal(err)
	}
	put(t, cfg, vault.Certificates.Key(name), data)
}

func TestImportedCertificatesServeWithoutAnOrderUntilOneIsDue(t *testing.T) {
	t.Parallel()
	lab, ca := acmelab.New(t, acmelab.Options{}), newTestCA(t)
	cfg := labConfig(t, lab, "a.example.test", "b.example.test")
	now := time.Now()
	imported(t, cfg, ca, "a.example.test", now.Add(-time.Hour), now.Add(1000*time.Hour))
	life := 20 * time.Second
	imported(t, cfg, ca, "b.example.test", now.Add(-life/4), now.Add(life*3/4)) // due soon: half of its life
	m := ready(t, cfg, nil)
	if err := m.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.run(t)
	if s := m.one(t); s.State != StateValid || s.Serial == "" || len(missing(m)) != 0 {
		t.Errorf("status %+v, missing %v", s, missing(m))
	}
	for _, name := range []string{"a.example.test", "b.example.test"} {
		if _, err := shake(t, m.Manager, &tls.Config{ServerName: name, RootCAs: ca.pool()}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := lab.CA.Requests(acmelab.PathNewOrder); n != 0 {
		t.Errorf("%d orders although all names are served", n)
	}
	m.until(t, "example.test", StepLoaded) // b is due: both names, in one order
	if s := m.one(t); len(s.Names) != 2 || lab.CA.Orders() != 1 {
		t.Errorf("%v after %d orders, want both names after one", s.Names, lab.CA.Orders())
	}
}
