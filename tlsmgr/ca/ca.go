// Package ca is the CA of an internal issuer: a root that clients are told to
// trust, one intermediate below it, and leaves for TLS servers.
//
//	authority, err := ca.Create("internal", now)   // once; kept in the storage
//	authority, err := ca.Parse(authority.PEM())    // ever after
//	chain, err := authority.Issue([]string{"app.internal", "10.0.0.7"}, key, 30*24*time.Hour, now)
//	if authority.Due(now) {
//		authority, err = authority.Renewed(now)
//	}
//
// The intermediate is replaced when a third of its year is left; clients do not
// notice, because the chain that servers send holds it. The root lives for ten
// years and is never replaced by itself: every client that trusts it would
// refuse edge from one moment to the next. Within its last year RootDue is true
// and the operator is warned; the way out is a second internal issuer, whose
// root is given to the clients before the certificates are moved to it. Until
// then nothing outlives the root: intermediates and leaves end with it.
//
// Nothing here does I/O or reads the clock. There are no revocation lists: a
// short lifetime and a new certificate take their place.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// Lifetimes of the authority itself.
const (
	rootYears        = 10
	intermediateLife = 365 * 24 * time.Hour
	rootNotice       = 365 * 24 * time.Hour // before the root's end, from when RootDue is true
	backdate         = time.Minute          // so that a client whose clock is behind accepts what is new
)

// maxIssuerName keeps common names within 64 characters (RFC 5280, appendix A.1,
// ub-common-name).
const maxIssuerName = 24

// Authority is a root, an intermediate and their keys. It is immutable and may
// be used concurrently. It prints as its name, never as its keys.
type Authority struct {
	root, intermediate pair
}

// pair is a certificate and its key.
type pair struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// Create makes a root and an intermediate for the internal issuer of this name.
// Two calls make two authorities that clients can tell apart: the common name
// of the root ends with a piece of its key's digest.
func Create(issuer string, now time.Time) (*Authority, error) {
	key, id, err := newKey()
	if err != nil {
		return nil, err
	}
	template := authority("edge internal CA", issuer, id, now)
	template.NotAfter = now.AddDate(rootYears, 0, 0)
	template.MaxPathLen = 1
	root, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("create the root of internal issuer %s: %w", issuer, err)
	}
	return (&Authority{root: pair{root, key}}).intermediateFor(issuer, now)
}

// Renewed returns an Authority with the same root and a new intermediate, whose
// key is new too. The old one stays valid until its end, with what it signed.
func (a *Authority) Renewed(now time.Time) (*Authority, error) {
	_, issuer, _ := strings.Cut(a.intermediate.certificate.Subject.CommonName, intermediateName+" ")
	if i := strings.LastIndexByte(issuer, ' '); i >= 0 {
		issuer = issuer[:i]
	}
	return a.intermediateFor(issuer, now)
}

const intermediateName = "edge internal intermediate CA"

func (a *Authority) intermediateFor(issuer string, now time.Time) (*Authority, error) {
	if end := a.root.certificate.NotAfter; !now.Before(end) {
		return nil, fmt.Errorf("%s has ended on %s (add an internal issuer with another name and give its root to the clients)", a, end.Format(time.DateOnly))
	}
	key, id, err := newKey()
	if err != nil {
		return nil, err
	}
	template := authority(intermediateName, issuer, id, now)
	template.NotAfter = earlier(now.Add(intermediateLife), a.root.certificate.NotAfter)
	template.MaxPathLenZero = true // it signs leaves only
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	certificate, err := sign(template, a.root.certificate, key.Public(), a.root.key)
	if err != nil {
		return nil, fmt.Errorf("create an intermediate of %s: %w", a, err)
	}
	return &Authority{root: a.root, intermediate: pair{certificate, key}}, nil
}

// Due reports whether it is time for Renewed: a third of the intermediate's life
// is left, or less. It is false when a new one could not live any longer because
// the root ends as well.
func (a *Authority) Due(now time.Time) bool {
	c := a.intermediate.certificate
	return c.NotAfter.Before(a.root.certificate.NotAfter) && c.NotAfter.Sub(now) <= c.NotAfter.Sub(c.NotBefore)/3
}

// RootDue reports whether the root is in its last year, when the operator has to
// be warned. Nothing replaces it: see the package comment.
func (a *Authority) RootDue(now time.Time) bool {
	return a.RootEnd().Sub(now) <= rootNotice
}

// RootEnd is when the root, and with it everything it vouches for, ends.
func (a *Authority) RootEnd() time.Time { return a.root.certificate.NotAfter }

// String is the common name of the root.
func (a *Authority) String() string { return a.root.certificate.Subject.CommonName }

// authority is the template of a CA certificate.
func authority(title, issuer, id string, now time.Time) *x509.Certificate {
	if len(issuer) > maxIssuerName {
		issuer = strings.ToValidUTF8(issuer[:maxIssuerName], "")
	}
	return &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"edge"}, CommonName: strings.Join([]string{title, issuer, id}, " ")},
		NotBefore:             now.Add(-backdate),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// sign completes template with a random serial of 128 bits and returns what
// parent signs. Key identifiers are derived by crypto/x509: that of a CA is the
// digest of its key (RFC 7093), the authority's is the parent's.
func sign(template, parent *x509.Certificate, public crypto.PublicKey, by crypto.Signer) (*x509.Certificate, error) {
	var serial [16]byte
	_, _ = rand.Read(serial[:]) // never fails
	template.SerialNumber = new(big.Int).SetBytes(serial[:])
	id, err := keyID(public)
	if err != nil {
		return nil, err
	}
	template.SubjectKeyId = id
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newKey makes a P-256 key and eight digits that tell it from others.
func newKey() (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("make a key: %w", err)
	}
	id, err := keyID(key.Public())
	if err != nil {
		return nil, "", err
	}
	return key, hex.EncodeToString(id[:4]), nil
}

// keyID is the digest of a public key: RFC 7093, section 2, method 4, cut to the
// 160 bits of method 1.
func keyID(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encode a public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return sum[:20], nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
