package transfer

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// maxSwaps bounds how often a write is repeated because somebody was faster.
const maxSwaps = 8

// Import copies certificates from certmagic's layout into v: those that serve a
// name that is wanted, or all. Of several for the same names and of the same key
// type the newest is taken.
//
// One that has all names of a wanted certificate, and its key type, gets its id,
// so that edge has nothing to order; if it serves for several, it is stored for
// each. One that has only some of the names gets an id of its own and is served
// until edge has ordered what is wanted. Nothing that is newer, that only a newer
// edge understands, or that no key opens is overwritten.
//
// Import may be repeated and may run beside a running edge. The error is about
// the source or the storage; the report says what was done until then.
func Import(ctx context.Context, from *store.Store, v *vault.Vault, o Options) (*Report, error) {
	all, err := find(ctx, from)
	if err != nil {
		return newReport(nil), err
	}
	var entries []Entry
	var usable []*found
	for _, f := range all {
		switch {
		case f.err != nil:
			entries = append(entries, Entry{Source: f.source, Action: Failed, Reason: oneLine(f.err)})
		case f.pair.unusable(o.now()) != "":
			entries = append(entries, f.entry("", Skipped, f.pair.unusable(o.now())))
		default:
			usable = append(usable, f)
		}
	}
	usable, old := newest(usable)
	entries = append(entries, old...)
	for _, t := range assign(usable, o) {
		e := t.found.entry(t.id, t.action, t.reason)
		if t.action == Imported {
			var down error
			e.Action, e.Reason, down = put(ctx, v, t.certificate(o.Owner), t.found.pair, o.DryRun)
			e.Reason = cmp.Or(e.Reason, t.reason)
			if down != nil {
				return newReport(append(entries, e)), down
			}
			if e.Action == Imported && !o.DryRun {
				o.logger().LogAttrs(ctx, slog.LevelInfo, "certificate imported", slog.String("certificate", e.ID), slog.String("source", e.Source))
			}
		}
		entries = append(entries, e)
	}
	return newReport(entries), nil
}

// ImportPEM stores a chain and its key, both PEM, under id, unless something
// newer is there. source names them in the entry. The error is about the
// storage; what is wrong with the certificate stands in the entry.
func ImportPEM(ctx context.Context, v *vault.Vault, id, source string, chain, key []byte, o Options) (Entry, error) {
	p, err := parse(chain, key)
	if err != nil {
		return Entry{Source: source, ID: id, Action: Failed, Reason: oneLine(err)}, nil
	}
	e := p.entry(source)
	e.ID = id
	if reason := p.unusable(o.now()); reason != "" {
		e.Action, e.Reason = Failed, reason
		return e, nil
	}
	c := p.certificate(id, o.Owner)
	note := ""
	for _, w := range o.Wanted {
		if w.ID != id {
			continue
		}
		c.Issuer = w.Issuer
		if lacks := w.lacks(p); lacks != "" {
			note = "edge will order another: " + lacks
		}
	}
	e.Action, e.Reason, err = put(ctx, v, c, p, o.DryRun)
	e.Reason = cmp.Or(e.Reason, note)
	return e, err
}

// put writes c, which is p, unless something is there that must stay.
func put(ctx context.Context, v *vault.Vault, c *vault.Certificate, p *pair, dry bool) (Action, string, error) {
	for range maxSwaps {
		there, version, err := vault.Load[vault.Certificate](ctx, v, c.ID)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, vault.ErrDamaged):
		case ofCertificate(err):
			return Failed, oneLine(err), nil
		case err != nil:
			return Failed, oneLine(err), err
		default:
			if reason := stays(there, p); reason != "" {
				return Kept, reason, nil
			}
		}
		if dry {
			return Imported, "", nil
		}
		_, err = vault.Save(ctx, v, c.ID, c, version)
		switch {
		case err == nil:
			return Imported, "", nil
		case ofCertificate(err):
			return Failed, oneLine(err), nil
		case !errors.Is(err, store.ErrConflict):
			return Failed, oneLine(err), err
		}
	}
	return Failed, "others write it all the time (try again)", nil
}

// ofCertificate reports whether err is about this certificate alone, so that the
// others are imported: what is there must stay, or it is too large, or named so
// that no storage takes it.
func ofCertificate(err error) bool {
	for _, e := range []error{vault.ErrNewer, vault.ErrNoKey, store.ErrTooLarge, store.ErrInvalidKey} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// stays says why what is stored is not replaced by p, "" when it is.
func stays(there *vault.Certificate, p *pair) string {
	block, _ := pem.Decode([]byte(there.Chain))
	if block == nil {
		return ""
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	switch {
	case err != nil:
		return ""
	case fingerprint(leaf) == p.fingerprint():
		return "is there already"
	case !p.newer(leaf):
		return "what is there is newer (" + leaf.NotBefore.UTC().Format("2006-01-02") + ")"
	default:
		return ""
	}
}

// newest leaves one certificate for each set of names and key type. Of the same
// one under several keys, as certmagic's layout has it, the others are not told.
func newest(all []*found) (left []*found, rest []Entry) {
	best := map[string]*found{}
	key := func(f *found) string { return string(f.pair.keyType()) + " " + strings.Join(f.pair.names, " ") }
	for _, f := range all {
		if b := best[key(f)]; b == nil || f.pair.newer(b.pair.leaf) {
			best[key(f)] = f
		}
	}
	for _, f := range all {
		switch b := best[key(f)]; {
		case b == f:
			left = append(left, f)
		case b.pair.fingerprint() != f.pair.fingerprint():
			rest = append(rest, f.entry("", Skipped, "for the same names "+b.source+" is newer"))
		}
	}
	return left, rest
}

func (f *found) entry(id string, a Action, reason string) Entry {
	e := f.pair.entry(f.source)
	e.ID, e.Action, e.Reason = id, a, reason
	return e
}

func newReport(entries []Entry) *Report {
	r := &Report{Entries: entries, Count: map[Action]int{}}
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.ID, b.ID)) })
	for _, e := range entries {
		r.Count[e.Action]++
	}
	return r
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
