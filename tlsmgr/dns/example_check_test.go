package dns_test

import (
	"context"
	"fmt"

	"edge/internal/acmelab"
	"edge/tlsmgr/dns"
)

// What has to be published once, and then proves every order.
func ExamplePersist_Records() {
	p := dns.Persist{
		Names:      []string{"example.com", "*.example.com", "www.example.com"},
		Issuers:    []string{"letsencrypt.org"},
		AccountURI: "https://acme-v02.api.letsencrypt.org/acme/acct/1",
	}
	for _, r := range p.Records() {
		fmt.Printf("%s. TXT %q\n", r.Name, r.Value)
	}
	// Output:
	// _validation-persist.example.com. TXT "letsencrypt.org; accounturi=https://acme-v02.api.letsencrypt.org/acme/acct/1; policy=wildcard"
	// _validation-persist.www.example.com. TXT "letsencrypt.org; accounturi=https://acme-v02.api.letsencrypt.org/acme/acct/1"
}

// CAA records forbid what the check would find out too late.
func ExampleSolver_Check() {
	lab, err := acmelab.StartDNS(acmelab.DNSOptions{Zones: []string{"com", "example.com"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lab.Close()
	if err := lab.Add(`example.com. 60 IN CAA 0 issue "other.test"`); err != nil {
		fmt.Println(err)
		return
	}
	solver, err := dns.New(dns.Options{Resolvers: []string{lab.Addr}, Port: lab.Port})
	if err != nil {
		fmt.Println(err)
		return
	}
	report := solver.Check(context.Background(), "www.example.com", dns.CheckOptions{CAIdentities: []string{"letsencrypt.org"}})
	for _, step := range report.Steps {
		fmt.Println(step.State, step.Title)
	}
	fmt.Println(report.OK())
	// Output:
	// ok resolvers answer
	// ok CNAME of the challenge name
	// ok zone
	// ok delegation by the parent zone
	// failed provider
	// ok name servers
	// ok name servers answer
	// skipped probe record is added
	// failed CAA
	// false
}
