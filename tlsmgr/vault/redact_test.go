package vault_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"edge/tlsmgr/vault"
)

func TestNothingThatPrintsAnObjectTellsItsKey(t *testing.T) {
	const private = "-----BEGIN PRIVATE KEY-----"
	attempt := &vault.Attempt{Issuer: "acme", PrivateKey: private}
	for want, o := range map[string]any{
		"certificate id":               vault.Certificate{ID: "id", PrivateKey: private},
		"account ca.test-127e01d2f7f5": vault.Account{Directory: "https://ca.test", PrivateKey: private},
		"order id":                     vault.Order{ID: "id", Attempt: attempt},
		"authority internal":           vault.Authority{Issuer: "internal", RootKey: private, Key: private},
		"attempt at acme":              *attempt,
	} {
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", slog.Any("object", o))
		for _, text := range []string{fmt.Sprint(o), fmt.Sprintf("%+v", o), fmt.Sprintf("%#v", o), fmt.Sprintf("%v", []any{o}), log.String()} {
			if strings.Contains(text, "PRIVATE") || !strings.Contains(text, want) {
				t.Errorf("got %s, want %s", text, want)
			}
		}
	}
}
