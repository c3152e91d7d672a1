// Package acmelab is everything that a certificate needs to come into being,
// in one process and on loopback ports: an authoritative DNS server, Let's
// Encrypt's test CA Pebble whose validation asks that server, an S3 server for
// the store, and strict fakes of the APIs of Route 53, Cloudflare, Google Cloud
// DNS and Azure DNS that write into the DNS server.
//
// Each part has a Start function and a Close method and can be used alone. Lab
// bundles DNS, CA and S3, and a Tap is a way into one that numbers requests and
// stops each before and after its effect. In tests the New functions are shorter: they fail the
// test on an error and close the part at its end.
//
// Only tests and the programs in lab import this package.
package acmelab

import "errors"

// Options are the settings of a Lab. The zero value serves the zone
// "example.test" and the bucket "certs" on free ports.
type Options struct {
	DNS DNSOptions
	CA  CAOptions // CA.DNS is filled in
	S3  S3Options
}

// Lab is a CA, the DNS server that its validation asks, and an object store.
type Lab struct {
	DNS *DNS
	CA  *CA
	S3  *S3
}

// Start runs a Lab. The caller must Close it.
func Start(o Options) (*Lab, error) {
	if o.DNS.Zones == nil {
		o.DNS.Zones = []string{"example.test"}
	}
	if o.S3.Buckets == nil {
		o.S3.Buckets = []string{"certs"}
	}
	var lab Lab
	var err error
	if lab.DNS, err = StartDNS(o.DNS); err != nil {
		return nil, err
	}
	o.CA.DNS = lab.DNS.Addr
	if lab.CA, err = StartCA(o.CA); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	if lab.S3, err = StartS3(o.S3); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	return &lab, nil
}

// Close ends every part and waits for it.
func (l *Lab) Close() error {
	var errs []error
	if l.S3 != nil {
		errs = append(errs, l.S3.Close())
	}
	if l.CA != nil {
		errs = append(errs, l.CA.Close())
	}
	if l.DNS != nil {
		errs = append(errs, l.DNS.Close())
	}
	return errors.Join(errs...)
}
