// Package acme speaks to one ACME CA (RFC 8555) step by step, so that whoever
// drives it can write down what it is about to do before it does it, and an heir
// can go on from there:
//
//	ca, err := acme.New(issuer, acme.Options{})
//	account, err := ca.Register(ctx, nil)
//	order, err := ca.NewOrder(ctx, account, acme.Request{Names: []string{"example.com"}})
//	proofs, err := order.Proofs(ctx)
//	// … put proofs[n].Challenges[config.DNS01] into the DNS …
//	err = order.Validate(ctx, proofs, config.DNS01)
//	err = order.Finalize(ctx, csr)
//	chain, err := order.Chain(ctx, nil)
//
// Every error that is not the end of the caller's context is an *Error: one line
// with a hint, of a Kind that says what to do next, with a reason for each name
// that it is about. Every call is bounded: a CA that is silent, endless or not a
// CA at all ends as an *Error too.
//
// What it does not do: it stores nothing, proves nothing itself, counts no quota
// and does not repeat what the CA refuses; acmez, which this package hides,
// repeats rejected nonces and requests that did not get through.
package acme

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"edge/config"

	"github.com/mholt/acmez/v3/acme"
)

// Options are the settings of a CA. The zero value is production.
type Options struct {
	Version    string       // of edge, for the User-Agent; "" is "dev"
	HTTPClient *http.Client // nil is one that gives up, and trusts the issuer's CA file
	Logger     *slog.Logger // nil is slog.Default()
}

// CA is an ACME CA and what edge is known by there. It is made from one
// config.Issuer and safe for concurrent use. It reads the CA's directory when it
// needs it, and again each hour.
type CA struct {
	config    *config.Issuer
	userAgent string
	http      *http.Client
	log       *slog.Logger
	eab       *acme.EAB // nil when the issuer has none

	fetching chan struct{} // held while the directory is fetched

	mu      sync.Mutex
	current *session // nil until the directory was read
}

// maxFile bounds a file of certificates, in bytes.
const maxFile = 1 << 20

// New reads the CA file and the secrets of issuer c, so that changed ones are
// seen by the next CA made. It touches no network.
func New(c *config.Issuer, o Options) (*CA, error) {
	if c.Internal != nil || c.Directory == "" {
		return nil, fmt.Errorf("issuers.%s: not an ACME issuer", c.Name)
	}
	eab, err := readEAB(c)
	if err != nil {
		return nil, err
	}
	client := o.HTTPClient
	if client == nil {
		roots, err := readRoots(c.CA)
		if err != nil {
			return nil, fmt.Errorf("issuers.%s.acme.ca: %w", c.Name, err)
		}
		client = newHTTPClient(roots)
	}
	return &CA{
		config:    c,
		userAgent: "edge/" + cmp.Or(o.Version, "dev"),
		http:      bounded(client),
		log:       cmp.Or(o.Logger, slog.Default()),
		eab:       eab,
		fetching:  make(chan struct{}, 1),
	}, nil
}

// readEAB reads the secrets of external account binding. CAs show the MAC key
// padded or not, in either alphabet; acmez takes one form.
func readEAB(c *config.Issuer) (*acme.EAB, error) {
	if c.EAB == nil {
		return nil, nil //nolint:nilnil // nil is how acmez spells no binding
	}
	id, err := c.EAB.KeyID.Load()
	if err != nil {
		return nil, fmt.Errorf("issuers.%s.acme.eab.key_id: %w", c.Name, err)
	}
	mac, err := c.EAB.HMAC.Load()
	if err != nil {
		return nil, fmt.Errorf("issuers.%s.acme.eab.hmac: %w", c.Name, err)
	}
	mac = strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(strings.TrimSpace(mac))
	if _, err := base64.RawURLEncoding.DecodeString(mac); err != nil || mac == "" { // the cause could quote it
		return nil, fmt.Errorf("issuers.%s.acme.eab.hmac: not base64url (copy the HMAC key as the CA shows it)", c.Name)
	}
	return &acme.EAB{KeyID: strings.TrimSpace(id), MACKey: mac}, nil
}

// readRoots reads a PEM file of certificates; "" is nil, the system's.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // nil is how crypto/tls spells the system's roots
	}
	f, err := os.Open(path) //nolint:gosec // the operator's own configuration names the file
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d KiB", path, maxFile>>10)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("%s holds no certificate (want PEM)", path)
	}
	return roots, nil
}

// Directory is the URL of the CA's directory.
func (c *CA) Directory() string { return c.config.Directory }

// Meta is what a CA says about itself in its directory (RFC 8555 section 7.1.1,
// draft-ietf-acme-profiles section 3, RFC 9773 section 3).
type Meta struct {
	Profiles       map[string]string // name to description; empty when the CA has none
	CAAIdentities  []string          // what a CAA record must name to allow this CA
	EABRequired    bool              // accounts need external account binding
	ARI            bool              // RenewalInfo works
	TermsOfService string            // URL; edge agrees to them when it registers
}

// Meta reads the CA's directory, or remembers it.
func (c *CA) Meta(ctx context.Context) (Meta, error) {
	var meta Meta
	err := c.do(ctx, request{op: "read the directory"}, func(_ context.Context, s *session) error {
		meta = s.meta()
		return nil
	})
	return meta, err
}

// Profile is a kind of certificate that a CA offers (draft-ietf-acme-profiles).
type Profile struct {
	Name     string // "" when the CA has no profiles
	MaxNames int    // that a certificate may hold; 0 is not known
}

// Profile is what orders should ask for: the configured profile, else the one for
// TLS servers, else the CA's usual one, else the first by name, none where the CA
// lists none. It is always the same one: a CA is free to choose another for each
// order that names none.
func (c *CA) Profile(ctx context.Context) (Profile, error) {
	meta, err := c.Meta(ctx)
	if err != nil {
		return Profile{}, err
	}
	name, err := chooseProfile(c.config.Profile, listed(meta))
	if err != nil {
		return Profile{}, &Error{Kind: BadRequest, text: "issuers." + c.config.Name + ".acme.profile: " + err.Error(), cause: err}
	}
	return Profile{Name: name, MaxNames: maxNames(c.config.Directory, name)}, nil
}

func listed(m Meta) []string { return slices.Sorted(maps.Keys(m.Profiles)) }

func chooseProfile(configured string, listed []string) (string, error) {
	switch {
	case configured != "" && len(listed) == 0:
		return "", fmt.Errorf("the CA has no profiles (remove profile %q)", configured)
	case configured != "" && !slices.Contains(listed, configured):
		return "", fmt.Errorf("the CA has no profile %q (profiles: %s)", configured, abridge(listed))
	case configured != "":
		return configured, nil
	}
	for _, usual := range []string{"tlsserver", "default", "classic"} {
		if slices.Contains(listed, usual) {
			return usual, nil
		}
	}
	if len(listed) > 0 {
		return listed[0], nil
	}
	return "", nil
}

// abridge shows the first few names of a list.
func abridge(names []string) string {
	const most = 10
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
