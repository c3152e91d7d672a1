package config

import (
	"maps"
	"slices"
)

func (b *builder) certificateDefaults(v value) {
	d := &b.cfg.Bundles
	v.object(fields{
		"issuers":   refs("issuer", &d.Issuers),
		"bundle":    as(&d.Packing, choice([]Packing{ByZone, PerName})),
		"max_names": as(&d.MaxNames, count(classicNames)),
		"key_type":  keyType(&d.KeyTypes),
	})
}

// keyType is a kind of key, or several when each client is to have the one that
// it understands best.
func keyType(into *[]KeyType) take {
	return oneOrMore(into, choice([]KeyType{P256, P384, RSA2048}))
}

func (b *builder) certificates(v value) {
	v.named("certificate", func(name string, v value) {
		c := &Certificate{Name: name, KeyTypes: b.cfg.Bundles.KeyTypes, Pos: v.pos()}
		b.cfg.Certificates[name] = c
		present := v.object(fields{
			"names":    list(&c.Names, host),
			"issuers":  refs("issuer", &c.Issuers),
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
