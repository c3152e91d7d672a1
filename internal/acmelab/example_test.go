package acmelab_test

import (
	"fmt"

	"edge/internal/acmelab"
)

// A CA on loopback, and what a configuration needs to use it.
func ExampleStart() {
	lab, err := acmelab.Start(acmelab.Options{DNS: acmelab.DNSOptions{Zones: []string{"example.test"}}})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = lab.Close() }()

	_ = lab.CA.Directory               // acme.directory
	_ = lab.CA.APICertPEM              // acme.ca: trusts the directory's HTTPS
	_ = lab.CA.RootsPEM                // trusts what it issues
	_ = lab.DNS.Addr                   // the name server, with lab.DNS.Key
	_ = lab.S3.StoreURL("certs", "ab") // storage, with lab.S3.Env()
	fmt.Println(lab.CA.Orders(), lab.DNS.Zones(), lab.S3.Count("", "/certs"))
	// Output: 0 [example.test.] 0
}
