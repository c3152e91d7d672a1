package vault_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"edge/config"
	"edge/tlsmgr/vault"
)

// Names in buckets that exist must not move.
func TestKeysAreThoseOfEarlierVersions(t *testing.T) {
	const directory = "https://acme-v02.api.letsencrypt.org/directory"
	for got, want := range map[string]string{
		vault.CertificateKey("*.a b/ä"):                                     "edge/v1/certificates/%2A.a%20b%2F%C3%A4.json",
		vault.AccountKey(vault.AccountID(directory, "ops@example.com")):     "edge/v1/accounts/acme-v02.api.letsencrypt.org-3423cdd0878f.json",
		vault.AccountKey(vault.AccountID(directory, "")):                    "edge/v1/accounts/acme-v02.api.letsencrypt.org-d0d4582495d5.json",
		vault.Certificates.Lease("*.example.com"):                           "certificate/*.example.com",
		vault.Orders.Lease("*.example.com"):                                 "certificate/*.example.com",
		vault.Accounts.Lease(vault.AccountID(directory, "")):                "account/acme-v02.api.letsencrypt.org-d0d4582495d5",
		vault.OrderKey("a"):                                                 "edge/v1/orders/a.json",
		vault.AuthorityKey("internal"):                                      "edge/v1/authorities/internal.json",
		vault.BudgetKey(vault.BudgetID(directory)):                          "edge/v1/budgets/acme-v02.api.letsencrypt.org-5e76d31517ec.json",
		vault.ReplicaKey("host/1"):                                          "edge/v1/replicas/host%2F1.json",
		vault.ChallengeKey(vault.ChallengeID(config.HTTP01, "token")):       "edge/v1/challenges/1dd861144a5511a320c1ba3f2108524c.json",
		vault.AccountID("no URL", "")[:5]:                                   "acme-",
		vault.ReplicaKey("..") + vault.Replicas.Lease("r"):                  "edge/v1/replicas/...jsonreplica/r",
		vault.Budgets.Lease("b") + vault.Authorities.Lease("a"):             "budget/bauthority/a",
		vault.Challenges.Lease("c") + vault.Kind("future").Lease("x"):       "challenge/cfuture/x",
		vault.Challenge{Kind: config.TLSALPN01, Token: "t", Name: "n"}.ID(): vault.ChallengeID(config.TLSALPN01, "n"),
		vault.Challenge{Kind: config.HTTP01, Token: "t", Name: "n"}.ID():    vault.ChallengeID(config.HTTP01, "t"),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestParseIsTheInverseOfKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind := rapid.SampledFrom(vault.Kinds()).Draw(t, "kind")
		id := rapid.String().Draw(t, "id")
		gotKind, gotID, ok := vault.Parse(kind.Key(id))
		if !ok || gotKind != kind || gotID != id {
			t.Errorf("%q: got %s %q %t", kind.Key(id), gotKind, gotID, ok)
		}
	})
}

func TestForeignKeysAreNobodys(t *testing.T) {
	for _, key := range []string{
		"", "edge/v1", "edge/v1/", "edge/v1/certificates", "edge/v1/certificates/a", "edge/v1/certificates/a/b.json", "edge/v1/other/a.json",
		"edge/v2/certificates/a.json", "certificates/a.json", "locks/a.json", "edge/v1/certificates/%61.json", "edge/v1/certificates/%.json",
		"edge/v1/certificates/*.json", "edge/v1/certificates/a.JSON",
	} {
		if kind, id, ok := vault.Parse(key); ok {
			t.Errorf("%q is %s %q", key, kind, id)
		}
	}
}

func TestSecretKindsAreThoseWithPrivateKeys(t *testing.T) {
	var secret []string
	for _, k := range append(vault.Kinds(), "future") {
		if k.Secret() {
			secret = append(secret, string(k))
		}
	}
	if got := strings.Join(secret, " "); got != "certificates accounts orders authorities" {
		t.Errorf("got %s", got)
	}
}
