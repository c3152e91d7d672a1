package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"edge/hostname"
)

// Bounds of a leaf.
const (
	maxNames   = 1000 // a certificate of more is no use in a handshake
	minRSABits = 2048
	maxSubject = 64 // characters of a common name (RFC 5280, ub-common-name)
)

// Issue signs a certificate for a TLS server and returns its chain as PEM: the
// leaf, then the intermediate. names are host names, wildcards and IP addresses
// in canonical form; key is the leaf's, of which only the public half is used.
// The certificate ends after lifetime, or with the intermediate if that is
// sooner: with Due heeded, no lifetime of up to 120 days is cut short before the
// root's last months.
func (a *Authority) Issue(names []string, key crypto.Signer, lifetime time.Duration, now time.Time) (string, error) {
	issuer := a.intermediate.certificate
	switch {
	case lifetime <= 0:
		return "", fmt.Errorf("issue by %s: lifetime of %s (it must be positive)", a, lifetime)
	case !now.Before(issuer.NotAfter):
		return "", fmt.Errorf("issue by %s: its intermediate has ended on %s (is the clock right?)", a, issuer.NotAfter.Format(time.DateTime))
	case now.Before(issuer.NotBefore):
		return "", fmt.Errorf("issue by %s: its intermediate begins on %s (is the clock right?)", a, issuer.NotBefore.Format(time.DateTime))
	}
	template, err := leaf(names)
	if err != nil {
		return "", fmt.Errorf("issue by %s: %w", a, err)
	}
	if template.KeyUsage, err = usage(key); err != nil {
		return "", fmt.Errorf("issue by %s: %w", a, err)
	}
	template.NotBefore = now.Add(-backdate)
	if template.NotBefore.Before(issuer.NotBefore) {
		template.NotBefore = issuer.NotBefore
	}
	template.NotAfter = earlier(now.Add(lifetime), issuer.NotAfter)
	certificate, err := sign(template, issuer, key.Public(), a.intermediate.key)
	if err != nil {
		return "", fmt.Errorf("issue by %s: %w", a, err)
	}
	return encode(certificate) + encode(issuer), nil
}

// leaf is the template of a server's certificate with its names.
func leaf(names []string) (*x509.Certificate, error) {
	template := &x509.Certificate{
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	switch {
	case len(names) == 0:
		return nil, errors.New("no names")
	case len(names) > maxNames:
		return nil, fmt.Errorf("%d names (at most %d are allowed)", len(names), maxNames)
	}
	if len(names[0]) <= maxSubject { // for people and lists; clients look at the SANs
		template.Subject = pkix.Name{CommonName: names[0]}
	}
	for _, name := range names {
		if ip, err := netip.ParseAddr(name); err == nil && ip.Zone() == "" {
			template.IPAddresses = append(template.IPAddresses, ip.Unmap().AsSlice())
			continue
		}
		canonical, err := hostname.Parse(name)
		switch {
		case err != nil:
			return nil, fmt.Errorf("name %q: %w", name, err)
		case canonical != name:
			return nil, fmt.Errorf("name %q is not canonical (write %s)", name, canonical)
		}
		template.DNSNames = append(template.DNSNames, name)
	}
	return template, nil
}

// usage is what a leaf's key may do. RSA keys also serve the key exchange of
// TLS 1.2 clients that know no other.
func usage(key crypto.Signer) (x509.KeyUsage, error) {
	if key == nil {
		return 0, errors.New("no key")
	}
	switch public := key.Public().(type) {
	case *ecdsa.PublicKey:
		return x509.KeyUsageDigitalSignature, nil
	case *rsa.PublicKey:
		if public.N.BitLen() < minRSABits {
			return 0, fmt.Errorf("RSA key of %d bits (at least %d are needed)", public.N.BitLen(), minRSABits)
		}
		return x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, nil
	default:
		return 0, fmt.Errorf("key of type %T (ECDSA and RSA are known)", public)
	}
}
