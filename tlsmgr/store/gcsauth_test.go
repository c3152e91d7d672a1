package store_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edge/internal/acmelab"
	"edge/tlsmgr/store"
)

const googleToken = "ya29.hunter2"

// newLockedGCS starts a GCS server that wants googleToken.
func newLockedGCS(t *testing.T) *acmelab.GCS {
	t.Helper()
	g, err := acmelab.StartGCS(acmelab.GCSOptions{Buckets: []string{bucket}, Token: googleToken})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

func withCredentials(g *acmelab.GCS, credentials string) string {
	return g.StoreURL(bucket, "prefix") + "&credentials=" + url.QueryEscape(credentials)
}

// tokenServer answers as https://oauth2.googleapis.com/token does.
func tokenServer(t *testing.T, requests *atomic.Int32) string {
	t.Helper()
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if r.FormValue("assertion") == "" && r.FormValue("subject_token") != "from-the-cluster" {
			http.Error(w, "no proof", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600,"issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`, googleToken)
	}))
}

func writeJSON(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "credentials.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// serviceAccount writes a key file.
func serviceAccount(t *testing.T, tokenURL string) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return writeJSON(t, map[string]string{
		"type": "service_account", "client_email": "edge@acme.iam.gserviceaccount.com", "token_uri": tokenURL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
}

func TestKeyFileOfTheURLGivesOneTokenForAllRequests(t *testing.T) {
	var tokens atomic.Int32
	g := newLockedGCS(t)
	s := newStore(t, withCredentials(g, serviceAccount(t, tokenServer(t, &tokens))), store.Options{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.ListVersions(t.Context(), ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := s.Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if n := tokens.Load(); n != 1 {
		t.Errorf("got %d tokens, want one", n)
	}
}

func TestDefaultChainOfGoogleIsFollowed(t *testing.T) {
	var tokens atomic.Int32
	t.Run("key file of the environment", func(t *testing.T) {
		t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", serviceAccount(t, tokenServer(t, &tokens)))
		if err := newStore(t, withCredentials(newLockedGCS(t), "default"), store.Options{}).Probe(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("workload identity federation", func(t *testing.T) {
		subject := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(subject, []byte("from-the-cluster"), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", writeJSON(t, map[string]any{
			"type": "external_account", "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/k",
			"subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": tokenServer(t, &tokens) + "/v1/token",
			"credential_source": map[string]string{"file": subject},
		}))
		if err := newStore(t, withCredentials(newLockedGCS(t), "default"), store.Options{}).Probe(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("metadata server", func(t *testing.T) {
		metadata := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Metadata-Flavor") != "Google" || !strings.HasSuffix(r.URL.Path, "/service-accounts/default/token") {
				http.NotFound(w, r)
				return
			}
			tokens.Add(1)
			fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, googleToken)
		}))
		t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(metadata, "http://"))
		if err := newStore(t, withCredentials(newLockedGCS(t), "default"), store.Options{}).Probe(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if n := tokens.Load(); n != 3 {
		t.Errorf("got %d tokens, want one each", n)
	}
}

func TestCredentialsOfGoogleThatFailAreExplained(t *testing.T) {
	g := newLockedGCS(t)
	empty := writeJSON(t, map[string]string{"type": "hunter2"})
	broken := writeJSON(t, map[string]string{"type": "service_account", "private_key": "hunter2"})
	denied := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant","error_description":"hunter2"}`)
	}))
	for credentials, want := range map[string]string{
		"/no/such/file":            "file /no/such/file with credentials cannot be read: no such file or directory (check credentials in the storage URL)",
		empty:                      "file " + empty + " holds no credentials of Google (download the key",
		broken:                     "no credentials for bucket edge-test: ",
		serviceAccount(t, denied):  "no credentials for bucket edge-test: the token server answered 400 invalid_grant (set GOOGLE_APPLICATION_CREDENTIALS",
		"default":                  "no credentials for bucket edge-test: ",
		serviceAccount(t, "http:"): "no credentials for bucket edge-test: ",
	} {
		err := newStore(t, withCredentials(g, credentials), store.Options{}).Probe(t.Context())
		wantText(t, err, want)
	}
	wantText(t, newStore(t, g.StoreURL(bucket, ""), store.Options{}).Probe(t.Context()), "the credentials for bucket edge-test are not accepted")
	if n := g.Count("", ""); n != 1 {
		t.Errorf("%d requests, want only the one without credentials", n)
	}
}

func TestCallerNeedNotWaitForTheTokenServer(t *testing.T) {
	release := make(chan struct{})
	silent := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(func() { close(release) })
	s := newStore(t, withCredentials(newLockedGCS(t), serviceAccount(t, silent)), store.Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Load(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the caller's deadline", err)
	}
}
