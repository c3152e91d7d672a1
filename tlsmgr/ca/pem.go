package ca

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxPEM bounds what is parsed: a certificate or key of an authority is below 2 KiB.
const maxPEM = 64 << 10

// Root is the certificate that clients have to trust, as PEM.
func (a *Authority) Root() string { return encode(a.root.certificate) }

// PEM returns what has to be kept, in the order in which Parse takes it:
// certificates as PEM, keys as PKCS#8 in PEM.
func (a *Authority) PEM() (rootChain, rootKey, chain, key string) {
	return a.Root(), encodeKey(a.root.key), encode(a.intermediate.certificate), encodeKey(a.intermediate.key)
}

// Parse is the inverse of PEM. It checks that the parts belong together: that
// the root signs itself and the intermediate, that both may sign, and that each
// key is that of its certificate. It does not look at the clock.
func Parse(rootChain, rootKey, chain, key string) (*Authority, error) {
	root, err := parsePair("root", rootChain, rootKey)
	if err != nil {
		return nil, err
	}
	intermediate, err := parsePair("intermediate", chain, key)
	if err != nil {
		return nil, err
	}
	if err := root.certificate.CheckSignatureFrom(root.certificate); err != nil {
		return nil, fmt.Errorf("internal CA: the root has not signed itself: %w", err)
	}
	if err := intermediate.certificate.CheckSignatureFrom(root.certificate); err != nil {
		return nil, fmt.Errorf("internal CA: the intermediate is not the root's: %w", err)
	}
	switch r, i := root.certificate, intermediate.certificate; {
	case i.Equal(r):
		return nil, errors.New("internal CA: the intermediate is the root itself")
	case r.MaxPathLen == 0:
		return nil, errors.New("internal CA: the root allows no intermediate (path length 0)")
	case i.NotAfter.After(r.NotAfter):
		return nil, errors.New("internal CA: the intermediate outlives the root")
	}
	return &Authority{root: root, intermediate: intermediate}, nil
}

// parsePair reads one certificate and its key. No error quotes the key.
func parsePair(what, certificatePEM, keyPEM string) (pair, error) {
	der, err := block(certificatePEM, "CERTIFICATE")
	if err != nil {
		return pair{}, fmt.Errorf("internal CA: certificate of the %s: %w", what, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return pair{}, fmt.Errorf("internal CA: certificate of the %s: %w", what, err)
	}
	if der, err = block(keyPEM, "PRIVATE KEY"); err != nil {
		return pair{}, fmt.Errorf("internal CA: key of the %s: %w", what, err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return pair{}, fmt.Errorf("internal CA: key of the %s is no PKCS#8", what)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return pair{}, fmt.Errorf("internal CA: key of the %s cannot sign", what)
	}
	public, ok := key.Public().(interface{ Equal(x crypto.PublicKey) bool })
	switch {
	case !ok || !public.Equal(certificate.PublicKey):
		return pair{}, fmt.Errorf("internal CA: the %s's key is not that of its certificate", what)
	case !certificate.BasicConstraintsValid || !certificate.IsCA || certificate.KeyUsage&x509.KeyUsageCertSign == 0:
		return pair{}, fmt.Errorf("internal CA: the %s may not sign certificates", what)
	}
	return pair{certificate, key}, nil
}

// block returns the only PEM block of text, which must be of the type.
func block(text, kind string) ([]byte, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("PEM of %d bytes (at most %d are read)", len(text), maxPEM)
	}
	b, rest := pem.Decode([]byte(text))
	switch {
	case b == nil:
		return nil, errors.New("no PEM")
	case b.Type != kind:
		return nil, fmt.Errorf("PEM of type %q, want %q", b.Type, kind)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("more than one PEM block")
	}
	return b.Bytes, nil
}

func encode(certificate *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw}))
}

func encodeKey(key crypto.Signer) string {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil { // keys were made here, or parsed from this very form
		panic("ca: " + err.Error())
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
