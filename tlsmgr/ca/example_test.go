package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"time"

	"edge/tlsmgr/ca"
)

func Example() {
	now := time.Now()
	authority, err := ca.Create("internal", now)
	if err != nil {
		panic(err)
	}
	authority, err = ca.Parse(authority.PEM()) // as it comes from the storage
	if err != nil {
		panic(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	chain, err := authority.Issue([]string{"app.internal", "10.0.0.7"}, key, 30*24*time.Hour, now)
	if err != nil {
		panic(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	pair, err := tls.X509KeyPair([]byte(chain), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		panic(err)
	}
	fmt.Println(len(pair.Certificate), pair.Leaf.DNSNames, pair.Leaf.IPAddresses, authority.Due(now))
	// Output: 2 [app.internal] [10.0.0.7] false
}
