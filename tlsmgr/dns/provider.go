package dns

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"edge/config"

	"github.com/libdns/libdns"
	"github.com/libdns/rfc2136"
	miekg "github.com/miekg/dns"
)

// backend adds and removes single records. Adding what is there and deleting
// what is not there succeed: an heir of an order presents it again.
type backend interface {
	libdns.RecordAppender
	libdns.RecordDeleter
}

// provider is one entry of config.Config.Providers, ready for use.
type provider struct {
	name    string
	kind    string
	zones   []string // canonical, with final dot; empty means any
	backend backend
	explain func(error) refusal
	unseen  string   // advice when records that were added do not show; "" when there is none
	secrets []string // never shown, whatever a library puts into its errors

	perRecord time.Duration // that a call may take longer for each record
}

// describe names the provider and its zones in messages.
func (p *provider) describe() string {
	if len(p.zones) == 0 {
		return fmt.Sprintf("%s for any zone", p.name)
	}
	zones := make([]string, 0, len(p.zones))
	for _, z := range p.zones {
		zones = append(zones, bare(z))
	}
	return fmt.Sprintf("%s for %s", p.name, strings.Join(zones, " "))
}

// newProvider loads the secrets of c. The Logger of o must be set.
func newProvider(c *config.Provider, o Options) (*provider, error) {
	p := &provider{name: c.Name}
	for _, z := range c.Zones {
		p.zones = append(p.zones, miekg.CanonicalName(z))
	}
	var err error
	pc := newPace(limitOf(c))
	switch {
	case c.RFC2136 != nil:
		err = p.useRFC2136(c.RFC2136, pc)
	case c.Route53 != nil:
		err = p.useRoute53(c.Route53, o, pc)
	case c.Cloudflare != nil:
		err = p.useCloudflare(c.Cloudflare, o.HTTPClient, pc)
	case c.GoogleCloudDNS != nil:
		err = p.useGoogle(c.GoogleCloudDNS, o.HTTPClient, pc)
	case c.Azure != nil:
		err = p.useAzure(c.Azure, o.HTTPClient, pc)
	case c.Exec != nil:
		err = p.useExec(c.Exec, o.Lease, pc)
	default:
		err = errors.New("no kind (write one of rfc2136, route53, cloudflare, googleclouddns, azure, exec)")
	}
	if err != nil {
		return nil, fmt.Errorf("DNS provider %s: %w", c.Name, err)
	}
	return p, nil
}

// useRFC2136 prepares TSIG-signed dynamic updates (RFC 2136, RFC 8945).
func (p *provider) useRFC2136(c *config.RFC2136, pc *pace) error {
	algorithms := []string{miekg.HmacSHA1, miekg.HmacSHA224, miekg.HmacSHA256, miekg.HmacSHA384, miekg.HmacSHA512}
	algorithm := miekg.CanonicalName(c.KeyAlgorithm)
	if c.KeyAlgorithm == "" {
		algorithm = miekg.HmacSHA256
	}
	key, err := c.Key.Load()
	if err != nil {
		return fmt.Errorf("rfc2136 key: %w", err)
	}
	key = strings.TrimSpace(key)
	raw, err := base64.StdEncoding.DecodeString(key)
	switch {
	case err != nil || len(raw) == 0: // the decoder's message shows a piece of the input
		return errors.New("rfc2136 key is not base64 (it is the secret that tsig-keygen prints, without quotes)")
	case c.KeyName == "":
		return errors.New("rfc2136 key_name is empty (it is the name after the word key in what tsig-keygen prints)")
	case !slices.Contains(algorithms, algorithm):
		return fmt.Errorf("rfc2136 key_algorithm %q is not known (known: hmac-sha1, hmac-sha224, hmac-sha256, hmac-sha384, hmac-sha512)", c.KeyAlgorithm)
	case c.Server == "":
		return errors.New("rfc2136 server is empty (host:port of the primary name server)")
	}
	// The server answers with the key's name in canonical form, and the library
	// finds the secret by the very string.
	name, server := miekg.CanonicalName(c.KeyName), withPorts([]string{c.Server})[0]
	p.kind = "rfc2136"
	p.secrets = []string{key, string(raw)}
	p.backend = updater{&rfc2136.Provider{KeyName: name, KeyAlg: algorithm, Key: key, Server: server}, pc}
	p.explain = func(err error) refusal { return explainUpdate(err, name, server) }
	return nil
}

// updateTries bounds how often an update is sent. The library waits 2 s for an
// answer, which a busy server that signs its zone may need; adding or deleting a
// record twice is the same as once.
const updateTries = 3

type updater struct {
	*rfc2136.Provider
	pace *pace
}

// AppendRecords adds all records by one update message.
func (u updater) AppendRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return u.retry(ctx, zone, records, u.Provider.AppendRecords)
}

// DeleteRecords deletes all records by one update message.
func (u updater) DeleteRecords(ctx context.Context, zone string, records []libdns.Record) ([]libdns.Record, error) {
	return u.retry(ctx, zone, records, u.Provider.DeleteRecords)
}

func (u updater) retry(ctx context.Context, zone string, records []libdns.Record,
	do func(context.Context, string, []libdns.Record) ([]libdns.Record, error),
) (out []libdns.Record, err error) {
	for range updateTries {
		if err := u.pace.wait(ctx, 1); err != nil {
			return nil, err
		}
		out, err = do(ctx, zone, records)
		if err == nil || !isTimeout(err) || ctx.Err() != nil {
			return out, err
		}
	}
	return out, err
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
