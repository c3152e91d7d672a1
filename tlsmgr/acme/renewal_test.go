package acme_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

func TestRenewalWindowIsTheCAs(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	got := l.obtain(t, l.register(t), acme.Request{Names: []string{"a.example.test"}})
	usual, err := l.RenewalInfo(t.Context(), got.leaf)
	if err != nil || usual.Start.Before(time.Now()) || !usual.End.After(usual.Start) || usual.End.After(got.leaf.NotAfter) || usual.RetryAfter != 6*time.Hour {
		t.Errorf("window %+v, %v, want one within the certificate's life and six hours", usual, err)
	}
	at := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	set := func(start, end time.Time) (acme.Renewal, error) {
		t.Helper()
		const format = `{"suggestedWindow":{"start":%q,"end":%q},"explanationURL":"https://ca.test/why"}`
		body := fmt.Sprintf(format, start.Format(time.RFC3339Nano), end.Format(time.RFC3339Nano))
		if err := l.pebble.SetRenewalInfo(t.Context(), []byte(got.chain), body); err != nil {
			t.Fatal(err)
		}
		return l.RenewalInfo(t.Context(), got.leaf)
	}
	for _, width := range []time.Duration{time.Millisecond, time.Second, time.Hour} {
		r, err := set(at, at.Add(width))
		if err != nil || !r.Start.Equal(at) || !r.End.Equal(at.Add(width)) || r.Explanation != "https://ca.test/why" {
			t.Errorf("a window of %v: %+v, %v", width, r, err)
		}
	}
	for _, width := range []time.Duration{0, -time.Hour} { // malformed (RFC 9773 section 4.2)
		_, err := set(at, at.Add(width))
		refused(t, err, acme.ServerError, "ask when to renew", "which is no window")
	}
	if err := l.pebble.SetRenewalInfo(t.Context(), []byte(got.chain), "<html>"); err != nil {
		t.Fatal(err)
	}
	_, err = l.RenewalInfo(t.Context(), got.leaf)
	refused(t, err, acme.ServerError, "instead of JSON")
}

func TestRevokedCertificateIsDueAtOnce(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	got := l.obtain(t, l.register(t), acme.Request{Names: []string{"a.example.test"}})
	if err := l.Revoke(t.Context(), got.account, got.leaf, nil, 1); err != nil {
		t.Fatal(err)
	}
	r, err := l.RenewalInfo(t.Context(), got.leaf)
	if err != nil || !r.End.After(r.Start) || !r.End.Before(time.Now()) {
		t.Errorf("window %+v, %v, want one in the past", r, err)
	}
}

func TestRecheckIsBoundedAndDefaultsToSixHours(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	got := l.obtain(t, l.register(t), acme.Request{Names: []string{"a.example.test"}})
	for field, want := range map[string]time.Duration{"": 6 * time.Hour, "1": time.Minute, "7200": 2 * time.Hour, "9999999": 24 * time.Hour} {
		says := l.another(t, func(next http.RoundTripper) http.RoundTripper {
			return through(func(req *http.Request) (*http.Response, error) {
				resp, err := next.RoundTrip(req)
				if err == nil {
					resp.Header.Set("Retry-After", field)
				}
				return resp, err
			})
		})
		r, err := says.RenewalInfo(t.Context(), got.leaf)
		if err != nil || r.RetryAfter != want {
			t.Errorf("Retry-After %q: %v, %v, want %v", field, r.RetryAfter, err, want)
		}
	}
}

func TestCAWithoutRenewalInformationIsSaidToBe(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	got := l.obtain(t, a, acme.Request{Names: []string{"a.example.test"}})
	old := l.another(t, func(next http.RoundTripper) http.RoundTripper {
		return through(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err == nil && req.URL.Path == acmelab.PathDirectory {
				resp = rewritten(t, resp, func(s string) string { return strings.Replace(s, `"renewalInfo"`, `"x"`, 1) })
			}
			return resp, err
		})
	})
	if _, err := old.RenewalInfo(t.Context(), got.leaf); !errors.Is(err, acme.ErrNoRenewalInfo) {
		t.Errorf("got %v, want ErrNoRenewalInfo", err)
	}
	o, err := old.NewOrder(t.Context(), a, acme.Request{Names: []string{"a.example.test"}, Replaces: certID(t, got.leaf)})
	if err != nil || o.Replaces {
		t.Errorf("order replaces: %v, %v, want not", o.Replaces, err)
	}
}

func certID(t *testing.T, leaf *x509.Certificate) string {
	t.Helper()
	id, err := acme.CertID(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestOrderReplacesACertificateOnceAndGoesOnWithout(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	names := []string{"a.example.test"}
	first := l.obtain(t, a, acme.Request{Names: names})
	replaces := certID(t, first.leaf)
	if got := l.obtain(t, a, acme.Request{Names: names, Replaces: replaces}); !got.order.Replaces {
		t.Error("the first replacement was not taken as one")
	}
	foreign := l.obtain(t, l.register(t), acme.Request{Names: names})
	for name, id := range map[string]string{
		"already replaced": replaces, "of another account": certID(t, foreign.leaf), "malformed": "no.certificate",
		"unknown": strings.Split(replaces, ".")[0] + ".AQID",
	} {
		o, err := l.NewOrder(t.Context(), a, acme.Request{Names: names, Replaces: id})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if o.Replaces {
			t.Errorf("%s: the order replaces it", name)
		}
	}
	_, err := l.NewOrder(t.Context(), a, acme.Request{Names: []string{"not a name"}, Replaces: replaces})
	refused(t, err, acme.BadRequest, "illegal character")
}

func TestCertIDIsThatOfRFC9773(t *testing.T) {
	t.Parallel()
	// The example of section 4.1.
	leaf := leafOf(t, `-----BEGIN CERTIFICATE-----
MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt
cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS
BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu
7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf
qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B
yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb
+FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK
-----END CERTIFICATE-----
`)
	if got := certID(t, leaf); got != "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE" {
		t.Errorf("got %s", got)
	}
	if _, err := acme.CertID(new(x509.Certificate)); err == nil {
		t.Error("a certificate without authority key identifier has an id")
	}
}

func TestRevokeByAccountOrKeyAndTwiceIsSuccess(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	other := l.register(t)
	one := l.obtain(t, a, acme.Request{Names: []string{"one.example.test"}})
	two := l.obtain(t, a, acme.Request{Names: []string{"two.example.test"}})
	three := l.obtain(t, a, acme.Request{Names: []string{"three.example.test"}})
	for range 2 {
		if err := l.Revoke(t.Context(), a, one.leaf, nil, 4); err != nil {
			t.Errorf("by account: %v", err)
		}
		if err := l.Revoke(t.Context(), nil, two.leaf, two.key, 1); err != nil {
			t.Errorf("by key: %v", err)
		}
	}
	refused(t, l.Revoke(t.Context(), other, three.leaf, nil, 0), acme.BadRequest, "revoke the certificate")
	refused(t, l.Revoke(t.Context(), nil, three.leaf, one.key, 0), acme.BadRequest)
	refused(t, l.Revoke(t.Context(), nil, three.leaf, nil, 0), acme.BadRequest, "neither")
	if err := l.Revoke(t.Context(), other, three.leaf, three.key, 0); err != nil {
		t.Errorf("by key when the account may not: %v", err)
	}
	for _, c := range []issued{one, two, three} {
		if r, err := l.RenewalInfo(t.Context(), c.leaf); err != nil || r.End.After(time.Now()) {
			t.Errorf("%v is not revoked: %+v, %v", c.leaf.DNSNames, r, err)
		}
	}
}
