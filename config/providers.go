package config

import (
	"strings"
)

const defaultCloudflareToken = "env:CLOUDFLARE_API_TOKEN" //nolint:gosec // G101: the name of a variable, not its value

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

