package vault_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"edge/config"
	"edge/tlsmgr/vault"
)

// sealed is an envelope as it stands in the storage.
type sealed struct {
	Format int `json:"format"`
	Sealed struct {
		Key  string `json:"key"`
		DEK  []byte `json:"dek"`
		Data []byte `json:"data"`
	} `json:"sealed"`
}

func parse(tb testing.TB, content []byte) (s sealed) {
	tb.Helper()
	if err := json.Unmarshal(content, &s); err != nil {
		tb.Fatal(err)
	}
	return s
}

func (s sealed) bytes(tb testing.TB) []byte {
	tb.Helper()
	content, err := json.Marshal(s)
	if err != nil {
		tb.Fatal(err)
	}
	return content
}

const exampleKey = "edge/v1/certificates/example.com.json"

// These files must be readable for ever: a bucket is older than its edge.
func TestEnvelopesOfEarlierVersionsStayReadable(t *testing.T) {
	both := ring(t, "b", "a")
	for _, name := range []string{"sealed-by-a.json", "sealed-by-b.json"} {
		plain, err := both.Open(exampleKey, testdata(t, name))
		if err != nil || !bytes.Equal(plain, testdata(t, "certificate.json")) {
			t.Errorf("%s: %v, %.40s", name, err, plain)
		}
	}
}

// The envelope as docs/storage.md describes it, opened with nothing of ours.
func TestEnvelopeIsWhatTheDocumentationSays(t *testing.T) {
	s := parse(t, testdata(t, "sealed-by-a.json"))
	gcm := func(key []byte) cipher.AEAD {
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		a, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	dek, err := gcm(keyBytes("a")).Open(nil, s.Sealed.DEK[:12], s.Sealed.DEK[12:], []byte("edge storage dek\n1\n"+exampleKey))
	if err != nil || len(dek) != 32 {
		t.Fatalf("data key: %d bytes, %v", len(dek), err)
	}
	plain, err := gcm(dek).Open(nil, s.Sealed.Data[:12], s.Sealed.Data[12:], []byte("edge storage data\n1\n"+exampleKey))
	if err != nil || !bytes.Equal(plain, testdata(t, "certificate.json")) {
		t.Errorf("data: %.40s, %v", plain, err)
	}
	if s.Format != 1 || s.Sealed.Key != ring(t, "a").IDs()[0] || s.Sealed.Key != "cd64174d" {
		t.Errorf("format %d, key %q", s.Format, s.Sealed.Key)
	}
}

func TestEverySealIsDifferent(t *testing.T) {
	k := ring(t, "a")
	seen := map[string]bool{}
	for range 100 {
		content, err := k.Seal("key", []byte("plain"))
		if err != nil {
			t.Fatal(err)
		}
		s := parse(t, content)
		for _, part := range [][]byte{s.Sealed.DEK[:12], s.Sealed.DEK[12:44], s.Sealed.Data[:12]} {
			if seen[string(part)] {
				t.Fatal("a nonce or a data key came twice")
			}
			seen[string(part)] = true
		}
	}
}

func TestAlteredEnvelopesAreRefused(t *testing.T) {
	k := ring(t, "a")
	good, err := k.Seal("key", []byte(`{"format":1}`))
	if err != nil {
		t.Fatal(err)
	}
	other, err := k.Seal("other", []byte(`{"format":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*sealed){
		"data key of another object": func(s *sealed) { s.Sealed.DEK = parse(t, other).Sealed.DEK },
		"data of another object":     func(s *sealed) { s.Sealed.Data = parse(t, other).Sealed.Data },
		"both of another object":     func(s *sealed) { *s = parse(t, other) },
		"layers exchanged":           func(s *sealed) { s.Sealed.DEK, s.Sealed.Data = s.Sealed.Data, s.Sealed.DEK },
		"no data":                    func(s *sealed) { s.Sealed.Data = nil },
		"no data key":                func(s *sealed) { s.Sealed.DEK = nil },
		"nonce alone":                func(s *sealed) { s.Sealed.Data = s.Sealed.Data[:12] },
		"a byte short":               func(s *sealed) { s.Sealed.Data = s.Sealed.Data[:len(s.Sealed.Data)-1] },
		"a byte more":                func(s *sealed) { s.Sealed.Data = append(s.Sealed.Data, 0) },
		"data key a byte short":      func(s *sealed) { s.Sealed.DEK = s.Sealed.DEK[:59] },
	} {
		s := parse(t, good)
		edit(&s)
		if plain, err := k.Open("key", s.bytes(t)); !errors.Is(err, vault.ErrDamaged) || plain != nil {
			t.Errorf("%s: got %q, %v", name, plain, err)
		}
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	k := ring(t, "a")
	content, err := k.Seal("key", []byte("p"))
	if err != nil {
		t.Fatal(err)
	}
	good := parse(t, content)
	parts := map[string]func(*sealed) []byte{
		"dek":  func(s *sealed) []byte { return s.Sealed.DEK },
		"data": func(s *sealed) []byte { return s.Sealed.Data },
	}
	for name, part := range parts {
		for i := range 8 * len(part(&good)) {
			s := parse(t, content)
			part(&s)[i/8] ^= 1 << (i % 8)
			if _, err := k.Open("key", s.bytes(t)); !errors.Is(err, vault.ErrDamaged) {
				t.Fatalf("%s, bit %d: %v", name, i, err)
			}
		}
	}
	for cut := range content {
		if _, err := k.Open("key", content[:cut]); !errors.Is(err, vault.ErrDamaged) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

func TestOnlyTheRightKeyOpens(t *testing.T) {
	content, err := ring(t, "a", "b").Seal("key", []byte(`{"format":1}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range [][]string{{"a"}, {"b", "a"}, {"c", "b", "a"}} {
		if _, err := ring(t, names...).Open("key", content); err != nil {
			t.Errorf("%v: %v", names, err)
		}
	}
	for _, k := range []*vault.Keyring{ring(t, "b"), ring(t, "b", "c"), nil} {
		_, err := k.Open("key", content)
		if !errors.Is(err, vault.ErrNoKey) || !strings.Contains(err.Error(), `"cd64174d"`) || !strings.Contains(err.Error(), "to storage.encrypt.keys") {
			t.Errorf("%v: got %v", k.IDs(), err)
		}
	}
	// The id is for finding the key; it does not make one fit.
	s := parse(t, content)
	s.Sealed.Key = ring(t, "b").IDs()[0]
	if _, err := ring(t, "b").Open("key", s.bytes(t)); !errors.Is(err, vault.ErrDamaged) {
		t.Errorf("with another's id: %v", err)
	}
}

func TestPlainObjectsAreNotOpened(t *testing.T) {
	if _, err := ring(t, "a").Open("key", []byte(`{"format":1}`)); !errors.Is(err, vault.ErrDamaged) {
		t.Errorf("got %v", err)
	}
	if _, err := (*vault.Keyring)(nil).Seal("key", nil); err == nil {
		t.Error("sealed without a key")
	}
}

func TestKeysAreReadInEveryBase64(t *testing.T) {
	key := bytes.Repeat([]byte{0xfb, 0xff}, 16) // has + and / in the one, - and _ in the other
	want := ""
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		k, err := vault.NewKeyring([]config.Secret{secret(t, e.EncodeToString(key))})
		if err != nil {
			t.Fatal(err)
		}
		if id := k.IDs()[0]; want != "" && id != want {
			t.Errorf("%s: id %s, want %s", e.EncodeToString(key), id, want)
		} else {
			want = id
		}
	}
}

func TestBadKeysAreRefusedWithTheirPlaceAndWithoutTheirContent(t *testing.T) {
	good := base64.StdEncoding.EncodeToString(keyBytes("a"))
	const tooShort, noBase64 = "c2hvcnQga2V5", "!this is no base64 at all, it is a passphrase!"
	_, err := vault.NewKeyring([]config.Secret{secret(t, good), secret(t, tooShort), secret(t, noBase64), {Ref: "env:EDGE_TEST_NO_SUCH_KEY"}, secret(t, good)})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"storage.encrypt.keys[1]: file:", "is not 32 bytes in base64 (make one with: openssl rand -base64 32)",
		"storage.encrypt.keys[2]: file:", "storage.encrypt.keys[3]: load secret env:EDGE_TEST_NO_SUCH_KEY",
		"storage.encrypt.keys[4]: the same as keys[0] (remove one)",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	for _, secret := range []string{good, tooShort, noBase64} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("tells a key: %v", err)
		}
	}
	if k, err := vault.NewKeyring(nil); k != nil || err != nil || k.IDs() != nil {
		t.Errorf("no keys: %v, %v", k, err)
	}
}

// What comes from a bucket comes from outside.
func FuzzOpen(f *testing.F) {
	k := ring(f, "a")
	good, err := k.Seal("key", []byte(`{"format":1}`))
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{good, good[:40], []byte(`{"format":1,"sealed":{"key":"cd64174d","dek":"AAAA","data":""}}`), []byte(`{"format":1}`), nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		plain, err := k.Open("key", content)
		known := slices.ContainsFunc([]error{vault.ErrDamaged, vault.ErrNewer, vault.ErrNoKey}, func(e error) bool { return errors.Is(err, e) })
		switch {
		case err != nil && !known:
			t.Errorf("unknown error %v", err)
		case err == nil && string(plain) != `{"format":1}`:
			t.Errorf("forged: %q", plain)
		}
	})
}

// Replicas that hold a key have its secrets, whatever else they hold, and these
// stay what they are: a new version of edge must agree with the old one.
func TestSecretsFollowFromTheKeyAndTheLabel(t *testing.T) {
	one, both := ring(t, "a").Secrets("label"), ring(t, "b", "a").Secrets("label")
	if len(one) != 1 || len(both) != 2 || !bytes.Equal(one[0], both[1]) {
		t.Fatalf("%x and %x, want one for each key, in their order", one, both)
	}
	if bytes.Equal(both[0], both[1]) {
		t.Error("two keys have one secret")
	}
	if other := ring(t, "a").Secrets("other"); bytes.Equal(other[0], one[0]) {
		t.Error("two labels have one secret")
	}
	const want = "bfbfcb4ce263ad08c3e22f592bcb83e60cfe4480d060cd5d38deda1918d1e458" // from another implementation of RFC 5869
	if got := hex.EncodeToString(one[0]); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if none := (*vault.Keyring)(nil).Secrets("label"); none != nil {
		t.Errorf("a keyring without keys has the secrets %x", none)
	}
}
