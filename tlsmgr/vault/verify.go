package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
)

// Problem is what is wrong with an object.
type Problem string

// The problems that Verify finds.
const (
	Foreign    Problem = "foreign"    // none of ours; edge leaves it alone
	Newer      Problem = "newer"      // ErrNewer
	NoKey      Problem = "no key"     // ErrNoKey
	Damaged    Problem = "damaged"    // ErrDamaged
	Mismatch   Problem = "mismatch"   // readable, but its parts do not belong together
	Unreadable Problem = "unreadable" // the storage does not hand it out
)

// Finding is a problem of one object.
type Finding struct {
	Key     string  `json:"key"`
	Kind    Kind    `json:"kind,omitempty"` // "" when foreign
	ID      string  `json:"id,omitempty"`
	Problem Problem `json:"problem"`
	Detail  string  `json:"detail"` // one line
}

// Count says how many objects there are of a kind.
type Count struct {
	Objects int   `json:"objects"`
	Sealed  int   `json:"sealed"`
	Bytes   int64 `json:"bytes"`
}

// Report is what Verify found.
type Report struct {
	Objects  int            `json:"objects"` // ours
	Kinds    map[Kind]Count `json:"kinds"`
	Keys     map[string]int `json:"keys"`     // objects sealed, by the id of the key
	Stale    int            `json:"stale"`    // objects that Rotate would seal again
	Findings []Finding      `json:"findings"` // in order of keys; none is a healthy storage
}

// Verify reads every object and looks whether it can be used: readable, of a
// format that we know, opened by a key of ours, under its own key, chain and
// private key a pair. It changes nothing. An error means that it could not look
// at everything. progress may be nil.
func (v *Vault) Verify(ctx context.Context, progress func(done, total int)) (Report, error) {
	r := Report{Kinds: map[Kind]Count{}, Keys: map[string]int{}, Findings: []Finding{}}
	ours, foreign, err := v.list(ctx)
	if err != nil {
		return r, fmt.Errorf("verify: %w", err)
	}
	for _, o := range foreign {
		r.Findings = append(r.Findings, Finding{Key: o.Key, Problem: Foreign, Detail: "edge knows no such object (left alone)"})
	}
	var mu sync.Mutex
	err = each(ctx, ours, progress, func(ctx context.Context, e entry) error {
		sealedBy, err := v.verify(ctx, e)
		if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		r.add(v.keys, e, sealedBy)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		p := problem(err)
		r.Findings = append(r.Findings, Finding{Key: e.Key, Kind: e.kind, ID: e.id, Problem: p, Detail: oneLine(err)})
		if p == Unreadable {
			return err // a streak of them means that the storage is down
		}
		return nil
	})
	slices.SortFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(a.Key, b.Key) })
	if ctx.Err() != nil || errors.Is(err, errDown) {
		return r, fmt.Errorf("verify: %w", err)
	}
	return r, nil // the other errors are findings
}

func (r *Report) add(keys *Keyring, e entry, sealedBy string) {
	c := r.Kinds[e.kind]
	c.Objects++
	c.Bytes += e.Size
	r.Objects++
	if sealedBy != "" {
		c.Sealed++
		r.Keys[sealedBy]++
	}
	if e.kind.Secret() && keys.stale(sealedBy) {
		r.Stale++
	}
	r.Kinds[e.kind] = c
}

func (v *Vault) verify(ctx context.Context, e entry) (sealedBy string, err error) {
	plain, sealedBy, _, err := v.load(ctx, e)
	if err != nil {
		return sealedBy, err
	}
	o, err := read(e.kind, e.id, plain)
	if err != nil {
		return sealedBy, err
	}
	if err := o.fits(); err != nil {
		return sealedBy, mismatch{err}
	}
	return sealedBy, nil
}

// mismatch is an object that can be read and not be used.
type mismatch struct{ error }

func problem(err error) Problem {
	_, mismatched := errors.AsType[mismatch](err)
	switch {
	case mismatched:
		return Mismatch
	case errors.Is(err, ErrNewer):
		return Newer
	case errors.Is(err, ErrNoKey):
		return NoKey
	case errors.Is(err, ErrDamaged):
		return Damaged
	default:
		return Unreadable
	}
}

// fits checks that chain, key and names belong together.
func (c Certificate) fits() error {
	pair, err := tls.X509KeyPair([]byte(c.Chain), []byte(c.PrivateKey))
	if err != nil {
		return pairError(err)
	}
	names := slices.Clone(pair.Leaf.DNSNames)
	for _, ip := range pair.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for i, n := range names {
		names[i] = strings.ToLower(n)
	}
	slices.Sort(names)
	if !slices.Equal(slices.Compact(names), c.Names) {
		return fmt.Errorf("is for other names than it says (%s)", strings.Join(names, ", "))
	}
	return nil
}

// pairError is what tls.X509KeyPair says, without what it may quote.
func pairError(err error) error {
	if strings.HasPrefix(err.Error(), "tls: ") {
		return err
	}
	return errors.New("chain or private key cannot be parsed")
}

func (a Account) fits() error {
	if a.NextKey != "" {
		if _, err := parseKey(a.NextKey); err != nil {
			return fmt.Errorf("next key: %w", err)
		}
	}
	_, err := parseKey(a.PrivateKey)
	return err // without a URL it is one that is being registered
}

func (o Order) fits() error {
	if o.Attempt == nil {
		return nil
	}
	key, err := parseKey(o.Attempt.PrivateKey)
	if err != nil || len(o.Attempt.CSR) == 0 {
		return err
	}
	csr, err := x509.ParseCertificateRequest(o.Attempt.CSR)
	if err != nil {
		return errors.New("certificate request cannot be parsed")
	}
	if !equalKeys(csr.PublicKey, key.Public()) {
		return errors.New("certificate request is for another key")
	}
	return nil
}

func (a Authority) fits() error {
	above, err := tls.X509KeyPair([]byte(a.RootChain), []byte(a.RootKey))
	if err != nil {
		return fmt.Errorf("root: %w", pairError(err))
	}
	below, err := tls.X509KeyPair([]byte(a.Chain), []byte(a.Key))
	if err != nil {
		return fmt.Errorf("intermediate: %w", pairError(err))
	}
	if err := below.Leaf.CheckSignatureFrom(above.Leaf); err != nil {
		return fmt.Errorf("intermediate is not signed by the root: %w", err)
	}
	return nil
}

func (Budget) fits() error    { return nil }
func (Replica) fits() error   { return nil }
func (Challenge) fits() error { return nil }

// parseKey reads a private key. Its errors quote nothing.
func parseKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("private key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("private key cannot be parsed")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("private key cannot sign")
	}
	return signer, nil
}

func equalKeys(a, b any) bool {
	x, errA := x509.MarshalPKIXPublicKey(a)
	y, errB := x509.MarshalPKIXPublicKey(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}
