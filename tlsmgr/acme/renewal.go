package acme

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// ErrNoRenewalInfo says that a CA does not tell when to renew.
var ErrNoRenewalInfo = errors.New("the CA has no renewal information (RFC 9773)")

// Renewal is when a CA wants a certificate to be renewed (RFC 9773).
type Renewal struct {
	Start, End  time.Time     // renew at a random time between; both past is now, as after a revocation
	Explanation string        // URL of a page for people; "" is none
	RetryAfter  time.Duration // ask again after; between a minute and a day
}

// Bounds of Renewal.RetryAfter (RFC 9773 section 4.3.2), and what it is when the
// CA does not say, as after a long-term error (section 4.3.3).
const (
	minRecheck     = time.Minute
	maxRecheck     = 24 * time.Hour
	defaultRecheck = 6 * time.Hour
)

// RenewalInfo asks when to renew leaf. Any window that ends after it starts is an
// answer, however short: acmez wants more than a second, and a test CA's answer
// for a revoked certificate is exactly that. The error is ErrNoRenewalInfo when
// the CA's directory does not offer it.
func (c *CA) RenewalInfo(ctx context.Context, leaf *x509.Certificate) (Renewal, error) {
	id, err := CertID(leaf)
	if err != nil {
		return Renewal{}, err
	}
	var info acme.RenewalInfo
	wait, err := c.note(ctx, request{op: "ask when to renew"}, func(ctx context.Context, s *session) error {
		if !s.meta().ARI {
			return ErrNoRenewalInfo
		}
		return c.get(ctx, s.dir.renewalInfo+"/"+id, &info)
	})
	if err != nil {
		return Renewal{}, err
	}
	start, end := info.SuggestedWindow.Start, info.SuggestedWindow.End
	if start.IsZero() || !end.After(start) {
		const format = "ask when to renew: the CA answers %s to %s, which is no window (edge decides itself)"
		return Renewal{}, &Error{Kind: ServerError, text: fmt.Sprintf(format, start.Format(time.RFC3339), end.Format(time.RFC3339))}
	}
	if wait == 0 {
		wait = defaultRecheck
	}
	return Renewal{
		Start: start, End: end, Explanation: explanation(info.ExplanationURL),
		RetryAfter: min(max(wait, minRecheck), maxRecheck),
	}, nil
}

// explanation is text if it is a web page that a person can be shown.
func explanation(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || len(text) > maxReason {
		return ""
	}
	return u.String()
}

// CertID is the name of a certificate in renewal information (RFC 9773 section
// 4.1), for Request.Replaces.
func CertID(leaf *x509.Certificate) (string, error) {
	if len(leaf.AuthorityKeyId) == 0 {
		return "", errors.New("certificate has no authority key identifier (RFC 9773 section 4.1)")
	}
	return acme.ARIUniqueIdentifier(leaf)
}

// Revoke revokes leaf for reason (RFC 5280 section 5.3.1; 0 is unspecified), in
// the name of account a, or of the certificate's own key when a is nil or not
// entitled to it (RFC 8555 section 7.6). One that is revoked already is success.
func (c *CA) Revoke(ctx context.Context, a *Account, leaf *x509.Certificate, key crypto.Signer, reason int) error {
	if a == nil && key == nil {
		return &Error{Kind: BadRequest, text: "revoke the certificate: there is neither an account nor its key"}
	}
	return c.do(ctx, request{op: "revoke the certificate", names: namesOf(leaf)}, func(ctx context.Context, s *session) error {
		err := errors.New("no account")
		if a != nil {
			err = revoke(ctx, s, a.acmez(), leaf, nil, reason)
		}
		if p, refused := problemOf(err); key != nil && (a == nil || refused && isNotEntitled(p)) {
			err = revoke(ctx, s, acme.Account{}, leaf, key, reason)
		}
		return err
	})
}

func revoke(ctx context.Context, s *session, a acme.Account, leaf *x509.Certificate, key crypto.Signer, reason int) error {
	err := s.client.RevokeCertificate(ctx, a, leaf, key, reason)
	if p, ok := problemOf(err); ok && p.Type == acme.ProblemTypeAlreadyRevoked {
		return nil
	}
	return err
}

// isNotEntitled reports that another signature may be accepted.
func isNotEntitled(p acme.Problem) bool {
	return p.Type == acme.ProblemTypeUnauthorized || p.Type == acme.ProblemTypeAccountDoesNotExist
}
