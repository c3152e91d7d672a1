package store_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"edge/internal/acmelab"
	"edge/tlsmgr/store"
	"edge/tlsmgr/store/storetest"
)

func TestAzureStoreKeepsTheContract(t *testing.T) {
	t.Parallel()
	azurite := acmelab.NewAzurite(t, bucket)
	var places atomic.Int32
	storetest.Run(t, func(t *testing.T) string {
		t.Helper()
		return azurite.StoreURL(bucket, "some/prefix/"+strconv.Itoa(int(places.Add(1))))
	})
}

// One Azurite for all: it takes seconds to start.
func TestAzurite(t *testing.T) {
	azurite := acmelab.NewAzurite(t, bucket)
	for name, test := range map[string]func(*testing.T, *acmelab.Azurite){
		"RefusalsAreExplained": azuriteRefuses, "ConnectionStringIsEnough": azuriteByString,
		"WriteWhoseReplyWasLostSucceeds": azuriteLoses, "ProbeRefusesStorageThatIgnoresConditions": azuriteIgnores,
	} {
		t.Run(name, func(t *testing.T) {
			defer azurite.SetFail(nil)
			test(t, azurite)
		})
	}
}

func azureURL(bucket, endpoint string) string {
	return "azblob://" + bucket + "/prefix?account=" + acmelab.AzuriteAccount + "&endpoint=" + url.QueryEscape(endpoint)
}

// newAzureStore opens a store on handler.
func newAzureStore(t *testing.T, handler http.Handler) *store.Store {
	t.Helper()
	return newStore(t, azureURL(bucket, serve(t, handler)), store.Options{})
}

// refusingAzure answers every request as Azure does when it refuses.
func refusingAzure(status int, code string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Ms-Error-Code", code)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>%s</Code><Message>hunter2\nTime:now</Message></Error>", code)
	})
}

func TestRefusalsOfAzureSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status     int
		code, want string
	}{
		{404, "ContainerNotFound", "container edge-test does not exist (create it"},
		{409, "ContainerBeingDeleted", "container edge-test is being deleted ("},
		{403, "AuthorizationFailure", "access to container edge-test is denied (does the account's firewall admit this machine"},
		{403, "AuthorizationPermissionMismatch", "access to container edge-test is denied (assign the role Storage Blob Data Contributor"},
		{403, "SomethingNew", "access to container edge-test is denied (assign the role"},
		{403, "AuthenticationFailed", "the credentials for container edge-test are not accepted (check account, AZURE_STORAGE_KEY"},
		{401, "InvalidAuthenticationInfo", "the credentials for container edge-test are not accepted (check the tenant"},
		{403, "KeyBasedAuthenticationNotPermitted", "refuses keys (unset AZURE_STORAGE_KEY"},
		{409, "BlobImmutableDueToPolicy", "container edge-test forbids changes (edge needs one without an immutability policy)"},
		{503, "ServerBusy", "the server of container edge-test is busy (edge tries again by itself)"},
		{400, "Odd\n", "container edge-test answered 400 Odd"},
	} {
		err := newAzureStore(t, refusingAzure(c.status, c.code)).Probe(t.Context())
		wantText(t, err, c.want, "probe storage azblob://edge-test/prefix?account=devstoreaccount1&endpoint=")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%v reads like an answer about a key", err)
		}
	}
}

func azuriteRefuses(t *testing.T, azurite *acmelab.Azurite) {
	t.Helper()
	missing := newStore(t, azurite.StoreURL("no-such-container", ""), store.Options{})
	_, loadErr := missing.Load(t.Context(), "key")
	_, statErr := missing.Stat(t.Context(), "key")
	_, listErr := missing.ListVersions(t.Context(), "")
	_, swapErr := missing.Swap(t.Context(), "key", nil, "0x1")
	for _, err := range []error{missing.Probe(t.Context()), loadErr, statErr, listErr, swapErr, missing.Delete(t.Context(), "key")} {
		wantText(t, err, "container no-such-container does not exist (create it")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%v reads like an answer about a key", err)
		}
	}
	t.Setenv("AZURE_STORAGE_KEY", "aHVudGVyMg==")
	wantText(t, newStore(t, azurite.StoreURL(bucket, ""), store.Options{}).Probe(t.Context()), "access to container edge-test is denied (")
}

func TestCredentialsOfAzureThatCannotWorkAreExplained(t *testing.T) {
	open := func(rawURL string) error {
		_, err := newStore(t, rawURL, store.Options{}).Load(t.Context(), "key")
		return err
	}
	wantText(t, open("azblob://edge-test"), "no storage account is named (add ?account=… to the storage URL or set AZURE_STORAGE_ACCOUNT)")
	wantText(t, open("azblob://edge-test?endpoint=https://127.0.0.1:1/a"), "AZURE_STORAGE_KEY belongs to no account (add ?account=")
	t.Setenv("AZURE_STORAGE_KEY", "hunter2!")
	wantText(t, open("azblob://edge-test?account=acme"), "AZURE_STORAGE_KEY is no key of a storage account (copy key1")
	t.Setenv("AZURE_STORAGE_KEY", "")
	wantText(t, open("azblob://edge-test?account=acme&endpoint=http://127.0.0.1:1"), "a token would be sent unencrypted (use an https endpoint, or set AZURE_STORAGE_KEY)")
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountName=other;AccountKey=hunter2")
	wantText(t, open("azblob://edge-test?account=acme"), "AZURE_STORAGE_CONNECTION_STRING is for another account than the storage URL (unset it")
	wantText(t, open("azblob://edge-test"), "AZURE_STORAGE_CONNECTION_STRING cannot be used (copy it")
}

func TestUnreachableAzureIsExplained(t *testing.T) {
	t.Parallel()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	wantText(t, newStore(t, azureURL(bucket, closed.URL), store.Options{}).Probe(t.Context()), closed.URL+" refuses connections (is the storage running")
	_, err := newStore(t, azureURL(bucket, "http://acme.edge-test.invalid"), store.Options{}).Load(t.Context(), "key")
	wantText(t, err, "host acme.edge-test.invalid of the storage cannot be resolved (check account and endpoint")
	s := newAzureStore(t, http.HandlerFunc(hang))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Load(ctx, "key"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the caller's deadline", err)
	}
}

func azuriteByString(t *testing.T, azurite *acmelab.Azurite) {
	t.Helper()
	t.Setenv("AZURE_STORAGE_KEY", "")
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "DefaultEndpointsProtocol=http;AccountName="+acmelab.AzuriteAccount+
		";AccountKey="+acmelab.AzuriteKey+";BlobEndpoint="+azurite.Endpoint+";")
	if err := newStore(t, "azblob://"+bucket+"/connection", store.Options{}).Probe(t.Context()); err != nil {
		t.Error(err)
	}
	if n := azurite.Count(http.MethodPut, "/"+bucket+"/connection/edge-probe/"); n != 4 {
		t.Errorf("got %d writes below the prefix, want 4", n)
	}
}

// Azure may answer with fewer blobs than there are, even with none, and lists
// the directories of a hierarchical namespace.
func TestListingOfAzureReadsEveryPage(t *testing.T) {
	t.Parallel()
	s := newAzureStore(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			w.Header().Set("X-Ms-Meta-Hdi_isfolder", "true")
			return
		}
		w.Header().Set("Content-Type", "application/xml")
		blob := func(name, more string) string {
			return `<Blob><Name>prefix/` + name + `</Name><Properties><Last-Modified>Fri, 02 Jan 2026 03:04:05 GMT</Last-Modified>` +
				`<Etag>0x8D1</Etag><Content-Length>3</Content-Length>` + more + `</Properties></Blob>`
		}
		body := map[string]string{
			"":  "<Blobs/><NextMarker>2</NextMarker>",
			"2": "<Blobs>" + blob("d", "<ResourceType>directory</ResourceType>") + blob("d/a", "<ResourceType>file</ResourceType>") + "</Blobs><NextMarker>3</NextMarker>",
			"3": "<Blobs>" + blob("d/b", "") + "</Blobs><NextMarker/>",
		}[r.URL.Query().Get("marker")]
		fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="%s">%s</EnumerationResults>`, bucket, body)
	}))
	got, err := s.ListVersions(t.Context(), "d")
	if err != nil || len(got) != 2 || got[0].Key != "d/a" || got[1].Key != "d/b" {
		t.Fatalf("got %+v, %v; want d/a and d/b", got, err)
	}
	if o := got[1]; o.Version != "0x8D1" || o.Size != 3 || o.Modified.Year() != 2026 {
		t.Errorf("got %+v, want version 0x8D1, 3 bytes, 2026", o)
	}
	if info, err := s.Stat(t.Context(), "d"); err != nil || info.IsTerminal {
		t.Errorf("got %+v, %v; want a directory", info, err)
	}
}

func azuriteLoses(t *testing.T, azurite *acmelab.Azurite) {
	t.Helper()
	s := newStore(t, azurite.StoreURL(bucket, "lost"), store.Options{})
	var v store.Version
	for _, value := range []string{"1", "2"} {
		azurite.SetFail(onMethod(http.MethodPut, 1, acmelab.Lose))
		next, err := s.Swap(t.Context(), "key", []byte(value), v)
		if err != nil {
			t.Fatal(err)
		}
		got, found, err := s.LoadVersion(t.Context(), "key")
		if err != nil || string(got) != value || found != next {
			t.Errorf("got %q, version %q, %v; want %s, %q", got, found, err, value, next)
		}
		v = next
	}
	for _, old := range []store.Version{"", "0x1"} {
		azurite.SetFail(onMethod(http.MethodPut, 1, http.StatusInternalServerError))
		if _, err := s.Swap(t.Context(), "key", []byte("3"), old); !errors.Is(err, store.ErrConflict) {
			t.Errorf("old %q: got %v, want a conflict with another writer, also after a retry", old, err)
		}
	}
	azurite.SetFail(onMethod(http.MethodDelete, 1, acmelab.Lose))
	if err := s.Delete(t.Context(), "key"); err != nil {
		t.Error(err)
	}
	azurite.SetFail(onMethod(http.MethodGet, 100, http.StatusServiceUnavailable))
	before := azurite.Count(http.MethodGet, "/"+bucket+"/lost/key")
	_, err := s.Load(t.Context(), "key")
	if n := azurite.Count(http.MethodGet, "/"+bucket+"/lost/key") - before; err == nil || n != 3 {
		t.Errorf("got %v after %d requests, want an error after 3", err, n)
	}
}

func TestLargeBlobsAreNotRead(t *testing.T) {
	for _, length := range []string{"", strconv.Itoa(store.MaxObject + 1)} {
		s := newAzureStore(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			_, _ = w.Write(make([]byte, store.MaxObject+1))
		}))
		if _, err := s.Load(t.Context(), "key"); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("length %q: got %v, want %v", length, err, store.ErrTooLarge)
		}
	}
}

func TestAzureThatTellsNoVersionIsRefused(t *testing.T) {
	s := newAzureStore(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusCreated)
		}
	}))
	const want = "container edge-test answers without an ETag (edge needs a storage with conditional writes)"
	_, err := s.Load(t.Context(), "key")
	wantText(t, err, want)
	wantText(t, s.Store(t.Context(), "key", nil), want)
}

// A shared access signature does not cover headers, so that a front can strip
// them.
func azuriteIgnores(t *testing.T, azurite *acmelab.Azurite) {
	t.Helper()
	key, err := container.NewSharedKeyCredential(acmelab.AzuriteAccount, acmelab.AzuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	client, err := container.NewClientWithSharedKeyCredential(azurite.Endpoint+"/"+bucket, key, nil)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := client.GetSASURL(sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true}, time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, token, _ := strings.Cut(signed, "?")
	t.Setenv("AZURE_STORAGE_CONNECTION_STRING", "BlobEndpoint="+azurite.Endpoint+";SharedAccessSignature="+token)
	for header, want := range map[string]string{
		"":              "",
		"If-None-Match": "ignoring If-None-Match",
		"If-Match":      "ignoring If-Match",
	} {
		azurite.SetFail(func(r *http.Request) int {
			r.Header.Del(header)
			return 0
		})
		s := newStore(t, "azblob://"+bucket+"/prefix", store.Options{})
		err := s.Probe(t.Context())
		if header == "" {
			if err != nil {
				t.Errorf("with a signature and all headers: %v", err)
			}
			continue
		}
		if !errors.Is(err, store.ErrUnsafe) {
			t.Errorf("without %s: got %v, want %v", header, err, store.ErrUnsafe)
		}
		wantText(t, err, want, "(use a storage with conditional writes")
		if left, err := s.List(t.Context(), "", true); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, %v", left, err)
		}
	}
}

// In a process of its own, whose trusted authorities can be chosen.
func TestManagedIdentityIsUsedWithoutAKey(t *testing.T) {
	identity := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Identity-Header") != "test-secret-value" || r.URL.Query().Get("resource") != "https://storage.azure.com" {
			http.Error(w, "no", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"hunter2","expires_on":"%d","resource":"https://storage.azure.com","token_type":"Bearer"}`, time.Now().Add(time.Hour).Unix())
	}))
	asked := make(chan string, 100)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Header.Get("Authorization")
		refusingAzure(http.StatusForbidden, "AuthorizationPermissionMismatch").ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SSL_CERT_FILE", ca)
	t.Setenv("SSL_CERT_DIR", t.TempDir())
	t.Setenv("AZURE_STORAGE_KEY", "")
	t.Setenv("IDENTITY_ENDPOINT", identity)
	t.Setenv("IDENTITY_HEADER", "test-secret-value")
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
	cmd, _, stderr := start(t, "probe", "azblob://edge-test?endpoint="+url.QueryEscape(server.URL))
	if err := cmd.Wait(); err == nil {
		t.Fatal("the probe succeeded, want it refused")
	}
	wantText(t, errors.New(strings.TrimSpace(stderr.String())), "access to container edge-test is denied (assign the role Storage Blob Data Contributor")
	if got := <-asked; got != "Bearer hunter2" {
		t.Errorf("asked with %q, want the token of the identity", got)
	}
	t.Setenv("IDENTITY_HEADER", "wrong")
	cmd, _, stderr = start(t, "probe", "azblob://edge-test?endpoint="+url.QueryEscape(server.URL))
	_ = cmd.Wait()
	wantText(t, errors.New(strings.TrimSpace(stderr.String())), "no credentials for container edge-test (set AZURE_STORAGE_KEY or AZURE_STORAGE_CONNECTION_STRING, or run with workload identity")
}
