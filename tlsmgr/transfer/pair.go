package transfer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"edge/config"
	"edge/tlsmgr/vault"
)

// maxKey bounds the DER of a private key. An RSA key of 8192 bits, beyond which
// crypto/tls refuses the certificate, has below 5 KiB; to check one of a megabyte
// takes minutes.
const maxKey = 16 << 10

// A pair is a certificate that can be served: a chain and its key, which belong
// together.
type pair struct {
	leaf  *x509.Certificate
	key   crypto.Signer
	chain string   // PEM, leaf first, and nothing else
	names []string // canonical, sorted
}

// parse reads a chain and a key, which may be in one file. Its errors quote
// neither.
func parse(chain, key []byte) (*pair, error) {
	p := &pair{}
	var text strings.Builder
	for rest := chain; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if err := pem.Encode(&text, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return nil, err
		}
		if p.leaf != nil {
			continue
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate cannot be parsed: %w", err)
		}
		p.leaf = leaf
	}
	if p.leaf == nil {
		return nil, errors.New("there is no certificate in it (want PEM)")
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	p.key, p.chain, p.names = signer, text.String(), namesOf(p.leaf)
	public, ok := p.leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(signer.Public()):
		return nil, errors.New("certificate and private key do not belong together (want the leaf first)")
	case len(p.names) == 0:
		return nil, errors.New("certificate is for no name (it has no subject alternative names)")
	case slices.ContainsFunc(p.names, unprintable):
		return nil, errors.New("certificate is for a name that no host can have")
	}
	// What crypto/tls demands beyond that.
	if _, err := tls.X509KeyPair([]byte(p.chain), []byte(p.keyPEM())); err != nil {
		return nil, errors.New("crypto/tls cannot serve it")
	}
	return p, nil
}

// parseKey finds the private key in PEM.
func parseKey(text []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return nil, errors.New("there is no private key in it (want PEM)")
		}
		if len(block.Bytes) > maxKey {
			return nil, errors.New("private key is larger than any of TLS")
		}
		var (
			key any
			err error
		)
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("private key has a passphrase (take it off: openssl pkey -in KEY -out PLAIN)")
		default:
			continue
		}
		signer, ok := key.(crypto.Signer)
		if err != nil || !ok {
			return nil, errors.New("private key cannot be parsed")
		}
		return signer, nil
	}
}

// namesOf are the names that clients accept the certificate for.
func namesOf(leaf *x509.Certificate) []string {
	var names []string
	for _, n := range leaf.DNSNames {
		names = append(names, strings.ToLower(n))
	}
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// unprintable tells names that would do something to a terminal or to a table.
func unprintable(name string) bool {
	return strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// keyPEM is the key as edge stores it.
func (p *pair) keyPEM() string {
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return "" // parsed by crypto/x509, so it can be written by it
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (p *pair) keyType() config.KeyType {
	switch key := p.key.Public().(type) {
	case *ecdsa.PublicKey:
		return config.KeyType(fmt.Sprintf("p%d", key.Params().BitSize))
	case *rsa.PublicKey:
		return config.KeyType(fmt.Sprintf("rsa%d", key.N.BitLen()))
	case ed25519.PublicKey:
		return "ed25519"
	}
	return "unknown"
}

func (p *pair) fingerprint() string { return fingerprint(p.leaf) }

func fingerprint(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return hex.EncodeToString(sum[:])
}

// newer reports whether p was issued after what is stored.
func (p *pair) newer(than *x509.Certificate) bool {
	if !p.leaf.NotBefore.Equal(than.NotBefore) {
		return p.leaf.NotBefore.After(than.NotBefore)
	}
	return p.leaf.NotAfter.After(than.NotAfter)
}

// certificate is p as edge stores it.
func (p *pair) certificate(id, owner string) *vault.Certificate {
	return &vault.Certificate{
		ID: id, Names: p.names, KeyType: p.keyType(), Chain: p.chain, PrivateKey: p.keyPEM(),
		ObtainedAt: p.leaf.NotBefore.UTC(), Owner: owner, Imported: true,
	}
}

// entry is p in a report.
func (p *pair) entry(source string) Entry {
	return Entry{
		Source: source, Names: p.names, Fingerprint: p.fingerprint(),
		IssuedBy: p.leaf.Issuer.CommonName, NotAfter: p.leaf.NotAfter.UTC(),
	}
}

// unusable says why p is not worth importing, "" when it is.
func (p *pair) unusable(now time.Time) string {
	switch {
	case !now.Before(p.leaf.NotAfter):
		return "expired on " + p.leaf.NotAfter.UTC().Format(time.DateOnly)
	case p.leaf.IsCA:
		return "is a CA"
	default:
		return ""
	}
}
