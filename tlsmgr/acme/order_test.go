package acme_test

import (
	"crypto/x509"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"

	"github.com/letsencrypt/pebble/v2/ca"
)

func TestOneOrderCoversApexWildcardAndAnotherZone(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	names := []string{"*.example.test", "a.other.test", "example.test"}
	got := l.obtain(t, l.register(t), acme.Request{Names: names, Profile: "default"})
	keyPEM, err := acme.EncodeKey(got.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := acme.CheckIssued(names, got.chain, keyPEM, time.Now()); err != nil {
		t.Error(err)
	}
	if got.order.Profile != "default" || got.order.Status != "valid" || got.order.Expires.Before(time.Now()) {
		t.Errorf("order %+v, want a valid one of profile default", got.order)
	}
	if slices.Sort(got.order.Names); !slices.Equal(got.order.Names, names) {
		t.Errorf("names %q, want %q", got.order.Names, names)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(l.pebble.RootsPEM)
	inter := x509.NewCertPool()
	inter.AppendCertsFromPEM([]byte(got.chain))
	if _, err := got.leaf.Verify(x509.VerifyOptions{DNSName: "any.example.test", Roots: roots, Intermediates: inter}); err != nil {
		t.Error(err)
	}
}

func TestHeirResumesAnOrderInEveryState(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	var slow atomic.Bool
	heir := l.another(t, func(next http.RoundTripper) http.RoundTripper { return issuing(t, next, &slow) })
	der, key := csr(t, "a.example.test")
	o := order(t, l.CA, a, "a.example.test")
	resume := func(want string) *acme.Order {
		t.Helper()
		got, err := heir.GetOrder(t.Context(), a, o.URL)
		if err != nil {
			t.Fatal(err)
		}
		if got.URL != o.URL || got.Status != want || !slices.Equal(got.Names, []string{"a.example.test"}) {
			t.Fatalf("order %+v, want %s", got, want)
		}
		return got
	}

	l.prove(t, resume("pending"))
	ready := resume("ready")
	if proofs, err := ready.Proofs(t.Context()); err != nil || len(proofs) != 0 {
		t.Errorf("%d proofs of a ready order, %v, want none", len(proofs), err)
	}
	if err := ready.Finalize(t.Context(), der); err != nil {
		t.Fatal(err)
	}
	slow.Store(true)
	processing := resume("processing")
	if err := processing.Finalize(t.Context(), der); err != nil {
		t.Fatal(err)
	}
	valid := resume("valid")
	if err := valid.Finalize(t.Context(), der); err != nil {
		t.Fatal(err)
	}
	if got := l.pebble.Requests(acmelab.PathFinalize); got != 1 {
		t.Errorf("finalized %d times, want once", got)
	}
	keyPEM, err := acme.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []*acme.Order{ready, processing, valid} {
		chain, err := o.Chain(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := acme.CheckIssued([]string{"a.example.test"}, chain, keyPEM, time.Now()); err != nil {
			t.Error(err)
		}
	}
}

// issuing lets the CA say "processing" twice about an order that it has issued
// for: Pebble is too fast to be seen in that state.
func issuing(t *testing.T, next http.RoundTripper, slow *atomic.Bool) http.RoundTripper {
	t.Helper()
	left := 2
	return through(func(req *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err != nil || !slow.Load() || left == 0 || !strings.HasPrefix(req.URL.Path, "/my-order/") {
			return resp, err
		}
		left--
		resp.Header.Set("Retry-After", "0")
		return rewritten(t, resp, func(body string) string {
			return strings.Replace(strings.Replace(body, `"valid"`, `"processing"`, 1), `"certificate"`, `"not-yet"`, 1)
		}), nil
	})
}

func TestFinalizeSurvivesALostAnswer(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	lost := 0
	cut := l.another(t, func(next http.RoundTripper) http.RoundTripper {
		return through(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && lost == 0 && strings.HasPrefix(req.URL.Path, acmelab.PathFinalize) {
				lost++
				_ = resp.Body.Close()
				return nil, http.ErrServerClosed
			}
			return resp, err
		})
	})
	o := order(t, cut, a, "a.example.test")
	l.prove(t, o)
	der, _ := csr(t, "a.example.test")
	if err := o.Finalize(t.Context(), der); err != nil {
		t.Fatal(err)
	}
	if lost != 1 || o.Status != "valid" {
		t.Errorf("lost %d answers, order is %s, want 1 and valid", lost, o.Status)
	}
}

func TestFinalizeBeforeProofIsRefused(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	o := order(t, l.CA, l.register(t), "a.example.test")
	if _, err := o.Chain(t.Context(), nil); err == nil {
		t.Error("a pending order has a certificate")
	} else {
		refused(t, err, acme.BadRequest, "the order is pending")
	}
	l.prove(t, o)
	der, _ := csr(t, "b.example.test")
	refused(t, o.Finalize(t.Context(), der), acme.BadRequest, "finalize the order", "a.example.test")
	der, _ = csr(t, "a.example.test")
	if err := o.Finalize(t.Context(), der); err != nil {
		t.Errorf("after a bad request: %v", err)
	}
}

func TestUnknownOrderIsABadRequest(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a, b := l.register(t), l.register(t)
	o := order(t, l.CA, a, "a.example.test")
	_, err := l.GetOrder(t.Context(), b, o.URL)
	refused(t, err, acme.BadRequest, "fetch the order", "unauthorized")
	_, err = l.GetOrder(t.Context(), a, o.URL+"0")
	refused(t, err, acme.BadRequest, "HTTP 404")
	_, err = l.GetOrder(t.Context(), a, "")
	refused(t, err, acme.BadRequest)
}

func TestChainIsChosenByItsRoot(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{Roots: 2}, nil)
	got := l.obtain(t, l.register(t), acme.Request{Names: []string{"a.example.test"}})
	tops := map[string]string{} // chain to root
	for _, root := range certificates(t, l.pebble.RootsPEM) {
		name := root.Subject.CommonName
		chain, err := got.order.Chain(t.Context(), []string{"No Such Root", name})
		if err != nil {
			t.Fatal(err)
		}
		all := certificates(t, []byte(chain))
		if err := all[len(all)-1].CheckSignatureFrom(root); err != nil {
			t.Errorf("the chain for %q: %v", name, err)
		}
		tops[chain] = name
	}
	if len(tops) != 3 {
		t.Errorf("%d different chains, want 3", len(tops))
	}
	unmet, err := got.order.Chain(t.Context(), []string{"No Such Root"})
	if err != nil || unmet != got.chain {
		t.Errorf("without a match got another chain than the default, %v", err)
	}
}

func certificates(t *testing.T, pem []byte) []*x509.Certificate {
	t.Helper()
	var all []*x509.Certificate
	for part := range strings.SplitAfterSeq(string(pem), "-----END CERTIFICATE-----\n") {
		if strings.TrimSpace(part) != "" {
			all = append(all, leafOf(t, part))
		}
	}
	return all
}

func TestDownloadingAChainAsksForNothingElse(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	got := l.obtain(t, l.register(t), acme.Request{Names: []string{"a.example.test"}})
	var seen log
	o, err := l.another(t, seen.via).GetOrder(t.Context(), got.account, got.order.URL)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Chain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := seen.count("GET "); n != 1 {
		t.Errorf("%d GETs, want 1, of the directory: %q", n, seen.lines)
	}
}

func TestEndlessAlternatesEnd(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	got := l.obtain(t, l.register(t), acme.Request{Names: []string{"a.example.test"}})
	var seen log
	loop := l.another(t, func(next http.RoundTripper) http.RoundTripper {
		return seen.via(through(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && strings.HasPrefix(req.URL.Path, acmelab.PathCert) {
				resp.Header.Add("Link", `<`+req.URL.String()+`>;rel="up"`)
			}
			return resp, err
		}))
	})
	o, err := loop.GetOrder(t.Context(), got.account, got.order.URL)
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.Chain(t.Context(), nil)
	refused(t, err, acme.ServerError, "too many requests for one step")
	if n := seen.count("POST " + acmelab.PathCert); n > 32 {
		t.Errorf("%d downloads, want at most 32", n)
	}
}

func TestProfileIsConfiguredOrTheUsualOne(t *testing.T) {
	t.Parallel()
	week := uint64(7 * 24 * 3600)
	l := start(t, acmelab.CAOptions{Profiles: map[string]ca.Profile{
		"classic": {Description: "old"}, "tlsserver": {Description: "usual", ValidityPeriod: 2 * week}, "shortlived": {ValidityPeriod: week},
	}}, nil)
	for configured, want := range map[string]string{"": "tlsserver", "shortlived": "shortlived"} {
		l.issuer.Profile = configured
		p, err := l.another(t, nil).Profile(t.Context())
		if err != nil || p.Name != want || p.MaxNames != 0 {
			t.Errorf("profile %q gives %+v, %v, want %q", configured, p, err, want)
		}
	}
	l.issuer.Profile = "golden"
	_, err := l.another(t, nil).Profile(t.Context())
	refused(t, err, acme.BadRequest, `issuers.lab.acme.profile: the CA has no profile "golden"`, "profiles: classic, shortlived, tlsserver")
	a := l.register(t)
	_, err = l.NewOrder(t.Context(), a, acme.Request{Names: []string{"a.example.test"}, Profile: "golden"})
	refused(t, err, acme.BadRequest, "profiles: classic, shortlived, tlsserver")
	got := l.obtain(t, a, acme.Request{Names: []string{"a.example.test"}, Profile: "shortlived"})
	if days := got.leaf.NotAfter.Sub(got.leaf.NotBefore).Hours() / 24; days > 7.1 {
		t.Errorf("valid for %.1f days, want 7 as the profile says", days)
	}
	meta, err := l.Meta(t.Context())
	if err != nil || meta.Profiles["classic"] != "old" || !meta.ARI || len(meta.CAAIdentities) != 1 || meta.TermsOfService == "" || meta.EABRequired {
		t.Errorf("meta %+v, %v", meta, err)
	}
}

func TestEveryKindOfAwkwardCAIssues(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]acmelab.CAOptions{
		"rejects every other nonce": {BadNonces: 50},
		"strict":                    {Strict: true},
		"validates slowly":          {Sleep: 2},
		"reuses authorizations":     {Reuse: 100},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := start(t, o, nil)
			a := l.register(t)
			for range 2 {
				l.obtain(t, a, acme.Request{Names: []string{"a.example.test", "*.a.example.test"}})
			}
			if o.Reuse == 100 && l.pebble.Requests(acmelab.PathChallenge) != 2 {
				t.Errorf("%d challenges, want 2: the second order has nothing to prove", l.pebble.Requests(acmelab.PathChallenge))
			}
		})
	}
}

func TestIPAddressesAreOrdered(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	o := order(t, l.CA, l.register(t), "127.0.0.1", "a.example.test", "2001:db8::1")
	proofs, err := o.Proofs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ips := 0
	for _, p := range proofs {
		_, dns := p.Challenges[config.DNS01]
		web, ok := p.Challenges[config.HTTP01]
		if p.IP == dns || !ok || !strings.HasPrefix(web.KeyAuthorization, web.Token+".") || web.DNSName != "" {
			t.Errorf("proof %+v, want http-01 for all and dns-01 for names", p)
		}
		if p.IP {
			ips++
		}
	}
	if ips != 2 || len(proofs) != 3 {
		t.Errorf("%d of %d proofs are for IP addresses, want 2 of 3", ips, len(proofs))
	}
	err = o.Validate(t.Context(), proofs, config.DNS01)
	e := refused(t, err, acme.BadRequest, "offers no dns-01, only http-01, tls-alpn-01", "(use an issuer with another challenge)")
	if len(e.Names) != 2 || e.Names["127.0.0.1"] == "" || e.Names["2001:db8::1"] == "" {
		t.Errorf("names %q, want the two addresses", e.Names)
	}
	if l.pebble.Requests(acmelab.PathChallenge) != 0 {
		t.Error("a challenge was begun though not all can be")
	}
}
