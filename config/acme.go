package config

import (
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// The directories that have a name in routes.yaml.
const (
	letsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	letsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
	googleTrust        = "https://dv.acme-v02.api.pki.goog/directory"
	zeroSSL            = "https://acme.zerossl.com/v2/DV90"
)

// defaultLifetime is how long certificates of a CA of edge's own are valid.
const defaultLifetime = 7 * day

func newIssuer(name string, pos Pos) *Issuer {
	return &Issuer{Name: name, Directory: letsEncrypt, Challenge: DNS01, Pos: pos}
}

// acme reads the short form of one issuer and at most one provider.
func (b *builder) acme(v value) {
	issuer := newIssuer("acme", v.pos())
	kind := ""
	present := v.object(fields{
		"email":     as(&issuer.Email, email),
		"dns":       as(&kind, choice([]string{"cloudflare", "route53", "googleclouddns", "azure"})),
		"challenge": as(&issuer.Challenge, choice([]Challenge{HTTP01, TLSALPN01, DNSPersist01})),
		"directory": as(&issuer.Directory, directory),
		"profile":   as(&issuer.Profile, word),
	})
	v.need(present, "email")
	issuer.staging()
	b.cfg.Issuers[issuer.Name] = issuer
	b.define("issuer", issuer.Name)
	challenge, other := present["challenge"]
	switch {
	case other && present.any("dns"):
		challenge.refuseKey(exclusive("dns", "challenge", "dns: is challenge dns-01 with that provider"))
	case !other && !b.cfg.ServeOnly:
		v.need(present, "dns")
	}
	b.needBinding(v, issuer)
	if kind == "" {
		return
	}
	provider := &Provider{Name: kind, Pos: present["dns"].pos()}
	switch kind {
	case "cloudflare":
		provider.Cloudflare = &Cloudflare{Token: Secret{defaultCloudflareToken}}
	case "route53":
		provider.Route53 = &Route53{}
	case "googleclouddns":
		provider.GoogleCloudDNS = &GoogleCloudDNS{}
	case "azure":
		present["dns"].refuse(azureInLong())
		return
	}
	b.cfg.Providers[kind] = provider
	issuer.Providers = []string{kind}
}

func (b *builder) issuers(v value) {
	v.named("issuer", func(name string, v value) {
		issuer := newIssuer(name, v.pos())
		b.cfg.Issuers[name] = issuer
		present := v.object(fields{
			"acme":      func(v value) { b.acmeIssuer(issuer, v) },
			"internal":  hold,
			"challenge": hold,
		})
		v.oneOf(present, []string{"acme", "internal"})
		internal, own := present["internal"]
		challenge, proves := present["challenge"]
		switch {
		case own:
			*issuer = Issuer{Name: name, Internal: internalCA(internal), Pos: issuer.Pos}
			if proves {
				challenge.refuseKey(exclusive("internal", "challenge", "a CA of edge's own asks for no proof"))
			}
			return
		case proves:
			issuer.challenge(challenge)
		}
		if name == InternalIssuer {
			v.refuseKey(nameTaken(name, "edge's own CA"))
		}
		if present.any("acme") && issuer.Challenge == DNS01 && len(issuer.Providers) == 0 && !b.cfg.ServeOnly {
			v.refuse(noProvider())
		}
	})
}

func (b *builder) acmeIssuer(i *Issuer, v value) {
	v.object(fields{
		"directory":        as(&i.Directory, directory),
		"staging":          as(&i.Staging, directory),
		"email":            as(&i.Email, email),
		"profile":          as(&i.Profile, word),
		"ca":               as(&i.CA, b.path),
		"preferred_chains": list(&i.Chains, commonName),
		"limits":           i.Quotas.read,
		"eab": func(v value) {
			i.EAB = &EAB{}
			v.need(v.object(fields{
				"key_id": as(&i.EAB.KeyID, b.secret),
				"hmac":   as(&i.EAB.HMAC, b.secret),
			}), "key_id", "hmac")
		},
	})
	i.staging()
	b.needBinding(v, i)
}

// staging fills in the test directory of the CAs that take the same account
// there. Google's wants credentials of its own.
func (i *Issuer) staging() {
	if i.Staging == "" && (i.Directory == letsEncrypt || i.Directory == letsEncryptStaging) {
		i.Staging = letsEncryptStaging
	}
}

// needBinding refuses an account without credentials at a CA that is known to
// want them. A replica that orders nothing has no account.
func (b *builder) needBinding(v value, i *Issuer) {
	if i.EAB != nil || b.cfg.ServeOnly {
		return
	}
	switch {
	case directoryBelow(i.Directory, "pki.goog"):
		v.refuse(noBinding("Google", "https://cloud.google.com/certificate-manager/docs/public-ca-tutorial"))
	case directoryBelow(i.Directory, "zerossl.com"):
		v.refuse(noBinding("ZeroSSL", "https://app.zerossl.com/developer"))
	}
}

// read takes what edge allows itself; what is not named is the CA's preset.
func (q *Quotas) read(v value) {
	if v.node.Kind == yaml.ScalarNode && v.node.Value == "off" {
		none := Quota{Off: true}
		*q = Quotas{none, none, none, none}
		return
	}
	v.object(fields{
		"orders":     as(&q.Orders, quota),
		"per_domain": as(&q.Domain, quota),
		"duplicates": as(&q.Duplicates, quota),
		"failed":     as(&q.Failed, quota),
	})
}

func internalCA(v value) *Internal {
	ca := &Internal{Lifetime: defaultLifetime}
	v.object(fields{"lifetime": as(&ca.Lifetime, duration(time.Hour, 90*day))})
	return ca
}

// challenge reads how names are proven. After a type that is none, Challenge is
// empty, so that nothing else is said about it.
func (i *Issuer) challenge(v value) {
	present := v.object(fields{
		"type":          hold,
		"providers":     refs("provider", &i.Providers),
		"resolvers":     list(&i.Resolvers, serverAddress),
		"authoritative": i.Authoritative.read,
	})
	if kind, ok := present["type"]; ok {
		i.Challenge = ""
		as(&i.Challenge, choice([]Challenge{DNS01, DNSPersist01, HTTP01, TLSALPN01}))(kind)
	}
	useless := []string{"authoritative", "providers", "resolvers"}
	switch i.Challenge {
	case DNS01, "":
		return
	case DNSPersist01:
		useless = []string{"providers"}
	case HTTP01, TLSALPN01:
	}
	for _, key := range useless {
		if extra, ok := present[key]; ok {
			extra.refuseKey(notForChallenge(key, string(i.Challenge)))
		}
	}
}

func (a *Authoritative) read(v value) {
	if v.node.Kind != yaml.ScalarNode {
		list(&a.Servers, serverAddress)(v)
		return
	}
	off := ""
	as(&off, choice([]string{"off"}))(v)
	a.Off = off != ""
}

// directory is an ACME directory by its well-known name or URL.
func directory(text string) (string, *refusal) {
	switch text {
	case "letsencrypt":
		return letsEncrypt, nil
	case "letsencrypt-staging":
		return letsEncryptStaging, nil
	case "google":
		return googleTrust, nil
	case "zerossl":
		return zeroSSL, nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil, u.Host == "", u.User != nil, u.Fragment != "",
		u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
		return "", badDirectory()
	}
	return u.String(), nil
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// Public reports whether the issuer is bound by the Baseline Requirements of
// the CA/Browser Forum, which forbid names that exist only inside a network
// (section 7.1.4.2). It knows the CAs that speak ACME; another directory is
// taken for one of the operator's own.
func (i *Issuer) Public() bool {
	return i != nil && directoryBelow(i.Directory,
		"letsencrypt.org", "pki.goog", "zerossl.com", "buypass.com", "ssl.com", "sectigo.com", "digicert.com")
}

// directoryBelow reports whether the host of a directory is one of the domains
// or lies below one.
func directoryBelow(directory string, domains ...string) bool {
	u, err := url.Parse(directory)
	return err == nil && slices.ContainsFunc(domains, func(domain string) bool {
		host := strings.ToLower(u.Hostname())
		return host == domain || strings.HasSuffix(host, "."+domain)
	})
}
