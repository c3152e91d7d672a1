package config

import (
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Let's Encrypt's directories.
const (
	letsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	letsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

const defaultCloudflareToken = "env:CLOUDFLARE_API_TOKEN" //nolint:gosec // G101: the name of a variable, not its value

// acme reads the short form of one issuer and one provider.
func (b *builder) acme(v value) {
	issuer := &Issuer{Name: "acme", Directory: letsEncrypt, Pos: v.pos()}
	kind := ""
	present := v.object(fields{
		"email":     as(&issuer.Email, email),
		"dns":       as(&kind, choice([]string{"cloudflare", "route53"}, "googleclouddns", "azure", "exec")),
		"directory": as(&issuer.Directory, directory),
		"profile":   as(&issuer.Profile, word),
	})
	v.need(present, "email", "dns")
	b.cfg.Issuers[issuer.Name] = issuer
	b.define("issuer", issuer.Name)
	if kind == "" {
		return
	}
	provider := &Provider{Name: kind, Pos: present["dns"].pos()}
	if kind == "cloudflare" {
		provider.Cloudflare = &Cloudflare{Token: Secret{defaultCloudflareToken}}
	} else {
		provider.Route53 = &Route53{}
	}
	b.cfg.Providers[kind] = provider
	issuer.Providers = []string{kind}
}

func (b *builder) providers(v value) {
	v.named("provider", func(name string, v value) {
		p := &Provider{Name: name, Pos: v.pos()}
		b.cfg.Providers[name] = p
		present := v.object(fields{
			"rfc2136":    b.rfc2136(p),
			"route53":    route53(p),
			"cloudflare": b.cloudflare(p),
		}, "googleclouddns", "azure", "exec")
		v.oneOf(present, []string{"cloudflare", "route53", "rfc2136"}, "googleclouddns", "azure", "exec")
	})
}

func (b *builder) rfc2136(p *Provider) take {
	return func(v value) {
		p.RFC2136 = &RFC2136{KeyAlgorithm: "hmac-sha256"}
		v.need(v.object(fields{
			"server":   as(&p.RFC2136.Server, serverAddress),
			"key_name": as(&p.RFC2136.KeyName, keyName),
			"key_algorithm": as(&p.RFC2136.KeyAlgorithm,
				choice([]string{"hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"})),
			"key":   as(&p.RFC2136.Key, b.secret),
			"zones": list(&p.Zones, zone),
		}), "server", "key_name", "key")
	}
}

// keyName is a domain name by its syntax only (RFC 8945 section 4.2).
func keyName(text string) (string, *refusal) {
	text = strings.TrimSuffix(text, ".")
	if !validName(text) {
		return "", badName(text)
	}
	return strings.ToLower(text) + ".", nil
}

func route53(p *Provider) take {
	return func(v value) {
		p.Route53 = &Route53{}
		v.object(fields{
			"region":         as(&p.Route53.Region, word),
			"hosted_zone_id": as(&p.Route53.HostedZoneID, word),
			"zones":          list(&p.Zones, zone),
		})
	}
}

func (b *builder) cloudflare(p *Provider) take {
	return func(v value) {
		p.Cloudflare = &Cloudflare{Token: Secret{defaultCloudflareToken}}
		v.object(fields{
			"token": as(&p.Cloudflare.Token, b.secret),
			"zones": list(&p.Zones, zone),
		})
	}
}

func (b *builder) issuers(v value) {
	v.named("issuer", func(name string, v value) {
		issuer := &Issuer{Name: name, Directory: letsEncrypt, Pos: v.pos()}
		b.cfg.Issuers[name] = issuer
		dns01 := true
		present := v.object(fields{
			"acme": func(v value) {
				v.object(fields{
					"directory": as(&issuer.Directory, directory),
					"email":     as(&issuer.Email, email),
					"profile":   as(&issuer.Profile, word),
					"ca":        as(&issuer.CA, b.path),
				}, "eab")
			},
			"challenge": func(v value) { dns01 = issuer.challenge(v) },
		}, "internal")
		v.oneOf(present, []string{"acme"}, "internal")
		if _, ok := present["acme"]; ok && dns01 && len(issuer.Providers) == 0 {
			v.refuse(noProvider())
		}
	})
}

// challenge reports whether the type is dns-01, the default.
func (i *Issuer) challenge(v value) bool {
	kind := ""
	present := v.object(fields{
		"type":          as(&kind, choice([]string{"dns-01"}, "http-01", "tls-alpn-01", "dns-persist-01")),
		"providers":     refs("provider", &i.Providers),
		"resolvers":     list(&i.Resolvers, serverAddress),
		"authoritative": i.Authoritative.read,
	})
	_, typed := present["type"]
	return kind != "" || !typed
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
	case "google": // wants external account binding
		return "", notYetValue(text)
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

func (b *builder) certificateDefaults(v value) {
	d := &b.cfg.Bundles
	v.object(fields{
		"issuers":   issuerRefs(&d.Issuers),
		"bundle":    as(&d.Packing, choice([]Packing{ByZone, PerName})),
		"max_names": as(&d.MaxNames, count(classicNames)),
		"key_type":  keyType(&d.KeyTypes),
	})
}

func keyType(into *[]KeyType) take {
	return func(v value) {
		if v.node.Kind == yaml.SequenceNode {
			v.refuseKey(notYet())
			return
		}
		var kind KeyType
		as(&kind, choice([]KeyType{P256, P384, RSA2048}))(v)
		*into = []KeyType{kind}
	}
}

func (b *builder) certificates(v value) {
	v.named("certificate", func(name string, v value) {
		c := &Certificate{Name: name, KeyTypes: b.cfg.Bundles.KeyTypes, Pos: v.pos()}
		b.cfg.Certificates[name] = c
		present := v.object(fields{
			"names":    list(&c.Names, host),
			"issuers":  issuerRefs(&c.Issuers),
			"key_type": keyType(&c.KeyTypes),
			"file": func(v value) {
				c.File = &CertificateFile{}
				v.need(v.object(fields{
					"certificate": as(&c.File.Certificate, b.path),
					"private_key": as(&c.File.PrivateKey, b.secretFile),
				}), "certificate", "private_key")
			},
		})
		v.oneOf(present, []string{"names", "file"})
		for _, key := range slices.Sorted(maps.Keys(present)) {
			if c.File != nil && (key == "issuers" || key == "key_type") {
				present[key].refuseKey(exclusive("file", key, "edge does not obtain a certificate that is in a file"))
			}
		}
		if c.File != nil {
			c.KeyTypes = nil
		}
	})
}

// issuerRefs is a list of issuers that has one: the others are for when it fails.
func issuerRefs(into *[]string) take {
	return func(v value) {
		refs("issuer", into)(v)
		if len(*into) > 1 {
			v.refuse(fallbackIssuers())
		}
	}
}
