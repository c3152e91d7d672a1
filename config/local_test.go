package config

import (
	"testing"
	"time"
)

func TestLocalNamesAreThoseThatNoPublicCAMaySign(t *testing.T) {
	for _, name := range []string{
		"localhost", "a.localhost", "*.a.internal", "gpu7", "a.test", "printer.local", "x.home.arpa", "home.arpa", "*.localhost",
		"10.0.0.1", "192.168.1.1", "127.0.0.1", "169.254.1.1", "100.64.0.1", "203.0.113.9", "240.0.0.1", "::1", "fd00::1", "fe80::1", "2001:db8::1",
	} {
		if !IsLocal(name) {
			t.Errorf("%s is taken for public", name)
		}
	}
	for _, name := range []string{"example.com", "*.example.com", "internal.example.com", "a.test.co.uk", "xhome.arpa", "8.8.8.8", "100.128.0.1", "2001:4860:4860::8888"} {
		if IsLocal(name) {
			t.Errorf("%s is taken for local", name)
		}
	}
}

func TestPublicIssuersAreKnownByTheirDirectory(t *testing.T) {
	for directory, want := range map[string]bool{
		letsEncrypt: true, letsEncryptStaging: true, googleTrust: true, zeroSSL: true, "https://API.Buypass.com/acme/directory": true,
		"https://ca.corp.test/dir": false, "https://notletsencrypt.org/dir": false, "": false,
	} {
		if got := (&Issuer{Directory: directory}).Public(); got != want {
			t.Errorf("%s: public %v, want %v", directory, got, want)
		}
	}
	if (*Issuer)(nil).Public() {
		t.Error("no issuer is public")
	}
}

func TestLocalNamesBesideAPublicCAGoToEdgesOwn(t *testing.T) {
	cfg := load(t, "testdata/good/local_names.yaml")
	equal(t, "the CA nobody wrote", cfg.Issuers[InternalIssuer], &Issuer{Name: InternalIssuer, Internal: &Internal{7 * 24 * time.Hour}, Pos: Pos{1, 1}})
	equal(t, "hosts", cfg.Routes[0].Hosts, []string{"a.example.com", "a.localhost", "10.0.0.5", "2001:db8::5"})
	equal(t, "defaults", cfg.Bundles.Issuers, []string{"acme"})
	equal(t, "written names", cfg.Certificates["lab"].Issuers, []string{InternalIssuer})
	for name, want := range map[string]string{"a.example.com": "acme", "a.localhost": InternalIssuer, "10.0.0.5": InternalIssuer, "8.8.8.8": "acme"} {
		equal(t, name, cfg.IssuersFor(name), []string{want})
	}
}

func TestLocalNamesNeedNoIssuerAtAll(t *testing.T) {
	cfg := load(t, "testdata/good/only_local_names.yaml")
	equal(t, "issuers", len(cfg.Issuers), 1)
	equal(t, "gpu7", cfg.IssuersFor("gpu7"), []string{InternalIssuer})
	equal(t, "public names", len(cfg.IssuersFor("example.com")), 0)
	if load(t, "testdata/good/shortest.yaml").Issuers[InternalIssuer] != nil {
		t.Error("a CA of edge's own, and no name for it")
	}
}

func TestADirectoryOfOnesOwnKeepsItsLocalNames(t *testing.T) {
	cfg := load(t, "testdata/good/private_directory.yaml")
	equal(t, "issuers", len(cfg.Issuers), 2)
	equal(t, "defaults", cfg.Bundles.Issuers, []string{"ca"})
	equal(t, "a.corp.test", cfg.IssuersFor("a.corp.test"), []string{"ca"})
	equal(t, "written", cfg.Certificates["own"].Issuers, []string{"lab"})
}

func TestOfSeveralOwnCAsTheFirstInTheFileHasTheLocalNames(t *testing.T) {
	const file = "version: 1\nissuers:\n  zoo: {internal: {}}\n  lab: {internal: {lifetime: 1h}}\n  le: {acme: {}, challenge: {type: http-01}}\n" +
		"routes: [{host: [a.test, a.example.com], endpoints: ['http://10.0.0.1:80']}]\n"
	cfg, err := Parse("f", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "a.test", cfg.IssuersFor("a.test"), []string{"zoo"})
	equal(t, "a.example.com", cfg.IssuersFor("a.example.com"), []string{"le"})
	equal(t, "lab", cfg.Issuers["lab"].Internal.Lifetime, time.Hour)
}
