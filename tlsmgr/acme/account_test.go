package acme_test

import (
	"strings"
	"testing"

	"edge/config"
	"edge/internal/acmelab"
	"edge/tlsmgr/acme"
)

// Of Pebble's documentation; 64 characters of base64url.
const macKey = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"

func bound(t *testing.T, id, mac string) *config.EAB {
	t.Helper()
	t.Setenv("LAB_EAB_ID", id)
	t.Setenv("LAB_EAB_MAC", mac)
	return &config.EAB{KeyID: config.Secret{Ref: "env:LAB_EAB_ID"}, HMAC: config.Secret{Ref: "env:LAB_EAB_MAC"}}
}

func TestRegisteringAKnownKeyFindsItsAccount(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	first := l.register(t)
	if len(first.Contact) != 1 || first.Contact[0] != "mailto:lab@example.test" {
		t.Errorf("contact %q, want that of the issuer", first.Contact)
	}
	again, err := l.Register(t.Context(), first.Key)
	if err != nil {
		t.Fatal(err)
	}
	if again.URL != first.URL || again.Key != first.Key {
		t.Errorf("account %s, want %s again", again.URL, first.URL)
	}
	if other := l.register(t); other.URL == first.URL {
		t.Error("a fresh key got the account of another one")
	}
}

func TestMissingBindingIsRefusedWithAHint(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{EABKeys: map[string]string{"kid-1": macKey}}, nil)
	meta, err := l.Meta(t.Context())
	if err != nil || !meta.EABRequired {
		t.Errorf("meta %+v, %v, want binding required", meta, err)
	}
	_, err = l.Register(t.Context(), nil)
	refused(t, err, acme.BadRequest, "externalAccountRequired", "set issuers.lab.acme.eab")
}

func TestBindingInAnyAlphabetRegisters(t *testing.T) {
	padded := strings.NewReplacer("-", "+", "_", "/").Replace(macKey) + "=="
	for name, mac := range map[string]string{"as the CA shows it": macKey, "padded, standard": padded, "with spaces around": " " + macKey + " "} {
		t.Run(name, func(t *testing.T) {
			l := start(t, acmelab.CAOptions{EABKeys: map[string]string{"kid-1": macKey}}, func(i *config.Issuer) { i.EAB = bound(t, "kid-1", mac) })
			a := l.register(t)
			// Whoever has the account needs no binding any more.
			l.issuer.EAB = nil
			again, err := l.another(t, nil).Register(t.Context(), a.Key)
			if err != nil || again.URL != a.URL {
				t.Errorf("got %v, %v, want %s", again, err, a.URL)
			}
		})
	}
}

func TestWrongBindingIsRefusedWithoutTheSecret(t *testing.T) {
	l := start(t, acmelab.CAOptions{EABKeys: map[string]string{"kid-1": macKey}}, func(i *config.Issuer) { i.EAB = bound(t, "kid-2", macKey) })
	_, err := l.Register(t.Context(), nil)
	if e := refused(t, err, acme.BadRequest, "register an account", "check issuers.lab.acme.eab: "); strings.Contains(e.Error(), macKey) {
		t.Errorf("the error quotes the key: %v", e)
	}
	l.issuer.EAB = bound(t, "kid-1", "this is no base64 !"+macKey)
	_, err = acme.New(l.issuer, acme.Options{})
	if err == nil || !strings.Contains(err.Error(), "issuers.lab.acme.eab.hmac: not base64url") || strings.Contains(err.Error(), macKey) {
		t.Errorf("got %v, want a refusal that does not quote the key", err)
	}
	l.issuer.EAB.HMAC = config.Secret{Ref: "env:LAB_NO_SUCH"}
	if _, err = acme.New(l.issuer, acme.Options{}); err == nil || !strings.Contains(err.Error(), "LAB_NO_SUCH") {
		t.Errorf("got %v, want the missing variable", err)
	}
}

func TestRolloverReplacesTheKeyAndCanBeRepeated(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	old := l.register(t)
	next, err := acme.NewKey(config.P384)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second does not know of the first
		rolled, err := l.Rollover(t.Context(), old, next)
		if err != nil {
			t.Fatal(err)
		}
		if rolled.URL != old.URL || rolled.Key != next || old.Key == next {
			t.Errorf("got %+v, want %s with the new key", rolled, old.URL)
		}
		order(t, l.CA, rolled, "a.example.test")
	}
	_, err = l.NewOrder(t.Context(), old, acme.Request{Names: []string{"b.example.test"}})
	if err == nil {
		t.Error("the old key still works")
	}
	fresh, err := l.Rollover(t.Context(), &acme.Account{URL: old.URL, Key: next}, nil)
	if err != nil {
		t.Fatal(err)
	}
	order(t, l.CA, fresh, "c.example.test")
	if _, err := l.Rollover(t.Context(), old, next); err == nil {
		t.Error("two retired keys changed the account's key")
	}
}

func TestRolloverToTheKeyOfAnotherAccountIsRefused(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a, b := l.register(t), l.register(t)
	_, err := l.Rollover(t.Context(), a, b.Key)
	refused(t, err, acme.BadRequest, "the new key is that of "+b.URL)
	order(t, l.CA, a, "a.example.test")
}

func TestLostAccountIsSaidToBe(t *testing.T) {
	t.Parallel()
	l := start(t, acmelab.CAOptions{}, nil)
	a := l.register(t)
	o := order(t, l.CA, a, "a.example.test")
	l.pebble.ForgetAccounts()
	_, err := l.NewOrder(t.Context(), a, acme.Request{Names: []string{"a.example.test"}})
	refused(t, err, acme.AccountLost, "place the order", "registers a new account")
	_, err = l.GetOrder(t.Context(), a, o.URL)
	refused(t, err, acme.AccountLost)
	again, err := l.Register(t.Context(), a.Key)
	if err != nil {
		t.Fatal(err)
	}
	if again.URL == a.URL {
		t.Error("the account was not lost")
	}
	order(t, l.CA, again, "a.example.test")
}
