package transfer

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"edge/tlsmgr/store"

	"github.com/caddyserver/certmagic"
	"golang.org/x/sync/errgroup"
)

// Bounds of an import. An object has at most store.MaxObject bytes.
const (
	maxFound  = 100_000 // certificates in a source
	maxReads  = 16      // at once
	maxStreak = 32      // reads that fail one after the other, then the source is down
)

// A found is a certificate in certmagic's layout:
// certificates/ISSUER/NAME/NAME.crt with NAME.key and NAME.json beside it.
type found struct {
	source    string // key of the .crt
	issuer    string // certmagic's key of the issuer
	directory string // of the CA that issued it; "" when nothing tells
	pair      *pair
	err       error // why there is no pair
}

// find reads all certificates of a source, in order of their keys. Each that
// cannot be used has an error; the error of find is about the source.
func find(ctx context.Context, from *store.Store) ([]*found, error) {
	all, err := list(ctx, from)
	if err != nil {
		return nil, err
	}
	var (
		g      errgroup.Group
		mu     sync.Mutex
		streak int
	)
	g.SetLimit(maxReads)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for _, f := range all {
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			down := f.read(ctx, from)
			mu.Lock()
			defer mu.Unlock()
			if streak++; !down {
				streak = 0
			}
			if streak >= maxStreak {
				stop(fmt.Errorf("read %s: gave up, it seems to be down: %w", from.URL(), f.err))
			}
			return nil
		})
	}
	_ = g.Wait()
	return all, context.Cause(ctx)
}

// list finds where certificates are: below certificates/, or, when there is no
// such directory, wherever it looks like certmagic's layout. So the bucket, its
// prefix and Caddy's certificates directory itself all will do.
func list(ctx context.Context, from *store.Store) ([]*found, error) {
	dir := path.Dir(certmagic.StorageKeys.CertsPrefix("issuer"))
	objects, err := from.ListVersions(ctx, dir)
	if err == nil && len(objects) == 0 {
		objects, err = from.ListVersions(ctx, "")
	}
	if err != nil {
		return nil, err
	}
	var all []*found
	for _, o := range objects {
		site, name := path.Split(o.Key)
		name, ok := strings.CutSuffix(name, ".crt")
		if site = path.Clean(site); !ok || path.Base(site) != name || path.Dir(site) == "." {
			continue
		}
		if all = append(all, &found{source: o.Key, issuer: path.Base(path.Dir(site))}); len(all) > maxFound {
			return nil, fmt.Errorf("more than %d certificates in %s (import them in parts, by prefix)", maxFound, from.URL())
		}
	}
	slices.SortFunc(all, func(a, b *found) int { return cmp.Compare(a.source, b.source) })
	return all, nil
}

// read fills in f and reports whether the source did not answer.
func (f *found) read(ctx context.Context, from *store.Store) (down bool) {
	base := strings.TrimSuffix(f.source, ".crt")
	chain, err := from.Load(ctx, f.source)
	if err != nil {
		return f.fail(err)
	}
	key, err := from.Load(ctx, base+".key")
	if err != nil {
		return f.fail(err)
	}
	if f.pair, f.err = parse(chain, key); f.err != nil {
		return false
	}
	meta, err := from.Load(ctx, base+".json")
	switch {
	case errors.Is(err, fs.ErrNotExist): // tells nothing that the certificate needs
		return false
	case err != nil:
		return f.fail(err)
	}
	var m metadata
	if json.Unmarshal(meta, &m) == nil && m.IssuerData != nil {
		f.directory = m.IssuerData.CA
	}
	return false
}

func (f *found) fail(err error) (down bool) {
	f.pair, f.err = nil, err
	return !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, store.ErrTooLarge) && !errors.Is(err, store.ErrInvalidKey)
}

// metadata is the part of certmagic.CertificateResource that is JSON, with the
// part of acmez's acme.Certificate that certmagic's ACME issuer keeps in it.
type metadata struct {
	SANs       []string    `json:"sans,omitempty"`
	IssuerData *issuerData `json:"issuer_data,omitempty"`
}

type issuerData struct {
	URL string `json:"url"`
	CA  string `json:"ca,omitempty"`
}

// issuerKey is how certmagic calls the CA with this directory.
func issuerKey(directory string) string {
	return (&certmagic.ACMEIssuer{CA: directory}).IssuerKey()
}
