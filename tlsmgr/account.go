package tlsmgr

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"

	"edge/config"
	"edge/tlsmgr/store"

	"github.com/mholt/acmez/v3/acme"
)

// account is an ACME account with its key, as every replica shares it.
type account struct {
	acme.Account
	version store.Version // of the object that it was read from
}

// accountObject is an account in the storage.
type accountObject struct {
	Format     int          `json:"format"`
	Directory  string       `json:"directory"`
	Email      string       `json:"email,omitempty"`
	Account    acme.Account `json:"account"`
	PrivateKey string       `json:"private_key"` // PEM, PKCS #8
}

// accountID names the account of an issuer: one for each directory and e-mail
// address. The host is for people, the digest for uniqueness.
func accountID(i *config.Issuer) string {
	host := "acme"
	if u, err := url.Parse(i.Directory); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	sum := sha256.Sum256([]byte(i.Directory + "\n" + i.Email))
	return url.PathEscape(host) + "-" + hex.EncodeToString(sum[:6])
}

func accountKey(id string) string { return accountDir + "/" + id + ".json" }

// account returns the account of issuer i from the storage, or registers one
// now under a lease, so that replicas that start together register one. It is
// read for each order, so that one which another replica or the operator
// replaced is used at once.
func (m *Manager) account(ctx context.Context, s *store.Store, i *issuer) (*account, error) {
	a, err := loadAccount(ctx, s, accountID(i.config))
	if errors.Is(err, fs.ErrNotExist) {
		return m.register(ctx, s, i, "")
	}
	return a, err
}

// register makes a new account in place of the stored version old, "" for none,
// which the CA does not know any more. What is stored is looked at again under
// the lease: another replica may have replaced it already, then theirs is used.
func (m *Manager) register(ctx context.Context, s *store.Store, i *issuer, old store.Version) (_ *account, err error) {
	id := accountID(i.config)
	lease, err := s.Acquire(ctx, "account/"+id)
	if err != nil {
		return nil, fmt.Errorf("lease of the ACME account: %w", err)
	}
	defer release(ctx, lease)
	ctx, cancel := lease.Context(ctx)
	defer cancel()

	found, err := loadAccount(ctx, s, id)
	switch {
	case err == nil && found.version != old:
		return found, nil
	case err == nil, errors.Is(err, fs.ErrNotExist):
	default:
		return nil, err
	}
	if found == nil {
		old = "" // lost in the storage too
	}
	a, err := i.newAccount(ctx)
	if err != nil {
		return nil, i.explain("register an account", err)
	}
	data, err := encodeAccount(i.config, a)
	if err != nil {
		return nil, err
	}
	writeCtx, stop := context.WithTimeout(context.WithoutCancel(ctx), storageTimeout) // it is registered, keep it
	defer stop()
	version, err := s.Swap(writeCtx, accountKey(id), data, old)
	if errors.Is(err, store.ErrConflict) { // our lease was lost, and its heir was faster
		return loadAccount(ctx, s, id)
	}
	if err != nil {
		return nil, fmt.Errorf("store the ACME account: %w", err)
	}
	return &account{Account: *a, version: version}, nil
}

// newAccount registers a fresh key with the CA (RFC 8555 section 7.3).
func (i *issuer) newAccount(ctx context.Context) (*acme.Account, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := acme.Account{TermsOfServiceAgreed: true, PrivateKey: key}
	if i.config.Email != "" {
		a.Contact = []string{"mailto:" + i.config.Email}
	}
	a, err = i.client.NewAccount(ctx, a)
	return &a, err
}

func encodeAccount(i *config.Issuer, a *acme.Account) ([]byte, error) {
	key, err := encodeKey(a.PrivateKey)
	if err != nil {
		return nil, err
	}
	return json.Marshal(accountObject{ //nolint:gosec // the key is what is stored
		Format: objectFormat, Directory: i.Directory, Email: i.Email, Account: *a, PrivateKey: key,
	})
}

// loadAccount reads a stored account; the error is fs.ErrNotExist when there is
// none. One that cannot be read is not replaced: its key may be the only way to
// revoke certificates.
func loadAccount(ctx context.Context, s *store.Store, id string) (*account, error) {
	data, version, err := s.LoadVersion(ctx, accountKey(id))
	if err != nil {
		return nil, fmt.Errorf("load the ACME account: %w", err)
	}
	a, err := decodeAccount(data)
	if err != nil {
		return nil, fmt.Errorf("stored ACME account %s: %w", accountKey(id), err)
	}
	a.version = version
	return a, nil
}

func decodeAccount(data []byte) (*account, error) {
	if err := checkFormat(data); err != nil {
		return nil, err
	}
	var o accountObject
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, err
	}
	key, err := decodeKey(o.PrivateKey)
	if err == nil && o.Account.Location == "" {
		err = errors.New("has no account URL")
	}
	if err != nil {
		return nil, fmt.Errorf("%w (restore the object, or delete it to register a new account)", err)
	}
	a := &account{Account: o.Account}
	a.PrivateKey = key
	return a, nil
}

// encodeKey is key as PEM (PKCS #8).
func encodeKey(key crypto.Signer) (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// decodeKey is the inverse of encodeKey.
func decodeKey(text string) (crypto.Signer, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("private key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("private key cannot be parsed") // the cause could quote it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("private key cannot sign")
	}
	return signer, nil
}
