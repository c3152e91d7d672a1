package tlsmgr

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/mholt/acmez/v3/acme"

	"edge/config"
	"edge/internal/acmelab"
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
	if k, ok := x.byID["p256"].leaf().PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		t.Errorf("p256 is %T", x.byID["p256"].leaf().PublicKey)
	}
	if k, ok := x.byID["p384"].leaf().PublicKey.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P384() {
		t.Errorf("p384 is %T", x.byID["p384"].leaf().PublicKey)
	}
	if k, ok := x.byID["rsa2048"].leaf().PublicKey.(*rsa.PublicKey); !ok || k.Size() != 256 {
		t.Errorf("rsa2048 is %T", x.byID["rsa2048"].leaf().PublicKey)
	}
	if n := lab.CA.Requests(acmelab.PathNewAccount); n != 1 {
		t.Errorf("%d accounts for one issuer, want 1", n)
	}
}

func TestProfileIsAlwaysTheSameOne(t *testing.T) {
	for _, c := range []struct {
		configured string
		listed     []string
		want       string
		wrong      string
	}{
		{"", nil, "", ""},
		{"", []string{"classic", "default", "tlsserver"}, "tlsserver", ""},
		{"", []string{"classic", "default"}, "default", ""},
		{"", []string{"classic", "exotic"}, "classic", ""},
		{"", []string{"one", "two"}, "one", ""},
		{"shortlived", []string{"classic", "shortlived"}, "shortlived", ""},
		{"short", []string{"classic", "shortlived"}, "", `no profile "short" (profiles: classic, shortlived)`},
		{"short", nil, "", "no profiles"},
	} {
		got, err := chooseProfile(c.configured, c.listed)
		if got != c.want || (err != nil) != (c.wrong != "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("chooseProfile(%q, %v) = %q, %v; want %q, %q", c.configured, c.listed, got, err, c.want, c.wrong)
		}
	}
}

// changingCA is the directory of a CA that gets another profile each time.
type changingCA struct{ asked int }

func (c *changingCA) RoundTrip(*http.Request) (*http.Response, error) {
	c.asked++
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"newNonce":"https://ca.test/n","newOrder":"https://ca.test/o","meta":{"profiles":{"p%d":""}}}`, c.asked)
	return w.Result(), nil
}

func TestDirectoryIsReadAgainAfterADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := testIssuer()
		i.client = &acme.Client{Directory: "https://" + rand.Text() + ".test/dir", HTTPClient: &http.Client{Transport: &changingCA{}}}
		for _, want := range []string{"p1", "p2", "p3"} {
			if got, err := i.forOrder().profile(t.Context()); got != want || err != nil {
				t.Errorf("profile %q, %v; want %q", got, err, want)
			}
			time.Sleep(24 * time.Hour)
		}
	})
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

// staleOrder answers as a CA whose order became invalid before it was finalized.
type staleOrder struct{ next http.RoundTripper }

func (s staleOrder) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	w.Header().Set("Replay-Nonce", "used")
	switch {
	case strings.HasPrefix(r.URL.Path, acmelab.PathFinalize):
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.WriteString(`{"type":"urn:ietf:params:acme:error:orderNotReady","detail":"not now"}`)
	case strings.HasPrefix(r.URL.Path, "/my-order/"):
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.WriteString(`{"status":"invalid","error":{"type":"urn:ietf:params:acme:error:caa","detail":"CAA changed"}}`)
	default:
		return s.next.RoundTrip(r)
	}
	return w.Result(), nil
}

func TestOrderThatBecameInvalidIsExplained(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := ready(t, labConfig(t, lab, "a.example.test"), nil)
	transport := m.state.Load().issuers["lab"].client.HTTPClient.Transport.(*acmeTransport)
	transport.next = staleOrder{transport.next}
	m.run(t)
	const want = "finalize the order: the CA refuses: caa: CAA changed (a CAA record"
	if e := m.until(t, "example.test", StepFailed); !strings.Contains(e.Detail, want) {
		t.Errorf("detail %s\nwant   %s", e.Detail, want)
	}
}

func TestDeactivatedAccountIsReplacedOnceItsObjectIsDeleted(t *testing.T) {
	t.Parallel()
	lab := acmelab.New(t, acmelab.Options{})
	m := start(t, labConfig(t, lab, "a.example.test"), nil)
	m.until(t, "example.test", StepLoaded)
	i := m.state.Load().issuers["lab"]
	a, err := m.account(t.Context(), m.storage(), i)
	if err != nil {
		t.Fatal(err)
	}
	end := a.Account
	end.Status = acme.StatusDeactivated
	if _, err := i.client.UpdateAccount(t.Context(), end); err != nil {
		t.Fatal(err)
	}
	next := labConfig(t, lab, "a.example.test")
	next.Certificates["one"] = &config.Certificate{Names: []string{"one.example.test"}, Issuers: []string{"lab"}, KeyTypes: []config.KeyType{config.P256}}
	commit(t, m.Manager, next)
	key := accountKey(accountID(i.config))
	if e := m.until(t, "one", StepFailed); !strings.Contains(e.Detail, "unauthorized: ") || !strings.Contains(e.Detail, "delete "+key) {
		t.Errorf("detail %s", e.Detail)
	}
	if err := m.storage().Delete(t.Context(), key); err != nil {
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
			want: []string{"read the directory: cannot reach 127.0.0.1:1: connection refused (check issuers.lab.directory"},
		},
		"untrusted CA": {
			edit: func(_ *testing.T, cfg *config.Config) {
				cfg.Issuers["lab"].CA = ""
				cfg.Issuers["lab"].Directory += "?untrusted" // acmez remembers directories by URL
			},
			want: []string{"is not trusted (set issuers.lab.ca to a PEM file"},
		},
		"refused name": {
			lab:  acmelab.CAOptions{Blocked: []string{"a.example.test"}},
			want: []string{"place the order: the CA refuses: rejectedIdentifier", "remove it, or use another issuer"},
		},
		"external account": {
			lab:  acmelab.CAOptions{EABKeys: map[string]string{"kid-1": "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"}},
			want: []string{"register an account: the CA refuses: externalAccountRequired", "not supported yet"},
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

func TestWhatTheCAIssuedIsChecked(t *testing.T) {
	good, other, now := newTestCA(t), newTestCA(t), time.Now()
	chain, key := good.issue(t, config.P256, now.Add(-time.Hour), now.Add(time.Hour), "a.test", "b.test")
	_, otherKey := good.issue(t, config.P256, now.Add(-time.Hour), now.Add(time.Hour), "a.test")
	old, oldKey := good.issue(t, config.P256, now.Add(-2*time.Hour), now.Add(-time.Hour), "a.test")
	foreign, _ := other.issue(t, config.P256, now, now, "x.test")
	leaf, _, _ := strings.Cut(chain, "-----END CERTIFICATE-----\n")
	broken := leaf + "-----END CERTIFICATE-----\n" + foreign
	for name, c := range map[string]struct {
		names      []string
		chain, key string
		want       string
	}{
		"as ordered":    {[]string{"a.test", "b.test"}, chain, key, ""},
		"another key":   {[]string{"a.test", "b.test"}, chain, otherKey, "private key does not match"},
		"fewer names":   {[]string{"a.test", "b.test", "c.test"}, chain, key, "names a.test, b.test, ordered a.test, b.test, c.test"},
		"more names":    {[]string{"a.test"}, chain, key, "ordered a.test"},
		"expired":       {[]string{"a.test"}, old, oldKey, "it expired on"},
		"broken chain":  {[]string{"a.test", "b.test"}, broken, key, "chain is broken"},
		"not a chain":   {[]string{"a.test"}, "hello", key, "failed to find"},
		"an empty file": {[]string{"a.test"}, "", key, "failed to find"},
	} {
		err := checkIssued(c.names, c.chain, c.key, now)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
