package config

import (
	"slices"
	"time"

	"go.yaml.in/yaml/v4"
)

// Defaults that have no better home; the annotated routes.yaml repeats them.
const (
	// DefaultSocket is where the control socket is when routes.yaml is silent.
	DefaultSocket = "/run/edge/control.sock"

	defaultStorage  = "file:///var/lib/edge"
	defaultMaxNames = 25 // what Let's Encrypt signs with its default profiles

	// maxSocket is the portable length of sun_path without its final zero (unix(7)).
	maxSocket = 103
)

// defaults is the configuration that an empty file would mean, without what
// depends on the file: listeners and issuers.
func defaults(path string) *Config {
	return &Config{
		Path:         path,
		Listeners:    map[string]*Listener{},
		Storage:      Storage{URL: defaultStorage},
		Providers:    map[string]*Provider{},
		Issuers:      map[string]*Issuer{},
		Certificates: map[string]*Certificate{},
		Bundles:      Bundles{Packing: ByZone, MaxNames: defaultMaxNames, KeyTypes: []KeyType{P256}},
		Pools:        map[string]*Pool{},
		Control:      Control{Socket: DefaultSocket},
		Log:          Log{Format: "text", Access: true},
		Drain:        Drain{Timeout: time.Minute},
	}
}

// builder fills a Config section by section.
type builder struct {
	*decoder
	cfg      *Config
	policies map[string]TLS
	used     []policyUse // which routes list which policies

	// What pools and routes start from.
	connect  time.Duration
	timeouts Timeouts
	limits   Limits
}

// config reads the whole document.
func (d *decoder) config(root *yaml.Node) *Config {
	b := &builder{
		decoder:  d,
		cfg:      defaults(d.file),
		policies: map[string]TLS{},
		connect:  5 * time.Second,
		timeouts: Timeouts{FirstByte: 10 * time.Minute, StreamIdle: 2 * time.Minute, BodyIdle: time.Minute},
		limits:   Limits{Body: 64 * mib, Headers: 32 * kib},
	}
	d.clean(root)
	v := d.value(root, nil, "")

	// Sections are read in this order, not in the order of the file: those
	// that hold defaults come before those that start from them.
	sections := []struct {
		key  string
		take take
	}{
		{"listeners", b.listeners},
		{"storage", b.storage},
		{"certificates_role", b.role},
		{"acme", b.acme},
		{"providers", b.providers},
		{"issuers", b.issuers},
		{"certificate_defaults", b.certificateDefaults},
		{"certificates", b.certificates},
		{"defaults", b.defaults},
		{"pools", b.pools},
		{"policies", b.readPolicies},
		{"routes", b.routes},
		{"control", b.control},
		{"telemetry", b.telemetry},
		{"observability", b.observability},
		{"drain", b.drain},
	}
	if !b.version(v) {
		return b.cfg
	}
	known := fields{"version": hold}
	for _, s := range sections {
		known[s.key] = hold
	}
	present := v.object(known, "include")
	if present == nil {
		return b.cfg
	}
	for _, s := range sections {
		if section, ok := present[s.key]; ok {
			s.take(section)
		}
	}
	b.complete(v, present)
	b.resolve()
	b.check()
	return b.cfg
}

// version reports whether the rest of the file can be understood. It looks
// before anything else, because another version has other keys.
func (b *builder) version(root value) bool {
	for pair := range slices.Chunk(root.node.Content, 2) {
		if root.node.Kind != yaml.MappingNode || pair[0].Value != "version" {
			continue
		}
		v := b.value(pair[1], pair[0], "version")
		text, ok := v.text()
		if ok && text != "1" {
			v.refuse(badVersion(text))
		}
		return !ok || text == "1"
	}
	return true
}

// complete fills in what the absence of a section means.
func (b *builder) complete(root value, present keys) {
	root.need(present, "version", "routes")
	if len(b.names["listener"]) == 0 {
		b.cfg.Listeners = defaultListeners()
		for name := range b.cfg.Listeners {
			b.define("listener", name)
		}
	}
	all := b.tlsListeners()
	for _, r := range b.cfg.Routes {
		if len(r.Listeners) == 0 {
			r.Listeners = all
		}
	}
	if acme, ok := present["acme"]; ok {
		for _, key := range []string{"issuers", "providers"} {
			if _, both := present[key]; both {
				acme.refuseKey(exclusive("acme", key, "acme: is the short form of one issuer and one provider; write out both under issuers: and providers:"))
			}
		}
	}
}

func (b *builder) role(v value) {
	role := ""
	as(&role, choice([]string{"issue", "serve"}))(v)
	b.cfg.ServeOnly = role == "serve"
}

func (b *builder) defaults(v value) {
	v.object(fields{
		"timeouts": func(v value) {
			known := timeoutFields(&b.timeouts)
			known["connect"] = as(&b.connect, duration(time.Millisecond, 10*time.Minute))
			v.object(known)
		},
		"limits": func(v value) {
			v.object(fields{
				"body":    as(&b.limits.Body, sizeOrOff(1, 1024*gib)),
				"headers": as(&b.limits.Headers, size(4*kib, mib)),
			})
		},
	})
}

func timeoutFields(t *Timeouts) fields {
	wait := func(d *time.Duration) take { return as(d, durationOrOff(time.Millisecond, forever)) }
	return fields{
		"first_byte":  wait(&t.FirstByte),
		"stream_idle": wait(&t.StreamIdle),
		"body_idle":   wait(&t.BodyIdle),
		"request": func(v value) {
			wait(&t.Request)(v)
			if t.Request > 0 {
				v.d.warn(v.path, cutsStreams())
			}
		},
	}
}

func (b *builder) control(v value) {
	v.object(fields{"socket": as(&b.cfg.Control.Socket, func(text string) (string, *refusal) {
		path, _ := b.path(text)
		if path == "" || len(path) > maxSocket {
			return "", badSocket(maxSocket)
		}
		return path, nil
	})})
}

func (b *builder) telemetry(v value) {
	v.need(v.object(fields{"address": as(&b.cfg.Telemetry.Address, listenAddress)}, "status_page"), "address")
}

func (b *builder) observability(v value) {
	v.object(fields{
		"webhook": as(&b.cfg.Webhook, b.secret),
		"log": func(v value) {
			v.object(fields{
				"format": as(&b.cfg.Log.Format, choice([]string{"text", "json"})),
				"access": as(&b.cfg.Log.Access, boolean),
			})
		},
	}, "traces")
}

func (b *builder) drain(v value) {
	v.object(fields{
		"delay":   as(&b.cfg.Drain.Delay, duration(0, day)),
		"timeout": as(&b.cfg.Drain.Timeout, duration(0, day)),
	})
}
