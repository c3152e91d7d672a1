package acme

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"edge/config"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/sync/errgroup"
)

// Proof is an authorization that the CA still wants, with the ways to get it.
type Proof struct {
	Name       string // without "*."
	Wildcard   bool   // the order says "*." + Name
	IP         bool   // Name is an IP address
	Challenges map[config.Challenge]Challenge

	authz acme.Authorization
}

// Identifier is the name as it was ordered, with "*." if it is a wildcard.
func (p Proof) Identifier() string {
	if p.Wildcard {
		return "*." + p.Name
	}
	return p.Name
}

// Challenge is one way to prove control of a name. What is not of its type is
// empty.
type Challenge struct {
	Token            string   // http-01, tls-alpn-01, dns-01
	KeyAuthorization string   // what http-01 serves; what tls-alpn-01 and dns-01 hash
	DNSName          string   // of the TXT record of dns-01 and dns-persist-01, without final dot
	DNSValue         string   // of that record
	Issuers          []string // of dns-persist-01: names that the CA accepts for itself in that record; DNSValue has the first

	acmez acme.Challenge
}

// ALPNProtocol is the protocol that the CA offers when it validates tls-alpn-01
// (RFC 8737 section 6.2).
const ALPNProtocol = acmez.ACMETLS1Protocol

// ALPNCertificate is what tls-alpn-01 shows the CA for a DNS name or an IP address
// (RFC 8737 section 3, RFC 8738 section 6). It is good for nothing else.
func ALPNCertificate(name, keyAuthorization string) (*tls.Certificate, error) {
	return acmez.TLSALPN01ChallengeCert(acme.Challenge{Identifier: identifier(name), KeyAuthorization: keyAuthorization})
}

// Proofs is what is left to prove: the authorizations of the order that are
// pending, in its order. One that failed already is an *Error with its name, and
// so is an order that is invalid.
func (o *Order) Proofs(ctx context.Context) ([]Proof, error) {
	switch o.Status {
	case acme.StatusReady, acme.StatusProcessing, acme.StatusValid:
		return nil, nil
	}
	authzs := make([]acme.Authorization, len(o.acmez.Authorizations))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxParallel)
	for n, url := range o.acmez.Authorizations {
		group.Go(func() (err error) {
			authzs[n], _, err = o.authorization(groupCtx, url)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var proofs []Proof
	refused := map[string]acme.Problem{}
	for _, authz := range authzs {
		p := o.proof(authz)
		switch authz.Status {
		case acme.StatusValid:
		case acme.StatusPending:
			proofs = append(proofs, p)
		default:
			refused[p.Identifier()] = failureOf(authz)
		}
	}
	if len(refused) > 0 {
		return nil, o.ca.unproven(refused, nil)
	}
	if o.Status == acme.StatusInvalid {
		return nil, o.invalid()
	}
	return proofs, nil
}

func (o *Order) authorization(ctx context.Context, url string) (authz acme.Authorization, wait time.Duration, err error) {
	wait, err = o.ca.note(ctx, request{op: "fetch an authorization"}, func(ctx context.Context, s *session) (err error) {
		authz, err = s.client.GetAuthorization(ctx, o.account.acmez(), url)
		return err
	})
	return authz, wait, err
}

// failureOf is why an authorization is not valid.
func failureOf(authz acme.Authorization) acme.Problem {
	for _, ch := range authz.Challenges {
		if ch.Error != nil {
			return *ch.Error
		}
	}
	return acme.Problem{Detail: "the authorization is " + oneLine(authz.Status)}
}

// proof is what the CA offers for one name, as far as edge can do it.
func (o *Order) proof(authz acme.Authorization) Proof {
	name := strings.ToLower(authz.Identifier.Value)
	p := Proof{
		Name: strings.TrimPrefix(name, "*."), Wildcard: authz.Wildcard || strings.HasPrefix(name, "*."),
		Challenges: map[config.Challenge]Challenge{}, authz: authz,
	}
	p.IP = identifier(p.Name).Type == "ip"
	for _, ch := range authz.Challenges {
		if c, ok := o.challenge(p, ch); ok {
			p.Challenges[config.Challenge(ch.Type)] = c
		}
	}
	return p
}

func (o *Order) challenge(p Proof, ch acme.Challenge) (Challenge, bool) {
	c := Challenge{Token: ch.Token, KeyAuthorization: ch.KeyAuthorization, acmez: ch}
	switch config.Challenge(ch.Type) {
	case config.HTTP01, config.TLSALPN01:
		return c, ch.Token != ""
	case config.DNS01:
		c.DNSName, c.DNSValue = "_acme-challenge."+p.Name, ch.DNS01KeyAuthorization()
		return c, ch.Token != ""
	case config.DNSPersist01:
		if len(ch.IssuerDomainNames) == 0 || len(ch.IssuerDomainNames) > 10 { // malformed (section 3.1)
			return Challenge{}, false
		}
		// The CA MUST accept the account's URL, whatever other URI it knows it by
		// (section 4.1).
		c = Challenge{
			DNSName:  "_validation-persist." + p.Name,
			DNSValue: ch.DNSPersist01TXTRecordValue(o.account.acmez(), ch.IssuerDomainNames[0], p.Wildcard),
			Issuers:  ch.IssuerDomainNames,
			acmez:    ch,
		}
		return c, true
	default:
		return Challenge{}, false
	}
}

// Validate tells the CA to look at challenge kind of all proofs and waits for its
// verdicts. Every refusal is reported, not only the first: the *Error names each
// name that was not proven. It may be repeated by an heir.
func (o *Order) Validate(ctx context.Context, proofs []Proof, kind config.Challenge) error {
	missing := map[string]string{}
	for _, p := range proofs {
		if _, ok := p.Challenges[kind]; !ok {
			missing[p.Identifier()] = fmt.Sprintf("the CA offers no %s, only %s", kind, offered(p))
		}
	}
	if len(missing) > 0 {
		return aboutNames(BadRequest, missing, "use an issuer with another challenge", nil)
	}
	errs := make([]error, len(proofs))
	o.each(proofs, errs, func(p Proof) error { return o.initiate(ctx, p, kind) })
	until := time.Now().Add(pollTimeout) // for all of them together
	o.each(proofs, errs, func(p Proof) error { return o.verdict(ctx, p, until) })
	return o.verdicts(proofs, errs)
}

func offered(p Proof) string {
	var kinds []string
	for kind := range maps.Keys(p.Challenges) {
		kinds = append(kinds, string(kind))
	}
	slices.Sort(kinds)
	return strings.Join(kinds, ", ")
}

// each runs f for each proof without an error yet, a few at a time.
func (o *Order) each(proofs []Proof, errs []error, f func(Proof) error) {
	var group errgroup.Group
	group.SetLimit(maxParallel)
	for n, p := range proofs {
		if errs[n] == nil {
			group.Go(func() error {
				errs[n] = f(p)
				return nil
			})
		}
	}
	_ = group.Wait() // each proof has its own error
}

// initiate asks the CA to look. It refuses for a challenge at which it is looking
// already, for the heir's predecessor: then all that is left is to wait.
func (o *Order) initiate(ctx context.Context, p Proof, kind config.Challenge) error {
	ch := p.Challenges[kind].acmez
	if ch.Status != "" && ch.Status != acme.StatusPending {
		return nil
	}
	err := o.ca.do(ctx, request{op: "prove " + p.Identifier(), names: []string{p.Identifier()}}, func(ctx context.Context, s *session) error {
		_, err := s.client.InitiateChallenge(ctx, o.account.acmez(), ch)
		return err
	})
	if kindOf(err) != BadRequest {
		return err
	}
	now, _, look := o.authorization(ctx, p.authz.Location)
	if look != nil {
		return err
	}
	for _, other := range now.Challenges {
		if other.URL == ch.URL && other.Status != acme.StatusPending {
			return nil
		}
	}
	if now.Status != acme.StatusPending {
		return nil
	}
	return err
}

// refusedError is an authorization that failed.
type refusedError struct{ problem acme.Problem }

func (e *refusedError) Error() string { return reasonOf(e.problem) }

// verdict waits for the CA's.
func (o *Order) verdict(ctx context.Context, p Proof, until time.Time) error {
	err := poll(ctx, time.Until(until), func(ctx context.Context) (bool, time.Duration, error) {
		authz, wait, err := o.authorization(ctx, p.authz.Location)
		switch {
		case err != nil:
			return false, 0, err
		case authz.Status == acme.StatusPending:
			return false, wait, nil
		case authz.Status == acme.StatusValid:
			return true, 0, nil
		default:
			return false, 0, &refusedError{failureOf(authz)}
		}
	})
	if errors.Is(err, errUndecided) {
		return &Error{Kind: ServerError, text: fmt.Sprintf("prove %s: the CA did not decide within %s (edge looks again)", p.Identifier(), pollTimeout), cause: err}
	}
	return err
}

// verdicts makes one error of the errors of all proofs: what the CA refused, else
// what kept it from deciding.
func (o *Order) verdicts(proofs []Proof, errs []error) error {
	refused := map[string]acme.Problem{}
	var first error
	for n, err := range errs {
		name := proofs[n].Identifier()
		if r, ok := errors.AsType[*refusedError](err); ok {
			refused[name] = r.problem
		} else if err != nil && first == nil {
			first = err
		}
	}
	if len(refused) > 0 {
		return o.ca.unproven(refused, first)
	}
	if first != nil {
		return o.ca.explain(request{op: "prove control of the names"}, first, &note{})
	}
	return nil
}
