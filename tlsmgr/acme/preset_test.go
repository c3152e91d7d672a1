package acme_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"edge/config"
	"edge/tlsmgr/acme"
)

const (
	letsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	letsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
	google             = "https://dv.acme-v02.api.pki.goog/directory"
	googleStaging      = "https://dv.acme-v02.test-api.pki.goog/directory"
	zeroSSL            = "https://acme.zerossl.com/v2/DV90"
)

func TestStagingIsKnownWhereThereIsOne(t *testing.T) {
	t.Parallel()
	for directory, want := range map[string]string{
		letsEncrypt: letsEncryptStaging, letsEncryptStaging: letsEncryptStaging,
		google: googleStaging, googleStaging: googleStaging, zeroSSL: "", "": "",
	} {
		if got := acme.StagingOf(directory); got != want {
			t.Errorf("%q: %q, want %q", directory, got, want)
		}
	}
}

func TestQuotasAreTheCAsWhereNoneIsSet(t *testing.T) {
	t.Parallel()
	const week = 7 * 24 * time.Hour
	guard := config.Quotas{
		Orders: config.Quota{Count: 300, Per: 3 * time.Hour}, Domain: config.Quota{Off: true},
		Duplicates: config.Quota{Off: true}, Failed: config.Quota{Count: 10, Per: time.Hour},
	}
	limits := config.Quotas{
		Orders: guard.Orders, Domain: config.Quota{Count: 50, Per: week},
		Duplicates: config.Quota{Count: 5, Per: week}, Failed: config.Quota{Count: 5, Per: time.Hour},
	}
	for directory, want := range map[string]config.Quotas{
		letsEncrypt: limits, letsEncryptStaging: guard, google: guard, zeroSSL: guard,
	} {
		if got := acme.QuotasOf(&config.Issuer{Directory: directory}); got != want {
			t.Errorf("%s: %+v, want %+v", directory, got, want)
		}
	}
	set := config.Quotas{Orders: config.Quota{Off: true}, Domain: config.Quota{Count: 500, Per: week}}
	want := limits
	want.Orders, want.Domain = set.Orders, set.Domain
	issuer := &config.Issuer{Directory: letsEncrypt, Quotas: set}
	if got := acme.QuotasOf(issuer); got != want {
		t.Errorf("with two set: %+v, want %+v", got, want)
	}
	if issuer.Quotas != set {
		t.Error("the issuer was changed")
	}
}

func TestNamesOfACertificateAreBoundedByLetsEncryptsProfiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		directory, profile, listed string
		want                       acme.Profile
	}{
		{letsEncrypt, "", "classic tlsserver shortlived", acme.Profile{Name: "tlsserver", MaxNames: 25}},
		{letsEncryptStaging, "classic", "classic tlsserver", acme.Profile{Name: "classic", MaxNames: 100}},
		{letsEncrypt, "shortlived", "classic shortlived", acme.Profile{Name: "shortlived", MaxNames: 25}},
		{letsEncrypt, "", "classic", acme.Profile{Name: "classic", MaxNames: 100}},
		{letsEncrypt, "", "", acme.Profile{MaxNames: 100}},
		{letsEncrypt, "", "brandnew", acme.Profile{Name: "brandnew"}},
		{google, "", "", acme.Profile{}},
		{"https://letsencrypt.org.evil.test/directory", "", "classic", acme.Profile{Name: "classic"}},
		{"https://ca.test/directory", "", "z default a", acme.Profile{Name: "default"}},
		{"https://ca.test/directory", "", "z m a", acme.Profile{Name: "a"}},
	} {
		answer := through(func(req *http.Request) (*http.Response, error) {
			var profiles []string
			for p := range strings.FieldsSeq(c.listed) {
				profiles = append(profiles, fmt.Sprintf("%q:%q", p, "about "+p))
			}
			body := `{"newNonce":"n","newAccount":"a","newOrder":"o","meta":{"profiles":{` + strings.Join(profiles, ",") + `}}}`
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
		})
		ca, err := acme.New(&config.Issuer{Name: "a", Directory: c.directory, Profile: c.profile}, acme.Options{HTTPClient: &http.Client{Transport: answer}})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ca.Profile(t.Context()); err != nil || got != c.want {
			t.Errorf("%s %q of %q: %+v, %v, want %+v", c.directory, c.profile, c.listed, got, err, c.want)
		}
	}
}
