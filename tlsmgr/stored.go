package tlsmgr

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// stored is what this process knows about one certificate of the storage.
type stored struct {
	version store.Version // "" when the object is gone or could not be read; what it held still serves
	cert    *certificate  // the last good content; nil when there never was one
	err     error         // why the object is not usable
}

// untouchable reports whether err is of an object that this edge must neither
// replace nor delete: a newer edge wrote it, or it is sealed with a key that is
// not configured here.
func untouchable(err error) bool {
	return errors.Is(err, vault.ErrNewer) || errors.Is(err, vault.ErrNoKey)
}

// newStored makes a stored certificate ready for handshakes. Its parts have to
// belong together.
func newStored(o *vault.Certificate) (*certificate, error) {
	pair, err := tls.X509KeyPair([]byte(o.Chain), []byte(o.PrivateKey))
	if err != nil {
		return nil, fmt.Errorf("chain and key of %s: %w", o.ID, err)
	}
	c, err := newCertificate(o.ID, pair)
	if err != nil {
		return nil, err
	}
	c.object = o
	return c, nil
}

// need says why a bundle has to be worked on, "" when it has not.
type need string

const (
	needNothing  need = ""
	needMissing  need = "missing"
	needNames    need = "names differ"
	needIssuer   need = "issuer differs"
	needKey      need = "key type differs"
	needRenewal  need = "due for renewal"
	needReplaced need = "the CA wants it replaced now"
)

// needs compares what the plan wants with what the storage has. More names than
// wanted are enough until the renewal, so that removing a host orders nothing
// and that two replicas of which one is reloaded already do not undo each
// other's work. A change of the profile alone waits for the renewal too, and so
// does a return from a fallback issuer to the first one. Names in quarantine
// are not wanted before their time.
func (st *state) needs(b *Bundle, s *stored, j *journal, now time.Time) need {
	names := j.admitted(b.Names, now)
	gone := s == nil || s.version == "" || s.err != nil || s.cert == nil
	switch {
	case len(names) == 0: // nothing could be ordered
		return needNothing
	case gone:
		return needMissing
	}
	o := s.cert.object
	switch {
	case slices.ContainsFunc(names, func(n string) bool { return !slices.Contains(s.cert.names, n) }):
		return needNames
	case o.Imported: // by the operator, from wherever
	case !slices.Contains(st.directories(b), o.Directory):
		return needIssuer
	case o.KeyType != b.KeyType:
		return needKey
	}
	switch {
	case o.Renewal != nil && o.Renewal.Replace && !now.Before(replaceAt(s.cert)):
		return needReplaced
	case !now.Before(renewAt(s.cert)):
		return needRenewal
	default:
		return needNothing
	}
}

// directories are where the certificates of a bundle may come from.
func (st *state) directories(b *Bundle) []string {
	out := make([]string, 0, 1+len(b.Fallbacks))
	for _, name := range b.issuers() {
		if i := st.cfg.Issuers[name]; i != nil {
			out = append(out, directoryOf(i))
		}
	}
	return out
}

// issuers are the names of the issuers of b, the preferred one first.
func (b *Bundle) issuers() []string { return append([]string{b.Issuer}, b.Fallbacks...) }
