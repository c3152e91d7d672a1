package acme

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"edge/config"
)

// NewKey makes a private key; "" is P-256.
func NewKey(kind config.KeyType) (crypto.Signer, error) {
	switch kind {
	case config.P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case config.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case config.P256, "":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return nil, fmt.Errorf("key type %q (want p256, p384 or rsa2048)", kind)
	}
}

// EncodeKey is key as PEM (PKCS #8).
func EncodeKey(key crypto.Signer) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// DecodeKey is the inverse of EncodeKey. Its errors never quote the key.
func DecodeKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("private key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("private key cannot be parsed (want PKCS #8)") // the cause could quote it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("private key cannot sign")
	}
	return signer, nil
}

// NewCSR is a certificate request for names, DNS names and IP addresses, in DER.
func NewCSR(names []string, key crypto.Signer) ([]byte, error) {
	var template x509.CertificateRequest
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil {
			template.IPAddresses = append(template.IPAddresses, ip.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	return x509.CreateCertificateRequest(rand.Reader, &template, key)
}

// CheckIssued makes sure that a chain is what was ordered: our key, exactly our
// names in any order, valid at now, and each certificate signed by the next one.
func CheckIssued(names []string, chain, keyPEM string, now time.Time) error {
	pair, err := tls.X509KeyPair([]byte(chain), []byte(keyPEM))
	if err != nil {
		return err
	}
	got, want := namesOf(pair.Leaf), canonical(names)
	if !slices.Equal(got, want) {
		return fmt.Errorf("names %s, ordered %s", abridge(got), abridge(want))
	}
	if !now.Before(pair.Leaf.NotAfter) {
		return fmt.Errorf("it expired on %s", pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	child := pair.Leaf
	for _, der := range pair.Certificate[1:] {
		parent, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if err := child.CheckSignatureFrom(parent); err != nil {
			return fmt.Errorf("chain is broken at %q: %w", parent.Subject, err)
		}
		child = parent
	}
	return nil
}

// namesOf is the names in a certificate, sorted.
func namesOf(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return canonical(names)
}

func canonical(names []string) []string {
	out := make([]string, 0, len(names))
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil {
			n = ip.Unmap().String()
		}
		out = append(out, strings.ToLower(n))
	}
	slices.Sort(out)
	return slices.Compact(out)
}
