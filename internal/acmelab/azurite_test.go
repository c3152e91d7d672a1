package acmelab_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"edge/internal/acmelab"
)

func TestAzuriteCountsAndFailsAsScripted(t *testing.T) {
	azurite := acmelab.NewAzurite(t, "certs")
	if len(azurite.Requests()) != 0 {
		t.Errorf("counted %v before the test", azurite.Requests())
	}
	key, err := container.NewSharedKeyCredential(acmelab.AzuriteAccount, acmelab.AzuriteKey)
	if err != nil {
		t.Fatal(err)
	}
	options := &container.ClientOptions{}
	options.Retry.MaxRetries = -1
	options.Transport = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	client, err := container.NewClientWithSharedKeyCredential(azurite.Endpoint+"/certs", key, options)
	if err != nil {
		t.Fatal(err)
	}
	upload := func(name string) error {
		_, err := client.NewBlockBlobClient(name).UploadBuffer(context.Background(), []byte("x"), nil)
		return err
	}
	if err := upload("a/b"); err != nil {
		t.Fatal(err)
	}
	for want, code := range map[int]bloberror.Code{
		http.StatusForbidden: bloberror.AuthorizationPermissionMismatch, http.StatusNotFound: bloberror.ContainerNotFound,
		http.StatusServiceUnavailable: bloberror.ServerBusy, http.StatusTeapot: bloberror.InternalError,
	} {
		azurite.SetFail(func(*http.Request) int { return want })
		if err := upload("refused"); !bloberror.HasCode(err, code) {
			t.Errorf("%d: got %v, want %s", want, err, code)
		}
	}
	for name, lost := range map[string]int{"cut": acmelab.Cut, "lost": acmelab.Lose} {
		azurite.SetFail(func(*http.Request) int { return lost })
		if upload(name) == nil {
			t.Errorf("%s: got an answer", name)
		}
	}
	azurite.SetFail(nil)
	page, err := client.NewListBlobsFlatPager(nil).NextPage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range page.Segment.BlobItems {
		names = append(names, *b.Name)
	}
	if got := strings.Join(names, " "); got != "a/b lost" {
		t.Errorf("got blobs %s, want a/b and lost", got)
	}
	if a, l := azurite.Requests()["PUT /certs/a/b"], azurite.Count(http.MethodGet, "/certs?list"); a != 1 || l != 1 {
		t.Errorf("counted %d and %d in %v, want one each", a, l, azurite.Requests())
	}
}

func TestAzuriteThatIsMissingOrBrokenIsAnError(t *testing.T) {
	t.Setenv("EDGE_AZURITE", t.TempDir())
	if _, err := acmelab.StartAzurite(acmelab.AzuriteOptions{}); !errors.Is(err, acmelab.ErrNoAzurite) {
		t.Errorf("got %v, want %v", err, acmelab.ErrNoAzurite)
	}
	t.Setenv("EDGE_AZURITE", "")
	t.Setenv("PATH", t.TempDir())
	if _, err := acmelab.StartAzurite(acmelab.AzuriteOptions{}); !errors.Is(err, acmelab.ErrNoAzurite) {
		t.Errorf("got %v, want %v", err, acmelab.ErrNoAzurite)
	}
	broken := filepath.Join(t.TempDir(), "azurite-blob")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho no\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("EDGE_AZURITE", broken)
	if _, err := acmelab.StartAzurite(acmelab.AzuriteOptions{}); err == nil || !strings.Contains(err.Error(), "did not start") {
		t.Errorf("got %v, want that it did not start", err)
	}
}
