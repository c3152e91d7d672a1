package acme_test

import (
	"slices"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

func TestEveryNameThatFailsIsReported(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	o := order(t, l.CA, a, "good.example.test", "bad.example.test", "*.worse.example.test")
	proofs := l.present(t, o, config.DNS01)
	for _, p := range proofs {
		if p.Name != "good.example.test" {
			c := p.Challenges[config.DNS01]
			if err := l.dns.Remove(c.DNSName + `. 1 IN TXT "` + c.DNSValue + `"`); err != nil {
				t.Fatal(err)
			}
		}
	}
	failed := func(err error) {
		t.Helper()
		e := refused(t, err, acme.Unproven, "prove control of the names", "bad.example.test: unauthorized", "does the internet see")
		if len(e.Names) != 2 || e.Names["bad.example.test"] == "" || e.Names["*.worse.example.test"] == "" {
			t.Errorf("names %q, want the two that failed", e.Names)
		}
	}
	failed(o.Validate(t.Context(), proofs, config.DNS01))
	heirs, err := l.GetOrder(t.Context(), a, o.URL)
	if err != nil {
		t.Fatal(err)
	}
	if heirs.Status != "invalid" {
		t.Errorf("order is %s, want invalid", heirs.Status)
	}
	_, err = heirs.Proofs(t.Context())
	failed(err)
	der, _ := csr(t, "good.example.test", "bad.example.test", "*.worse.example.test")
	refused(t, heirs.Finalize(t.Context(), der), acme.Unproven, "finalize the order", "does the internet see")
}

func TestHeirWaitsForAValidationThatIsUnderWay(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{Sleep: 3}, nil)
	a := l.register(t)
	o := order(t, l.CA, a, "a.example.test", "*.a.example.test")
	proofs := l.present(t, o, config.DNS01)
	heirs, err := l.GetOrder(t.Context(), a, o.URL)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := heirs.Proofs(t.Context()) // before the predecessor began
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- o.Validate(t.Context(), proofs, config.DNS01) }()
	if err := heirs.Validate(t.Context(), stale, config.DNS01); err != nil {
		t.Errorf("heir: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("predecessor: %v", err)
	}
	if err := heirs.Validate(t.Context(), stale, config.DNS01); err != nil {
		t.Errorf("once more: %v", err)
	}
}

func TestPersistentRecordProvesManyOrders(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	// One record is there before any order.
	record := acme.Persist{Issuers: []string{"lab.test"}, Account: a.URL, Wildcard: true}
	value := "lab.test; accounturi=" + a.URL + "; policy=wildcard"
	if err := l.dns.Add(`_validation-persist.example.test. 60 IN TXT "` + value + `"`); err != nil {
		t.Fatal(err)
	}
	if !record.Matches(value, time.Now()) {
		t.Errorf("%q does not match %+v", value, record)
	}
	for range 2 {
		names := []string{"example.test", "*.example.test"}
		o := order(t, l.CA, a, names...)
		proofs, err := o.Proofs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range proofs {
			c := p.Challenges[config.DNSPersist01]
			want := "lab.test; accounturi=" + a.URL
			if p.Wildcard {
				want = value
			}
			if c.DNSName != "_validation-persist.example.test" || c.DNSValue != want || !c.Persist.Matches(value, time.Now()) || c.Token != "" {
				t.Errorf("%s: challenge %+v, want %q", p.Identifier(), c, want)
			}
			if got := c.Persist.Matches("lab.test; accounturi="+a.URL, time.Now()); got == p.Wildcard {
				t.Errorf("%s: a record without policy matches: %v", p.Identifier(), got)
			}
		}
		if err := o.Validate(t.Context(), proofs, config.DNSPersist01); err != nil {
			t.Fatal(err)
		}
		der, _ := csr(t, names...)
		if err := o.Finalize(t.Context(), der); err != nil {
			t.Fatal(err)
		}
	}
}

// What Matches believes is what Pebble believes.
func TestPersistentRecordMatchesWhenTheCAAcceptsIt(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	uri := "; accounturi=" + a.URL
	for value, name := range map[string]string{
		"lab.test" + uri:                                      "plain.example.test",
		" lab.test ;accounturi = " + a.URL + " ":              "spaces.example.test",
		"lab.test" + uri + "; persistUntil=4102444800; new=x": "until.example.test",
		"lab.test" + uri + "; persistUntil=1":                 "over.example.test",
		"lab.test" + uri + "; persistUntil=soon":              "soon.example.test",
		"other.test" + uri:                                    "issuer.example.test",
		"LAB.test" + uri:                                      "case.example.test",
		"lab.test" + uri + "0":                                "account.example.test",
		"lab.test":                                            "none.example.test",
		"lab.test" + uri + ";":                                "trailing.example.test",
		"lab.test" + uri + uri:                                "twice.example.test",
		"lab.test" + uri + "; note=two words":                 "words.example.test",
		"lab.test" + uri + "; policy=WildCard":                "*.policy.example.test",
		"lab.test" + uri + "; policy=all":                     "*.nopolicy.example.test",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := order(t, l.CA, a, name)
			proofs, err := o.Proofs(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c := proofs[0].Challenges[config.DNSPersist01]
			if err := l.dns.Add(c.DNSName + `. 60 IN TXT "` + value + `"`); err != nil {
				t.Fatal(err)
			}
			err = o.Validate(t.Context(), proofs, config.DNSPersist01)
			if got := c.Persist.Matches(value, time.Now()); got != (err == nil) {
				t.Errorf("%q matches: %v, the CA says %v", value, got, err)
			}
		})
	}
}

func TestManyNamesAreProvenTogether(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{BadNonces: 10}, nil)
	var names []string
	for c := 'a'; c <= 'z'; c++ {
		names = append(names, string(c)+".example.test")
	}
	got := l.obtain(t, l.register(t), acme.Request{Names: names})
	if !slices.Equal(slices.Sorted(slices.Values(got.leaf.DNSNames)), names) {
		t.Errorf("names %q, want %q", got.leaf.DNSNames, names)
	}
}
