package tlsmgr

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"edge/config"
	"edge/tlsmgr/acme"
	"edge/tlsmgr/dns"
	"edge/tlsmgr/vault"
)

// order is one certificate on its way. Each step is written into the journal
// before it is done, so that another replica can go on from there.
type order struct {
	m       *Manager
	vault   *vault.Vault
	issuer  *issuer
	id      string // of the bundle
	journal *journal
	account *account
	acme    *acme.Order
	mine    []dns.Record // challenge records that this process has presented and removed
	left    bool         // challenge records could not be removed
}

// errAbandoned is an order in the journal that cannot be finished any more.
var errAbandoned = errors.New("the order cannot be resumed")

// attempt is what the journal has about the order.
func (o *order) attempt() *vault.Attempt { return o.journal.record.Attempt }

func (o *order) say(ctx context.Context, step Step, format string, args ...any) {
	o.m.emit(ctx, o.id, step, fmt.Sprintf(format, args...))
}

// begin writes down what is to be ordered: with the key and the request, so
// that whoever goes on after a death finishes this certificate and no other.
func (o *order) begin(ctx context.Context, b *Bundle, names []string, replaces string) error {
	profile, err := o.issuer.ca.Profile(ctx)
	if err != nil {
		return err
	}
	if profile.MaxNames > 0 && len(names) > profile.MaxNames {
		return fmt.Errorf("%d names; profile %q of %s allows %d in one certificate (set certificate_defaults.max_names, or split the certificate)",
			len(names), profile.Name, o.issuer.config.Name, profile.MaxNames)
	}
	key, err := acme.NewKey(b.KeyType)
	if err != nil {
		return err
	}
	csr, err := acme.NewCSR(names, key)
	if err != nil {
		return err
	}
	keyPEM, err := acme.EncodeKey(key)
	if err != nil {
		return err
	}
	o.journal.record.Attempt = &vault.Attempt{
		Names: names, Issuer: o.issuer.config.Name, Directory: o.issuer.config.Directory, Profile: profile.Name, Replaces: replaces,
		KeyType: b.KeyType, Challenge: challengeOf(o.issuer.config), PrivateKey: keyPEM, CSR: csr, StartedAt: time.Now().UTC(),
	}
	return o.m.save(ctx, o.vault, o.journal)
}

// obtain brings the order in the journal to its end and returns the certificate
// ready to be stored. All names are proven at once and waited for once.
func (o *order) obtain(ctx context.Context) (*vault.Certificate, error) {
	var err error
	if o.account, err = o.m.account(ctx, o.vault, o.issuer); err != nil {
		return nil, err
	}
	o.say(ctx, StepAccount, "%s", o.account.URL)
	if o.attempt().URL != "" {
		err = o.resume(ctx)
	} else {
		err = o.place(ctx)
	}
	if err != nil {
		return nil, err
	}
	if o.acme.Status == "pending" {
		if err := o.authorize(ctx); err != nil {
			return nil, err
		}
	}
	o.sweep(ctx)
	return o.finish(ctx)
}

// resume fetches the order that another attempt placed.
func (o *order) resume(ctx context.Context) (err error) {
	a := o.attempt()
	if a.Account != o.account.URL {
		return fmt.Errorf("%w: it belongs to another account", errAbandoned)
	}
	o.acme, err = o.issuer.ca.GetOrder(ctx, o.account.Account, a.URL)
	if e, ok := errors.AsType[*acme.Error](err); ok && e.Kind != acme.Unreachable && e.Kind != acme.ServerError && e.Kind != acme.RateLimited {
		return fmt.Errorf("%w: %s", errAbandoned, oneLine(err.Error()))
	}
	if err != nil {
		return err
	}
	if o.acme.Status == "invalid" {
		return fmt.Errorf("%w: it is invalid", errAbandoned)
	}
	o.say(ctx, StepOrder, "resumed, %s: %s", o.acme.Status, abridge(a.Names))
	return nil
}

// place sends newOrder, twice if the account is lost. The budget that replicas
// share at the CA is charged before.
func (o *order) place(ctx context.Context) (err error) {
	a := o.attempt()
	if err := o.foresee(ctx); err != nil {
		return err
	}
	// The budget saves refusals. It is not worth an expired certificate.
	if err := o.m.afford(ctx, o.vault, o.issuer, a, a.Replaces != "" || o.m.lastHours(o.id, time.Now())); err != nil {
		return err
	}
	defer func() {
		if err != nil && a.URL == "" {
			o.m.refund(context.WithoutCancel(ctx), o.vault, a)
		}
	}()
	request := acme.Request{Names: a.Names, Profile: a.Profile, Replaces: a.Replaces}
	o.acme, err = o.issuer.ca.NewOrder(ctx, o.account.Account, request)
	if e, ok := errors.AsType[*acme.Error](err); ok && e.Kind == acme.AccountLost {
		o.m.log.LogAttrs(ctx, slog.LevelWarn, "the CA does not know the account any more, registering a new one",
			slog.String("issuer", o.issuer.config.Name), slog.String("account", o.account.URL))
		if o.account, err = o.m.register(ctx, o.vault, o.issuer, o.account.version); err != nil {
			return err
		}
		o.say(ctx, StepAccount, "%s replaces a lost one", o.account.URL)
		o.acme, err = o.issuer.ca.NewOrder(ctx, o.account.Account, request)
	}
	if e, ok := errors.AsType[*acme.Error](err); ok && e.Kind == acme.BadRequest {
		return fmt.Errorf("%w; the account is %s in the storage", err, vault.Accounts.Key(accountID(o.issuer.config)))
	}
	if err != nil {
		return err
	}
	a.URL, a.Account = o.acme.URL, o.account.URL
	if err := o.m.save(ctx, o.vault, o.journal); err != nil {
		return err
	}
	o.say(ctx, StepOrder, "%d names: %s", len(a.Names), abridge(a.Names))
	return nil
}

// foresee refuses an order that cannot be proven, where that shows without one:
// the records of dns-persist-01 come by a person's hand.
func (o *order) foresee(ctx context.Context) error {
	if o.attempt().Challenge != config.DNSPersist01 {
		return nil
	}
	meta, err := o.issuer.ca.Meta(ctx)
	if err != nil || len(meta.CAAIdentities) == 0 {
		return err // the challenges will say what the CA calls itself
	}
	want := dns.Persist{Names: o.attempt().Names, Issuers: meta.CAAIdentities, AccountURI: o.account.URL}
	return o.issuer.solver.CheckPersist(ctx, want)
}

// authorize proves control of every name that the CA has not seen proof of.
func (o *order) authorize(ctx context.Context) error {
	proofs, err := o.acme.Proofs(ctx)
	if err != nil {
		return err
	}
	o.say(ctx, StepAuthorization, "%d of %d names to prove", len(proofs), len(o.attempt().Names))
	if len(proofs) == 0 {
		return nil
	}
	kind := o.attempt().Challenge
	for _, p := range proofs {
		if _, offered := p.Challenges[kind]; !offered {
			return fmt.Errorf("the CA offers no %s challenge for %s (use another issuer, or another challenge type)", kind, p.Name)
		}
	}
	withdraw, err := o.present(ctx, kind, proofs)
	if err != nil {
		return err
	}
	defer withdraw()
	if err := o.acme.Validate(ctx, proofs, kind); err != nil {
		o.m.spoiled(ctx, o.vault, o.issuer, refusedNames(err, nil))
		return err
	}
	o.say(ctx, StepValidate, "%d names proven", len(proofs))
	return nil
}

// finish sends the CSR of the journal and downloads the chain.
func (o *order) finish(ctx context.Context) (*vault.Certificate, error) {
	a := o.attempt()
	if err := o.acme.Finalize(ctx, a.CSR); err != nil {
		return nil, err
	}
	chain, err := o.acme.Chain(ctx, o.issuer.config.Chains)
	if err != nil {
		return nil, err
	}
	o.say(ctx, StepFinalize, "%s", a.URL)
	if err := acme.CheckIssued(a.Names, chain, a.PrivateKey, time.Now()); err != nil {
		return nil, fmt.Errorf("the CA issued something else: %w (report it to the CA)", err)
	}
	return &vault.Certificate{
		Format: vault.Format, ID: o.id, Names: a.Names, Issuer: a.Issuer, Directory: a.Directory, Profile: a.Profile, KeyType: a.KeyType,
		Chain: chain, PrivateKey: a.PrivateKey, OrderURL: a.URL, ObtainedAt: time.Now().UTC(), Owner: o.m.options.Owner,
	}, nil
}

// abridge shows the first few names of a list.
func abridge(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// issue makes a certificate of edge's own CA.
func (m *Manager) issue(ctx context.Context, v *vault.Vault, i *issuer, b *Bundle) (*vault.Certificate, error) {
	authority, err := m.authority(ctx, v, i.config)
	if err != nil {
		return nil, err
	}
	key, err := acme.NewKey(b.KeyType)
	if err != nil {
		return nil, err
	}
	chain, err := authority.Issue(b.Names, key, lifetimeOf(i.config), time.Now())
	if err != nil {
		return nil, err
	}
	keyPEM, err := acme.EncodeKey(key)
	if err != nil {
		return nil, err
	}
	m.emit(ctx, b.ID, StepFinalize, "signed by "+i.config.Name)
	return &vault.Certificate{
		Format: vault.Format, ID: b.ID, Names: b.Names, Issuer: i.config.Name, Directory: directoryOf(i.config), KeyType: b.KeyType,
		Chain: chain, PrivateKey: keyPEM, ObtainedAt: time.Now().UTC(), Owner: m.options.Owner,
	}, nil
}

func lifetimeOf(i *config.Issuer) time.Duration { return i.Internal.Lifetime }
