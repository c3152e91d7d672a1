package tlsmgr

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/tls"
	"slices"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/vault"
)

func TestPreviewSaysWhatWouldBeOrderedAndWhy(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	m := ready(t, cfg, nil)
	defer m.close()
	before, err := m.Preview(t.Context())
	if err != nil || len(before) != 1 || before[0].Need != "missing" || before[0].From != "lab" {
		t.Fatalf("before: %+v, %v", before, err)
	}
	if n := lab.CA.Requests(acmelab.PathDirectory); n != 0 {
		t.Errorf("a preview asked the CA %d times", n)
	}
	if err := m.Obtain(t.Context(), nil, false); err != nil {
		t.Fatal(err)
	}
	after, err := m.Preview(t.Context())
	if err != nil || after[0].Need != "" || after[0].NotAfter.IsZero() || !after[0].Renewal.Before(after[0].NotAfter) {
		t.Errorf("after: %+v, %v", after, err)
	}
	cfg.Issuers["lab"].Quotas.Orders = config.Quota{Count: 1, Per: time.Hour}
	more := *cfg
	more.Certificates = map[string]*config.Certificate{"one": {Name: "one", Names: []string{"one.example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}}
	commit(t, m.Manager, &more)
	held, err := m.Preview(t.Context())
	if err != nil || len(held) != 2 || held[1].ID != "one" || held[1].NotBefore.IsZero() || held[1].Reason == "" {
		t.Errorf("with a spent budget: %+v, %v", held, err)
	}
}

func TestObtainOrdersOnceUnlessItIsForced(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := ready(t, labConfig(t, lab, "a.example.test"), nil)
	defer m.close()
	for n, force := range []bool{false, false, true} {
		if err := m.Obtain(t.Context(), []string{"example.test"}, force); err != nil {
			t.Fatal(err)
		}
		if got, want := lab.CA.Orders(), []int{1, 1, 2}[n]; got != want {
			t.Errorf("%d orders after call %d, want %d", got, n+1, want)
		}
	}
	if err := m.Obtain(t.Context(), []string{"none"}, false); err == nil || !strings.Contains(err.Error(), `no certificate "none" (certificates: example.test)`) {
		t.Errorf("unknown certificate: %v", err)
	}
}

func TestRevokedCertificateIsReplacedFirst(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	serving := start(t, cfg, nil)
	serving.until(t, "example.test", StepLoaded)
	old := serving.one(t).Serial
	m := ready(t, cfg, func(o *Options) { o.Owner = "command line" })
	defer m.close()
	if err := m.Revoke(t.Context(), "example.test", 1); err != nil {
		t.Fatal(err)
	}
	if got := serving.one(t).Serial; got == old {
		t.Error("revoked while a replica still serves it")
	}
	if n := lab.CA.Requests("/revoke-cert"); n != 1 {
		t.Errorf("%d revocations, want 1", n)
	}
	if err := m.Revoke(t.Context(), "none", 1); err == nil || !strings.Contains(err.Error(), `no certificate "none" is stored`) {
		t.Errorf("unknown certificate: %v", err)
	}
}

func TestAccountGetsANewKeyThatEveryReplicaUses(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepLoaded)
	i := m.state.Load().issuers["lab"]
	before, err := m.account(t.Context(), m.vaultInUse(), i)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Rollover(t.Context(), "lab"); err != nil {
		t.Fatal(err)
	}
	after, err := m.account(t.Context(), m.vaultInUse(), i)
	if err != nil || after.URL != before.URL || after.Key.Public().(*ecdsa.PublicKey).Equal(before.Key.Public()) {
		t.Errorf("account %s after %s, same key: %v", after.URL, before.URL, err)
	}
	if err := m.Obtain(t.Context(), nil, true); err != nil {
		t.Errorf("the new key does not work: %v", err)
	}
}

// A rollover that died after the CA had the new key goes on from there.
func TestRolloverGoesOnAfterADeath(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	i := m.state.Load().issuers["lab"]
	id := accountID(i.config)
	a, err := m.account(t.Context(), m.vaultInUse(), i)
	if err != nil {
		t.Fatal(err)
	}
	record, version, err := vault.Load[vault.Account](t.Context(), m.vaultInUse(), id)
	if err != nil {
		t.Fatal(err)
	}
	other := newTestCA(t)
	_, record.NextKey = other.issue(t, config.P256, time.Now(), time.Now().Add(time.Hour), "x.test") // any key
	if _, err := vault.Save(t.Context(), m.vaultInUse(), id, record, version); err != nil {
		t.Fatal(err)
	}
	next := decode(t, record.NextKey)
	if _, err := i.ca.Rollover(t.Context(), a.Account, next); err != nil {
		t.Fatal(err)
	}
	if err := m.Rollover(t.Context(), "lab"); err != nil {
		t.Fatal(err)
	}
	if err := m.Obtain(t.Context(), nil, true); err != nil {
		t.Error(err)
	}
}

func TestBothKeyTypesAreIssuedAndChosenByTheClient(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	cfg.Bundles.KeyTypes = []config.KeyType{config.P256, config.RSA2048}
	cfg.Listeners["https"].DefaultCertificate = "example.test"
	m := start(t, cfg, nil)
	wait(t, func() bool { return len(m.Status().Certificates) == 2 && len(missing(m)) == 0 })
	for _, name := range []string{"a.example.test", ""} {
		for suite, rsaWanted := range map[uint16]bool{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: false, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: true,
		} {
			state, err := shake(t, m.Manager, &tls.Config{
				ServerName: name, InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite},
			})
			if err != nil {
				t.Fatalf("%q with suite %x: %v", name, suite, err)
			}
			if _, isRSA := state.PeerCertificates[0].PublicKey.(*rsa.PublicKey); isRSA != rsaWanted {
				t.Errorf("%q with suite %x: RSA %v, want %v", name, suite, isRSA, rsaWanted)
			}
		}
	}
}

func TestOneMoreNameChangesOneCertificate(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "b.example.test", "c.example.test", "d.example.test", "e.example.test")
	cfg.Bundles.MaxNames = 2
	m := start(t, cfg, nil)
	wait(t, func() bool { return len(missing(m)) == 0 })
	serials := map[string]string{}
	for _, c := range m.Status().Certificates {
		serials[c.ID] = c.Serial
	}
	more := labConfig(t, lab, "a.example.test", "b.example.test", "c.example.test", "d.example.test", "e.example.test")
	more.Bundles.MaxNames = 2
	commit(t, m.Manager, more)
	wait(t, func() bool { return len(m.Status().Certificates) == 3 && len(missing(m)) == 0 })
	for _, c := range m.Status().Certificates {
		if before, old := serials[c.ID]; old && before != c.Serial {
			t.Errorf("%s was ordered again: %v", c.ID, c.Names)
		}
	}
	if n := lab.CA.Orders(); n != 3 {
		t.Errorf("%d orders, want 3", n)
	}
}

// A name that moves to a certificate of its own is served all the time.
func TestNameThatMovesIsServedByTheOldCertificateUntilTheNewOneIsThere(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test", "b.example.test")
	m := start(t, cfg, nil)
	m.until(t, "example.test", StepLoaded)
	blocked := *cfg.Issuers["lab"]
	blocked.Name, blocked.Directory = "other", "https://127.0.0.1:1/dir" // its CA never answers
	moved := labConfig(t, lab, "a.example.test", "b.example.test")
	moved.Issuers["other"] = &blocked
	moved.Certificates["b"] = &config.Certificate{Name: "b", Names: []string{"b.example.test"}, Issuers: []string{"other"}, KeyTypes: []config.KeyType{config.P256}}
	commit(t, m.Manager, moved)
	m.until(t, "b", StepFailed)
	if err := m.Obtain(t.Context(), []string{"example.test"}, true); err != nil { // now without b
		t.Fatal(err)
	}
	for {
		s := m.Status()
		n := slices.IndexFunc(s.Certificates, func(c CertificateStatus) bool { return c.ID == "example.test" })
		if slices.Equal(s.Certificates[n].Names, []string{"a.example.test"}) {
			break
		}
		m.until(t, "example.test", StepLoaded)
	}
	wait(t, func() bool {
		state, err := shake(t, m.Manager, &tls.Config{ServerName: "b.example.test", RootCAs: lab.CA.Roots})
		return err == nil && state.PeerCertificates[0].VerifyHostname("b.example.test") == nil
	})
	m.mu.Lock()
	st, now := m.state.Load(), time.Now()
	m.mu.Unlock()
	if ids := m.needless(st, now); len(ids) != 0 {
		t.Errorf("%v would be deleted while it serves", ids)
	}
}

func decode(t *testing.T, keyPEM string) crypto.Signer {
	t.Helper()
	key, err := acme.DecodeKey(keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
