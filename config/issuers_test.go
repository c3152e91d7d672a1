package config

import (
	"testing"
	"time"
)

func TestEveryKeyOfAnIssuerArrives(t *testing.T) {
	cfg := load(t, "testdata/good/issuers.yaml")
	cfg.Issuers["le"].Pos, cfg.Issuers["google"].Pos, cfg.Issuers["lab"].Pos = Pos{}, Pos{}, Pos{}
	equal(t, "le", cfg.Issuers["le"], &Issuer{
		Name: "le", Directory: letsEncrypt, Staging: letsEncryptStaging, Email: "ops@example.com", Profile: "tlsserver",
		Chains:    []string{"ISRG Root X2", "ISRG Root X1"},
		Quotas:    Quotas{Orders: Quota{Count: 300, Per: 3 * time.Hour}, Domain: Quota{Count: 50, Per: 168 * time.Hour}, Duplicates: Quota{Off: true}},
		Challenge: DNS01, Providers: []string{"cf"},
	})
	off := Quota{Off: true}
	equal(t, "google", cfg.Issuers["google"], &Issuer{
		Name: "google", Directory: googleTrust, EAB: &EAB{Secret{"credential:eab_id"}, Secret{"credential:eab_hmac"}}, Quotas: Quotas{off, off, off, off},
		Challenge: DNSPersist01, Resolvers: []string{"1.1.1.1:53"}, Authoritative: Authoritative{Off: true},
	})
	equal(t, "zerossl", [2]any{cfg.Issuers["zerossl"].Directory, cfg.Issuers["zerossl"].Challenge}, [2]any{zeroSSL, HTTP01})
	equal(t, "private", [2]any{cfg.Issuers["private"].Staging, cfg.Issuers["private"].Challenge}, [2]any{"https://test.example.com/dir", TLSALPN01})
	equal(t, "5/h", cfg.Issuers["private"].Quotas, Quotas{Failed: Quota{Count: 5, Per: time.Hour}})
	equal(t, "lab", cfg.Issuers["lab"], &Issuer{Name: "lab", Internal: &Internal{90 * day}})
	equal(t, "plain", cfg.Issuers["plain"].Internal, &Internal{7 * day})
	equal(t, "two kinds of keys", cfg.Certificates["a"].KeyTypes, []KeyType{P256, RSA2048})
	equal(t, "fallback", cfg.Certificates["a"].Issuers, []string{"le", "google"})
	equal(t, "address", cfg.Certificates["c"].Names, []string{"8.8.8.8"})
	equal(t, "default kinds of keys", cfg.Bundles.KeyTypes, []KeyType{P384, P256})
	equal(t, "storage keys", cfg.Storage.Keys, []Secret{{"credential:new"}, {"file:testdata/good/old"}})
	equal(t, "snapshot", cfg.Storage.Snapshot, "testdata/good/snap")
	equal(t, "telemetry", cfg.Telemetry, Telemetry{"127.0.0.1:9901"})
	equal(t, "webhook", cfg.Webhook, Secret{"credential:webhook"})
	equal(t, "local", cfg.IssuersFor("c.internal"), []string{"lab"})
}

func TestEveryKeyOfAProviderArrives(t *testing.T) {
	cfg := load(t, "testdata/good/providers.yaml")
	equal(t, "google", cfg.Providers["google"].GoogleCloudDNS, &GoogleCloudDNS{"example.com:edge", Secret{"file:testdata/good/key.json"}})
	equal(t, "machine", cfg.Providers["machine"].GoogleCloudDNS, &GoogleCloudDNS{})
	equal(t, "azure", cfg.Providers["azure"].Azure, &AzureDNS{
		"00000000-0000-0000-0000-000000000000", "dns_(prod)",
		"11111111-0000-0000-0000-000000000000", "22222222-0000-0000-0000-000000000000",
		Secret{"credential:azure"},
	})
	equal(t, "identity", cfg.Providers["identity"].Azure, &AzureDNS{SubscriptionID: "s", ResourceGroup: "g", ClientID: "user-assigned"})
	equal(t, "exec", cfg.Providers["exec"].Exec, &ExecDNS{[]string{"/usr/local/bin/change-dns", "-v", "-v", ""}, 2 * time.Minute})
	equal(t, "slow", cfg.Providers["slow"].Exec.Timeout, 10*time.Minute)
	equal(t, "zones", cfg.Providers["exec"].Zones, []string{"e.example.com"})
	for name, want := range map[string]float64{"google": 5, "azure": 5, "exec": 10, "aws": 0.5, "slow": 0} {
		equal(t, "rate of "+name, cfg.Providers[name].Rate, want)
	}
}

func TestPoliciesOfARouteAddUp(t *testing.T) {
	cfg := load(t, "testdata/good/client_certificates.yaml")
	both := TLS{MinVersion: 0x0304, ClientCA: "testdata/good/ours.pem"}
	equal(t, "one after the other", cfg.Routes[0].TLS, both)
	equal(t, "the other way round", cfg.Routes[1].TLS, both)
	equal(t, "one of them", cfg.Routes[3].TLS, TLS{ClientCA: "testdata/good/ours.pem"})
	equal(t, "both in one policy", cfg.Routes[4].TLS, TLS{MinVersion: 0x0304, ClientCA: "testdata/good/theirs.pem"})
}

func TestAReplicaThatOnlyServesNeedsNoCredentials(t *testing.T) {
	cfg := load(t, "testdata/good/serve.yaml")
	equal(t, "role", cfg.ServeOnly, true)
	equal(t, "providers", len(cfg.Providers), 0)
	equal(t, "issuers", cfg.Bundles.Issuers, []string{"le", "google"})
	equal(t, "keys", cfg.Storage.Keys, []Secret{{"credential:new"}, {"credential:old"}})
}

func TestTheShortFormProvesWithoutDNSToo(t *testing.T) {
	cfg := load(t, "testdata/good/short_challenge.yaml")
	equal(t, "challenge", cfg.Issuers["acme"].Challenge, TLSALPN01)
	equal(t, "providers", len(cfg.Providers)+len(cfg.Issuers["acme"].Providers), 0)
	equal(t, "canonical", cfg.Routes[0].Hosts, []string{"2001:4860:4860::8888"})
}
