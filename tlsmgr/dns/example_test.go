package dns_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/dns"
)

// An order for example.test and *.example.test has two values at one name.
func Example() {
	lab, err := acmelab.StartDNS(acmelab.DNSOptions{Zones: []string{"example.test"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer lab.Close()
	dir, err := os.MkdirTemp("", "edge")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(lab.Key.Secret), 0o600); err != nil {
		fmt.Println(err)
		return
	}

	solver, err := dns.New(dns.Options{
		Providers: []*config.Provider{{Name: "lab", RFC2136: &config.RFC2136{
			Server: lab.Addr, KeyName: lab.Key.Name, Key: config.Secret{Ref: "file:" + key},
		}}},
		Resolvers: []string{lab.Addr},
		Port:      lab.Port,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	presented, err := solver.Present(ctx, []dns.Record{
		{Name: "_acme-challenge.example.test", Value: "digest-of-the-apex"},
		{Name: "_acme-challenge.example.test", Value: "digest-of-the-wildcard"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(presented.Wait(ctx), lab.TXT("_acme-challenge.example.test"))
	fmt.Println(presented.CleanUp(context.WithoutCancel(ctx)), lab.TXT("_acme-challenge.example.test"))
	// Output:
	// <nil> [digest-of-the-apex digest-of-the-wildcard]
	// <nil> []
}
