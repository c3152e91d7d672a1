package acme

import (
	"context"
	"crypto"

	"edge/config"

	"github.com/mholt/acmez/v3/acme"
)

// opRegister is the step that an external account binding belongs to.
const opRegister = "register an account"

// Account is an account at a CA and the key that speaks for it.
type Account struct {
	URL     string
	Key     crypto.Signer
	Contact []string // URLs, mailto:…
}

func (a *Account) acmez() acme.Account {
	return acme.Account{Location: a.URL, PrivateKey: a.Key, Contact: a.Contact}
}

// Register makes an account for key, or a fresh P-256 key when it is nil, agrees
// to the CA's terms and binds the account to the one that the issuer's eab names
// (RFC 8555 sections 7.3 and 7.3.4). For a key that the CA knows already it is
// the account of that key (section 7.3.1): whoever stores the key first may call
// it again.
func (c *CA) Register(ctx context.Context, key crypto.Signer) (*Account, error) {
	known := key != nil
	if !known {
		fresh, err := NewKey(config.P256)
		if err != nil {
			return nil, err
		}
		key = fresh
	}
	a := acme.Account{TermsOfServiceAgreed: true, PrivateKey: key}
	if c.config.Email != "" {
		a.Contact = []string{"mailto:" + c.config.Email}
	}
	err := c.do(ctx, request{op: opRegister}, func(ctx context.Context, s *session) (err error) {
		if known && (c.eab != nil || s.meta().EABRequired) {
			// Who has an account needs no binding, and some CAs take one only once.
			found, err := s.client.GetAccount(ctx, a)
			if p, ok := problemOf(err); !ok || p.Type != acme.ProblemTypeAccountDoesNotExist {
				a = found
				return err
			}
		}
		if c.eab == nil && s.meta().EABRequired {
			return acme.Problem{Type: acme.ProblemTypeExternalAccountRequired, Detail: "its directory says so"}
		}
		if c.eab != nil {
			if err := a.SetExternalAccountBinding(ctx, s.client, *c.eab); err != nil {
				return err
			}
		}
		a, err = s.client.NewAccount(ctx, a)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.account(a)
}

// account is what the CA calls an account.
func (c *CA) account(a acme.Account) (*Account, error) {
	if a.Location == "" {
		return nil, &Error{Kind: ServerError, text: opRegister + ": the CA gives it no URL (report it to the CA)"}
	}
	return &Account{URL: a.Location, Key: a.PrivateKey, Contact: a.Contact}, nil
}

// Rollover replaces the key of account a by next, or a fresh P-256 key when it is
// nil (RFC 8555 section 7.3.5), and returns the account with it; a is not
// changed. The old key is refused from then on. It may be repeated with the same
// next, so whoever stores next first can lose neither key.
func (c *CA) Rollover(ctx context.Context, a *Account, next crypto.Signer) (*Account, error) {
	if next == nil {
		fresh, err := NewKey(config.P256)
		if err != nil {
			return nil, err
		}
		next = fresh
	}
	err := c.do(ctx, request{op: "change the key of the account"}, func(ctx context.Context, s *session) error {
		_, err := s.client.AccountKeyRollover(ctx, a.acmez(), next)
		if err != nil && statusOf(ctx)/100 != 4 {
			return err
		}
		// Refused, it was perhaps changed by an attempt that did not hear of it.
		// Accepted, it is worth a look: Pebble says 200 and changes nothing when
		// the key is another account's.
		known, lookup := s.client.GetAccount(ctx, acme.Account{PrivateKey: next})
		switch {
		case lookup == nil && known.Location == a.URL:
			return nil
		case err != nil:
			return err
		case lookup != nil:
			return lookup
		default:
			return &Error{Kind: BadRequest, text: "change the key of the account: the new key is that of " + oneLine(known.Location) + " (use a fresh one)"}
		}
	})
	if err != nil {
		return nil, err
	}
	return &Account{URL: a.URL, Key: next, Contact: a.Contact}, nil
}
