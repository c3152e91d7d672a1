package acme_test

import (
	"context"
	"fmt"
	"os"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

// A certificate from the first request to the last, with Pebble as the CA.
func Example() {
	ns, err := acmelab.StartDNS(acmelab.DNSOptions{Zones: []string{"example.test"}})
	check(err)
	defer func() { check(ns.Close()) }()
	pebble, err := acmelab.StartCA(acmelab.CAOptions{DNS: ns.Addr})
	check(err)
	defer func() { check(pebble.Close()) }()
	ctx := context.Background()

	ca, err := acme.New(&config.Issuer{Name: "lab", Directory: pebble.Directory}, acme.Options{HTTPClient: pebble.Client})
	check(err)
	profile, err := ca.Profile(ctx)
	check(err)
	account, err := ca.Register(ctx, nil)
	check(err)
	order, err := ca.NewOrder(ctx, account, acme.Request{Names: []string{"*.example.test"}, Profile: profile.Name})
	check(err)
	proofs, err := order.Proofs(ctx)
	check(err)
	for _, p := range proofs {
		c := p.Challenges[config.DNS01]
		fmt.Printf("%s: TXT %s\n", p.Identifier(), c.DNSName)
		check(ns.Add(c.DNSName + ". 1 IN TXT " + c.DNSValue))
	}
	check(order.Validate(ctx, proofs, config.DNS01))
	key, err := acme.NewKey(config.P256)
	check(err)
	csr, err := acme.NewCSR([]string{"*.example.test"}, key)
	check(err)
	check(order.Finalize(ctx, csr))
	_, err = order.Chain(ctx, nil)
	check(err)
	fmt.Println("order", order.Status, "of profile", order.Profile)
	// Output:
	// *.example.test: TXT _acme-challenge.example.test
	// order valid of profile default
}

func ExampleQuotasOf() {
	q := acme.QuotasOf(&config.Issuer{Directory: "https://acme-v02.api.letsencrypt.org/directory"})
	fmt.Println(q.Domain.Count, "certificates per registered domain in", q.Domain.Per)
	// Output:
	// 50 certificates per registered domain in 168h0m0s
}

func ExampleStagingOf() {
	fmt.Println(acme.StagingOf("https://dv.acme-v02.api.pki.goog/directory"))
	// Output:
	// https://dv.acme-v02.test-api.pki.goog/directory
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		panic(err)
	}
}
