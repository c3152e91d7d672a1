package config

import (
	"crypto/tls"
	"maps"
	"net"
	"net/netip"
	"slices"
)

// maxListeners bounds what is checked and held for each route on each listener.
const maxListeners = 64

// defaultListeners is what routes.yaml without listeners means.
func defaultListeners() map[string]*Listener {
	https := newListener("https")
	https.Address = ":443"
	return map[string]*Listener{
		"https": https,
		"http":  {Name: "http", Address: ":80", Protocols: []Protocol{H1}, Redirect: true},
	}
}

func newListener(name string) *Listener {
	return &Listener{Name: name, Protocols: []Protocol{H1, H2}, TLS: TLS{MinVersion: DefaultMinVersion}}
}

func (b *builder) listeners(v value) {
	v.named("listener", func(name string, v value) {
		if len(b.cfg.Listeners) == maxListeners {
			v.refuseKey(tooMany(maxListeners, "listeners"))
			return
		}
		l := newListener(name)
		b.cfg.Listeners[name] = l
		redirect := ""
		present := v.object(fields{
			"address":   as(&l.Address, listenAddress),
			"protocols": list(&l.Protocols, choice([]Protocol{H1, H2}, "h3")),
			"tls":       l.tls,
			"redirect":  as(&redirect, choice([]string{"https"})),
			"forwarded": func(v value) {
				v.object(fields{"trusted": list(&l.Trusted, prefix)})
			},
		}, "proxy_protocol")
		v.need(present, "address")
		if _, l.Redirect = present["redirect"]; l.Redirect {
			l.Protocols, l.TLS, l.DefaultCertificate = []Protocol{H1}, TLS{}, ""
			for _, key := range []string{"protocols", "tls"} {
				if extra, ok := present[key]; ok {
					extra.refuseKey(notForRedirect(key))
				}
			}
		}
	})
}

func (l *Listener) tls(v value) {
	v.object(fields{
		"min_version":         tlsVersion(&l.TLS.MinVersion),
		"default_certificate": ref("certificate", &l.DefaultCertificate),
	})
}

func tlsVersion(into *uint16) take {
	return as(into, func(text string) (uint16, *refusal) {
		chosen, r := choice([]string{"1.2", "1.3"})(text)
		switch {
		case r != nil:
			return 0, r
		case chosen == "1.2":
			return tls.VersionTLS12, nil
		default:
			return tls.VersionTLS13, nil
		}
	})
}

// tlsListeners returns the names of the listeners that serve routes.
func (b *builder) tlsListeners() []string {
	names := slices.Sorted(maps.Keys(b.cfg.Listeners))
	return slices.DeleteFunc(names, func(name string) bool { return b.cfg.Listeners[name].Redirect })
}

// checkListeners looks at all listeners together.
func (b *builder) checkListeners() {
	if len(b.tlsListeners()) == 0 {
		b.refuse("listeners", noTLSListener())
	}
	taken := map[string]string{}
	for _, name := range b.inFileOrder("listeners", slices.Collect(maps.Keys(b.cfg.Listeners))) {
		address := b.cfg.Listeners[name].Address
		key := bindKey(address)
		if key == "" {
			continue
		}
		if other, ok := taken[key]; ok {
			b.refuse("listeners."+name+".address", sameAddress(address, other))
			continue
		}
		taken[key] = name
	}
	address := b.cfg.Telemetry.Address
	if other, ok := taken[bindKey(address)]; ok {
		b.refuse("telemetry.address", sameAddress(address, other))
	}
}

// bindKey is equal for addresses that cannot be bound both. Port 0 never
// clashes, and neither does an address that was refused.
func bindKey(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "0" {
		return ""
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		host = addr.Unmap().String()
		if addr.IsUnspecified() {
			host = ""
		}
	}
	return net.JoinHostPort(host, port)
}
