// Package vault is what edge keeps in its storage, by type, and the sealing of
// what is secret in it.
//
//	keys, err := vault.NewKeyring(cfg.Storage.Keys)
//	if err != nil { … }
//	v := vault.New(s, vault.Options{Keys: keys})
//
//	c, version, err := vault.Load[vault.Certificate](ctx, v, "example.com")
//	c.Chain, c.PrivateKey = chain, key
//	_, err = vault.Save(ctx, v, c.ID, c, version) // store.ErrConflict: somebody was faster
//
// Every object is JSON with a format. Objects that hold private keys are sealed
// when there are keys, and are read sealed or plain, so that encryption can be
// turned on while edge runs; Rotate seals what is still plain. docs/storage.md
// is the layout for people.
//
// What a newer edge wrote and what no key opens are never overwritten or
// deleted: Load gives no version for them, and without one Save only creates.
package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"

	"edge/tlsmgr/store"
)

// Format is the version of the layout and of everything in it. An edge reads
// its own format and the one before (there is none before 1), and refuses newer.
const Format = 1

// Errors that callers tell apart with errors.Is. A missing object is
// fs.ErrNotExist.
var (
	// ErrNewer is an object that only a newer edge understands. It must stay.
	ErrNewer = errors.New("written by a newer edge")

	// ErrNoKey is a sealed object that none of our keys opens. It must stay.
	ErrNoKey = errors.New("sealed with a key that is not here")

	// ErrDamaged is an object of a format that we know and that nevertheless
	// cannot be used: torn, altered, or moved here from another key. Load
	// returns its version, so that whoever can make a new one replaces it.
	ErrDamaged = errors.New("damaged")
)

// Options of New. The zero value keeps everything plain.
type Options struct {
	Keys   *Keyring     // nil: nothing is sealed, and nothing sealed can be read
	Logger *slog.Logger // nil is slog.Default()
}

// Vault is a Store with types. It may be used concurrently. It owns nothing;
// whoever opened the Store closes it.
type Vault struct {
	store *store.Store
	keys  *Keyring
	log   *slog.Logger
}

// New returns the Vault in s. It touches neither network nor disk.
func New(s *store.Store, o Options) *Vault {
	v := &Vault{store: s, keys: o.Keys, log: o.Logger}
	if v.log == nil {
		v.log = slog.Default()
	}
	return v
}

// Store is the storage below, for leases, listings and objects as they are.
func (v *Vault) Store() *store.Store { return v.store }

// Load returns the object of type T called id and its version. The error is
// fs.ErrNotExist, ErrNewer, ErrNoKey, ErrDamaged, or one of the storage. Only
// an object that may be replaced has a version: one that is fine, or damaged.
func Load[T Object](ctx context.Context, v *Vault, id string) (*T, store.Version, error) {
	key := kindOf[T]().Key(id)
	raw, version, err := v.store.LoadVersion(ctx, key)
	if err != nil {
		return nil, "", err // names the key already
	}
	t, err := Decode[T](v, id, raw)
	switch {
	case err == nil:
		return t, version, nil
	case errors.Is(err, ErrDamaged):
		return nil, version, err
	default:
		return nil, "", err
	}
}

// Decode reads raw, the content of the object of type T called id. The error is
// ErrNewer, ErrNoKey or ErrDamaged.
func Decode[T Object](v *Vault, id string, raw []byte) (*T, error) {
	key := kindOf[T]().Key(id)
	plain, _, err := v.keys.unwrap(key, raw)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", key, err)
	}
	t, err := decode[T](id, plain)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", key, err)
	}
	return t, nil
}

// decode reads a plain object, whose format was looked at.
func decode[T Object](id string, plain []byte) (*T, error) {
	t := new(T)
	if err := json.Unmarshal(plain, t); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := any(*t).(object).belongs(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return t, nil
}

// Save writes t as the object of its type called id, if the object there still
// has version old; "" creates. The format is filled in. The error is
// store.ErrConflict when somebody else wrote it. As with store.Swap, any other
// error leaves open whether it was written.
func Save[T Object](ctx context.Context, v *Vault, id string, t *T, old store.Version) (store.Version, error) {
	raw, err := encode(v.keys, id, t)
	if err != nil {
		return "", err
	}
	return v.store.Swap(ctx, kindOf[T]().Key(id), raw, old) // its error names the key
}

// encode is t as it is stored: sealed when its kind is and there are keys.
func encode[T Object](keys *Keyring, id string, t *T) ([]byte, error) {
	kind := kindOf[T]()
	key := kind.Key(id)
	if err := any(*t).(object).belongs(id); err != nil {
		return nil, fmt.Errorf("write %q: %w", key, err)
	}
	stamp(t)
	plain, err := json.Marshal(t)
	if err != nil {
		return nil, fmt.Errorf("write %q: %w", key, err)
	}
	if keys == nil || !kind.Secret() {
		return plain, nil
	}
	return keys.Seal(key, plain)
}

// head is what every object and every envelope begins with.
type head struct {
	Format int       `json:"format"`
	Sealed *envelope `json:"sealed,omitempty"`
}

// readHead looks at the format before anything else.
func readHead(raw []byte) (head, error) {
	var h struct {
		Format int             `json:"format"`
		Sealed json.RawMessage `json:"sealed"`
	}
	if err := json.Unmarshal(raw, &h); err != nil {
		return head{}, fmt.Errorf("%w: not JSON: %w", ErrDamaged, err)
	}
	switch {
	case h.Format > Format:
		return head{}, fmt.Errorf("%w (its format is %d, this edge knows %d: upgrade edge, or give it a storage of its own)", ErrNewer, h.Format, Format)
	case h.Format < 1:
		return head{}, fmt.Errorf("%w: has no format", ErrDamaged)
	case h.Sealed == nil:
		return head{Format: h.Format}, nil
	}
	e := new(envelope)
	if err := json.Unmarshal(h.Sealed, e); err != nil {
		return head{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if e.Key == "" {
		return head{}, fmt.Errorf("%w: sealed by nothing", ErrDamaged)
	}
	return head{Format: h.Format, Sealed: e}, nil
}
