package vault

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"edge/config"
)

// keySize is AES-256.
const keySize = 32

// Keyring seals objects so that who can read the storage cannot read them, and
// who can write it cannot alter them or put one in the place of another. It does
// not keep a writer from putting back an older version, or a plain object, which
// is read too.
//
// It is an envelope: each write has a fresh random data key, which encrypts the
// object; the key encryption key, which the operator keeps, encrypts the data
// key. Both layers are AES-256-GCM with a random nonce of 96 bits. A data key
// encrypts one message, so its nonce cannot repeat; a key encryption key wraps
// one data key a write, for which random nonces are good up to 2³² writes
// (NIST SP 800-38D section 8.3). Both layers authenticate the format and the
// storage key, relative to the bucket's prefix.
//
// The first key seals, all open. It may be used concurrently. A nil Keyring
// opens nothing and seals nothing.
type Keyring struct {
	keys []kek // at least one
}

// kek is a key encryption key.
type kek struct {
	id      string
	aead    cipher.AEAD
	cluster []byte // what Secrets follow from
}

// NewKeyring loads the keys: each is 32 bytes in base64, the standard or the URL
// alphabet, padded or not. No keys give a nil Keyring. Errors name the position
// and the reference, never the content.
func NewKeyring(secrets []config.Secret) (*Keyring, error) {
	if len(secrets) == 0 {
		return nil, nil //nolint:nilnil // a nil Keyring is one without keys, as documented
	}
	k := &Keyring{}
	seen := map[string]int{}
	var errs []error
	for i, s := range secrets {
		added, err := loadKEK(s)
		if err == nil {
			if first, ok := seen[added.id]; ok {
				err = fmt.Errorf("the same as keys[%d] (remove one)", first)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("storage.encrypt.keys[%d]: %w", i, err))
			continue
		}
		seen[added.id] = i
		k.keys = append(k.keys, added)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return k, nil
}

func loadKEK(s config.Secret) (kek, error) {
	text, err := s.Load()
	if err != nil {
		return kek{}, err
	}
	key, ok := decodeKey(text)
	if !ok {
		return kek{}, fmt.Errorf("%s is not 32 bytes in base64 (make one with: openssl rand -base64 32)", s)
	}
	aead, err := newAEAD(key)
	if err != nil {
		return kek{}, err
	}
	cluster, err := hkdf.Extract(sha256.New, key, []byte("edge cluster secret"))
	if err != nil {
		return kek{}, err
	}
	return kek{id: kekID(key), aead: aead, cluster: cluster}, nil
}

// decodeKey reads 32 bytes in either alphabet of base64.
func decodeKey(text string) ([]byte, bool) {
	text = strings.TrimRight(strings.TrimSpace(text), "=")
	for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if key, err := e.DecodeString(text); err == nil && len(key) == keySize {
			return key, true
		}
	}
	return nil, false
}

// kekID names a key in envelopes. It tells nothing about the key: 32 bits of a
// digest of 256 random ones.
func kekID(key []byte) string {
	h := sha256.New()
	h.Write([]byte("edge storage key id\n"))
	h.Write(key)
	return hex.EncodeToString(h.Sum(nil)[:4])
}

func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block) // prepends the nonce
}

// IDs returns the ids of the keys, as envelopes name them; the first seals.
func (k *Keyring) IDs() []string {
	if k == nil {
		return nil
	}
	ids := make([]string, len(k.keys))
	for i, key := range k.keys {
		ids[i] = key.id
	}
	return ids
}

// Secrets returns a secret of 32 bytes for each key, in their order. Replicas
// that have a key have its secret, without a word between them; label says what
// it is for. Nobody can tell the key from it, nor the secret of another label
// (HKDF, RFC 5869). A nil Keyring has none.
func (k *Keyring) Secrets(label string) [][]byte {
	if k == nil {
		return nil
	}
	all := make([][]byte, len(k.keys))
	for i, key := range k.keys {
		secret, err := hkdf.Expand(sha256.New, key.cluster, label, keySize)
		if err != nil {
			panic(err) // of more than 255 blocks, or of a key that FIPS 140 finds short
		}
		all[i] = secret
	}
	return all
}

// envelope is what stands in the storage instead of a secret object.
type envelope struct {
	Key  string `json:"key"`  // id of the key encryption key
	DEK  []byte `json:"dek"`  // nonce, the data key encrypted, tag
	Data []byte `json:"data"` // nonce, the object encrypted, tag
}

// aad binds a layer of an envelope to the format and to where it is stored.
func aad(layer, key string) []byte {
	return []byte("edge storage " + layer + "\n" + strconv.Itoa(Format) + "\n" + key)
}

// The layers of an envelope, so that neither passes for the other.
const (
	layerDEK  = "dek"
	layerData = "data"
)

// Seal encrypts plain for the object at key with the first key.
func (k *Keyring) Seal(key string, plain []byte) ([]byte, error) {
	if k == nil {
		return nil, fmt.Errorf("seal %q: no keys (set storage.encrypt.keys)", key)
	}
	dek := make([]byte, keySize)
	_, _ = rand.Read(dek) // never fails (crypto/rand)
	data, err := newAEAD(dek)
	if err != nil {
		return nil, fmt.Errorf("seal %q: %w", key, err)
	}
	first := k.keys[0]
	return json.Marshal(head{Format: Format, Sealed: &envelope{
		Key:  first.id,
		DEK:  first.aead.Seal(nil, nil, dek, aad(layerDEK, key)), //nolint:gosec // G407: it draws a random nonce itself
		Data: data.Seal(nil, nil, plain, aad(layerData, key)),    //nolint:gosec // G407: likewise
	}})
}

// Open decrypts what Seal made for the object at key with any of the keys. The
// error is ErrNoKey, ErrNewer or ErrDamaged.
func (k *Keyring) Open(key string, sealed []byte) ([]byte, error) {
	h, err := readHead(sealed)
	if err == nil && h.Sealed == nil {
		err = fmt.Errorf("%w: is not sealed", ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", key, err)
	}
	plain, err := k.open(key, h.Sealed)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", key, err)
	}
	return plain, nil
}

func (k *Keyring) open(key string, e *envelope) ([]byte, error) {
	wrapper := k.find(e.Key)
	if wrapper == nil {
		return nil, fmt.Errorf("%w: its id is %.16q (%s)", ErrNoKey, e.Key, k.have())
	}
	dek, err := wrapper.Open(nil, nil, e.DEK, aad(layerDEK, key))
	if err != nil || len(dek) != keySize {
		return nil, fmt.Errorf("%w: the data key was altered or belongs to another object (was it copied?)", ErrDamaged)
	}
	data, err := newAEAD(dek)
	if err != nil {
		return nil, err
	}
	plain, err := data.Open(nil, nil, e.Data, aad(layerData, key))
	if err != nil {
		return nil, fmt.Errorf("%w: the content was altered", ErrDamaged)
	}
	return plain, nil
}

func (k *Keyring) find(id string) cipher.AEAD {
	if k == nil {
		return nil
	}
	for _, key := range k.keys {
		if key.id == id {
			return key.aead
		}
	}
	return nil
}

func (k *Keyring) have() string {
	if k == nil {
		return "add the key to storage.encrypt.keys"
	}
	return "keys here: " + strings.Join(k.IDs(), ", ") + "; add the one it was sealed with to storage.encrypt.keys"
}

// unwrap returns the plain object in raw, sealed or not, whose format we know,
// and the id of the key that sealed it, "" for none.
func (k *Keyring) unwrap(key string, raw []byte) (plain []byte, sealedBy string, err error) {
	h, err := readHead(raw)
	if err != nil || h.Sealed == nil {
		return raw, "", err
	}
	plain, err = k.open(key, h.Sealed)
	if err != nil {
		return nil, h.Sealed.Key, err
	}
	inner, err := readHead(plain)
	if err == nil && inner.Sealed != nil {
		err = fmt.Errorf("%w: sealed twice", ErrDamaged)
	}
	return plain, h.Sealed.Key, err
}
