package vault_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"edge/config"
	"edge/tlsmgr/store"
	"edge/tlsmgr/vault"
)

// The files are what edge wrote before there was this package.
func TestWhatEdgeWroteBeforeIsReadAndKeepsItsBytes(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			for _, keys := range [][]string{nil, {"a"}} {
				v := open(t, rawURL, keys...)
				put(t, v, "edge/v1/certificates/example.com.json", testdata(t, "certificate.json"))
				c, version, err := vault.Load[vault.Certificate](t.Context(), v, "example.com")
				if err != nil {
					t.Fatal(err)
				}
				want := vault.Certificate{
					Format: 1, ID: "example.com", Names: []string{"*.example.com", "example.com"}, Issuer: "acme",
					Directory: "https://acme-v02.api.letsencrypt.org/directory", Profile: "tlsserver", KeyType: config.P256,
					Chain: c.Chain, PrivateKey: c.PrivateKey, OrderURL: "https://acme-v02.api.letsencrypt.org/acme/order/1/2",
					ObtainedAt: time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC), Owner: "edge-0/1",
				}
				if !reflect.DeepEqual(*c, want) || version == "" {
					t.Errorf("version %q, certificate differs: %v", version, fieldsThatDiffer(*c, want))
				}
				sameJSON(t, c, testdata(t, "certificate.json"))

				id := "acme-v02.api.letsencrypt.org-3423cdd0878f"
				put(t, v, "edge/v1/accounts/"+id+".json", testdata(t, "account.json"))
				a, _, err := vault.Load[vault.Account](t.Context(), v, id)
				if err != nil {
					t.Fatal(err)
				}
				registration := vault.Registration{
					Status: "valid", Contact: []string{"mailto:ops@example.com"}, TermsOfServiceAgreed: true,
					ExternalAccountBinding: json.RawMessage(`{"protected":"e30","payload":"e30","signature":"AA"}`),
					Orders:                 "https://acme-v02.api.letsencrypt.org/acme/orders/1", Location: "https://acme-v02.api.letsencrypt.org/acme/acct/1",
				}
				if !reflect.DeepEqual(a.Account, registration) || a.Email != "ops@example.com" || a.Directory != want.Directory {
					t.Errorf("got %+v, %s", a.Account, a.Email)
				}
				sameJSON(t, a, testdata(t, "account.json"))
				if r, err := v.Verify(t.Context(), nil); err != nil || len(r.Findings) > 0 {
					t.Errorf("%+v, %v", r, err)
				}
			}
		})
	}
}

func sameJSON(t *testing.T, o any, want []byte) {
	t.Helper()
	if got, err := json.Marshal(o); err != nil || !bytes.Equal(got, want) {
		t.Errorf("written again it is another: %s %v", got, err)
	}
}

func fieldsThatDiffer(a, b any) (names []string) {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			names = append(names, x.Type().Field(i).Name)
		}
	}
	return names
}

func TestSavedObjectsComeBackAsTheyWere(t *testing.T) {
	at := time.Now().UTC().Round(0)
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			for _, keys := range [][]string{nil, {"a"}} {
				v := open(t, rawURL, keys...)
				id := fmt.Sprintf("*.a b/ä %d", len(keys)) // what people call things
				c := certificate(t, id, "a.test", "192.0.2.1")
				c.Imported, c.Renewal = true, &vault.Renewal{Start: at, End: at, Selected: at, Checked: at, Next: at, Explanation: "x", Replace: true}
				comesBack(t, v, id, c)
				a, accountID := account(t)
				if keys == nil {
					comesBack(t, v, accountID, a)
				}
				comesBack(t, v, id, &vault.Order{
					ID: id, Failures: 3, Error: "e", Next: at, Noticed: "n", Owner: "o", UpdatedAt: at,
					Quarantine: map[string]vault.Quarantined{"a.test": {Reason: "caa", Failures: 2, Since: at, Next: at}},
					Attempt: &vault.Attempt{
						Names: []string{"a.test"}, Issuer: "acme", Directory: "d", Account: "a", Profile: "p", Replaces: "r", KeyType: config.P384,
						Challenge: config.HTTP01, PrivateKey: c.PrivateKey, CSR: []byte{1}, URL: "u", Records: []vault.Record{{Name: "n", Value: "v"}},
						Tokens: []string{"t"}, StartedAt: at,
					},
				})
				comesBack(t, v, id, &vault.Authority{Issuer: id, RootChain: c.Chain, RootKey: c.PrivateKey, Chain: c.Chain, Key: c.PrivateKey})
				times := map[string][]time.Time{"a.test": {at}}
				comesBack(t, v, id, &vault.Budget{Orders: []time.Time{at}, Domains: times, Sets: times, Failed: times})
				comesBack(t, v, id, &vault.Replica{
					ID: id, Owner: "o", Version: "v", Started: at, Beat: at, Seq: 7, Interval: time.Second, Digest: "d",
					Recent: map[string]string{"a": "1"}, Pending: []string{"b"}, Role: "serve",
				})
				ch := &vault.Challenge{Kind: config.HTTP01, Token: id, KeyAuthorization: "k", Name: "a.test", Expires: at}
				comesBack(t, v, ch.ID(), ch)
			}
		})
	}
}

// comesBack saves and loads o, and looks at what stands in the storage.
func comesBack[T vault.Object](t *testing.T, v *vault.Vault, id string, o *T) {
	t.Helper()
	if _, _, err := vault.Load[T](t.Context(), v, id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%T before it is saved: %v", o, err)
	}
	version := save(t, v, id, o)
	got, loaded, err := vault.Load[T](t.Context(), v, id)
	if err != nil || loaded != version || !reflect.DeepEqual(got, o) {
		t.Errorf("%T: %v, version %q, want %q; fields that differ: %v", o, err, loaded, version, fieldsThatDiffer(*got, *o))
	}
	if _, err := vault.Save(t.Context(), v, id, o, ""); !errors.Is(err, store.ErrConflict) {
		t.Errorf("%T created twice: %v", o, err)
	}
	got, loaded, err = vault.Update(t.Context(), v, id, func(*T) (bool, error) { return false, nil })
	if err != nil || loaded != version || !reflect.DeepEqual(got, o) {
		t.Errorf("%T: an update without a change: %v, version %q", o, err, loaded)
	}
}

func TestSecretsAreSealedAndTheRestIsForPeople(t *testing.T) {
	v := open(t, "file://"+t.TempDir(), "a")
	c := certificate(t, "id", "a.test")
	save(t, v, "id", c)
	a, accountID := account(t)
	save(t, v, accountID, a)
	save(t, v, "id", &vault.Order{ID: "id", Attempt: &vault.Attempt{PrivateKey: c.PrivateKey}})
	save(t, v, "id", &vault.Authority{Issuer: "id", RootKey: c.PrivateKey, Key: c.PrivateKey})
	save(t, v, "id", &vault.Replica{ID: "id"})
	save(t, v, "id", &vault.Budget{})
	for _, key := range []string{vault.CertificateKey("id"), vault.AccountKey(accountID), vault.OrderKey("id"), vault.AuthorityKey("id")} {
		if content := string(raw(t, v, key)); strings.Contains(content, "PRIVATE") || strings.Contains(content, "test") || !strings.Contains(content, `"sealed"`) {
			t.Errorf("%s: %.80s", key, content)
		}
	}
	for _, key := range []string{vault.ReplicaKey("id"), vault.BudgetKey("id")} {
		if content := string(raw(t, v, key)); !strings.HasPrefix(content, `{"format":1`) || strings.Contains(content, `"sealed"`) {
			t.Errorf("%s: %.80s", key, content)
		}
	}
}

func TestEncryptionIsTurnedOnAndOffWhileObjectsStand(t *testing.T) {
	dir := "file://" + t.TempDir()
	plain, sealing := open(t, dir), open(t, dir, "a")
	c := certificate(t, "id", "a.test")
	version := save(t, plain, "id", c)
	got, _, err := vault.Load[vault.Certificate](t.Context(), sealing, "id")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Save(t.Context(), sealing, "id", got, version); err != nil {
		t.Fatal(err)
	}
	if got, _, err := vault.Load[vault.Certificate](t.Context(), sealing, "id"); err != nil || got.PrivateKey != c.PrivateKey {
		t.Errorf("sealed: %v", err)
	}
	if _, _, err := vault.Load[vault.Certificate](t.Context(), plain, "id"); !errors.Is(err, vault.ErrNoKey) {
		t.Errorf("without keys: %v", err)
	}
}

// edge must not destroy what only the operator, or a newer edge, can read.
func TestWhatOthersCanReadHasNoVersionToReplaceItWith(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			v := open(t, rawURL, "a")
			c := certificate(t, "id", "a.test")
			key := vault.CertificateKey("id")
			foreign, err := ring(t, "b").Seal(key, []byte(`{"format":1,"id":"id"}`))
			if err != nil {
				t.Fatal(err)
			}
			inner, err := ring(t, "a").Seal(key, []byte(`{"format":2}`))
			if err != nil {
				t.Fatal(err)
			}
			for name, o := range map[string]struct {
				content []byte
				want    error
				text    string
			}{
				"no key":           {foreign, vault.ErrNoKey, "add the one it was sealed with to storage.encrypt.keys"},
				"newer":            {[]byte(`{"format":2,"id":7}`), vault.ErrNewer, "its format is 2, this edge knows 1: upgrade edge"},
				"newer envelope":   {[]byte(`{"format":2,"sealed":"by something new"}`), vault.ErrNewer, "format is 2"},
				"newer and sealed": {inner, vault.ErrNewer, "format is 2"},
			} {
				put(t, v, key, o.content)
				_, version, err := vault.Load[vault.Certificate](t.Context(), v, "id")
				if !errors.Is(err, o.want) || errors.Is(err, vault.ErrDamaged) || !strings.Contains(err.Error(), o.text) {
					t.Errorf("%s: got %v, want %v", name, err, o.want)
				}
				if _, err := vault.Save(t.Context(), v, "id", c, version); !errors.Is(err, store.ErrConflict) {
					t.Errorf("%s: overwritten: %v", name, err)
				}
				if _, _, err := vault.Update(t.Context(), v, "id", func(*vault.Certificate) (bool, error) { return true, nil }); !errors.Is(err, o.want) {
					t.Errorf("%s: updated: %v", name, err)
				}
				if !bytes.Equal(raw(t, v, key), o.content) {
					t.Errorf("%s: changed", name)
				}
			}
		})
	}
}

func TestDamagedObjectsCanBeReplaced(t *testing.T) {
	v := open(t, "file://"+t.TempDir(), "a")
	good, err := ring(t, "a").Seal(vault.CertificateKey("id"), []byte(`{"format":1,"id":"id"}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty":           "",
		"torn":            string(testdata(t, "certificate.json")[:200]),
		"torn and sealed": string(good[:len(good)/2]),
		"no format":       `{"id":"id"}`,
		"format zero":     `{"format":0,"id":"id"}`,
		"other shape":     `{"format":1,"id":["id"]}`,
		"another's":       `{"format":1,"id":"other"}`,
		"sealed: null":    `{"format":1,"sealed":null,"id":"id"}`,
		"sealed: text":    `{"format":1,"sealed":"x"}`,
		"sealed: empty":   `{"format":1,"sealed":{}}`,
	} {
		t.Run(name, func(t *testing.T) {
			put(t, v, vault.CertificateKey("id"), []byte(content))
			_, version, err := vault.Load[vault.Certificate](t.Context(), v, "id")
			if !errors.Is(err, vault.ErrDamaged) || version == "" {
				t.Fatalf("got %v, version %q", err, version)
			}
			if _, err := vault.Save(t.Context(), v, "id", certificate(t, "id", "a.test"), version); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestObjectsSealedTwiceAreDamaged(t *testing.T) {
	v, key := open(t, "file://"+t.TempDir(), "a"), vault.BudgetKey("ca")
	once, err := ring(t, "a").Seal(key, []byte(`{"format":1}`))
	if err != nil {
		t.Fatal(err)
	}
	twice, err := ring(t, "a").Seal(key, once)
	if err != nil {
		t.Fatal(err)
	}
	for want, content := range map[error][]byte{nil: once, vault.ErrDamaged: twice} {
		put(t, v, key, content)
		if _, _, err := vault.Load[vault.Budget](t.Context(), v, "ca"); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

func TestObjectsAreNotSavedUnderAnotherName(t *testing.T) {
	v := open(t, "file://"+t.TempDir())
	if _, err := vault.Save(t.Context(), v, "b", &vault.Certificate{ID: "a"}, ""); err == nil || !strings.Contains(err.Error(), `holds certificate "a"`) {
		t.Errorf("got %v", err)
	}
	if _, err := vault.Save(t.Context(), v, "b", &vault.Account{Directory: "https://ca.test"}, ""); err == nil {
		t.Error("an account of another CA was saved")
	}
	if _, err := vault.Save(t.Context(), v, strings.Repeat("n", 300), &vault.Certificate{ID: strings.Repeat("n", 300)}, ""); !errors.Is(err, store.ErrInvalidKey) {
		t.Errorf("a name that no storage takes: %v", err)
	}
	if _, err := vault.Save(t.Context(), v, "big", &vault.Certificate{ID: "big", Chain: strings.Repeat("x", store.MaxObject)}, ""); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

func TestUpdatesOfManyWritersAllCount(t *testing.T) {
	for name, rawURL := range eachStore(t) {
		t.Run(name, func(t *testing.T) {
			const writers, each = 4, 8
			var wg sync.WaitGroup
			for range writers {
				v := open(t, rawURL)
				wg.Go(func() {
					for range each {
						_, _, err := vault.Update(t.Context(), v, "ca", func(b *vault.Budget) (bool, error) {
							b.Orders = append(b.Orders, time.Unix(int64(len(b.Orders)), 0))
							return true, nil
						})
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b, _, err := vault.Load[vault.Budget](t.Context(), open(t, rawURL), "ca")
			if err != nil || len(b.Orders) != writers*each {
				t.Errorf("got %d orders, want %d: %v", len(b.Orders), writers*each, err)
			}
		})
	}
}

func TestUpdateEndsWithWhatItsChangeSays(t *testing.T) {
	v := open(t, "file://"+t.TempDir())
	refused := errors.New("no budget")
	if _, _, err := vault.Update(t.Context(), v, "ca", func(*vault.Budget) (bool, error) { return true, refused }); !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
	if _, _, err := vault.Load[vault.Budget](t.Context(), v, "ca"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something was written: %v", err)
	}
}

func TestStorageErrorsAreNotDamage(t *testing.T) {
	s := openStore(t, "file://"+t.TempDir())
	v := vault.New(s, vault.Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, version, err := vault.Load[vault.Certificate](t.Context(), v, "id")
	if !errors.Is(err, store.ErrClosed) || errors.Is(err, vault.ErrDamaged) || version != "" {
		t.Errorf("got %v, version %q", err, version)
	}
}
