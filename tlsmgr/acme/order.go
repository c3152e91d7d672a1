package acme

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// Request is what a new order is for.
type Request struct {
	Names    []string // DNS names, wildcards, IP addresses
	Profile  string   // of Profile; "" leaves it to the CA
	Replaces string   // CertID of the certificate that this one follows; "" is none
}

// Order is an order at a CA, as it was when it was last looked at. Its methods
// are not safe for concurrent use.
type Order struct {
	URL      string    // by which an heir finds it again
	Status   string    // pending, ready, processing, valid or invalid (RFC 8555 section 7.1.6)
	Expires  time.Time // then the CA forgets it; zero when it does not say
	Names    []string  // as the CA repeats them
	Profile  string    // as the CA repeats it; "" when it does not
	Replaces bool      // whether the CA took Request.Replaces; false for an order found by its URL

	ca      *CA
	account *Account
	acmez   acme.Order
}

// identifier is a DNS name (RFC 8555 section 9.7.7) or an IP address (RFC 8738).
func identifier(name string) acme.Identifier {
	if _, err := netip.ParseAddr(name); err == nil {
		return acme.Identifier{Type: "ip", Value: name}
	}
	return acme.Identifier{Type: "dns", Value: name}
}

// isAboutReplaces reports that a new order may have been refused for what it
// replaces: someone else was faster (RFC 9773 section 5), or the CA does not know
// the certificate, or not as this account's, which CAs say in many ways. Pebble
// calls it an internal error.
func isAboutReplaces(err error) (acme.Problem, bool) {
	p, ok := problemOf(err)
	return p, ok && (kindOfProblem(p) == BadRequest || p.Status == http.StatusInternalServerError)
}

// NewOrder places an order (RFC 8555 section 7.4). What it replaces is a hint
// that lifts the CA's rate limits (RFC 9773 section 5): it is left out for a CA
// without renewal information, and when the CA does not take it.
func (c *CA) NewOrder(ctx context.Context, a *Account, r Request) (*Order, error) {
	want := acme.Order{Profile: r.Profile}
	for _, name := range r.Names {
		want.Identifiers = append(want.Identifiers, identifier(name))
	}
	o := &Order{ca: c, account: a}
	err := c.do(ctx, request{op: "place the order", names: r.Names}, func(ctx context.Context, s *session) (err error) {
		if _, err := chooseProfile(r.Profile, listed(s.meta())); err != nil {
			return &Error{Kind: BadRequest, text: "place the order: " + err.Error(), cause: err}
		}
		if r.Replaces == "" || !s.meta().ARI {
			o.acmez, err = s.client.NewOrder(ctx, a.acmez(), want)
			return err
		}
		replacing := want
		replacing.Replaces = r.Replaces
		o.acmez, err = s.client.NewOrder(ctx, a.acmez(), replacing)
		o.Replaces = err == nil
		if p, about := isAboutReplaces(err); about {
			if o.acmez, err = s.client.NewOrder(ctx, a.acmez(), want); err == nil {
				c.log.LogAttrs(ctx, slog.LevelInfo, "the CA does not take the order as a replacement",
					slog.String("issuer", c.config.Name), slog.String("reason", reasonOf(p)))
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, o.seen(o.acmez.Location)
}

// GetOrder is the order of account a at url, wherever it stands. A BadRequest
// means that the CA does not know it any more, or as another account's.
func (c *CA) GetOrder(ctx context.Context, a *Account, url string) (*Order, error) {
	if url == "" {
		return nil, &Error{Kind: BadRequest, text: "fetch the order: it has no URL"}
	}
	o := &Order{ca: c, account: a}
	o.acmez.Location = url
	if err := o.refresh(ctx); err != nil {
		return nil, err
	}
	return o, o.seen(url)
}

// seen copies what the CA said to the exported fields.
func (o *Order) seen(url string) error {
	if url == "" {
		return &Error{Kind: ServerError, text: "place the order: the CA gives it no URL (report it to the CA)"}
	}
	o.URL, o.acmez.Location = url, url
	o.Status, o.Expires, o.Profile = o.acmez.Status, o.acmez.Expires, o.acmez.Profile
	o.Names = make([]string, 0, len(o.acmez.Identifiers)) // the old one is the caller's
	for _, id := range o.acmez.Identifiers {
		o.Names = append(o.Names, strings.ToLower(id.Value))
	}
	return nil
}

// refresh looks at the order again.
func (o *Order) refresh(ctx context.Context) error {
	_, err := o.look(ctx)
	return err
}

// look is refresh, and how long the CA wants to be left alone.
func (o *Order) look(ctx context.Context) (time.Duration, error) {
	url := o.acmez.Location
	wait, err := o.ca.note(ctx, request{op: "fetch the order", names: o.Names}, func(ctx context.Context, s *session) error {
		next, err := s.client.GetOrder(ctx, o.account.acmez(), acme.Order{Location: url})
		if err == nil {
			o.acmez = next
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return wait, o.seen(url)
}

// readyTimeout is how long an order may take to become ready once every name is
// proven.
const readyTimeout = 30 * time.Second

// Finalize asks for the certificate of csr, in DER, and waits until it is issued
// (RFC 8555 section 7.4). Every name must have been proven. It may be repeated,
// also by an heir and after any error: an order that is past this point is not
// finalized again but waited for, so the key of the first csr must be kept. One that
// is invalid stays so; what it was for needs a new one.
func (o *Order) Finalize(ctx context.Context, csr []byte) error {
	if err := o.refresh(ctx); err != nil {
		return err
	}
	if err := o.settle(ctx, readyTimeout, acme.StatusPending); err != nil {
		return err
	}
	if o.Status == acme.StatusReady {
		if err := o.finalize(ctx, csr); err != nil {
			return err
		}
	}
	if err := o.settle(ctx, pollTimeout, acme.StatusProcessing); err != nil {
		return err
	}
	switch o.Status {
	case acme.StatusValid:
		return nil
	case acme.StatusInvalid:
		return o.invalid()
	case acme.StatusPending:
		return &Error{Kind: BadRequest, text: "finalize the order: the CA has not seen proof of every name (validate them first)"}
	case acme.StatusProcessing:
		return &Error{Kind: ServerError, text: fmt.Sprintf("finalize the order: the CA did not issue within %s (edge looks again)", pollTimeout)}
	default:
		return &Error{Kind: ServerError, text: "finalize the order: the CA says it is " + oneLine(o.Status) + " (report it to the CA)"}
	}
}

// settle waits until the order has left a status, or for timeout, which is no
// error.
func (o *Order) settle(ctx context.Context, timeout time.Duration, status string) error {
	if o.Status != status {
		return nil
	}
	err := poll(ctx, timeout, func(ctx context.Context) (bool, time.Duration, error) {
		wait, err := o.look(ctx)
		return o.Status != status, wait, err
	})
	if errors.Is(err, errUndecided) {
		return nil
	}
	if err != nil {
		return o.ca.explain(request{op: "wait for the order", names: o.Names}, err, &note{})
	}
	return nil
}

// finalize sends the CSR. What became of it is looked up, whatever the answer: the
// CA may have taken it although the answer was lost, a repetition is refused with
// orderNotReady, and acmez, which may not wait here, calls "processing" an error.
func (o *Order) finalize(ctx context.Context, csr []byte) error {
	err := o.ca.do(ctx, request{op: "finalize the order", names: o.Names}, func(ctx context.Context, s *session) error {
		_, err := s.client.FinalizeOrder(ctx, o.account.acmez(), o.acmez, csr)
		return err
	})
	if look := o.refresh(ctx); look != nil {
		return look
	}
	switch o.Status {
	case acme.StatusProcessing, acme.StatusValid:
		return nil
	case acme.StatusInvalid:
		return o.invalid()
	default:
		return err
	}
}

// invalid is why the CA gave the order up.
func (o *Order) invalid() error {
	p := o.acmez.Error
	if p == nil {
		p = &acme.Problem{Detail: "the order is invalid, without a reason"}
	}
	r := request{op: "finalize the order", names: o.Names}
	if p.Type == acme.ProblemTypeUnauthorized { // here it is about the names, not about the account
		return o.ca.refusalOf(Unproven, r, *p)
	}
	return o.ca.refusalOf(kindOfProblem(*p), r, *p)
}

// maxChainRequests bounds the download of a chain and its alternates.
const maxChainRequests = 32

// Chain downloads the certificate of a valid order, in PEM, leaf first. Of the
// chains that the CA offers (RFC 8555 section 7.4.2) it is the first that leads
// to the first of preferred that any leads to: the common name of a root, or of
// another certificate above the leaf. Otherwise it is the CA's default.
func (o *Order) Chain(ctx context.Context, preferred []string) (string, error) {
	if o.acmez.Certificate == "" {
		if err := o.refresh(ctx); err != nil {
			return "", err
		}
		if o.acmez.Certificate == "" {
			return "", &Error{Kind: BadRequest, text: "download the certificate: the order is " + oneLine(o.Status) + ", not valid"}
		}
	}
	var chains []acme.Certificate
	err := o.ca.do(ctx, request{op: "download the certificate", left: maxChainRequests}, func(ctx context.Context, s *session) (err error) {
		chains, err = s.client.GetCertificateChain(ctx, o.account.acmez(), o.acmez.Certificate)
		return err
	})
	if err != nil {
		return "", err
	}
	if len(chains) == 0 {
		return "", &Error{Kind: ServerError, text: "download the certificate: the CA issued none (report it to the CA)"}
	}
	chosen, offered := choose(chains, preferred)
	if chosen < 0 {
		chosen = 0
		if len(preferred) > 0 {
			o.ca.log.LogAttrs(ctx, slog.LevelWarn, "the CA offers none of the preferred chains, using its default",
				slog.String("issuer", o.ca.config.Name), slog.Any("preferred", preferred), slog.Any("offered", offered))
		}
	}
	return string(chains[chosen].ChainPEM), nil
}

// choose is the chain for preferred, -1 for none, and the roots of all chains.
func choose(chains []acme.Certificate, preferred []string) (chosen int, roots []string) {
	issuers := make([][]string, len(chains)) // of each certificate, from the leaf up
	for n, chain := range chains {
		issuers[n] = issuersOf(chain.ChainPEM)
		if len(issuers[n]) > 0 {
			roots = append(roots, issuers[n][len(issuers[n])-1])
		}
	}
	for _, name := range preferred {
		for n := range chains { // roots first: a root may also be cross-signed inside another chain
			if up := issuers[n]; len(up) > 0 && up[len(up)-1] == name {
				return n, roots
			}
		}
		for n := range chains {
			if slices.Contains(issuers[n], name) {
				return n, roots
			}
		}
	}
	return -1, roots
}

func issuersOf(chain []byte) []string {
	var names []string
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			names = append(names, cert.Issuer.CommonName)
		}
	}
	return names
}
