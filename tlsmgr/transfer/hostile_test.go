package transfer_test

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edge/config"
	"edge/tlsmgr/transfer"
)

// plant writes a certificate where certmagic would, whatever is in it.
func plant(t *testing.T, dir, site string, chain, key []byte) {
	t.Helper()
	at := filepath.Join(dir, "certificates", "issuer", site)
	if err := os.MkdirAll(at, 0o700); err != nil {
		t.Fatal(err)
	}
	for ext, data := range map[string][]byte{".crt": chain, ".key": key} {
		if err := os.WriteFile(filepath.Join(at, site+ext), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever can write to the source can write one of these.
func TestOneBadCertificateKeepsNoOtherFromBeingImported(t *testing.T) {
	ca, dir := newTestCA(t), t.TempDir()
	chain, key := ca.pair(config.P256, "big.test")
	_, ca1, _ := bytes.Cut(chain, []byte("-----END CERTIFICATE-----\n"))
	big := append(bytes.Clone(chain), bytes.Repeat(ca1, 900<<10/len(ca1))...)
	plant(t, dir, "a-big", big, key)
	chain, key = ca.pair(config.P256, strings.Repeat("/", 100))
	plant(t, dir, "b-name", chain, key)
	chain, key = ca.pair(config.P256, "\x1b[2Jevil.test")
	plant(t, dir, "c-escape", chain, key)
	chain, _ = ca.pair(config.P256, "slow.test")
	plant(t, dir, "d-slow", chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: make([]byte, 100<<10)}))
	chain, key = ca.pair(config.P256, "good.test")
	plant(t, dir, "e-good", chain, key)

	got := outcome(run(t, openStore(t, "file://"+dir), newVault(t), transfer.Options{All: true}))
	for source, want := range map[string]string{
		"a-big.crt":    "larger than",
		"b-name.crt":   "invalid key",
		"c-escape.crt": "failed: certificate is for a name that no host can have",
		"d-slow.crt":   "failed: private key is larger than any of TLS",
		"e-good.crt":   "imported good.test: ",
	} {
		if !strings.Contains(got[source], want) || strings.Contains(got[source], "imported") != (source == "e-good.crt") {
			t.Errorf("%s: %q, want %q", source, got[source], want)
		}
	}
}
