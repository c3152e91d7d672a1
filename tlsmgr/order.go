package tlsmgr

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"edge/config"
	"edge/tlsmgr/dns"
	"edge/tlsmgr/store"

	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/sync/errgroup"
)

// order is one attempt to obtain one certificate.
type order struct {
	m       *Manager
	store   *store.Store
	issuer  *issuer
	bundle  Bundle
	account *account
	acme    acme.Order
}

// obtain orders a certificate for bundle b, step by step, and returns it ready
// to be stored. All names are presented at once and waited for once. A CA that
// has lost the account is given a new one, and the order is repeated with that.
func (m *Manager) obtain(ctx context.Context, s *store.Store, i *issuer, b Bundle) (*object, error) {
	i = i.forOrder()
	o := &order{m: m, store: s, issuer: i, bundle: b}
	profile, err := i.profile(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.place(ctx, profile); err != nil {
		return nil, err
	}
	if err := o.authorize(ctx); err != nil {
		return nil, err
	}
	key, err := newKey(b.KeyType)
	if err != nil {
		return nil, err
	}
	chain, err := o.finalize(ctx, key)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	if err := checkIssued(b.Names, chain, keyPEM, time.Now()); err != nil {
		return nil, fmt.Errorf("the CA issued something else: %w (report it to the CA)", err)
	}
	return &object{
		Format: objectFormat, ID: b.ID, Names: b.Names, Issuer: b.Issuer, Directory: i.config.Directory, Profile: profile, KeyType: b.KeyType,
		Chain: chain, PrivateKey: keyPEM, OrderURL: o.acme.Location, ObtainedAt: time.Now().UTC(), Owner: m.options.Owner,
	}, nil
}

func (o *order) say(ctx context.Context, step Step, format string, args ...any) {
	o.m.emit(ctx, o.bundle.ID, step, fmt.Sprintf(format, args...))
}

// place gets the account and sends newOrder, twice if the account is lost.
func (o *order) place(ctx context.Context, profile string) (err error) {
	o.account, err = o.m.account(ctx, o.store, o.issuer)
	if err != nil {
		return err
	}
	o.say(ctx, StepAccount, "%s", o.account.Location)
	want := acme.Order{Profile: profile}
	for _, n := range o.bundle.Names {
		want.Identifiers = append(want.Identifiers, acme.Identifier{Type: "dns", Value: n})
	}
	o.acme, err = o.issuer.client.NewOrder(ctx, o.account.Account, want)
	if isLost(err) {
		o.m.log.LogAttrs(ctx, slog.LevelWarn, "the CA does not know the account any more, registering a new one",
			slog.String("issuer", o.bundle.Issuer), slog.String("account", o.account.Location))
		if o.account, err = o.m.register(ctx, o.store, o.issuer, o.account.version); err != nil {
			return err
		}
		o.say(ctx, StepAccount, "%s replaces a lost one", o.account.Location)
		o.acme, err = o.issuer.client.NewOrder(ctx, o.account.Account, want)
	}
	if err != nil {
		return o.issuer.explain("place the order", err)
	}
	o.say(ctx, StepOrder, "%d names: %s", len(o.bundle.Names), abridge(o.bundle.Names))
	return nil
}

// authorize proves control of every name that the CA has not seen proof of.
func (o *order) authorize(ctx context.Context) error {
	pending, err := o.pending(ctx)
	if err != nil {
		return err
	}
	o.say(ctx, StepAuthorization, "%d of %d names to prove", len(pending), len(o.acme.Authorizations))
	if len(pending) == 0 {
		return nil
	}
	records := make([]dns.Record, 0, len(pending))
	for _, p := range pending {
		records = append(records, dns.Record{Name: p.challenge.DNS01TXTRecordName(), Value: p.challenge.DNS01KeyAuthorization()})
	}
	presented, err := o.issuer.solver.Present(ctx, records)
	if err != nil {
		return oneError(err)
	}
	defer o.cleanUp(ctx, presented)
	o.say(ctx, StepPresent, "%d TXT records", len(records))
	if err := presented.Wait(ctx); err != nil {
		return oneError(err)
	}
	o.say(ctx, StepWait, "all authoritative servers show them")
	if err := o.validate(ctx, pending); err != nil {
		return err
	}
	o.say(ctx, StepValidate, "%d names proven", len(pending))
	return nil
}

// cleanUp removes the challenge records, also after a cancelled attempt.
func (o *order) cleanUp(ctx context.Context, presented *dns.Presented) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := presented.CleanUp(ctx); err != nil {
		o.m.log.LogAttrs(ctx, slog.LevelWarn, "challenge records left behind",
			slog.String("certificate", o.bundle.ID), slog.Any("error", oneError(err)))
	}
}

// A proof is an authorization that the CA wants and our way to get it.
type proof struct {
	authz     acme.Authorization
	challenge acme.Challenge
}

// pending fetches all authorizations and picks dns-01 where there is something
// to prove.
func (o *order) pending(ctx context.Context) ([]proof, error) {
	authzs := make([]acme.Authorization, len(o.acme.Authorizations))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(maxAuthz)
	for n, u := range o.acme.Authorizations {
		group.Go(func() (err error) {
			authzs[n], err = o.issuer.client.GetAuthorization(groupCtx, o.account.Account, u)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, o.issuer.explain("fetch the authorizations", err)
	}
	var out []proof
	for _, a := range authzs {
		if a.Status == acme.StatusValid {
			continue
		}
		n := slices.IndexFunc(a.Challenges, func(c acme.Challenge) bool { return c.Type == acme.ChallengeTypeDNS01 })
		if n < 0 {
			return nil, fmt.Errorf("the CA offers no dns-01 challenge for %s (use another issuer, or another profile)", a.IdentifierValue())
		}
		out = append(out, proof{authz: a, challenge: a.Challenges[n]})
	}
	return out, nil
}

// validate asks the CA to look at all records and waits for its verdicts. Every
// refusal is reported, not only the first.
func (o *order) validate(ctx context.Context, proofs []proof) error {
	errs := make([]error, len(proofs))
	var group errgroup.Group
	group.SetLimit(maxAuthz)
	for n, p := range proofs {
		group.Go(func() error {
			_, errs[n] = o.issuer.client.InitiateChallenge(ctx, o.account.Account, p.challenge)
			return nil
		})
	}
	_ = group.Wait() // each proof has its own error
	for n, p := range proofs {
		if errs[n] != nil {
			continue
		}
		group.Go(func() error {
			_, errs[n] = o.issuer.client.PollAuthorization(ctx, o.account.Account, p.authz)
			return nil
		})
	}
	_ = group.Wait()
	var refused []error
	for n, err := range errs {
		if err != nil {
			refused = append(refused, o.issuer.explain("prove "+proofs[n].authz.IdentifierValue(), err))
		}
	}
	if len(refused) == 0 {
		return nil
	}
	return joinLines(refused)
}

// finalize sends the CSR and downloads the chain.
func (o *order) finalize(ctx context.Context, key crypto.Signer) (chain string, err error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: o.bundle.Names}, key)
	if err != nil {
		return "", err
	}
	location := o.acme.Location
	o.acme.Status = acme.StatusProcessing // if the CA refuses, acmez asks what became of the order (RFC 8555 section 7.4)
	o.acme, err = o.issuer.client.FinalizeOrder(ctx, o.account.Account, o.acme, csr)
	if err != nil {
		return "", o.issuer.explain("finalize the order", err)
	}
	if o.acme.Location == "" {
		o.acme.Location = location
	}
	chains, err := o.issuer.client.GetCertificateChain(context.WithValue(ctx, onlyChainKey{}, true), o.account.Account, o.acme.Certificate)
	if err != nil {
		return "", o.issuer.explain("download the certificate", err)
	}
	if len(chains) == 0 {
		return "", errors.New("the CA issued no certificate")
	}
	o.say(ctx, StepFinalize, "%s", o.acme.Certificate)
	return string(chains[0].ChainPEM), nil
}

// newKey makes a private key.
func newKey(kind config.KeyType) (crypto.Signer, error) {
	switch kind {
	case config.P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case config.RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case config.P256, "":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return nil, fmt.Errorf("key type %q (want p256, p384 or rsa2048)", kind)
	}
}

// checkIssued makes sure that a chain is what was ordered: our key, exactly our
// names, valid, and each certificate signed by the next one.
func checkIssued(names []string, chain, key string, now time.Time) error {
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		return err
	}
	got := make([]string, 0, len(pair.Leaf.DNSNames))
	for _, n := range pair.Leaf.DNSNames {
		got = append(got, strings.ToLower(n))
	}
	slices.Sort(got)
	if !slices.Equal(slices.Compact(got), names) {
		return fmt.Errorf("names %s, ordered %s", abridge(got), abridge(names))
	}
	if !now.Before(pair.Leaf.NotAfter) {
		return fmt.Errorf("it expired on %s", pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	child := pair.Leaf
	for _, der := range pair.Certificate[1:] {
		parent, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		if err := child.CheckSignatureFrom(parent); err != nil {
			return fmt.Errorf("chain is broken at %q: %w", parent.Subject, err)
		}
		child = parent
	}
	return nil
}

// abridge shows the first few names of a list.
func abridge(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
