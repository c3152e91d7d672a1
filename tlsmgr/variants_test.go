package tlsmgr

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
)

// A variant is one way in which a CA is awkward.
type variant struct {
	ca   acmelab.CAOptions
	edit func(t *testing.T, i *config.Issuer) // of the issuer; nil is none

	// leftOut is a host that ends in quarantine, and why; failed is the error of
	// a certificate that cannot be had. "" is none.
	leftOut, leftOutBecause, failed string

	hosts []string // to serve; nil is the usual ones

	again func(t *testing.T, w *variantWorld) // once everything is settled; nil is nothing
}

const (
	eabKeyID = "kid-1"
	eabHMAC  = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
)

func bindTo(keyID string) func(t *testing.T, i *config.Issuer) {
	return func(t *testing.T, i *config.Issuer) {
		t.Helper()
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "kid"), keyID)
		writeFile(t, filepath.Join(dir, "hmac"), eabHMAC)
		i.EAB = &config.EAB{KeyID: config.Secret{Ref: "file:" + filepath.Join(dir, "kid")}, HMAC: config.Secret{Ref: "file:" + filepath.Join(dir, "hmac")}}
	}
}

// sleepOfVA is how many seconds validations take at most: one in plain runs.
func sleepOfVA() int {
	if inCI() {
		return 6 // less than six is up to five
	}
	return 2
}

func variants() map[string]variant {
	return map[string]variant{
		"half of the nonces are rejected": {ca: acmelab.CAOptions{BadNonces: 50}},
		"validations take their time":     {ca: acmelab.CAOptions{Sleep: sleepOfVA()}},
		"no authorization is reused":      {ca: acmelab.CAOptions{Reuse: 0}, again: orderAnew},
		"every authorization is reused":   {ca: acmelab.CAOptions{Reuse: 100}, again: orderAnew},
		"strict":                          {ca: acmelab.CAOptions{Strict: true}},
		"accounts are lost":               {again: loseAccounts},
		"a name is blocked": {
			ca:      acmelab.CAOptions{Blocked: []string{"bad.example.test"}},
			hosts:   []string{"a.example.test", "a.b.example.test", "bad.example.test"},
			leftOut: "bad.example.test", leftOutBecause: "forbidden domain",
		},
		"accounts are bound":                {ca: acmelab.CAOptions{EABKeys: map[string]string{eabKeyID: eabHMAC}}, edit: bindTo(eabKeyID)},
		"accounts are to be bound":          {ca: acmelab.CAOptions{EABKeys: map[string]string{eabKeyID: eabHMAC}}, failed: "set issuers.lab.acme.eab to the key id and HMAC key that the CA gave you"},
		"accounts are bound to another key": {ca: acmelab.CAOptions{EABKeys: map[string]string{"other": eabHMAC}}, edit: bindTo(eabKeyID), failed: "check issuers.lab.acme.eab"},
		"certificates live for a minute":    {ca: acmelab.CAOptions{Validity: time.Minute, Instead: withoutRenewalInfo}, again: renewUnderHandshakes},
	}
}

// withoutRenewalInfo makes the CA one that has none: Pebble's window for a short
// life begins at once, and half of the life is what is to be shown.
func withoutRenewalInfo(w http.ResponseWriter, r *http.Request) bool {
	if !strings.Contains(r.URL.Path, "/renewalInfo/") {
		return false
	}
	http.NotFound(w, r)
	return true
}

// variantWorld is one CA with a replica for each kind of storage.
type variantWorld struct {
	variant

	lab      *acmelab.Lab
	replicas map[string]*replica // by kind of storage
	configs  map[string]*config.Config
}

// orderAnew makes every replica order once more for the same names, whose
// authorizations the CA may still have.
func orderAnew(t *testing.T, w *variantWorld) {
	t.Helper()
	var work sync.WaitGroup
	for kind, r := range w.replicas {
		work.Go(func() {
			before := r.one(t).Serial
			if err := r.Obtain(t.Context(), nil, true); err != nil {
				t.Errorf("%s: again: %v", kind, err)
			}
			if r.one(t).Serial == before {
				t.Errorf("%s: no other certificate", kind)
			}
		})
	}
	work.Wait()
}

// loseAccounts makes the CA know nobody any more, and the replicas want one more
// name.
func loseAccounts(t *testing.T, w *variantWorld) {
	t.Helper()
	w.lab.CA.ForgetAccounts()
	for kind, cfg := range w.configs {
		next := *cfg
		next.Routes = append(slices.Clone(cfg.Routes), &config.Route{Name: "more", Hosts: []string{"more.b.example.test"}, Path: "/", Listeners: []string{"https"}})
		commit(t, w.replicas[kind].Manager, &next)
	}
	for kind, r := range w.replicas {
		wait(t, func() bool { return slices.Contains(r.one(t).Names, "more.b.example.test") })
		if !strings.Contains(r.logs.String(), "replaces a lost one") {
			t.Errorf("%s: no account replaces the lost one", kind)
		}
	}
}

// renewUnderHandshakes waits until each replica has renewed, under 50 handshakes
// a second.
func renewUnderHandshakes(t *testing.T, w *variantWorld) {
	t.Helper()
	var work sync.WaitGroup
	for kind, r := range w.replicas {
		work.Go(func() {
			p := probe(t, r.Manager, w.lab.CA.Roots, "x.example.test")
			for deadline := time.Now().Add(patience); p.certificates() < 2 && time.Now().Before(deadline); {
				time.Sleep(100 * time.Millisecond)
			}
			p.stop()
			t.Logf("%s: %d handshakes, %d certificates", kind, p.shakes.Load(), p.certificates())
			if p.certificates() < 2 {
				t.Errorf("%s: the certificate was not renewed", kind)
			}
		})
	}
	work.Wait()
}

// prober shakes hands at a steady rate, and fails the test when one fails.
type prober struct {
	shakes  atomic.Int64
	stop    func() // and wait
	mu      sync.Mutex
	serials map[string]bool
}

func (p *prober) certificates() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.serials)
}

// probe shakes hands with m for name, 50 times a second, until it is stopped or
// the test ends.
func probe(t *testing.T, m *Manager, roots *x509.CertPool, name string) *prober {
	t.Helper()
	p := &prober{serials: map[string]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	p.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(p.stop)
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			state, err := shake(t, m, &tls.Config{ServerName: name, RootCAs: roots})
			if err != nil {
				t.Errorf("handshake %d for %s: %v", p.shakes.Load(), name, err)
				return
			}
			p.shakes.Add(1)
			p.mu.Lock()
			p.serials[state.PeerCertificates[0].SerialNumber.String()] = true
			p.mu.Unlock()
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}()
	return p
}

// storages are the URLs of four kinds of storage, below prefix.
type storages struct {
	gcs     *acmelab.GCS
	azurite *acmelab.Azurite // nil when it is not installed
}

func newStorages(t *testing.T) *storages {
	t.Helper()
	s := &storages{gcs: acmelab.NewGCS(t, "certs")}
	var err error
	s.azurite, err = acmelab.StartAzurite(acmelab.AzuriteOptions{Containers: []string{"certs"}})
	switch {
	case errors.Is(err, acmelab.ErrNoAzurite) && !inCI():
		t.Logf("without Azure: %v", err)
	case err != nil:
		t.Fatal(err)
	default:
		t.Cleanup(func() {
			if err := s.azurite.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return s
}

func (s *storages) urls(t *testing.T, lab *acmelab.Lab, prefix string) map[string]string {
	t.Helper()
	out := map[string]string{
		"file": "file://" + t.TempDir(), "s3": lab.S3.StoreURL("certs", prefix), "gcs": s.gcs.StoreURL("certs", prefix),
	}
	if s.azurite != nil {
		out["azure"] = s.azurite.StoreURL("certs", prefix)
	}
	return out
}

// Every variant runs with every kind of storage: a CA for each variant, which
// the replicas of all storages share.
func TestEveryNameEndsIssuedOrWithItsReasonAtEveryCAInEveryStorage(t *testing.T) {
	t.Parallel()
	all := newStorages(t)
	for name, v := range variants() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v.run(t, all, strings.ReplaceAll(name, " ", "-"))
		})
	}
}

func (v variant) run(t *testing.T, all *storages, prefix string) {
	t.Helper()
	if v.hosts == nil {
		v.hosts = []string{"*.example.test", "example.test", "a.b.example.test"}
	}
	w := &variantWorld{
		variant: v, lab: acmelab.New(t, acmelab.Options{CA: v.ca}), replicas: map[string]*replica{}, configs: map[string]*config.Config{},
	}
	for kind, url := range all.urls(t, w.lab, prefix) {
		cfg := labConfig(t, w.lab, v.hosts...)
		cfg.Storage.URL = url
		if v.edit != nil {
			v.edit(t, cfg.Issuers["lab"])
		}
		w.configs[kind] = cfg
		w.replicas[kind] = start(t, cfg, func(o *Options) {
			o.Owner = kind
			if v.leftOut != "" {
				o.Backoff = func(int) time.Duration { return time.Hour }
			}
		})
	}
	for kind, r := range w.replicas {
		w.settled(t, kind, r)
	}
	if v.again != nil {
		v.again(t, w)
	}
	if left := w.lab.DNS.TXTNames(); len(left) > 0 {
		t.Errorf("records of %v were left behind", left)
	}
}

// settled waits until every host has its end.
func (w *variantWorld) settled(t *testing.T, kind string, r *replica) {
	t.Helper()
	if w.failed != "" {
		e := r.until(t, "", StepFailed)
		if s := r.one(t); !strings.Contains(e.Detail, w.failed) || s.State != StateFailed && s.State != StateOrdering || strings.Contains(e.Detail, "\n") {
			t.Errorf("%s: state %s: %s\nwant failed: %s", kind, s.State, cmp.Or(s.Error, e.Detail), w.failed)
		}
		return
	}
	wait(t, func() bool { return r.one(t).State == StateValid })
	for _, h := range w.hosts {
		s := r.one(t)
		if h == w.leftOut {
			if !slices.Equal(s.LeftOut, []string{h}) || !strings.Contains(s.Error, h+" is left out: ") || !strings.Contains(s.Error, w.leftOutBecause) {
				t.Errorf("%s: left out %v because of %q, want %s because of %s", kind, s.LeftOut, s.Error, h, w.leftOutBecause)
			}
			continue
		}
		if !slices.Contains(s.Names, h) || len(s.LeftOut) > 0 && w.leftOut == "" {
			t.Errorf("%s: names %v, left out %v", kind, s.Names, s.LeftOut)
		}
		name := strings.Replace(h, "*", "x", 1)
		if _, err := shake(t, r.Manager, &tls.Config{ServerName: name, RootCAs: w.lab.CA.Roots}); err != nil {
			t.Errorf("%s: %s: %v", kind, name, err)
		}
	}
}
