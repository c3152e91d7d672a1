package dns

import (
	"testing"

	"edge/config"
	"edge/internal/acmelab"
)

func TestLocateFollowsDelegationIntoAnotherZoneAndWritesNothing(t *testing.T) {
	t.Parallel()
	d := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "auth.test"}})
	if err := d.Add("_acme-challenge.www.example.test. 60 IN CNAME www.auth.test."); err != nil {
		t.Fatal(err)
	}
	s := solver(t, d, Options{Providers: []*config.Provider{updates(t, d, "main", "example.test"), updates(t, d, "auth", "auth.test")}})
	for name, want := range map[string]Place{
		"*.WWW.example.test": {"_acme-challenge.www.example.test", "www.auth.test", "auth.test", "auth"},
		"a.example.test":     {"_acme-challenge.a.example.test", "_acme-challenge.a.example.test", "example.test", "main"},
	} {
		if got, err := s.Locate(t.Context(), name); got != want || err != nil {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	if _, updates := d.Counts(); updates != 0 {
		t.Errorf("%d updates", updates)
	}
	if p, err := s.Locate(t.Context(), "www.other.test"); err == nil || p.Name != "_acme-challenge.www.other.test" || p.Target != "" {
		t.Errorf("a zone that nobody has: %+v, %v", p, err)
	}
}
