package tlsmgr

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/mholt/acmez/v3/acme"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/vault"
)

func TestWildcardAndApexAreOrderedTogetherAndServed(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "*.example.test", "example.test", "llm.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	for _, name := range []string{"llm.example.test", "example.test"} {
		state, err := shake(t, m.Manager, &tls.Config{ServerName: name, RootCAs: lab.CA.Roots})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, want := state.PeerCertificates[0].DNSNames, []string{"*.example.test", "example.test"}; !slices.Equal(slices.Sorted(slices.Values(got)), want) {
			t.Errorf("names %v, want %v", got, want)
		}
	}
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	if left := lab.DNS.TXT("_acme-challenge.example.test"); len(left) > 0 {
		t.Errorf("challenge records %v were left behind", left)
	}
	s := m.one(t)
	if s.State != StateValid || s.Source != "inferred" || s.Issuer != "lab" || s.Serial == "" || !s.NextAttempt.Before(s.NotAfter) {
		t.Errorf("status %+v", s)
	}
}

func TestEachStepOfAnOrderIsTold(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	for _, step := range []Step{
		StepPlanned, StepAccount, StepOrder, StepAuthorization, StepPresent, StepWait, StepValidate, StepFinalize, StepStored, StepLoaded,
	} {
		m.until(t, "example.test", step) // in this order
	}
}

func TestHundredNamesAreOneOrderOneUpdateAndOneWait(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	hosts := make([]string, 100)
	for n := range hosts {
		hosts[n] = fmt.Sprintf("n%02d.example.test", n)
	}
	m := start(t, labConfig(t, lab, hosts...), nil)
	m.until(t, "example.test", StepLoaded)
	if n := lab.CA.Orders(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	if s := m.one(t); len(s.Names) != 100 {
		t.Errorf("%d names in the certificate, want 100", len(s.Names))
	}
	if _, updates := lab.DNS.Counts(); updates != 2 {
		t.Errorf("%d DNS updates, want 2: one to add and one to remove", updates)
	}
}

// One listing and two requests for each name, five a second for the account,
// and another order may be at it.
func TestCleaningUpHasTimeForAHundredNamesAtRoute53(t *testing.T) {
	if need := (1 + 2*100) * time.Second / 5; cleanupTimeout < 2*need {
		t.Errorf("cleanupTimeout %s, want at least %s", cleanupTimeout, 2*need)
	}
}

func TestKeyTypeIsTheConfiguredOne(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab)
	for _, kind := range []config.KeyType{config.P256, config.P384, config.RSA2048} {
		cfg.Certificates[string(kind)] = &config.Certificate{Names: []string{string(kind) + ".example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{kind}}
	}
	m := start(t, cfg, nil)
	for range 3 {
		m.until(t, "", StepLoaded)
	}
	x := m.index.Load()
	if k, ok := x.byID["p256"].best.leaf().PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("p256 is %T", x.byID["p256"].best.leaf().PublicKey)
	}
	if k, ok := x.byID["p384"].best.leaf().PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P384() {
		t.Errorf("p384 is %T", x.byID["p384"].best.leaf().PublicKey)
	}
	if k, ok := x.byID["rsa2048"].best.leaf().PublicKey.(*rsa.PublicKey); !ok || k.Size() != 256 {
		t.Errorf("rsa2048 is %T", x.byID["rsa2048"].best.leaf().PublicKey)
	}
	if n := lab.CA.Requests(acmelab.PathNewAccount); n != 1 {
		t.Errorf("%d accounts for one issuer, want 1", n)
	}
}

func TestOrderAsksForTheProfile(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Profiles: map[string]ca.Profile{
		"classic": {ValidityPeriod: 3600}, "shortlived": {ValidityPeriod: 600}, "tlsserver": {ValidityPeriod: 7200},
	}}})
	for profile, life := range map[string]time.Duration{"": 2 * time.Hour, "shortlived": 10 * time.Minute} {
		cfg := labConfig(t, lab, "a.example.test")
		cfg.Storage.URL = lab.S3.StoreURL("certs", "p"+profile)
		cfg.Issuers["lab"].Profile = profile
		m := start(t, cfg, nil)
		m.until(t, "example.test", StepLoaded)
		if s := m.one(t); s.NotAfter.Sub(s.NotBefore).Round(time.Minute) != life {
			t.Errorf("profile %q: certificate lives %s, want %s", profile, s.NotAfter.Sub(s.NotBefore), life)
		}
		m.stop()
	}
}

func TestDownloadOfAChainAsksForNothingElse(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Validity: 3 * time.Second}}) // no window that acmez would take
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	finalized := m.until(t, "example.test", StepValidate)
	stored := m.until(t, "example.test", StepStored)
	if d := stored.Time.Sub(finalized.Time); d > 2*time.Second {
		t.Errorf("%s from the proof to the storage", d)
	}
	for _, path := range []string{"/draft-ietf-acme-ari-03/renewalInfo/", "/draft-ietf-acme-ari-02/renewalInfo/", "/renewalInfo/"} {
		if n := lab.CA.Requests(path); n != 0 {
			t.Errorf("%d requests for renewal information", n)
		}
	}
}

func TestBadNoncesAreRepeated(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{BadNonces: 50}})
	m := start(t, labConfig(t, lab, "a.example.test", "b.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
}

func TestLostAccountIsReplacedAndTheOrderRepeated(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	cfg := labConfig(t, lab, "a.example.test")
	first := start(t, cfg, nil)
	first.until(t, "example.test", StepLoaded)
	second := start(t, cfg, func(o *Options) { o.Owner = "second" }) // loads the same account for its first order
	second.until(t, "example.test", StepLoaded)

	lab.CA.ForgetAccounts()
	more := labConfig(t, lab, "a.example.test")
	more.Certificates["one"] = &config.Certificate{Names: []string{"one.example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	commit(t, first.Manager, more)
	first.until(t, "one", StepLoaded)
	other := labConfig(t, lab, "a.example.test")
	other.Certificates["two"] = &config.Certificate{Names: []string{"two.example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	commit(t, second.Manager, other)
	second.until(t, "two", StepLoaded)
	if n := lab.CA.Requests(acmelab.PathNewAccount); n != 2 {
		t.Errorf("%d accounts registered, want 2: one before and one after the loss", n)
	}
	for _, r := range []*replica{first, second} {
		if strings.Contains(r.logs.String(), "step=failed") {
			t.Errorf("an attempt failed:\n%s", r.logs)
		}
	}
}

func TestAccountThatIsLostDuringAnOrderIsReplacedByTheNextAttempt(t *testing.T) {
	t.Parallel()
	for _, path := range []string{acmelab.PathAuthz, acmelab.PathChallenge, acmelab.PathFinalize, acmelab.PathCert} {
		t.Run(strings.Trim(path, "/"), func(t *testing.T) {
			t.Parallel()
			var lab *acmelab.Lab
			var lost atomic.Bool
			lab = acmelab.New(t, acmelab.Options{CA: acmelab.CAOptions{Gate: func(p string) {
				if strings.HasPrefix(p, path) && !lost.Swap(true) {
					lab.CA.ForgetAccounts()
				}
			}}})
			m := start(t, labConfig(t, lab, "a.example.test"), nil)
			if e := m.until(t, "example.test", StepFailed); !strings.Contains(e.Detail, "registers a new account at the next attempt") {
				t.Errorf("detail %s", e.Detail)
			}
			m.until(t, "example.test", StepLoaded)
			if n := lab.CA.Requests(acmelab.PathNewAccount); n != 2 {
				t.Errorf("%d accounts registered, want 2", n)
			}
		})
	}
}

func TestDeactivatedAccountIsReplacedOnceItsObjectIsDeleted(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	i := m.state.Load().issuers["lab"]
	a, err := m.account(t.Context(), m.vaultInUse(), i)
	if err != nil {
		t.Fatal(err)
	}
	client := &acme.Client{Directory: lab.CA.Directory, HTTPClient: lab.CA.Client}
	end := acme.Account{Status: acme.StatusDeactivated, Location: a.URL, PrivateKey: a.Key}
	if _, err := client.UpdateAccount(t.Context(), end); err != nil {
		t.Fatal(err)
	}
	next := labConfig(t, lab, "a.example.test")
	next.Certificates["one"] = &config.Certificate{Names: []string{"one.example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	commit(t, m.Manager, next)
	key := vault.Accounts.Key(accountID(i.config))
	if e := m.until(t, "one", StepFailed); !strings.Contains(e.Detail, "unauthorized: ") || !strings.Contains(e.Detail, key) {
		t.Errorf("detail %s", e.Detail)
	}
	if err := m.vaultInUse().Store().Delete(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	m.until(t, "one", StepLoaded) // without a restart
}

func TestRefusalsAreOneLineWithAHint(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lab  acmelab.CAOptions
		edit func(t *testing.T, cfg *config.Config)
		want []string
	}{
		"wrong TSIG key": {
			edit: func(t *testing.T, cfg *config.Config) {
				t.Helper()
				path := strings.TrimPrefix(cfg.Providers["lab"].RFC2136.Key.Ref, "file:")
				writeFile(t, path, "d3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmcgd3Jvbmchd3I=")
			},
			want: []string{"provider lab (rfc2136)", "TSIG key", "key_name"},
		},
		"unreachable CA": {
			edit: func(_ *testing.T, cfg *config.Config) {
				cfg.Issuers["lab"].Directory = "https://127.0.0.1:1/dir"
			},
			want: []string{"read the directory: cannot reach 127.0.0.1:1: connection refused (check issuers.lab.acme.directory"},
		},
		"untrusted CA": {
			edit: func(_ *testing.T, cfg *config.Config) {
				cfg.Issuers["lab"].CA = ""
				cfg.Issuers["lab"].Directory += "?untrusted" // acmez remembers directories by URL
			},
			want: []string{"is not trusted (set issuers.lab.acme.ca to a PEM file"},
		},
		"refused name": {
			lab:  acmelab.CAOptions{Blocked: []string{"a.example.test"}},
			want: []string{"place the order: the CA refuses: rejectedIdentifier", "remove it, or use another issuer"},
		},
		"external account": {
			lab:  acmelab.CAOptions{EABKeys: map[string]string{"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}},
			want: []string{"register an account: the CA refuses: externalAccountRequired", "set issuers.lab.acme.eab to the key id and HMAC key"},
		},
		"unknown profile": {
			edit: func(_ *testing.T, cfg *config.Config) { cfg.Issuers["lab"].Profile = "nonesuch" },
			want: []string{`the CA has no profile "nonesuch" (profiles: default)`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			lab := acmelab.New(t, acmelab.Options{CA: c.lab})
			cfg := labConfig(t, lab, "a.example.test")
			if c.edit != nil {
				c.edit(t, cfg)
			}
			m := start(t, cfg, func(o *Options) { o.Backoff = nil })
			e := m.until(t, "example.test", StepFailed)
			for _, want := range c.want {
				if !strings.Contains(e.Detail, want) {
					t.Errorf("got  %s\nwant %s", e.Detail, want)
				}
			}
			s := m.one(t)
			if strings.ContainsAny(s.Error, "\n\r") || s.Error == "" || len(s.Error) > 700 {
				t.Errorf("error %q, want one line", s.Error)
			}
			if s.State != StateFailed || s.Failures != 1 || time.Until(s.NextAttempt) < 30*time.Second {
				t.Errorf("status %+v, want failed once and the next attempt in a minute", s)
			}
			if n := strings.Count(m.logs.String(), "step=failed"); n != 1 {
				t.Errorf("%d lines about one failure:\n%s", n, m.logs)
			}
		})
	}
}
