package dns

import (
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

// An order may be placed when, and only when, the CA is going to accept what
// stands in DNS. "ACCOUNT" is replaced in the records.
func TestOrderIsPlacedExactlyWhenPebbleAcceptsTheRecords(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test"}})
	pebble := acmelab.NewCA(t, acmelab.CAOptions{DNS: d.Addr})
	ca, err := acme.New(&config.Issuer{Name: "lab", Directory: pebble.Directory, Email: "lab@example.test", Profile: "default"}, acme.Options{HTTPClient: pebble.Client})
	if err != nil {
		t.Fatal(err)
	}
	account, err := ca.Register(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	meta, err := ca.Meta(t.Context())
	if err != nil || len(meta.CAAIdentities) == 0 {
		t.Fatalf("identities %q, %v", meta.CAAIdentities, err)
	}
	s := solver(t, d, Options{Providers: []*config.Provider{}})
	for _, c := range []struct {
		name    string
		records []string
		accept  bool
	}{
		{"plain.example.test", []string{`"CA; accounturi=ACCOUNT"`}, true},
		{"two-strings.example.test", []string{`"CA; accou" "nturi=ACCOUNT"`}, true},
		{"*.wild.example.test", []string{`"CA; accounturi=ACCOUNT; policy=WILDCARD"`}, true},
		{"*.narrow.example.test", []string{`"CA; accounturi=ACCOUNT"`}, false},
		{"one-of-many.example.test", []string{`"v=spf1 -all"`, `"other.test; accounturi=ACCOUNT"`, `"CA"`, `"CA; accounturi=ACCOUNT"`}, true},
		{"malformed.example.test", []string{`"CA; accounturi=ACCOUNT;"`}, false},
		{"twice.example.test", []string{`"CA; accounturi=ACCOUNT; accounturi=ACCOUNT"`}, false},
		{"ended.example.test", []string{`"CA; accounturi=ACCOUNT; persistUntil=1700000000"`}, false},
		{"later.example.test", []string{`"CA; accounturi=ACCOUNT; persistUntil=4102444800"`}, true},
		{"never.example.test", []string{`"CA; accounturi=ACCOUNT; persistUntil=never"`}, false},
		{"stranger.example.test", []string{`"CA; accounturi=ACCOUNT0"`}, false},
		{"capitals.example.test", []string{`"UPPER; accounturi=ACCOUNT"`}, false},
		{"nothing.example.test", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, text := range c.records {
				text = strings.NewReplacer("ACCOUNT", account.URL, "UPPER", strings.ToUpper(meta.CAAIdentities[0]), "CA;", meta.CAAIdentities[0]+";", `"CA"`, `"`+meta.CAAIdentities[0]+`"`).Replace(text)
				if err := d.Add(PersistName(c.name) + ". 1 IN TXT " + text); err != nil {
					t.Fatal(err)
				}
			}
			p := Persist{Names: []string{c.name}, Issuers: meta.CAAIdentities, AccountURI: account.URL}
			ours := s.CheckPersist(t.Context(), p)
			order, err := ca.NewOrder(t.Context(), account, acme.Request{Names: p.Names, Profile: "default"})
			if err != nil {
				t.Fatal(err)
			}
			proofs, err := order.Proofs(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			theirs := order.Validate(t.Context(), proofs, config.DNSPersist01)
			if (ours == nil) != c.accept || (theirs == nil) != c.accept {
				t.Errorf("want accepted %v\nedge:   %v\nPebble: %v", c.accept, ours, theirs)
			}
			if challenge := proofs[0].Challenges[config.DNSPersist01]; challenge.DNSName != p.Records()[0].Name || challenge.DNSValue != p.Records()[0].Value {
				t.Errorf("record %+v, the challenge wants %s %q", p.Records()[0], challenge.DNSName, challenge.DNSValue)
			}
		})
	}
}

func TestBINDShowsPersistentRecords(t *testing.T) {
	t.Parallel()
	addr := startBIND(t)
	s := bindSolver(t, addr, "edge-key", "hmac-sha256", bindKey)
	p := Persist{Names: []string{"example.test"}, Issuers: []string{"ca.test"}, AccountURI: "https://ca.test/acct/1"}
	wantError(t, s.CheckPersist(t.Context(), p), "NXDOMAIN", addr)
	present(t, s, Record{PersistName("example.test"), "ca.test;accounturi=https://ca.test/acct/1;persistUntil=4102444800"})
	states, err := s.PersistReport(t.Context(), p)
	if err != nil || !states[0].Present || states[0].Until.UTC().Format(time.DateOnly) != "2100-01-01" {
		t.Errorf("%+v, %v", states, err)
	}
}
