package tlsmgr

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/tlsmgr/vault"
)

// ownCA is a configuration whose certificates come from edge's own CA.
func ownCA(t *testing.T, lifetime time.Duration, hosts ...string) *config.Config {
	t.Helper()
	cfg := &config.Config{
		Path:         "routes.yaml",
		Listeners:    map[string]*config.Listener{"https": {Name: "https", Protocols: []config.Protocol{config.H1}}},
		Storage:      config.Storage{URL: "file://" + t.TempDir()},
		Issuers:      map[string]*config.Issuer{"own": {Name: "own", Internal: &config.Internal{Lifetime: lifetime}}},
		Certificates: map[string]*config.Certificate{},
		Bundles:      config.Bundles{Issuers: []string{"own"}, Packing: config.ByZone, MaxNames: 100, KeyTypes: []config.KeyType{config.P256}},
	}
	for _, h := range hosts {
		cfg.Routes = append(cfg.Routes, &config.Route{Name: h, Hosts: []string{h}, Path: "/", Listeners: []string{"https"}})
	}
	return cfg
}

func TestOwnCAIssuesForEveryReplicaUnderOneRoot(t *testing.T) {
	t.Parallel()
	cfg := ownCA(t, 7*24*time.Hour, "a.example.internal", "*.example.internal", "127.0.0.1")
	first, second := start(t, cfg, nil), start(t, cfg, nil)
	for _, m := range []*replica{first, second} {
		wait(t, func() bool { return len(missing(m)) == 0 })
	}
	root, err := first.Root(t.Context(), "own")
	if err != nil {
		t.Fatal(err)
	}
	if other, err := second.Root(t.Context(), "own"); err != nil || other != root {
		t.Errorf("the second replica has another root: %v", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(root)) {
		t.Fatal("the root is no PEM")
	}
	for _, m := range []*replica{first, second} {
		if _, err := shake(t, m.Manager, &tls.Config{ServerName: "a.example.internal", RootCAs: pool}); err != nil {
			t.Error(err)
		}
	}
	if _, err := first.Root(t.Context(), "other"); err == nil || !strings.Contains(err.Error(), `no internal issuer "other"`) {
		t.Errorf("root of another issuer: %v", err)
	}
}

func TestOwnCARenewsShortCertificates(t *testing.T) {
	t.Parallel()
	m := start(t, ownCA(t, 3*time.Second, "a.example.internal"), nil)
	m.until(t, "", StepLoaded)
	first := m.one(t).Serial
	for m.one(t).Serial == first {
		m.until(t, "", StepLoaded)
	}
}

func TestServingReplicaOrdersNothingAndNeedsNoSecrets(t *testing.T) {
	t.Parallel()
	cfg := ownCA(t, time.Hour, "a.example.internal")
	cfg.Issuers["acme"] = &config.Issuer{Name: "acme", Directory: "https://ca.test/dir", CA: "/nonexistent", Providers: []string{"none"}}
	cfg.Certificates["public"] = &config.Certificate{Name: "public", Names: []string{"b.example.com"}, Issuers: []string{"acme"}, KeyTypes: []config.KeyType{config.P256}}
	cfg.ServeOnly = true
	m := start(t, cfg, nil)
	issuing := ownCA(t, time.Hour, "a.example.internal")
	issuing.Storage = cfg.Storage
	start(t, issuing, nil).until(t, "example.internal", StepLoaded)
	m.until(t, "example.internal", StepLoaded)
	if err := m.Obtain(t.Context(), nil, true); err == nil || !strings.Contains(err.Error(), "certificates_role is serve") {
		t.Errorf("Obtain: %v", err)
	}
	if strings.Contains(m.logs.String(), "step=failed") {
		t.Errorf("it tried to order:\n%s", m.logs)
	}
	wait(t, func() bool {
		peers := m.Status().Replicas
		return len(peers) == 1 && peers[0].Role == "issue"
	})
}

func TestSealedStorageAndSnapshot(t *testing.T) {
	t.Parallel()
	key := config.Secret{Ref: "file:" + t.TempDir() + "/key"}
	writeFile(t, strings.TrimPrefix(key.Ref, "file:"), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")
	cfg := ownCA(t, time.Hour, "a.example.internal")
	cfg.Storage.Keys, cfg.Storage.Snapshot = []config.Secret{key}, t.TempDir()+"/snapshot"
	m := start(t, cfg, nil)
	m.until(t, "example.internal", StepLoaded)
	for _, k := range []string{vault.Certificates.Key("example.internal"), vault.Authorities.Key("own")} {
		raw, _, err := m.vaultInUse().Store().LoadVersion(t.Context(), k)
		if err != nil || strings.Contains(string(raw), "PRIVATE KEY") || !strings.Contains(string(raw), `"sealed"`) {
			t.Errorf("%s is not sealed: %v", k, err)
		}
	}
	serial := m.one(t).Serial
	wait(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.snapped) == 1
	})
	m.stop()

	broken := *cfg // the storage is down
	broken.Storage.URL = "s3://certs/t?region=us-east-1&endpoint=http://127.0.0.1:1"
	again := ready(t, &broken, nil)
	if err := again.Load(t.Context()); err == nil {
		t.Error("the storage answers")
	}
	again.run(t)
	if s := again.one(t); s.Serial != serial || s.State != StateValid {
		t.Errorf("from the snapshot: %+v, want serial %s", s, serial)
	}

	keyless := *cfg // another edge without the key neither uses nor replaces what it cannot read
	keyless.Storage.Keys, keyless.Storage.Snapshot = nil, ""
	blind := start(t, &keyless, nil)
	wait(t, func() bool { return strings.Contains(blind.logs.String(), "sealed with a key that is not here") })
	raw, _, err := m.Manager.vaultInUse().Store().LoadVersion(t.Context(), vault.Certificates.Key("example.internal"))
	if err == nil && !strings.Contains(string(raw), `"sealed"`) {
		t.Error("a sealed certificate was replaced by an edge without its key")
	}
}

// A storage that takes connections and never answers is as good as down.
func TestSilentStorageDoesNotKeepTheSnapshotFromServing(t *testing.T) {
	t.Parallel()
	key := config.Secret{Ref: "file:" + t.TempDir() + "/key"}
	writeFile(t, strings.TrimPrefix(key.Ref, "file:"), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n")
	cfg := ownCA(t, time.Hour, "a.example.internal")
	cfg.Storage.Keys, cfg.Storage.Snapshot = []config.Secret{key}, t.TempDir()+"/snapshot"
	m := start(t, cfg, nil)
	m.until(t, "example.internal", StepLoaded)
	wait(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.snapped) == 1
	})
	m.stop()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the backlog connects, nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	hung := *cfg
	hung.Storage.URL = "s3://certs/t?region=us-east-1&endpoint=http://" + silent.Addr().String()
	again := ready(t, &hung, nil)
	defer again.close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*snapshotPatience)
	defer cancel()
	if err := again.Load(ctx); err == nil {
		t.Error("the storage answers")
	}
	if s := again.one(t); s.State != StateValid {
		t.Errorf("from the snapshot: %+v", s)
	}
}
