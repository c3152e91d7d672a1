package config

import (
	"path/filepath"
	"strings"
	"time"
	"unicode"
)

const (
	defaultCloudflareToken = "env:CLOUDFLARE_API_TOKEN" //nolint:gosec // G101: the name of a variable, not its value
	defaultExecTimeout     = 2 * time.Minute
)

func (b *builder) providers(v value) {
	v.named("provider", func(name string, v value) {
		p := &Provider{Name: name, Pos: v.pos()}
		b.cfg.Providers[name] = p
		present := v.object(fields{
			"rfc2136":        b.rfc2136(p),
			"route53":        route53(p),
			"cloudflare":     b.cloudflare(p),
			"googleclouddns": b.googleCloudDNS(p),
			"azure":          b.azure(p),
			"exec":           execDNS(p),
		})
		v.oneOf(present, []string{"cloudflare", "route53", "rfc2136", "googleclouddns", "azure", "exec"})
	})
}

// object reads the keys of a kind of provider and those that all kinds have.
func (p *Provider) object(v value, known fields) keys {
	known["zones"] = list(&p.Zones, zone)
	known["rate"] = as(&p.Rate, rate)
	return v.object(known)
}

func (b *builder) rfc2136(p *Provider) take {
	return func(v value) {
		p.RFC2136 = &RFC2136{KeyAlgorithm: "hmac-sha256"}
		v.need(p.object(v, fields{
			"server":   as(&p.RFC2136.Server, serverAddress),
			"key_name": as(&p.RFC2136.KeyName, keyName),
			"key_algorithm": as(&p.RFC2136.KeyAlgorithm,
				choice([]string{"hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"})),
			"key": as(&p.RFC2136.Key, b.secret),
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
		p.object(v, fields{
			"region":         as(&p.Route53.Region, word),
			"hosted_zone_id": as(&p.Route53.HostedZoneID, word),
		})
	}
}

func (b *builder) cloudflare(p *Provider) take {
	return func(v value) {
		p.Cloudflare = &Cloudflare{Token: Secret{defaultCloudflareToken}}
		p.object(v, fields{"token": as(&p.Cloudflare.Token, b.secret)})
	}
}

func (b *builder) googleCloudDNS(p *Provider) take {
	return func(v value) {
		p.GoogleCloudDNS = &GoogleCloudDNS{}
		p.object(v, fields{
			"project":     as(&p.GoogleCloudDNS.Project, project),
			"credentials": as(&p.GoogleCloudDNS.Credentials, b.secret),
		})
	}
}

// project is the ID of a project of Google Cloud; old ones have a domain in
// front, as in example.com:edge.
func project(text string) (string, *refusal) {
	domain, id, scoped := strings.Cut(text, ":")
	if !scoped {
		domain, id = "none", text
	}
	if !validName(domain) || !validName(id) {
		return "", badProject(text)
	}
	return text, nil
}

func (b *builder) azure(p *Provider) take {
	return func(v value) {
		a := &AzureDNS{}
		p.Azure = a
		present := p.object(v, fields{
			"subscription_id": as(&a.SubscriptionID, word),
			"resource_group":  as(&a.ResourceGroup, resourceGroup),
			"tenant_id":       as(&a.TenantID, word),
			"client_id":       as(&a.ClientID, word),
			"client_secret":   as(&a.ClientSecret, b.secret),
		})
		v.need(present, "subscription_id", "resource_group")
		for _, key := range []string{"tenant_id", "client_id"} {
			if present.any("client_secret") && !present.any(key) {
				present["client_secret"].refuseKey(secretAlone(key))
			}
		}
	}
}

// resourceGroup follows Azure's naming rules
// (https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules).
func resourceGroup(text string) (string, *refusal) {
	strange := func(r rune) bool { return !unicode.In(r, unicode.L, unicode.Nd) && !strings.ContainsRune("_-.()", r) }
	if text == "" || len([]rune(text)) > 90 || strings.HasSuffix(text, ".") || strings.ContainsFunc(text, strange) {
		return "", badResourceGroup(text)
	}
	return text, nil
}

func execDNS(p *Provider) take {
	return func(v value) {
		e := &ExecDNS{Timeout: defaultExecTimeout}
		p.Exec = e
		v.need(p.object(v, fields{
			"command": e.command,
			"timeout": as(&e.Timeout, duration(time.Second, 10*time.Minute)),
		}), "command")
	}
}

// command is a program and its arguments, which may be alike.
func (e *ExecDNS) command(v value) {
	items := v.items()
	e.Command = make([]string, len(items))
	for i, item := range items {
		as(&e.Command[i], anything)(item)
	}
	if len(items) > 0 && !filepath.IsAbs(e.Command[0]) {
		items[0].refuse(badCommand())
	}
}
