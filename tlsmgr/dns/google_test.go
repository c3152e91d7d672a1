package dns

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"edge/config"
	"edge/internal/acmelab"
)

func startGoogle(t *testing.T, o acmelab.GoogleOptions) (*acmelab.Google, *acmelab.DNS) {
	t.Helper()
	o.DNS = acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.test", "acme.test"}})
	return acmelab.NewGoogle(t, o), o.DNS
}

func googleOptions(t *testing.T, f *acmelab.Google) Options {
	t.Helper()
	return Options{
		HTTPClient: f.HTTPClient(),
		Providers:  []*config.Provider{{Name: "cloud", GoogleCloudDNS: &config.GoogleCloudDNS{Credentials: secret(t, f.Credentials)}}},
	}
}

func TestGooglePublicZoneIsChosenBesideItsPrivateTwin(t *testing.T) {
	t.Parallel()
	f, d := startGoogle(t, acmelab.GoogleOptions{Private: []string{"example.test"}})
	p := present(t, solver(t, d, googleOptions(t, f)), Record{challenge, "v"})
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if got := f.Requests()["token"]; got != 1 {
		t.Errorf("%d tokens, want one for all requests", got)
	}
}

func TestGoogleRefusalsAreExplainedWithoutTheKey(t *testing.T) {
	t.Parallel()
	f, d := startGoogle(t, acmelab.GoogleOptions{})
	key := f.Credentials[strings.Index(f.Credentials, "-----BEGIN")+40:][:60]
	for name, c := range map[string]struct {
		status     int
		code, wait string
		op         string
		want       []string
	}{
		"rights":   {403, "forbidden", "", "changes.create", []string{"not allowed: HTTP 403 forbidden", "dns.changes.create", "roles/dns.admin"}},
		"api off":  {403, "accessNotConfigured", "", "managedZones.list", []string{"gcloud services enable dns.googleapis.com"}},
		"token":    {401, "authError", "", "changes.create", []string{"the credentials are refused", "clock"}},
		"too many": {429, "rateLimitExceeded", "0", "changes.create", []string{"too many requests: HTTP 429", "Retry-After: 0", "lower rate"}},
		"quota":    {403, "rateLimitExceeded", "0", "changes.create", []string{"too many requests: HTTP 403", "quota"}},
		"trouble":  {503, "backendError", "0", "changes.create", []string{"Google Cloud DNS is in trouble", "status.cloud.google.com"}},
		"bad":      {400, "invalid", "", "changes.create", []string{"HTTP 400 invalid: acmelab was told to fail"}},
	} {
		f.SetFail(refuseOp(c.op, &acmelab.Refusal{Status: c.status, Code: c.code, RetryAfter: c.wait}))
		_, err := solver(t, d, googleOptions(t, f)).Present(t.Context(), []Record{{challenge, "v"}})
		wantError(t, err, append(c.want, "provider cloud (googleclouddns)", "zone example.test")...)
		if err != nil && strings.Contains(err.Error(), key) {
			t.Errorf("%s: key in %v", name, err)
		}
	}
}

func TestGoogleZonesAndProjectsThatAreWrongAreExplained(t *testing.T) {
	t.Parallel()
	f, d := startGoogle(t, acmelab.GoogleOptions{})
	elsewhere := acmelab.NewDNS(t, acmelab.DNSOptions{Zones: []string{"example.invalid"}})
	_, err := solver(t, elsewhere, googleOptions(t, f)).Present(t.Context(), []Record{{"_acme-challenge.example.invalid", "v"}})
	wantError(t, err, "project lab-project has no managed zone of this name", "the zone has to be public")
	o := googleOptions(t, f)
	o.Providers[0].GoogleCloudDNS.Project = "other"
	_, err = solver(t, d, o).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "not allowed: HTTP 403 forbidden")
	other, _ := startGoogle(t, acmelab.GoogleOptions{}) // with a key of its own
	o = googleOptions(t, f)
	o.Providers[0].GoogleCloudDNS.Credentials = secret(t, other.Credentials)
	_, err = solver(t, d, o).Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "no token for these credentials: invalid_grant Invalid JWT Signature", "deleted or disabled")
}

func TestGoogleCredentialsThatAreNoneAreRefusedByNew(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"{", `{"type":"authorized_user","client_secret":"top-secret"}`, "top-secret"} {
		_, err := New(Options{Providers: []*config.Provider{{Name: "g", GoogleCloudDNS: &config.GoogleCloudDNS{Credentials: secret(t, text)}}}})
		wantError(t, err, "DNS provider g", "not the JSON of a service account's key", "workload identity")
		if strings.Contains(err.Error(), "top-secret") {
			t.Errorf("secret in %v", err)
		}
	}
}

func TestGoogleDefaultCredentialsAreLookedForWhenNeeded(t *testing.T) {
	f, d := startGoogle(t, acmelab.GoogleOptions{})
	path := filepath.Join(t.TempDir(), "account.json")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
	o := googleOptions(t, f)
	o.Providers[0].GoogleCloudDNS.Credentials = config.Secret{}
	s := solver(t, d, o)
	_, err := s.Present(t.Context(), []Record{{challenge, "v"}})
	wantError(t, err, "no Google credentials", "GOOGLE_APPLICATION_CREDENTIALS")
	if err := os.WriteFile(path, []byte(f.Credentials), 0o600); err != nil {
		t.Fatal(err)
	}
	present(t, s, Record{challenge, "v"})
	if got := d.TXT(challenge); len(got) != 1 {
		t.Errorf("values %q", got)
	}
}
